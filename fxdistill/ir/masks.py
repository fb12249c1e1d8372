"""Masks: which channels of a level are kept, and how the scores of the level below learn from it.

A level keeps the ``count`` best of its K maskable channels, whatever layer they are in, and of each layer at least the
best one; or, by layer, so many that each keeps about the same share, its best ones. Where widths are to be multiples,
a layer's channels are kept in bundles of so many, its best ones first, and bundles compete by their mean score; the
last bundle of a layer has what is left. With the scores s and the mask m in {0, 1} of that level, and the scores r that
*ride* on it, every value that a layer with weights reads is multiplied, channel by channel, by

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

_FULL = 4
"""After so many layers that cannot have more a budget counts as spent."""


def threshold(
    scores: Tensor, layers: Tensor, count: int, above: Tensor | None = None, *, by_layer: bool = False,
    multiple: int = 1,
) -> Tensor:  # fmt: skip
    """Which channels are kept: 1 for those, 0 for the others; (K,), without a gradient.

    Args:
        scores: (K,). Of equals the first one is the better one.
        layers: (L, longest) positions in ``scores`` of the channels of each layer, filled up with a layer's own.
        count: How many are kept, at least one bundle of each layer; in bundles the most that are no more.
        above: (K,) of the level above: where it is given, what it does not keep is not kept here. It keeps at least
            as many, and of each layer one; by layer, and in bundles, as this one is.
        by_layer: Whether layers keep about the same share each.
        multiple: The size of a bundle.
    """
    order = ranked(scores, layers, above, by_layer=by_layer, multiple=multiple)
    fits = whole(order, layers, multiple) <= count
    return _kept(scores, layers, order, fits if above is None else fits & (above[order] > 0), multiple)


def affordable(  # noqa: PLR0917  # a node of a graph, which is read by position
    scores: Tensor, layers: Tensor, counts: Tensor, fixed: Tensor, rows: Tensor, weights: Tensor, limit: int,
    above: Tensor | None = None, *, by_layer: bool = False, multiple: int = 1,
) -> Tensor:  # fmt: skip
    """The same for as many channels as a budget allows, but one bundle of each layer in any case.

    Where layers compete, and one comes that does not fit, its layer keeps what it has, and cheaper ones of the other
    layers go on: so for four layers, after which hardly anything of a budget is left.

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
        multiple: Likewise.
    """
    order = ranked(scores, layers, above, by_layer=by_layer, multiple=multiple)
    owner, ends = _owners(layers, len(order))[0][order], whole(order, layers, multiple) - 1
    fits = goes_on = torch.ones_like(order, dtype=torch.bool) if above is None else above[order] > 0
    for _ in range(1 if by_layer else _FULL):
        alive = fixed[:, None] + (counts[:, order] * goes_on).cumsum(1)
        paid = (alive[rows[:, 0]] * alive[rows[:, 1]] * weights[:, None]).sum(0)
        fits = goes_on & (paid <= limit)[ends]
        too_much = goes_on & ~fits
        goes_on = goes_on & ~(too_much & (owner == owner[too_much.to(order.dtype).argmax()]))
    return _kept(scores, layers, order, fits, multiple)


def _kept(scores: Tensor, layers: Tensor, order: Tensor, fits: Tensor, multiple: int) -> Tensor:
    """The mask of what fits of an order, (K,), and of the first bundle of each layer in any case."""
    places = torch.arange(len(order), device=order.device)
    first = len(layers) if multiple == 1 else _owners(layers, len(order))[1].clamp(max=multiple).sum()
    fits = fits | (places < first)
    return torch.zeros_like(scores, requires_grad=False).index_put((order,), fits.to(scores.dtype))


def whole(order: Tensor, layers: Tensor, multiple: int) -> Tensor:
    """For each place of an order how many channels are kept with the whole bundle there and all before it: (K,)."""
    places = torch.arange(len(order), device=order.device)
    if multiple == 1:
        return places + 1
    owner, sizes = _owners(layers, len(order))
    place = owner[order]
    grouped = place.argsort(stable=True)  # layer after layer
    rank = torch.zeros_like(places).index_put((grouped,), places - (sizes.cumsum(0) - sizes)[place[grouped]])
    start = rank - rank % multiple
    return places - rank % multiple + (sizes[place] - start).clamp(max=multiple)


def ranked(
    scores: Tensor, layers: Tensor, above: Tensor | None = None, *, by_layer: bool = False, multiple: int = 1
) -> Tensor:
    """The order in which channels are kept: the best one of each layer first, then by score; (K,) positions.

    By layer, the n-th best of C channels of a layer stands at (n - 1/2) / C instead: wherever the order is cut, each
    layer keeps its best ones, half a channel more or less than the same share of them, whatever the scores. A bundle
    stands as a whole at the mean of what its channels would have.
    """
    found = scores.detach()
    if above is not None:
        found = torch.where(above > 0, found, -torch.inf)
    first = layers.gather(1, found[layers].argmax(1, keepdim=True)).flatten()
    order = found.index_fill(0, first, torch.inf).argsort(descending=True, stable=True)
    if not by_layer and multiple == 1:
        return order
    owner, sizes = _owners(layers, len(order))
    grouped = order[owner[order].argsort(stable=True)]  # layer after layer, the best first
    place = owner[grouped]
    rank = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[place]
    start, number = rank - rank % multiple, (rank % multiple == 0).cumsum(0) - 1
    if by_layer:
        stands = (start + (sizes[place] - start).clamp(max=multiple) / 2) / sizes[place].double()
    else:
        bundles = found.new_zeros(len(order), multiple).index_put((number, rank % multiple), found[grouped])
        stands = -(bundles.sum(1)[number] / (sizes[place] - start).clamp(max=multiple)).double()
    return grouped[stands.masked_fill(start == 0, -torch.inf).argsort(stable=True)]


def _owners(layers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The layer of each of K channels, (K,), and how many each layer has, (L,)."""
    numbers = torch.arange(len(layers), device=layers.device)[:, None].expand_as(layers)
    owner = layers.new_zeros(count).scatter(0, layers.flatten(), numbers.flatten())
    return owner, layers.new_zeros(len(layers)).scatter_add(0, owner, torch.ones_like(owner))


def _owned(values: Tensor, layers: Tensor) -> Tensor:
    """(K, L), of the type of K values: 1 where a channel is one of a layer, 0 elsewhere."""
    return values.new_zeros(len(values), len(layers)).scatter(0, layers.T, 1.0)


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
