"""Label rules for elementwise operations, reductions, normalisation, pooling.

Elementwise operations join their operands (:mod:`fxdistill.passes.couple.joins`). A reduction over other dimensions
than the channels drops them; over the channels it ends them: sums of survivors, statistics of survivors. What mixes
neighbouring channels, or weighs channels against one another (softmax, maximum), locks them.
"""

# ruff: noqa: ARG001  # rules share one signature

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from fxdistill.ir.operators import bare_name, is_a, operator_of
from fxdistill.operators import Trait
from fxdistill.passes.couple.joins import Operand, join, operand
from fxdistill.passes.couple.values import (
    Labelled,
    Ledger,
    along,
    dims_of,
    labelled,
    mapped,
    rebuilt,
    spread,
    tensors,
    to_meta,
)

Function = Callable[..., Any]


def elementwise(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Join all tensor operands under broadcasting."""
    values = list(tensors((args, kwargs)))
    shape = _broadcast(values)
    boolean = is_a(bare_name(func), Trait.BOOLEAN)
    kind = torch.bool if boolean else reduce(torch.promote_types, (v.dtype for v in values))
    return labelled(torch.empty(shape, dtype=kind, device="meta"), joined(ledger, values, shape))


def _broadcast(values: Sequence[Tensor]) -> tuple[int, ...]:
    rank = max(value.dim() for value in values)
    shapes = [(1,) * (rank - value.dim()) + tuple(value.shape) for value in values]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*shapes, strict=True))


def joined(ledger: Ledger, values: Sequence[Tensor], shape: Sequence[int]) -> tuple[Tensor, ...]:
    """The layers of an elementwise operation on values that broadcast to a shape."""
    rank = len(shape)
    operands = [operand(ledger, v, range(rank - v.dim(), rank), shape) for v in values]
    return reduce(lambda one, other: join(ledger, one, other), operands).layers


def pointwise(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """One operand in, the same channels out; any other one gives no more than its dtype or device."""
    source = next(tensors((args, kwargs)))
    # a value that was expanded stays broadcast, unless the operation lays it out anew
    name = bare_name(func)
    like = source.contiguous() if name in ("contiguous", "clone") else source
    return labelled(like.to(_cast(name, args, kwargs) or like.dtype), ledger.layers(source))


def only_typed(name: str, given: Sequence[Tensor]) -> bool:
    """Whether an operation reads no more than dtype and device of its labelled values: what it works on is another."""
    return operator_of(name).labels == "pointwise" and not isinstance(given[0], Labelled)


def typed(value: Tensor) -> Tensor:
    """A labelled value as an empty tensor of its dtype and device."""
    return torch.empty(0, dtype=value.dtype) if isinstance(value, Labelled) else value


_CASTS = {
    "float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16,
    "long": torch.int64, "int": torch.int32,
}  # fmt: skip


def _cast(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> torch.dtype | None:
    """The type that an operation casts to; None where it keeps the type."""
    if name in ("type_as", "to") and len(args) > 1 and isinstance(args[1], Tensor):
        kind: torch.dtype = args[1].dtype
        return kind
    if is_a(name, Trait.BOOLEAN):
        return torch.bool
    given = (value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype))
    return _CASTS.get(name) or next(given, None)


def reduction(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Sums, statistics, extremes and softmax over dimensions."""
    name, source = bare_name(func), args[0]
    like = func(*to_meta(args), **to_meta(kwargs))
    if name in ("max", "min") and next(tensors((args[1:], kwargs)), None) is not None:
        return elementwise(ledger, func, args, kwargs)
    parts = [like] if isinstance(like, Tensor) else list(like)
    dims = _dims(name, args, kwargs, source.dim())
    layers = [_reduced(ledger, name, layer, dims) for layer in ledger.layers(source)]
    rows = [_fitted(layer, dims, parts[0]) for layer in layers if layer is not None]
    results = [labelled(part, rows) for part in parts]
    return results[0] if isinstance(like, Tensor) else rebuilt(like, results)


def _dims(name: str, args: Sequence[Any], kwargs: dict[str, Any], rank: int) -> tuple[int, ...]:
    position = 2 if name in ("norm", "linalg_vector_norm", "vector_norm") else 1
    found = kwargs.get("dim", kwargs.get("axis", args[position] if len(args) > position else None))
    if found is None or isinstance(found, bool) or found in ([], ()):
        return tuple(range(rank))
    return tuple(d % rank for d in (found if isinstance(found, tuple | list) else (found,)))


def _reduced(ledger: Ledger, name: str, layer: Tensor, dims: Sequence[int]) -> Tensor | None:
    """The layer after a reduction, still of the source's shape; None where it ends."""
    hit = [d for d in dims_of(layer) if d in dims]
    if not hit:
        return layer
    inner = ledger.inner(layer)
    ends = len(hit) == len(dims_of(layer)) or (inner is not None and hit == [inner[0]])
    if not ends:
        return ledger.unite_along(layer, hit)
    if is_a(name, Trait.WEIGHS):
        ledger.lock(layer, f"is weighed against other channels by {name}")
    elif is_a(name, Trait.STATISTIC):
        ledger.statistics[ledger.where] = None
    if inner is not None and inner[1] is not None:
        inner[1].fixed = True
    return None


def _fitted(layer: Tensor, dims: Sequence[int], like: Tensor) -> Tensor:
    if layer.dim() != like.dim():
        for dim in sorted(dims, reverse=True):
            layer = layer.select(dim, 0)
        return layer
    for dim in dims:
        if like.shape[dim] != layer.shape[dim]:
            layer = layer.narrow(dim, 0, 1)
    return layer.expand(like.shape)


def normalize(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``F.normalize``: divides by a norm, which is taken over the survivors."""
    rank = args[0].dim()
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 1)
    dims = tuple(d % rank for d in (dim if isinstance(dim, tuple | list) else (dim,)))
    for layer in ledger.layers(args[0]):
        _reduced(ledger, "norm", layer, dims)
    return pointwise(ledger, func, args, kwargs)


def last_dims_norm(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """LayerNorm and RMSNorm: weights join the channels, statistics are over the survivors."""
    source, shape = args[0], args[1] if len(args) > 1 else kwargs["normalized_shape"]
    dims = range(source.dim() - len(shape), source.dim())
    for layer in ledger.layers(source):
        _reduced(ledger, "mean", layer, dims)
    return labelled(source, joined(ledger, list(tensors((args, kwargs))), tuple(source.shape)))


def channel_norm(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """BatchNorm and InstanceNorm: all vectors join dimension 1."""
    return labelled(args[0], by_channel(ledger, list(tensors((args, kwargs))), tuple(args[0].shape)))


def by_channel(ledger: Ledger, values: Sequence[Tensor], shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Join an activation with vectors along its dimension 1."""
    result = operand(ledger, values[0], range(len(shape)), shape)
    for vector in values[1:]:
        if vector.numel() == 1 and shape[1] != 1:
            continue
        layers = tuple(spread(layer, 1, shape) for layer in ledger.layers(vector))
        own = tuple(dim == 1 and vector.shape[0] > 1 for dim in range(len(shape)))
        result = join(ledger, result, Operand(layers, own))
    return result.layers


def group_norm(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """GroupNorm: as BatchNorm, with the same number of survivors in each group."""
    groups = int(kwargs.get("num_groups", args[1] if len(args) > 1 else 1))
    source = args[0]
    values = [t for t in tensors((args, kwargs)) if t.dim() == 1]
    layers = by_channel(ledger, [source, *values], tuple(source.shape))
    for layer in layers:
        if dims_of(layer) == (1,):
            if 1 < groups < layer.shape[1]:
                ledger.split(along(layer, 1).reshape(groups, -1), "norm", fixed=True)
            ledger.statistics[ledger.where] = None
    return labelled(source, layers)


def prelu(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """PReLU: one slope for each channel, or one for all."""
    like = args[0]
    return labelled(like, by_channel(ledger, [args[0], *tensors((args[1:], kwargs))], tuple(like.shape)))


def spatial(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Pooling and interpolation: labels are the same all over a map, whatever its size."""
    source = next(t for t in tensors((args, kwargs)) if isinstance(t, Labelled))
    like = func(*to_meta(args), **to_meta(kwargs))
    first = like if isinstance(like, Tensor) else like[0]
    for extra in list(tensors((args, kwargs)))[1:]:
        for layer in ledger.layers(extra):
            ledger.lock(layer, "decides where to look")
    changed = [d for d in range(source.dim()) if d >= 2 or source.shape[d] != first.shape[d]]
    layers = []
    for layer in ledger.layers(source):
        flat = ledger.unite_along(layer, changed)
        for dim in changed:
            flat = flat.narrow(dim, 0, 1)
        layers.append(flat.expand(first.shape))
    layers = [layer for layer in layers if dims_of(layer)]
    return mapped(like, lambda part: labelled(part, layers))


def unpool(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``F.max_unpool2d`` and its kin: maps go back to the places that a pooling took them from, each by itself."""
    values = list(tensors((args, kwargs)))[:2]
    like = func(*to_meta(args), **to_meta(kwargs))
    layers = []
    for layer in joined(ledger, values, tuple(values[0].shape)):
        flat = ledger.unite_along(layer, range(2, layer.dim()))
        for dim in range(2, layer.dim()):
            flat = flat.narrow(dim, 0, 1)
        layers.append(flat.expand(like.shape))
    return labelled(like, layers)


def unfold_patches(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``F.unfold``: each channel becomes the rows of its patch."""
    source = args[0]
    like = func(*to_meta(args), **to_meta(kwargs))
    layers = []
    for layer in ledger.layers(source):
        flat = ledger.unite_along(layer, (0, 2, 3))
        repeats = like.shape[1] // source.shape[1]
        layers.append(flat[:1, :, 0, :1].repeat_interleave(repeats, 1).expand(like.shape))
    return labelled(like, layers)


def fold_patches(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``F.fold``: the rows of a patch become one channel, so they live and die together."""
    source = args[0]
    like = func(*to_meta(args), **to_meta(kwargs))
    layers = []
    for layer in ledger.layers(source):
        flat = ledger.unite_along(layer, (0, 2))
        rows = ledger.unite_along(along(flat, 1).reshape(like.shape[1], -1), (1,))
        layers.append(spread(rows[:, 0], 1, like.shape))
    return labelled(like, layers)


def neighbours(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Local response normalisation: the window runs over neighbouring channels."""
    for layer in ledger.layers(args[0]):
        ledger.lock(layer, "is mixed with its neighbours")
    return pointwise(ledger, func, args, kwargs)


def end(ledger: Ledger, values: object, reason: str) -> None:
    """Lock everything that a value carries."""
    for value in tensors(values):
        for layer in ledger.layers(value):
            ledger.lock(layer, reason)


def empty_labels(like: Any) -> Any:
    """A value without labels, of a given structure of meta tensors."""
    return mapped(like, lambda tensor: labelled(tensor, ()))
