"""The table of label rules: which rule answers which torch function.

A function is found by its bare name (``aten.conv2d.default``, ``F.conv2d`` and ``torch.conv2d`` are all ``conv2d``).
"""

# ruff: noqa: SIM905, PLR0917  # tables of names read best as words; a call is a name, a function and its arguments

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from fxdistill.passes.couple import movement, operations, products
from fxdistill.passes.couple.operations import empty_labels, end
from fxdistill.passes.couple.values import Ledger, Opaque, rule_name, tensors, to_meta

Function = Callable[..., Any]
Rule = Callable[[Ledger, Function, tuple[Any, ...], dict[str, Any]], Any]


class Mode(Protocol):
    """What a rule needs of the mode that it is called from."""

    ledger: Ledger

    def __enter__(self) -> Any:
        """Enter it again, for operations that are spelled out in others."""

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        """Leave it."""


_METADATA = frozenset(
    "shape size dim ndim ndimension numel nelement stride storage_offset is_contiguous is_floating_point is_complex "
    "dtype sym_size sym_numel sym_stride len layout requires_grad is_sparse is_quantized is_nested is_leaf grad_fn "
    "element_size is_same_size is_inference is_meta names get_device itemsize nbytes is_signed is_conj is_neg "
    "result_type promote_types can_cast is_distributed retains_grad data_ptr dim_order".split()
)
_PLACE = frozenset("is_cuda is_cpu is_mps is_xpu is_xla is_mkldnn is_vulkan is_ipu is_mtia is_maia is_hpu".split())
_NEW = frozenset("new_zeros new_ones new_empty new_full new_tensor new".split())
_VALUELESS = frozenset("_assert _assert_async _assert_scalar _assert_tensor_metadata".split())
_PRODUCTS: dict[str, Rule] = {
    "linear": products.linear,
    **dict.fromkeys(("matmul", "rmatmul", "bmm", "mm", "mv", "dot"), products.matmul),
    "einsum": products.einsum,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), products.convolution),
    **{f"conv_transpose{n}d": products.transposed_convolution for n in (1, 2, 3)},
    "embedding": products.embedding,
}  # fmt: skip
_OPERATIONS: dict[str, Rule] = {
    **dict.fromkeys(operations.ELEMENTWISE, operations.elementwise),
    **dict.fromkeys(operations.POINTWISE, operations.pointwise),
    **dict.fromkeys(operations.NORMS, operations.last_dims_norm),
    **dict.fromkeys(operations.CHANNEL_NORMS, operations.channel_norm),
    **dict.fromkeys(("cat", "concat", "concatenate"), movement.cat),
    **dict.fromkeys(("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"), movement.pad),
    "group_norm": operations.group_norm,
    "prelu": operations.prelu,
    "normalize": operations.normalize,
    "im2col": operations.unfold_patches,
    **dict.fromkeys(("fold", "col2im"), operations.fold_patches),
    "local_response_norm": operations.neighbours,
}  # fmt: skip
_POOLS = tuple("max_pool avg_pool adaptive_avg_pool adaptive_max_pool lp_pool fractional_max_pool upsample _upsample "
               "interpolate grid_sample".split())  # fmt: skip
_REDUCTIONS = operations.SUMS | operations.RANKS | operations.ALONG
_SPELLED: dict[str, Function] = {
    "scaled_dot_product_attention": products.scaled_dot_product_attention,
    "multi_head_attention_forward": products.multi_head_attention,
    "addmm": products.addmm, "baddbmm": products.addmm, "addbmm": products.addmm,
    "stack": lambda tensors, dim=0: torch.cat([t.unsqueeze(dim) for t in tensors], dim),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), movement.channel_shuffle),
    "glu": lambda value, dim=-1: torch.mul(*_gate(value, dim)),
}  # fmt: skip


def _gate(value: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    one, other = value.chunk(2, dim)
    return one, torch.sigmoid(other)


def apply_rule(mode: Mode, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The labelled result of one torch function; a barrier where there is no rule, or the rule gives up."""
    name = rule_name(func)
    found = _plain(mode, name, func, args, kwargs)
    if found is not NotImplemented:
        return found
    if name in _SPELLED:
        with _context(mode):
            return _SPELLED[name](*args, **kwargs)
    try:
        return _ruled(mode.ledger, name, func, args, kwargs)
    except Opaque as cause:
        return _barrier(mode.ledger, name, func, args, kwargs, str(cause))


def _context(mode: Mode) -> AbstractContextManager[Any]:
    return mode


def _plain(mode: Mode, name: str, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Questions about shape, type and place, and what makes new tensors of a like kind."""
    if name in _METADATA:
        return func(*args, **kwargs)
    if name in _VALUELESS:
        return None
    if name == "device":
        return torch.device("cpu")
    if name in _PLACE:
        return name == "is_cpu"
    if name in _NEW:
        return func(torch.empty(0, dtype=args[0].dtype), *args[1:], **_on_cpu(kwargs))
    if name == "setitem" and not any(mode.ledger.layers(t) for t in tensors((args, kwargs))):
        return None
    if name == "setitem":
        end(mode.ledger, (args, kwargs), "is written into another tensor")
        mode.ledger.note("opaque-node", "channels are not followed through an assignment to a part of a tensor")
        return None
    return NotImplemented


def _on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}


def _ruled(ledger: Ledger, name: str, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if name == "unfold":
        return _unfold(ledger, func, args, kwargs)
    if name == "rmatmul":
        args = (args[1], args[0])
    rule = _PRODUCTS.get(name) or _OPERATIONS.get(name)
    if rule is not None:
        return rule(ledger, func, args, kwargs)
    if name in movement.MOVEMENT:
        return movement.move(ledger, name, func, args, kwargs)
    if name in _REDUCTIONS:
        return operations.reduction(ledger, name, func, args, kwargs)
    if name.startswith(_POOLS):
        return operations.spatial(ledger, func, args, kwargs)
    raise Opaque(f"no label rule for '{name}'")


def _unfold(ledger: Ledger, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``Tensor.unfold`` is a view; ``F.unfold`` takes patches."""
    if func is functional.unfold:
        return operations.unfold_patches(ledger, func, args, kwargs)
    return movement.move(ledger, "unfold", func, args, kwargs)


def _barrier(ledger: Ledger, name: str, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], why: str) -> Any:
    """Lock what enters; what leaves carries no channels."""
    try:
        like = func(*to_meta(args), **to_meta(kwargs))
    except Exception as cause:
        raise Opaque(why) from cause
    end(ledger, (args, kwargs), f"enters '{name}', which is not followed")
    ledger.note("opaque-node", f"channels are not followed through '{name}': {why}", "its inputs keep their channels")
    if not isinstance(like, Tensor | tuple | list):
        raise Opaque(why)
    return empty_labels(like)
