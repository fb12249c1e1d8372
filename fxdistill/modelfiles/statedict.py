"""State dicts: finding one in a checkpoint, making its names plain, fitting it to a module.

Names are made plain by dropping ``_orig_mod.`` (``torch.compile``) and ``module.`` (DDP, averaged models). A
prefix that all names share (``model.`` of a Lightning module) is dropped where the names fit only without it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor, nn

from fxdistill import files
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import ModelError
from fxdistill.modelfiles import kinds
from fxdistill.modelfiles.inert import Inert
from fxdistill.registry import suggestion

ENTRIES = (
    "state_dict", "model_state_dict", "model", "net", "network", "module", "weights",
    "ema", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model",
)  # fmt: skip
_SHOWN = 3


def save_state_dict(module: nn.Module, path: str | Path) -> None:
    """Write a plain state dict that ``load_state_dict`` takes without fxdistill, whole or not at all.

    Raises:
        PlanError: The file cannot be written there.
        StorageError: The disk is full.
    """
    files.write_bytes(Path(path), state_dict_bytes(module))


def state_dict_bytes(module: nn.Module) -> bytes:
    """The bytes of :func:`save_state_dict`: tensors detached, on the CPU and contiguous."""
    return kinds.to_bytes(portable(module))


def portable(module: nn.Module) -> dict[str, Any]:
    """The module's state dict with tensors detached, on the CPU, contiguous, without spare storage."""
    state: dict[str, Any] = module.state_dict()
    for name, value in state.items():
        if isinstance(value, Tensor):
            tensor = value.detach().cpu().contiguous()
            whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            state[name] = tensor if whole else tensor.clone()
    return state


