"""Running a module without a trace of it: modes, buffers, attributes and random numbers are afterwards as before."""

import contextlib
import copy
import dataclasses
import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
T = TypeVar("T")


@contextmanager
def in_mode(module: nn.Module, *, training: bool, held: Iterable[str] = ()) -> Iterator[Any]:
    """The module in one mode, and parts of it in eval mode; afterwards every part has the mode back that it had."""
    before = [(child, child.training) for child in module.modules()]
    module.train(training)
    hold(module, held)
    try:
        yield module
    finally:
        for child, was in before:
            child.training = was


def hold(module: nn.Module, names: Iterable[str]) -> None:
    """Put the parts of these names, those that there are, into eval mode."""
    parts = dict(module.named_modules(remove_duplicate=False))
    for name in names:
        if name in parts:
            parts[name].training = False


@contextmanager
def seeded(device: torch.device, seed: int = 0) -> Iterator[None]:
    """Torch's global generators of the CPU and of a device from a seed; afterwards they are as before.

    ``torch.manual_seed`` seeds all kinds of device that torch knows of, used or not, which takes 25 times as long.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Convolutions in full float32, whatever autocast and TF32 are set to: for a proof these differ by too much."""
    with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings, logs and whole graphs that tracers and exporters print: nobody could act on them."""
    before, sink = logging.root.manager.disable, io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stderr(sink), contextlib.redirect_stdout(sink):
        warnings.simplefilter("ignore")
        if before < logging.CRITICAL:  # logging forgets what it knew of each logger whenever it is asked
            logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            if logging.root.manager.disable != before:
                logging.disable(before)


@contextmanager
def attention_in_parts() -> Iterator[None]:
    """``nn.MultiheadAttention`` and what holds it by their parts in eval mode: torch's own kernel rounds otherwise."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Whatever runs inside leaves the module's buffers (running statistics) as they were; gives what they were.

    They are the same tensors again, too, where a call put others in their place. A buffer that comes back with another
    shape is a cache that the module made itself (positions of an input size): it stays, since old values do not fit it.
    """
    parts = dict(module.named_modules(remove_duplicate=False))
    before = dict(module.named_buffers(remove_duplicate=False))
    values = {name: buffer.clone() for name, buffer in before.items()}
    try:
        yield values
    finally:
        with torch.no_grad():
            for name, buffer in before.items():
                owner, _, leaf = name.rpartition(".")
                now = getattr(parts[owner], leaf, None)
                if isinstance(now, Tensor) and now.shape != values[name].shape:
                    continue
                if now is not buffer:
                    parts[owner]._buffers[leaf] = buffer  # noqa: SLF001  # whether it is persistent stays as it is
                if not same(buffer, values[name]):
                    buffer.copy_(values[name])


@contextmanager
def attributes_kept(module: nn.Module) -> Iterator[None]:
    """Whatever runs inside leaves the plain attributes of a module and its parts as they were.

    Tracers put constants on the module, and a forward pass that keeps results (a cache of attention biases, the last
    attention map) would keep the tracer's stand-ins, or hand a stale constant to the next trace.
    """
    before = {part: _plain(part) for part in module.modules()}
    values = (value for attributes in before.values() for value in attributes.values())
    held = [(value, copy.copy(value)) for value in values if type(value) in (dict, list)]
    try:
        yield
    finally:
        for part, attributes in before.items():
            for name in _plain(part).keys() - attributes.keys():
                delattr(part, name)
            vars(part).update(attributes)
        for container, content in held:
            if isinstance(container, dict):
                container.clear()
                container.update(content)
            else:
                container[:] = content


_REGISTRIES = frozenset(vars(nn.Module()))


def _plain(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that torch does not keep in registries of its own."""
    return {name: value for name, value in vars(module).items() if name not in _REGISTRIES}


def copied(module: Module) -> Module:
    """A copy of a module that shares nothing with it.

    Weights that a hook computes and leaves on a layer (a mask, a norm) are copied as they are, to be computed again.
    """
    computed = {
        id(value): value.detach().clone() for part in module.modules() for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }  # fmt: skip
    with torch.no_grad():  # TorchScript copies its weights as autograd sees them
        made = copy.deepcopy(module, computed)
    for old, new in zip(module.parameters(), made.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    return made


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module and, beside it, the buffers that it leaves out: all that training can change."""
    state: dict[str, Tensor] = module.state_dict()
    for name, buffer in module.named_buffers(remove_duplicate=False):
        state.setdefault(name, buffer)
    return state


def digest(module: nn.Module) -> str:
    """A hash of everything in a module that training can change: names, types, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in whole_state(module).items():
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_whole_state(module: nn.Module, state: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Load what :func:`whole_state` gave; returns the names that are missing and those that are unexpected."""
    own = set(module.state_dict())
    left_out = {name: b for name, b in module.named_buffers(remove_duplicate=False) if name not in own}
    with torch.no_grad():
        for name in left_out.keys() & state.keys():
            left_out[name].data = state[name].to(left_out[name].device, copy=True)
    rest = {name: tensor for name, tensor in state.items() if name not in left_out}
    missing, unexpected = module.load_state_dict(rest, strict=False)
    return [*missing, *(left_out.keys() - state.keys())], list(unexpected)


def example(module: nn.Module, shape: Iterable[int], *, seed: int = 0) -> Tensor:
    """Standard normal images of a shape, from a seed, on the device and in the precision of a module's parameters."""
    images = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
    like = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), images)
    return images.to(like.device, like.dtype)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, NaN to NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or bool((one.isnan() & other.isnan() | (one == other)).all())


def says_nothing(answer: object) -> bool:
    """Whether an answer has entries and no finite number: NaN equals NaN, so that nothing follows from comparing it."""
    given = [tensor for tensor in tensors_in(answer) if tensor.numel()]
    return bool(given) and not any(bool(tensor.isfinite().any()) for tensor in given)


def told_by(images: Tensor, answer: Callable[[Tensor], T]) -> tuple[Tensor, T]:
    """Images and what is answered to them; if that has no number, positive ones, of which logarithms and roots have.

    Args:
        images: The first to try.
        answer: What says something of images; see :func:`says_nothing`.
    """
    found = answer(images)
    if not says_nothing(found):
        return images, found
    positive = images.abs()
    return positive, answer(positive)


def plainly(value: Any) -> Any:
    """The same structure of dicts, tuples and lists alone: a dataclass is a dict of its fields, as is any mapping."""
    if isinstance(value, Mapping):
        return {name: plainly(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plainly(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(plainly, value))
    return type(value)(map(plainly, value)) if type(value) in (tuple, list) else value


def tensors_in(value: object) -> list[Tensor]:
    """All tensors in a nested structure of mappings, tuples, lists and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in tensors_in(item)]
    if isinstance(value, tuple | list):
        return [t for item in value for t in tensors_in(item)]
    if dataclasses.is_dataclass(value):
        return [t for field in dataclasses.fields(value) for t in tensors_in(getattr(value, field.name))]
    return []
