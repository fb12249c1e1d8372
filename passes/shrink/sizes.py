"""Rewrites of what states sizes: views, constants that are made in ``forward``, norms over dimensions, pads."""

from typing import Any

import torch
from torch import Tensor, fx

from fxdistill.ir.graph import path_of
from fxdistill.ir.survivors import Mask, Masks
from fxdistill.passes.shrink.arguments import Rewriting, argument, correct, entries, meant, now


def sizes(node: fx.Node, run: Rewriting, masks: Masks) -> None:
    """view, reshape, expand, zeros, full: the sizes of the result."""
    expected = masks.sizes if isinstance(masks, Mask) else run.shapes.get(path_of(node))
    if expected is None:
        return
    key = next((k for k in ("shape", "size") if k in node.kwargs), None)
    first = 1 if node.args and isinstance(now(node.args[0], run), Tensor) else 0
    packed = len(node.args) > first and not isinstance(now(node.args[first], run), int)
    given: Any = node.kwargs[key] if key else node.args[first] if packed else node.args[first:]
    if isinstance(given, torch.dtype):
        return
    if packed:  # a number to fill with is the full model's
        kept = [
            value if now(value, run) == meant(value, run) else meant(value, run) for value in node.args[first + 1 :]
        ]
        node.args = (*node.args[: first + 1], *kept)
    new = entries(given, expected, node, run, inferred=True)
    if now(new, run) == now(given, run):
        return
    if key:
        node.kwargs = {**node.kwargs, key: new}
    else:
        node.args = (*node.args[:first], new, *node.args[first + 1 :]) if packed else (*node.args[:first], *new)


def unflatten(node: fx.Node, run: Rewriting, masks: Masks) -> None:
    """``x.unflatten(dim, sizes)``."""
    if isinstance(masks, Mask) and masks.sizes is not None:
        count = len(meant(argument(node, 2, "sizes"), run))
        dim = int(meant(argument(node, 1, "dim"), run)) % (len(masks.sizes) - count + 1)
        correct(node, run, 2, masks.sizes[dim : dim + count], "sizes", inferred=True)


def layer_norm(node: fx.Node, run: Rewriting, _: Masks) -> None:
    """``normalized_shape``: the last sizes of what is normalised."""
    x = run.env[node.args[0]]  # type: ignore[index]
    count = len(meant(argument(node, 1, "normalized_shape"), run))
    correct(node, run, 1, tuple(x.shape[x.dim() - count :]), "normalized_shape")


def pad(node: fx.Node, run: Rewriting, masks: Masks) -> None:
    """Padded channels are channels: of those that a pad adds, some are removed."""
    source = node.args[0]
    before = run.shapes[path_of(source)]  # type: ignore[arg-type]
    if before is None:
        return
    widths = list(meant(argument(node, 1, "pad"), run))
    for index in range(0, len(widths), 2):
        dim = len(before) - 1 - index // 2
        if not isinstance(masks, Mask):
            break
        alive = masks.along(dim).expand(masks.shape[dim])
        low, high = widths[index], widths[index + 1]
        if not bool(alive.all()) and low >= 0 and high >= 0:
            widths[index], widths[index + 1] = int(alive[:low].sum()), int(alive[len(alive) - high :].sum())
    correct(node, run, 1, widths, "pad")