def is_state_dict(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value maps names to tensors, and holds nothing else."""
    return (
        isinstance(value, Mapping)
        and any(isinstance(v, Tensor) for v in value.values())
        and all(isinstance(k, str) and (isinstance(v, Tensor) or _is_extra(k, v)) for k, v in value.items())
    )


def _is_extra(name: str, value: object) -> bool:
    return "_extra_state" in name and not isinstance(value, Inert)


def find(content: object, *, where: str, entry: str | None = None) -> tuple[Any, str]:
    """The state dict, or the module or the note of one, in a file, and the entry that holds it: '' for the whole file.

    Args:
        content: What the file holds.
        where: The file, for messages.
        entry: The entry that the user names: ``model``, ``model.state_dict``; a prefix that names in it share may
            follow, as ``state_dict.model`` for the ``model.`` of a Lightning module; None to look for one.

    Raises:
        ModelError: There is none; names what there is.
    """
    if entry is not None:
        return _named(content, entry, where), entry
    if _is_model(content):
        return content, ""
    if isinstance(content, Mapping):
        known = [(name, value) for name, value in _entries(content) if name.partition(".")[0] in ENTRIES]
        for name, value in (*known, *((name, content[name]) for name in ENTRIES if name in content)):
            if _is_model(value):
                return value, name
        names = ", ".join(key[:80] if isinstance(key, str) else type(key).__name__ for key in list(content)[:12])
        held = [name for name, _ in _entries(content)]
        raise ModelError(
            f"the file holds no state dict under a usual name; its entries are: {names}" if held
            else f"the file holds no state dict; its entries are: {names or 'none'}",
            where=where, hint=f"name the entry that holds the weights: --entry {held[0]}" if held
            else f"save the weights under one of the names {', '.join(ENTRIES[:4])}",
        )  # fmt: skip
    raise ModelError(
        f"the file holds {type(content).__name__}, not a state dict",
        where=where, hint="save the model with torch.save(model.state_dict(), PATH)",
    )  # fmt: skip


def _is_model(value: object) -> bool:
    return isinstance(value, nn.Module | Inert) or is_state_dict(value)


def _entries(content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The entries that hold weights, and those of entries, the usual names first."""
    usual = [name for name in ENTRIES if name in content]
    for name in (*usual, *(key for key in content if isinstance(key, str) and key not in ENTRIES)):
        value = content[name]
        if isinstance(value, nn.Module) or is_state_dict(value):
            yield name, value
        elif isinstance(value, Mapping):
            inside = (inner for inner in ENTRIES if is_state_dict(value.get(inner)))
            yield from ((f"{name}.{inner}", value[inner]) for inner in inside)


def _named(content: object, entry: str, where: str) -> Any:
    """What an entry holds."""
    found, rest = content, entry
    while rest and isinstance(found, Mapping):
        key = next((key for key in _beginnings(rest) if key in found), None)
        if key is None:
            break
        found, rest = found[key], rest[len(key) + 1 :]
    if rest and is_state_dict(found):
        found, rest = {name[len(rest) + 1 :]: v for name, v in found.items() if name.startswith(f"{rest}.")}, ""
    if not rest and _is_model(found):
        return found
    held = [name for name, _ in _entries(content)] if isinstance(content, Mapping) else []
    raise ModelError(
        f"the file has no entry '{entry}' that holds weights", where=where,
        hint=suggestion(entry, held, "it has weights in") if held else "leave the entry out",
    )  # fmt: skip


def _beginnings(text: str) -> list[str]:
    """A dotted name and its beginnings, the longest first."""
    parts = text.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def entry_remark(content: object, entry: str, *, where: str) -> tuple[Diagnostic, ...]:
    """A note on which entry was taken, where there was a choice to make."""
    if not entry or not isinstance(content, Mapping):
        return ()
    others = [name for name, _ in _entries(content) if name.partition(".")[0] != entry.partition(".")[0]]
    also = f"; the file also holds {', '.join(others)}" if others else ""
    return (
        Diagnostic(
            code="checkpoint-entry", severity="note", where=where,
            why=f"the weights were taken from the entry '{entry}'{also}",
            hint=f"name another one to use it: --entry {others[0]}" if others else "",
        ),
    )  # fmt: skip


def fit(module: nn.Module, state: Mapping[str, Any], *, factory: str, where: str) -> tuple[Diagnostic, ...]:
    """Load a state dict into a module, all of it and nothing else.

    Args:
        module: The module whose parameters and buffers are set.
        state: The state dict.
        factory: What built the module, for the message.
        where: The file.

    Returns:
        Remarks, e.g. on weights that are not finite.

    Raises:
        ModelError: It does not fit; counts and names what is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    state = _plain_names(state, own)
    for name, value in own.items():
        if name.endswith("num_batches_tracked") and name not in state:
            state[name] = value  # not kept by old versions of torch; counts, and changes no output
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        name for name, value in own.items()
        if name in state and isinstance(value, Tensor) and value.shape != getattr(state[name], "shape", None)
    ]  # fmt: skip
    if missing or unexpected or shapes:
        described = [f"{n} is {_size(state[n])} in the file, {_size(own[n])} in the model" for n in shapes]
        faults = [
            f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})"
            for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", described))
            if names
        ]
        raise ModelError(
            f"the state dict does not fit the model of '{factory}': {'; '.join(faults)}",
            where=where,
            hint=_advice(state, own, shapes, factory),
        )
    try:
        module.load_state_dict(state)
    except RuntimeError as cause:
        raise ModelError(f"the state dict does not fit: {cause}", where=where, hint="check the factory") from cause
    return not_finite(state, module, where)


def _plain_names(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    if "n_averaged" in plain and "n_averaged" not in own:
        del plain["n_averaged"]
    while plain and all(name.startswith("module.") for name in plain) and not plain.keys() <= own.keys():
        plain = {name.removeprefix("module."): value for name, value in plain.items()}
    prefixes = {name.partition(".")[0] for name in plain}
    if len(prefixes) == 1:
        shorter = {name.partition(".")[2]: value for name, value in plain.items()}
        if shorter.keys() <= own.keys() and not plain.keys() <= own.keys():
            return shorter
    return plain


def _advice(state: Mapping[str, Any], own: Mapping[str, Any], shapes: list[str], factory: str) -> str:
    if 2 * len(state.keys() & own.keys()) < len(own):
        return "few names agree or none: this is another architecture, or its names were changed"
    heads = {name.rpartition(".")[0] for name in shapes}
    last = [name for name in own if name.endswith(".weight")][-1:]
    if state.keys() == own.keys() and heads == {name.rpartition(".")[0] for name in last}:
        found, built = state[last[0]].shape, own[last[0]].shape
        if found[1:] == built[1:]:
            argument = "classes" if factory.startswith("fxdistill.models:") else "num_classes"
            return f"only the classifier differs: give the factory {argument}={found[0]}"
    return "check the factory and its arguments"


def _size(value: object) -> str:
    return "x".join(map(str, value.shape)) or "one number" if isinstance(value, Tensor) else type(value).__name__


def not_finite(state: Mapping[str, Any], module: nn.Module, where: str) -> tuple[Diagnostic, ...]:
    """A warning where parameters are infinite, or anything of a module is not a number; a mask may be infinite."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    bad = [
        name for name, value in state.items()
        if isinstance(value, Tensor) and value.is_floating_point()
        and bool((~value.isfinite() if name in parameters else value.isnan()).any())
    ]  # fmt: skip
    if not bad:
        return ()
    return (
        Diagnostic(
            code="weights-not-finite", severity="warning", where=f"{where}, {bad[0]}",
            why=f"{len(bad)} tensors hold values that are infinite or not a number",
            hint="the training that wrote the file diverged; use an earlier checkpoint",
        ),
    )  # fmt: skip
