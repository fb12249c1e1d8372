"""Label rules for operations that only move elements: the operation itself is run on the labels.

``view`` and its kin, slices, permutations, ``chunk``, channel and pixel shuffles are exact by construction. Three
things need care: a view that splits a channel dimension is noted (equal counts), a dimension along which labels do
not vary stays compact whatever is padded or concatenated, and tensors are boxes: what is concatenated side by side
shares its other dimensions' channels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fxdistill.ir.coupling import Layers, core
from fxdistill.ir.operators import bare_name, is_a
from fxdistill.operators import Trait
from fxdistill.passes.couple.operations import joined
from fxdistill.passes.couple.values import Labelled, Ledger, Opaque, compact, dims_of, labelled, tensors, to_meta

Function = Callable[..., Any]


def move(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run a movement on every layer of its (only) labelled operand."""
    name = bare_name(func)
    source, rest = args[0], args[1:]
    if name in _SHAPED_LIKE:
        return _shaped_like(ledger, name, source, rest[0] if rest else kwargs["other"])
    if not isinstance(source, Labelled) or any(isinstance(t, Labelled) for t in tensors((rest, kwargs))):
        raise Opaque("its indices depend on values")
    if is_a(name, Trait.RESHAPES) and any(isinstance(a, torch.dtype) for a in rest):
        raise Opaque("it reads the values as another type")
    function = _on_labels(name, func)
    like = function(source, *to_meta(rest), **to_meta(kwargs))
    layers = ledger.layers(source)
    if is_a(name, Trait.RESHAPES) and source.numel() > _LARGE:  # of what cannot be removed no copy is needed
        layers = tuple(layer for layer in layers if not ledger.is_locked(layer))
    moved = [function(layer, *rest, **kwargs) for layer in layers]
    if is_a(name, Trait.PICKS) or (name in ("getitem", "slice") and _by_step(name, rest)):
        moved = [_picked(ledger, one, other) for one, other in zip(layers, moved, strict=True)]
    if isinstance(like, Tensor):
        return _piece(ledger, name, layers, like, moved)
    return type(like)(_piece(ledger, name, layers, part, [m[i] for m in moved]) for i, part in enumerate(like))


_LARGE = 1 << 24
"""Elements of a value from which on labels that say nothing more are dropped before a view copies them."""


def _by_step(name: str, rest: Sequence[Any]) -> bool:
    """Whether an index is more than single positions and contiguous runs."""
    if name == "slice":
        return len(rest) > 3 and rest[3] != 1
    parts = rest[0] if isinstance(rest[0], tuple) else rest[:1]
    return any((part.step or 1) != 1 if isinstance(part, slice) else isinstance(part, Tensor | list) for part in parts)


def _picked(ledger: Ledger, before: Tensor, after: Tensor) -> Tensor:
    """Lock channels that are picked or reordered by fixed indices: survivors would be others."""
    one, other = core(before).squeeze(), core(compact(after)).squeeze()
    if one.shape != other.shape or not torch.equal(one, other):
        ledger.lock(before, "is picked by its index")
    return after


_SHAPED_LIKE: dict[str, Callable[..., Tensor]] = {
    "expand_as": torch.Tensor.expand, "view_as": torch.Tensor.reshape, "reshape_as": torch.Tensor.reshape,
}  # fmt: skip


def _shaped_like(ledger: Ledger, name: str, source: Tensor, other: Tensor) -> Tensor:
    """``expand_as``, ``view_as``: the other gives its sizes, so where it shrinks the result does, or is broadcast."""
    function, shape = _SHAPED_LIKE[name], tuple(other.shape)
    result = function(source, shape)
    if isinstance(source, Labelled):
        moved = [function(layer, shape) for layer in ledger.layers(source)]
        result = _piece(ledger, name, ledger.layers(source), result, moved)
    joined(ledger, (result, other), shape)
    return result


def _on_labels(name: str, func: Function) -> Function:
    """What does the movement on expanded integers: a view of them may need a copy."""
    if is_a(name, Trait.RESHAPES):
        return lambda layer, *shape, **kw: layer.reshape(*shape, **_without_dtype(kw))
    return func


def _without_dtype(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key in ("shape", "size")} and {
        "shape": kwargs.get("shape", kwargs.get("size"))
    }


def _piece(ledger: Ledger, name: str, befores: Layers, like: Tensor, moved: Sequence[Tensor]) -> Labelled:
    layers = []
    for before, after in zip(befores, moved, strict=True):
        layer = compact(after)
        dims = dims_of(layer)
        if dims:
            if len(dims) > len(dims_of(before)):
                ledger.split(layer, "split")
            elif dims == dims_of(before) and is_a(name, Trait.CUTS):
                ledger.cut(before, layer)
            layers.append(layer)
        elif bool(core(layer).any()) and layer.numel():
            ledger.lock(layer, "is picked by its index")
    return labelled(like, layers)


