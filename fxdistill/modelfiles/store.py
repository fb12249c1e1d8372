"""Loading and saving models, without running what a file contains.

Four kinds of files are read; which one it is, is found out from the bytes and not from the name:

    bundle        written by :func:`save`: factory, arguments, state dict, input shape; needs nothing else
    state dict    plain, as ``.safetensors``, or inside a training script's checkpoint; needs a factory
    .pt2          ``torch.export``; is a graph by itself
    pickle        a whole pickled module: refused unless trusted, because unpickling runs code
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fxdistill import files
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import ModelError
from fxdistill.modelfiles import kinds, pt2, statedict
from fxdistill.modelfiles.factories import ModelSource, build, parse_source

__all__ = [
    "LoadedModel",
    "ModelSource",
    "load",
    "parse_source",
    "save",
    "save_state_dict",
    "state_dict_bytes",
]

FORMAT = "fxdistill-bundle"
RANDOM_WEIGHTS = "random_weights"
"""The metadata that says so, of a file made from random weights."""
VERSION = 1


@dataclass(frozen=True)
class LoadedModel:
    """A model and where it came from.

    Attributes:
        module: The model, in eval mode, on the CPU.
        path: Its file; None for a factory alone.
        sha256: Hash of that file.
        factory: The factory that built it; None for an export or a pickle.
        kwargs: Keyword arguments of the factory.
        entry: The checkpoint's entry that the weights were taken from; '' for the whole file.
        trusted: Whether the file was unpickled because the user trusts it.
        random_weights: Whether no file gave the weights, or they were shrunk from such.
        input_shape: Shape of one input batch, where the file says so.
        metadata: What was saved with the model.
        diagnostics: Remarks.
    """

    module: nn.Module
    path: Path | None
    sha256: str | None
    factory: str | None
    kwargs: dict[str, Any] = field(default_factory=dict)
    entry: str = ""
    trusted: bool = False
    random_weights: bool = False
    input_shape: tuple[int, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()


def save(
    model: nn.Module,
    path: str | Path,
    *,
    factory: str,
    kwargs: dict[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write a bundle: the same model and arguments give the same bytes.

    Args:
        model: The model whose state dict is kept.
        path: The file to write, whole or not at all.
        factory: ``module:function`` that builds the architecture.
        kwargs: Its keyword arguments, JSON values.
        input_shape: Shape of one input batch.
        metadata: Anything else that is JSON.

    Raises:
        ModelError: The factory is no factory, or the arguments or metadata are not JSON.
        PlanError: The file cannot be written.
    """
    parsed = parse_source(factory)
    if parsed.factory != factory:
        raise ModelError(f"'{factory}' is not a plain factory", where="factory", hint="write MODULE:FUNCTION")
    try:
        given = {
            "kwargs": kwargs or {},
            "metadata": metadata or {},
            "input_shape": input_shape and list(input_shape),
        }
        plain = json.loads(json.dumps(given, allow_nan=False))
    except (TypeError, ValueError) as cause:
        raise ModelError(
            f"the bundle's arguments or metadata are not JSON: {cause}",
            where=str(path),
            hint="use plain values",
        ) from cause
    bundle = {
        "format": FORMAT,
        "version": VERSION,
        "factory": factory,
        **plain,
        "state_dict": statedict.portable(model),
    }
    files.write_bytes(Path(path), kinds.to_bytes(bundle))


def save_state_dict(module: nn.Module, path: str | Path) -> None:
    """Write a plain state dict that ``load_state_dict`` takes without fxdistill, whole or not at all.

    Raises:
        PlanError: The file cannot be written.
    """
    files.write_bytes(Path(path), state_dict_bytes(module))


def state_dict_bytes(module: nn.Module) -> bytes:
    """The bytes of :func:`save_state_dict`: tensors detached, on the CPU and contiguous."""
    return kinds.to_bytes(statedict.portable(module))


