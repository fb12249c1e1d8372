"""Which label rule answers which torch function.

A function is found by its bare name (``aten.conv2d.default``, ``F.conv2d`` and ``torch.conv2d`` are all ``conv2d``) in
the table of :mod:`fxdistill.ir.operators`, which names its rule by a word. Here the words get their functions:

    rule(ledger, function, args, kwargs) -> value      labelled, as the function's own result is shaped and typed

Rules of operators that come from elsewhere have the same form; they build on :mod:`fxdistill.passes.couple.operations`,
``movement`` and ``products``, and raise :class:`Opaque` where they give up.
"""

# ruff: noqa: ARG001, PLR0917  # rules share one signature; a call is a name, a function and its arguments

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from fxdistill.ir.operators import bare_name, operator_of
from fxdistill.operators import rule
from fxdistill.passes.couple import movement, operations, products
from fxdistill.passes.couple.operations import empty_labels, end
from fxdistill.passes.couple.values import Ledger, Opaque, tensors, to_meta

Function = Callable[..., Any]
Rule = Callable[[Ledger, Function, tuple[Any, ...], dict[str, Any]], Any]


class Mode(Protocol):
    """What a rule needs of the mode that it is called from."""

    ledger: Ledger

    def __enter__(self) -> Any:
        """Enter it again, for operations that are spelled out in others."""

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        """Leave it."""


def apply_rule(mode: Mode, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The labelled result of one torch function; a barrier where there is no rule, or the rule gives up.

    Raises:
        Opaque: Not even the shape of the result is known.
        InputError: The operator names a rule that there is not.
    """
    name = bare_name(func)
    known = operator_of(name)
    spelled = known.spelled or (_SPELLED.get(known.labels) if isinstance(known.labels, str) else None)
    if spelled is not None:
        with _context(mode):
            return spelled(*args, **kwargs)
    found = rule(known.labels, RULES, field="labels", name=name)
    if found is None:
        return _barrier(mode.ledger, name, func, args, kwargs, f"no label rule for '{name}'")
    try:
        return found(mode.ledger, func, args, kwargs)
    except Opaque as cause:
        return _barrier(mode.ledger, name, func, args, kwargs, str(cause))


def _context(mode: Mode) -> AbstractContextManager[Any]:
    return mode


def _metadata(ledger: Ledger, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Questions about shape and type."""
    return func(*args, **kwargs)


def _device(ledger: Ledger, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return torch.device("cpu")


def _place(ledger: Ledger, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return bare_name(func) == "is_cpu"


def _new(ledger: Ledger, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What makes new tensors of a like kind."""
    on_cpu = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    return func(torch.empty(0, dtype=args[0].dtype), *args[1:], **on_cpu)


def _nothing(ledger: Ledger, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return None


def _setitem(ledger: Ledger, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if any(ledger.layers(t) for t in tensors((args, kwargs))):
        end(ledger, (args, kwargs), "is written into another tensor")
        ledger.note("opaque-node", "channels are not followed through an assignment to a part of a tensor")


def _unfold(ledger: Ledger, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``Tensor.unfold`` is a view; ``F.unfold`` takes patches."""
    taken = operations.unfold_patches if func is functional.unfold else movement.move
    return taken(ledger, func, args, kwargs)


def _matmul_reversed(ledger: Ledger, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return products.matmul(ledger, func, (args[1], args[0]), kwargs)


RULES: dict[str, Rule] = {
    "pointwise": operations.pointwise, "elementwise": operations.elementwise, "prelu": operations.prelu,
    "reduction": operations.reduction, "spatial": operations.spatial, "unpool": operations.unpool,
    "neighbours": operations.neighbours,
    "channel-norm": operations.channel_norm, "last-dims-norm": operations.last_dims_norm,
    "group-norm": operations.group_norm, "normalize": operations.normalize,
    "patches": operations.unfold_patches, "fold": operations.fold_patches, "unfold": _unfold,
    "movement": movement.move, "cat": movement.cat, "pad": movement.pad,
    "linear": products.linear, "matmul": products.matmul, "rmatmul": _matmul_reversed, "einsum": products.einsum,
    "convolution": products.convolution, "transposed-convolution": products.transposed_convolution,
    "embedding": products.embedding,
    "metadata": _metadata, "device": _device, "place": _place, "new": _new, "nothing": _nothing, "setitem": _setitem,
}  # fmt: skip
"""The words that the table uses."""
_SPELLED: dict[str, Function] = {
    "attention": products.scaled_dot_product_attention,
    "multi-head-attention": products.multi_head_attention,
    "addmm": products.addmm,
    "addbmm": products.addbmm,
    "stack": lambda tensors, dim=0: torch.cat([t.unsqueeze(dim) for t in tensors], dim),
}
"""Words for what is spelled out in other operations."""


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
