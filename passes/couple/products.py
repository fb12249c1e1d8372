"""Label rules for what multiplies with weights or contracts: linear, convolution, matrix products, attention.

A weight has labels of its own along each dimension. A product contracts the input's channels with the weight's
inputs (which unites them) and hands on the weight's outputs; a producer is nothing else. Attention is spelled out in
matrix products and run under the same rules.
"""

# ruff: noqa: ARG001, PLR0917  # rules share one signature

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxdistill.ir.coupling import Role, core
from fxdistill.passes.couple.joins import Operand, join, operand
from fxdistill.passes.couple.values import Labelled, Ledger, Opaque, along, dims_of, labelled, spread, to_meta

Function = Callable[..., Any]


def contract(ledger: Ledger, values: Sequence[Tensor], letters: Sequence[Sequence[int]], kept: Sequence[int],
             sizes: Sequence[int], like: Tensor) -> Labelled:  # fmt: skip
    """A product of one or two values in a common space of letters; those in ``kept`` remain, in that order."""
    ends = [letter for letter in range(len(sizes)) if letter not in kept]
    operands = [operand(ledger, v, where, sizes) for v, where in zip(values, letters, strict=True)]
    for value, where in zip(values, letters, strict=True):
        _roles(ledger, value, where, ends)
    if len(operands) == 1:
        operands.append(Operand((), (False,) * len(sizes)))
    layers = join(ledger, operands[0], operands[1], ends).layers
    result = []
    for layer in layers:
        view = layer.permute(*kept, *ends)
        for _ in ends:
            view = view.select(-1, 0)
        result.append(view.expand(like.shape))
    return labelled(like, result)


def _roles(ledger: Ledger, value: Tensor, letters: Sequence[int], ends: Sequence[int]) -> None:
    if isinstance(value, Labelled) and value.dim() > 1:
        for dim, letter in enumerate(letters):
            ledger.used_as(value, dim, "in" if letter in ends else "out")


def linear(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``x @ weight.T + bias``; other dimensions than the last are spectators."""
    source, weight, bias = _arguments(args, kwargs, ("input", "weight", "bias"))
    like = torch.empty((*source.shape[:-1], weight.shape[0]), dtype=source.dtype, device="meta")
    rank = source.dim()
    sizes = (*source.shape, weight.shape[0])
    kept = (*range(rank - 1), rank)
    result = contract(ledger, (source, weight), (range(rank), (rank, rank - 1)), kept, sizes, like)
    return _biased(ledger, result, bias, -1)


def _biased(ledger: Ledger, value: Labelled, bias: Tensor | None, dim: int) -> Labelled:
    if bias is None:
        return value
    letter = dim % value.dim()
    own = tuple(d == letter and bias.shape[0] > 1 for d in range(value.dim()))
    layers = tuple(spread(layer, letter, value.shape) for layer in ledger.layers(bias))
    whole = operand(ledger, value, range(value.dim()), value.shape)
    return labelled(value, join(ledger, whole, Operand(layers, own)).layers)


def _arguments(args: Sequence[Any], kwargs: dict[str, Any], names: Sequence[str]) -> list[Any]:
    return [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]


def matmul(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Matrix product with broadcast batch dimensions; vectors as ``torch.matmul`` takes them."""
    one, other = _arguments(args, {"other": kwargs.get("mat2"), **kwargs}, ("input", "other"))
    like = func(*to_meta(args), **to_meta(kwargs))
    rank = max(one.dim(), other.dim(), 2)
    left = [*range(rank - one.dim(), rank)] if one.dim() > 1 else [rank - 1]
    right = [*range(rank - other.dim(), rank - 2), rank - 1, rank] if other.dim() > 1 else [rank - 1]
    sizes = [1] * (rank + 1)
    for value, letters in ((one, left), (other, right)):
        for size, letter in zip(value.shape, letters, strict=True):
            sizes[letter] = max(sizes[letter], size)
    kept = [k for k in range(rank + 1) if k != rank - 1]
    kept = [k for k in kept if not (k == rank - 2 and one.dim() == 1) and not (k == rank and other.dim() == 1)]
    return contract(ledger, (one, other), (left, right), kept, sizes, like)


def einsum(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """One or two operands, with letters; repeated letters and ellipses are not followed."""
    equation, operands = str(args[0]).replace(" ", ""), args[1:]
    values = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], tuple | list) else list(operands)
    like = func(*to_meta(args), **to_meta(kwargs))
    inputs, _, output = equation.partition("->")
    terms = inputs.split(",")
    plain = "." not in equation and "->" in equation and all(len(set(t)) == len(t) for t in terms)
    if not plain or len(values) > 2:
        raise Opaque(f"the equation '{equation}' is not followed")
    names = sorted(set("".join(terms)))
    sizes = [max(v.shape[t.index(n)] for v, t in zip(values, terms, strict=True) if n in t) for n in names]
    letters = [[names.index(n) for n in term] for term in terms]
    return contract(ledger, values, letters, [names.index(n) for n in output], sizes, like)


