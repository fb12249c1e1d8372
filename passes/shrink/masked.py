"""Masked references: what an operation of the full model gives when the removed elements do not count.

For most operations zeros in their place do. A statistic over channels has to be taken over the survivors:

    mean(x)  =  sum(x * alive) / sum(alive)         and so for variances, and for the norms that are made of them

The table of :mod:`fxdistill.ir.operators` names these rules by a word; an operator may bring one of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """One call in the full model.

    Attributes:
        name: The operation's bare name.
        args: Its arguments; the first one is the tensor of which elements were removed, zeros in their place.
        kwargs: Its keyword arguments.
        module: The module that is called; None for functions and methods.
    """

    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    module: nn.Module | None = None


Rule = Callable[[Call, Tensor], Any]
"""The value of a call, of which ``alive`` (booleans of the first argument's shape) says what survives; None where zeros
in the place of what was removed do."""


def moment(call: Call, alive: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """``mean``, ``var``, ``std``, ``var_mean`` and ``std_mean`` of the survivors along dimensions."""
    name, args, kwargs = call.name, call.args, call.kwargs
    x: Tensor = args[0]
    flags = [value for value in args[1:] if isinstance(value, bool)]  # keepdim of a mean; else unbiased, then keepdim
    keep = flags[-1] if flags and (name == "mean" or len(flags) > 1) else False
    unbiased = flags[0] if flags and name != "mean" else True
    given = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 and not isinstance(args[1], bool) else None))
    dims = tuple(range(x.dim())) if given is None else tuple(given) if isinstance(given, list | tuple) else (given,)
    keep = bool(kwargs.get("keepdim", kwargs.get("keepdims", keep)))
    correction = kwargs.get("correction", 1 if kwargs.get("unbiased", unbiased) else 0)
    count = alive.sum(dims, keepdim=True)
    mean: Tensor = (x * alive).sum(dims, keepdim=True) / count.clamp(min=1)
    square = (((x - mean) ** 2) * alive).sum(dims, keepdim=True) / (count - correction).clamp(min=1)
    mean, square = (mean, square) if keep else (mean.squeeze(dims), square.squeeze(dims))
    spread = square.sqrt() if name.startswith("std") else square
    return mean if name == "mean" else (spread, mean) if name.endswith("_mean") else spread


def norm(call: Call, alive: Tensor) -> Tensor:
    """Layer, RMS and group normalisation with the statistics of the survivors."""
    x, given = call.args[0], _norm_arguments(call)
    if call.name == "group_norm":
        shape = (x.shape[0], given["groups"], -1)
        normed = _standardized(x.reshape(shape), alive.reshape(shape), (2,), given["eps"], center=True).reshape(x.shape)
        view: tuple[int, ...] = (1, -1, *(1,) * (x.dim() - 2))
    else:
        dims = tuple(range(x.dim() - len(given["shape"]), x.dim()))
        normed = _standardized(x, alive, dims, given["eps"], center=call.name != "rms_norm")
        view = tuple(given["shape"])
    for key, combine in _AFFINE:
        if given[key] is not None:
            normed = combine(normed, given[key].reshape(view))
    return normed


def batch_norm(call: Call, alive: Tensor) -> Tensor | None:
    """A functional batch norm whose statistics run over channels, as weight standardization (NFNet) uses it."""
    if call.module is not None:
        return None
    names = ("x", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    defaults: dict[str, Any] = {"weight": None, "bias": None, "training": False, "eps": 1e-5}
    given = {**defaults, **dict(zip(names, call.args, strict=False)), **call.kwargs}
    if not given["training"]:
        return None
    x: Tensor = given["x"]
    dims = tuple(d for d in range(x.dim()) if d != 1)
    normed = _standardized(x, alive, dims, given["eps"], center=True)
    for key, combine in _AFFINE:
        if given[key] is not None:
            normed = combine(normed, given[key].reshape(1, -1, *(1,) * (x.dim() - 2)))
    return normed


_AFFINE: tuple[tuple[str, Callable[[Tensor, Tensor], Tensor]], ...] = (("weight", torch.mul), ("bias", torch.add))


def _standardized(x: Tensor, alive: Tensor, dims: tuple[int, ...], eps: float, *, center: bool) -> Tensor:
    count = alive.sum(dims, keepdim=True).clamp(min=1)
    if center:
        x = (x - (x * alive).sum(dims, keepdim=True) / count) * alive
    power = (x**2 * alive).sum(dims, keepdim=True) / count
    return x * (power + eps).rsqrt()


def _norm_arguments(call: Call) -> dict[str, Any]:
    args, module = call.args, call.module
    if module is not None:
        eps = getattr(module, "eps", None)
        return {
            "groups": getattr(module, "num_groups", 1), "shape": getattr(module, "normalized_shape", ()),
            "weight": getattr(module, "weight", None), "bias": getattr(module, "bias", None),
            "eps": torch.finfo(args[0].dtype).eps if eps is None else eps,
        }  # fmt: skip
    names = ("shape", "weight", "eps") if call.name == "rms_norm" else ("shape", "weight", "bias", "eps")
    given = {"bias": None, "weight": None, "eps": 1e-5, **dict(zip(names, args[1:], strict=False))}
    given |= {{"normalized_shape": "shape", "num_groups": "shape"}.get(k, k): v for k, v in call.kwargs.items()}
    given["groups"] = given["shape"]
    if given["eps"] is None:
        given["eps"] = torch.finfo(args[0].dtype).eps
    return given


RULES: dict[str, Rule] = {"moment": moment, "norm": norm, "batch-norm": batch_norm}
"""The words that the table uses."""
OVER_CHANNELS = frozenset(("moment", "norm"))
"""Those that are asked only where the operation was seen to run over channels."""
