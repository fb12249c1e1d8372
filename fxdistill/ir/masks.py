"""Masks: which channels of a level are kept, and how the scores of the level below learn from it.

A level keeps the ``count`` best of its K maskable channels, whatever layer they are in, and of each layer at least the
best one; or, by layer, so many that each keeps about the same share, its best ones. With the scores s and the mask m in
{0, 1} of that level, and the scores r that *ride* on it, every value that a layer with weights reads is multiplied,
channel by channel, by

    factor = m + (r - stop(r))                            whose value is m, exactly, and whose slope in r is 1

so that autograd gives each score of r the sum, over the batch and all positions of all readers, of

    dL/dY * (what the channel would be unmasked)          Y = factor * that

Centred, each score gets that sum less its mean over the scores of the layer, so that no layer moves as a whole.

These are nodes of a graph like any other: a program inlines, specializes and compiles them.
"""

from collections.abc import Iterator
from operator import attrgetter

import torch
from torch import Tensor, fx, nn


def threshold(
    scores: Tensor, layers: Tensor, count: int, above: Tensor | None = None, *, by_layer: bool = False
) -> Tensor:
    """Which channels are kept: 1 for those, 0 for the others; (K,), without a gradient.

    Args:
        scores: (K,). Of equals the first one is the better one.
        layers: (L, longest) positions in ``scores`` of the channels of each layer, filled up with a layer's own.
        count: How many are kept, at least as many as there are layers.
        above: (K,) of the level above: where it is given, what it does not keep is not kept here. It keeps at least
            as many, and of each layer one; by layer as this one is.
        by_layer: Whether layers keep about the same share each.
    """
    order = ranked(scores, layers, above, by_layer=by_layer)
    return torch.zeros_like(scores, requires_grad=False).index_fill(0, order[:count], 1.0)


def affordable(  # noqa: PLR0917  # a node of a graph, which is read by position
    scores: Tensor, layers: Tensor, counts: Tensor, fixed: Tensor, rows: Tensor, weights: Tensor, limit: int,
    above: Tensor | None = None, *, by_layer: bool = False,
) -> Tensor:  # fmt: skip
    """The same for as many channels as a budget allows, but one of each layer in any case.

    Args:
        scores: (K,).
        layers: As for :func:`threshold`.
        counts: (D, K), as ``fixed`` and ``rows`` from a :class:`fxdistill.ir.cost.Cost`.
        fixed: (D,).
        rows: (T, 2).
        weights: (T,): what a tensor costs for one index of each of its dimensions.
        limit: The most that may be paid.
        above: As for :func:`threshold`.
        by_layer: Likewise.
    """
    order = ranked(scores, layers, above, by_layer=by_layer)
    alive = fixed[:, None] + counts[:, order].cumsum(1)
    paid = (alive[rows[:, 0]] * alive[rows[:, 1]] * weights[:, None]).sum(0)
    allowed = paid <= limit if above is None else (paid <= limit) & (above[order] > 0)
    fits = allowed.index_fill(0, torch.arange(len(layers), device=order.device), True)  # noqa: FBT003
    return torch.zeros_like(scores, requires_grad=False).index_put((order,), fits.to(scores.dtype))


def ranked(scores: Tensor, layers: Tensor, above: Tensor | None = None, *, by_layer: bool = False) -> Tensor:
    """The order in which channels are kept: the best one of each layer first, then by score; (K,) positions.

    By layer, the n-th best of C channels of a layer stands at (n - 1/2) / C instead: wherever the order is cut, each
    layer keeps its best ones, half a channel more or less than the same share of them, whatever the scores.
    """
    found = scores.detach()
    if above is not None:
        found = torch.where(above > 0, found, -torch.inf)
    first = layers.gather(1, found[layers].argmax(1, keepdim=True)).flatten()
    order = found.index_fill(0, first, torch.inf).argsort(descending=True, stable=True)
    if not by_layer:
        return order
    owned = _owned(scores, layers)
    sizes, owner = owned.sum(0).long(), owned.argmax(1)
    grouped = order[owner[order].argsort(stable=True)]  # layer after layer, the best first
    place = owner[grouped]
    rank = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[place]
    return grouped[((rank + 0.5) / sizes[place].double()).masked_fill(rank == 0, 0.0).argsort(stable=True)]


def _owned(scores: Tensor, layers: Tensor) -> Tensor:
    """(K, L): 1 where a channel is one of a layer, 0 elsewhere."""
    return scores.new_zeros(len(scores), len(layers)).scatter(0, layers.T, 1.0)


def ride(mask: Tensor | None, scores: Tensor, layers: Tensor | None = None) -> Tensor:
    """The factors of a level on which scores ride: the mask's values, and a slope of 1 in each score; (K,).

    Args:
        mask: (K,); None where all are kept.
        scores: (K,).
        layers: As for :func:`threshold`, where gradients are centred: a score's slope is less by one over the size of
            its layer in all scores of that.
    """
    if layers is not None:
        owned = _owned(scores, layers)
        means = (owned * scores[:, None]).sum(0) / owned.sum(0)
        scores = scores - (owned * means).sum(1)
    riding = scores - scores.detach()
    return riding + 1.0 if mask is None else mask + riding


def gate(value: Tensor, factors: Tensor, index: Tensor, dim: int) -> Tensor:
    """A value with its channels multiplied by their factors.

    Args:
        value: What a layer reads.
        factors: (K,).
        index: For each channel the position of its factor, -1 for one that cannot be masked.
        dim: The dimension of the channels.
    """
    whole = torch.cat([factors, factors.new_ones(1)])
    # an index in brackets is sorted on the way back: a dozen kernels of a GPU for every gate, where two are enough
    whole = whole.index_select(0, index.remainder(len(whole))).to(value.dtype)
    return value * whole.view(-1, *(1,) * (value.dim() - dim % value.dim() - 1))


MASKS = (threshold, affordable)
NODES = (*MASKS, ride, gate)


def scores_in(program: nn.Module, graph: fx.Graph) -> Iterator[nn.Parameter]:
    """The scores that a graph reads, each once."""
    seen: set[int] = set()
    for node in graph.nodes:
        if node.op == "call_function" and node.target in (*MASKS, ride):
            for source in node.all_input_nodes:
                found = attrgetter(str(source.target))(program) if source.op == "get_attr" else None
                if isinstance(found, nn.Parameter) and id(found) not in seen:
                    seen.add(id(found))
                    yield found