def pad(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Padding: new channels get fresh labels; along other dimensions labels go on."""
    source, widths = args[0], list(kwargs.get("pad", args[1] if len(args) > 1 else ()))
    like = func(source, *to_meta(args[1:]), **to_meta(kwargs))
    layers = []
    mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
    for layer in ledger.layers(source):
        if isinstance(mode, str) and mode != "constant" and dims_of(layer)[-1] >= layer.dim() - len(widths) // 2:
            raise Opaque("it repeats channels at the border")
        for index in range(0, len(widths), 2):
            dim = layer.dim() - 1 - index // 2
            layer = _pad_dim(ledger, layer, dim, widths[index], widths[index + 1])  # noqa: PLW2901
        layers.append(layer.expand(like.shape))
    return labelled(like, layers)


def _pad_dim(ledger: Ledger, layer: Tensor, dim: int, before: int, after: int) -> Tensor:
    if before == after == 0:
        return layer
    size = layer.shape[dim] + before + after
    shape = (*layer.shape[:dim], size, *layer.shape[dim + 1 :])
    if dim not in dims_of(layer):
        return layer.narrow(dim, 0, 1).expand(shape)
    start, end = max(0, -before), layer.shape[dim] - max(0, -after)
    view = core(layer).narrow(dim, start, end - start)
    fresh = [_border(ledger, view, dim, max(0, n)) for n in (before, after)]
    return torch.cat([fresh[0], view, fresh[1]], dim).expand(shape)


def _border(ledger: Ledger, view: Tensor, dim: int, count: int) -> Tensor:
    """Labels of a border: fresh channels, or none where the channels are those of heads, which keep it."""
    shape = [count if d == dim else size for d, size in enumerate(view.shape)]
    if view.numel() > view.shape[dim]:
        return torch.zeros(shape, dtype=torch.int64)
    return ledger.mint(count).reshape(shape)


def cat(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Concatenation: along the channels the labels line up; along other dimensions the channels are shared."""
    parts = kwargs.get("tensors", args[0] if args else ())
    parts = [part for part in parts if part.shape != (0,)]
    like = func(*to_meta(args), **to_meta(kwargs))
    dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0)) % like.dim()
    slots: list[list[Tensor | None]] = []
    for index, part in enumerate(parts):
        for layer in ledger.layers(part):
            _into_slot(slots, layer, dim, index, len(parts))
    layers = [_joined(ledger, slot, parts, dim, like) for slot in slots]
    return labelled(like, [layer for layer in layers if layer is not None])


def _into_slot(slots: list[list[Tensor | None]], layer: Tensor, dim: int, index: int, count: int) -> None:
    wanted = set(dims_of(layer)) - {dim}
    for slot in slots:
        first = next(entry for entry in slot if entry is not None)
        if slot[index] is None and set(dims_of(first)) - {dim} == wanted:
            slot[index] = layer
            return
    slots.append([layer if i == index else None for i in range(count)])


def _joined(
    ledger: Ledger, slot: Sequence[Tensor | None], parts: Sequence[Tensor], dim: int, like: Tensor
) -> Tensor | None:
    present = [layer for layer in slot if layer is not None]
    others = {d for layer in present for d in dims_of(layer)} - {dim}
    if not others:
        return _lined_up(slot, parts, dim, like)
    if len(present) < len(slot):
        for layer in present:
            ledger.lock(layer, "is concatenated with values that carry no channels")
        return None
    if not any(dim in dims_of(layer) for layer in present):
        first = present[0].narrow(dim, 0, 1)
        for layer in present[1:]:
            ledger.unite(layer.narrow(dim, 0, 1), first)
        return first.expand(like.shape)
    inner = [ledger.inner(layer) for layer in present]
    result = _lined_up(slot, parts, dim, like)
    if any(found is None or found[0] != dim for found in inner):
        ledger.split(result.movedim(dim, 0), "split", fixed=True)
    return result


def _lined_up(slot: Sequence[Tensor | None], parts: Sequence[Tensor], dim: int, like: Tensor) -> Tensor:
    pieces = [core(layer) if layer is not None else None for layer in slot]
    shape = [max(p.shape[d] for p in pieces if p is not None) for d in range(like.dim())]
    full = []
    for piece, part in zip(pieces, parts, strict=True):
        shape[dim] = part.shape[dim]
        full.append(piece.expand(shape) if piece is not None else torch.zeros(shape, dtype=torch.int64))
    return torch.cat(full, dim).expand(like.shape)