def load(source: ModelSource, *, seed: int = 0) -> LoadedModel:
    """Load a model from a file, or build it with random weights under a seed.

    Args:
        source: What to load, see :func:`parse_source`.
        seed: Seed of the weights where no file gives them.

    Raises:
        ModelError: Whatever is wrong with the file, the factory or their going together.
    """
    path = source.path
    if path is None:
        return _from_factory(source, seed)
    kind = kinds.kind_of(path, option=source.option)
    sha256 = files.file_sha256(path)
    if kind == "export":
        return _from_export(source, path, sha256)
    content, trusted = kinds.read(path, kind, trust_pickle=source.trust_pickle, option=source.option)
    if isinstance(content, Mapping) and content.get("format") == FORMAT:
        return _from_bundle(source, path, sha256, content)
    state, entry = statedict.find(content, where=str(path))
    remarks = statedict.entry_remark(content, entry, where=str(path))
    if isinstance(state, nn.Module):
        _no_factory(source, path, "a whole module")
        module = _unwrapped(state).cpu().eval()
        return LoadedModel(module, path, sha256, None, entry=entry, trusted=trusted, diagnostics=remarks)
    if source.factory is None:
        raise ModelError(
            "the file holds weights, but not what they belong to",
            where=str(path),
            hint=kinds.name_factory(source.option),
        )
    module = build(source.factory, source.kwargs, allow=source.allow, seed=seed)
    remarks += statedict.fit(module, state, factory=source.factory, where=str(path))
    return LoadedModel(
        module.eval(),
        path,
        sha256,
        source.factory,
        source.kwargs,
        entry,
        trusted=trusted,
        diagnostics=remarks,
    )


def _from_export(source: ModelSource, path: Path, sha256: str) -> LoadedModel:
    _no_factory(source, path, "an exported program")
    trusted = False
    try:
        pt2.inspect_archive(path)
        metadata = pt2.metadata(path)
    except ModelError:
        if not source.trust_pickle:
            raise
        trusted, metadata = True, {}
    module, shape, remarks = pt2.load(path)
    return LoadedModel(
        module, path, sha256, None, trusted=trusted, input_shape=shape, diagnostics=remarks, metadata=metadata,
        random_weights=metadata.get(RANDOM_WEIGHTS) is True,
    )  # fmt: skip


def _from_factory(source: ModelSource, seed: int) -> LoadedModel:
    if source.factory is None:
        raise ModelError("neither a file nor a factory is given", hint="name one of them")
    module = build(source.factory, source.kwargs, allow=source.allow, seed=seed)
    return LoadedModel(module.eval(), None, None, source.factory, source.kwargs, random_weights=True)


def _from_bundle(source: ModelSource, path: Path, sha256: str, bundle: Mapping[str, Any]) -> LoadedModel:
    version, kwargs, metadata = bundle.get("version"), bundle.get("kwargs"), bundle.get("metadata")
    if not isinstance(version, int) or version > VERSION:
        raise ModelError(
            f"the bundle has version {version}; this fxdistill reads versions up to {VERSION}",
            where=str(path), hint="update fxdistill",
        )  # fmt: skip
    factory, shape = bundle.get("factory"), bundle.get("input_shape")
    whole = isinstance(factory, str) and isinstance(kwargs, dict) and isinstance(metadata, dict)
    if not whole or not statedict.is_state_dict(bundle.get("state_dict")) or not _is_shape(shape):
        raise ModelError("the bundle lacks a part", where=str(path), hint="write it with fxdistill.save")
    if source.factory is not None and (source.factory, source.kwargs) != (factory, kwargs):
        raise ModelError(
            f"the file is a bundle and says itself that '{factory}' with {json.dumps(kwargs)} builds it",
            where=str(path), hint="leave out the factory that was given",
        )  # fmt: skip
    source = ModelSource(path, factory, dict(kwargs or {}), source.trust_pickle, source.allow)
    module = build(str(factory), source.kwargs, allow=source.allow)
    remarks = statedict.fit(module, bundle["state_dict"], factory=str(factory), where=str(path))
    random = (metadata or {}).get(RANDOM_WEIGHTS) is True
    return LoadedModel(
        module.eval(), path, sha256, source.factory, source.kwargs, random_weights=random,
        input_shape=tuple(shape) if shape else None, metadata=dict(metadata or {}), diagnostics=remarks,
    )  # fmt: skip


def _is_shape(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(type(n) is int and n > 0 for n in value))


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _no_factory(source: ModelSource, path: Path, kind: str) -> None:
    if source.factory is not None or source.kwargs:
        raise ModelError(f"the file holds {kind} and needs no factory", where=str(path), hint="leave it out")