def convolution(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Convolution: inputs and outputs of the weight, group by group where it has groups."""
    source, weight, bias = _arguments(args, kwargs, ("input", "weight", "bias"))
    groups = _groups(kwargs, args, 6)
    if source.dim() != weight.dim():
        raise Opaque("its input has no batch dimension")
    like = func(*to_meta(args), **to_meta(kwargs))
    _only_leading(ledger, weight)
    inputs = _channels(ledger, source)
    outputs = _vector(ledger, weight, 0, "out")
    if groups == 1:
        _consume(ledger, inputs, _vector(ledger, weight, 1, "in"))
    elif weight.shape[1] == 1:
        _one_for_each(ledger, inputs, outputs, groups)
    else:
        _in_groups(ledger, inputs, outputs, weight, groups)
    layers = [spread(outputs, 1, like.shape)] if outputs is not None else []
    return _biased(ledger, labelled(like, layers), bias, 1)


def transposed_convolution(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Transposed convolution: its weight holds inputs first."""
    source, weight, bias = _arguments(args, kwargs, ("input", "weight", "bias"))
    groups = _groups(kwargs, args, 6)
    if source.dim() != weight.dim():
        raise Opaque("its input has no batch dimension")
    like = func(*to_meta(args), **to_meta(kwargs))
    _only_leading(ledger, weight)
    depthwise = 1 < groups == weight.shape[0]
    inputs, rows = _channels(ledger, source), _vector(ledger, weight, 0, "out" if depthwise else "in")
    _consume(ledger, inputs, rows)
    if groups == 1:
        outputs = _vector(ledger, weight, 1, "out")
    elif depthwise:
        outputs = rows.repeat_interleave(weight.shape[1]) if rows is not None else None
    else:
        outputs = _transposed_in_groups(ledger, rows, weight, groups)
    layers = [spread(outputs, 1, like.shape)] if outputs is not None else []
    return _biased(ledger, labelled(like, layers), bias, 1)


def _transposed_in_groups(ledger: Ledger, rows: Tensor | None, weight: Tensor, groups: int) -> Tensor:
    """Grouped, inputs first: dimension 1 of the weight numbers the outputs within each group."""
    if not isinstance(weight, Labelled) or not weight.parameter:
        raise Opaque("it is a grouped transposed convolution with a computed weight")
    known = ledger.parameters.setdefault(weight.parameter, {})
    fresh = ledger.mint(groups * weight.shape[1]).reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
    layer = fresh.reshape(*fresh.shape, *[1] * (weight.dim() - 2)).expand(weight.shape)
    ledger.unite(known.setdefault(1, layer), layer)
    ledger.used_as(weight, 1, "out")
    outputs = fresh[:: weight.shape[0] // groups]
    for table in (outputs, rows.reshape(groups, -1) if rows is not None else None):
        if table is not None:
            ledger.split(table, "groups", fixed=True)
    return outputs.reshape(-1)


def _groups(kwargs: dict[str, Any], args: Sequence[Any], position: int) -> int:
    found = kwargs.get("groups", args[position] if len(args) > position else 1)
    return int(found)


def _channels(ledger: Ledger, source: Tensor) -> Tensor | None:
    """The label of each input channel, the same all over the map; None where the input has none."""
    result: Tensor | None = None
    for layer in ledger.layers(source):
        if 1 not in dims_of(layer):
            ledger.lock(layer, "varies where a convolution needs one channel all over")
            continue
        # heads folded into the batch share the weight, and with it their channels
        flat = ledger.unite_along(layer, (0, *range(2, source.dim())))
        vector = along(flat, 1)
        if result is not None:
            ledger.unite(result, vector)
        result = vector if result is None else result
    return result


def _vector(ledger: Ledger, weight: Tensor, dim: int, role: Role) -> Tensor | None:
    if not isinstance(weight, Labelled) or weight.shape[dim] == 1:
        return None
    ledger.used_as(weight, dim, role)
    if weight.parameter:
        layer = ledger.dimension(weight, dim)
        if dims_of(layer) != (dim,):
            raise Opaque("its weight is shared with a grouped convolution")
        return along(layer, dim)
    found = next((layer for layer in weight.layers if dims_of(layer) == (dim,)), None)
    return along(found, dim) if found is not None else None


def _only_leading(ledger: Ledger, weight: Tensor) -> None:
    """Lock what a computed weight carries along its kernel: the kernel's size is no channel."""
    if isinstance(weight, Labelled) and not weight.parameter:
        for layer in weight.layers:
            if dims_of(layer) not in ((0,), (1,)):
                ledger.lock(layer, "is an extent of a convolution's kernel")


def _consume(ledger: Ledger, inputs: Tensor | None, rows: Tensor | None) -> None:
    if inputs is not None and rows is not None:
        ledger.unite(inputs, rows)
        return
    for vector in (inputs, rows):
        if vector is not None:
            ledger.lock(vector, "is multiplied with values that carry no channels")


def _one_for_each(ledger: Ledger, inputs: Tensor | None, outputs: Tensor | None, groups: int) -> None:
    """Depthwise: each input channel with the outputs that are made from it."""
    if inputs is None or outputs is None:
        _consume(ledger, inputs, outputs)
        return
    ledger.unite(inputs.unsqueeze(1).expand(groups, outputs.shape[0] // groups), outputs.reshape(groups, -1))


def _in_groups(ledger: Ledger, inputs: Tensor | None, outputs: Tensor | None, weight: Tensor, groups: int) -> None:
    """Grouped: as many survivors in each group, of the inputs and of the outputs."""
    if outputs is not None:
        ledger.split(outputs.reshape(groups, -1), "groups", fixed=True)
    if inputs is None:
        return
    rows = inputs.reshape(groups, -1)
    ledger.split(rows, "groups", fixed=True)
    if not isinstance(weight, Labelled) or not weight.parameter:  # its columns are the same in every group
        columns = _vector(ledger, weight, 1, "in")
        _consume(ledger, rows, columns.expand_as(rows) if columns is not None else None)
        return
    layer = rows.repeat_interleave(weight.shape[0] // groups, 0)
    layer = layer.reshape(*layer.shape, *[1] * (weight.dim() - 2)).expand(weight.shape)
    known = ledger.parameters.setdefault(weight.parameter, {})
    ledger.used_as(weight, 1, "in")
    ledger.unite(known.setdefault(1, layer), layer)


def embedding(ledger: Ledger, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A table looked up by values: its rows stay, its columns are the channels."""
    indices, weight = (args[0], args[1]) if args[0].dtype in (torch.int64, torch.int32) else (args[1], args[0])
    like = func(*to_meta(args), **to_meta(kwargs))
    layers = []
    for layer in ledger.layers(weight):
        if dims_of(layer) == (1,):
            layers.append(core(layer).reshape(-1).expand(like.shape))
        else:
            ledger.lock(layer, "is looked up by index")
    if isinstance(indices, Labelled):
        for layer in ledger.layers(indices):
            ledger.lock(layer, "is used as an index")
    return labelled(like, layers)


def addmm(first: Tensor, *factors: Tensor, **names: Any) -> Tensor:
    """``beta * first + alpha * (one @ other)`` spelled out."""
    return torch.add(_product(factors, names), first)


def addbmm(first: Tensor, *factors: Tensor, **names: Any) -> Tensor:
    """The same with the sum of a batch of products."""
    return torch.add(_product(factors, names).sum(0), first)


def _product(factors: Sequence[Tensor], names: dict[str, Any]) -> Tensor:
    named = (names[name] for name in ("mat1", "batch1", "mat2", "batch2") if name in names)
    one, other = [*factors, *named][:2]
    return torch.matmul(one, other)


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                                 *_: Any, enable_gqa: bool = False, **__: Any) -> Tensor:  # fmt: skip
    """Attention spelled out in matrix products."""
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    weights = torch.matmul(query, key.transpose(-2, -1))
    if attn_mask is not None:
        weights = torch.add(weights, attn_mask)
    return torch.matmul(torch.softmax(weights, -1), value)


def multi_head_attention(
    query: Tensor, key: Tensor, value: Tensor, embed_dim: int, heads: int,
    in_weight: Tensor | None, in_bias: Tensor | None, bias_k: Tensor | None, bias_v: Tensor | None,
    add_zero: bool, _dropout: float, out_weight: Tensor, out_bias: Tensor | None,  # noqa: FBT001  # torch's signature
    *args: Any, **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """``F.multi_head_attention_forward`` (tokens first) spelled out in linear layers and matrix products."""
    if bias_k is not None or bias_v is not None or add_zero or kwargs.get("static_k") is not None:
        raise Opaque("its attention has extra keys and values")
    if query.dim() == 2:
        raise Opaque("its attention has no batch dimension")
    q, k, v = _projected((query, key, value), in_weight, in_bias, kwargs)
    q, k, v = (_headed(t, heads) for t in (q, k, v))
    weights = torch.softmax(torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(embed_dim // heads), -1)
    mixed = torch.matmul(weights, v).permute(2, 0, 1, 3).flatten(-2)
    needed = kwargs.get("need_weights", args[2] if len(args) > 2 else True)
    return functional.linear(mixed, out_weight, out_bias), weights.mean(1) if needed else None


def _projected(
    values: Sequence[Tensor], weight: Tensor | None, bias: Tensor | None, kwargs: dict[str, Any]
) -> Sequence[Tensor]:
    query, key, value = values
    if weight is not None and query is key and key is value:
        return functional.linear(query, weight, bias).chunk(3, -1)
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    weights = weight.chunk(3) if weight is not None else tuple(kwargs[name] for name in names)
    biases = bias.chunk(3) if bias is not None else (None, None, None)
    return [functional.linear(t, w, b) for t, w, b in zip(values, weights, biases, strict=True)]


def _headed(value: Tensor, heads: int) -> Tensor:
    """(length, batch, embed) to (batch, heads, length, embed / heads)."""
    return value.reshape(*value.shape[:-1], heads, value.shape[-1] // heads).permute(1, 2, 0, 3)
