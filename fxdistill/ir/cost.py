"""What a model costs once channels are removed: parameters and multiply-accumulates by what is kept, exactly.

An element of a weight is left where no layer of its labels names a removed class (:mod:`fxdistill.ir.coupling`), and a
convolution or a linear layer multiplies as often as it has elements, times what does not shrink. A product of two
values multiplies once for each point that is alive in both of them. So everything is a sum of products of two widths:

    alive(dim)  =  fixed + the sum of what is kept over the removable channels along it
    cost        =  sum over rows  factor * alive(dim) * alive(dim')

A weight, or a product, is one row of its two layers, and where both are one (depthwise convolutions) a row of one
dimension: kept times kept is kept. Where they share a dimension (groups of a convolution, heads of an attention) that
holds as well: what is left of a tensor is a rectangle, so each group keeps as many of its channels as the others.
"""

import functools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, fx

from fxdistill.ir.budget import Size, Spent
from fxdistill.ir.coupling import Coupling, Layers, core, varying
from fxdistill.ir.graph import Shape, Traced, macs_of, op_name, path_of, shape_of, weights_of
from fxdistill.ir.layers import Layer, Timing, layers_of

CONVOLUTIONS = frozenset((
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution",
))  # fmt: skip
_PRODUCTS = frozenset(("matmul", "bmm", "mm", "addmm", "baddbmm"))
"""Products of the last two of their arguments."""
_NAMES = (
    "input", "input1", "query", "mat1", "batch1", "weight", "input2", "key", "other", "mat2", "batch2", "value",
)  # fmt: skip
"""What operands are called where they are given by name, in their order."""
_LETTERS = "ABCDEFGH"
_ATTENTION = "scaled_dot_product_attention"
_WEIGHED = CONVOLUTIONS | _PRODUCTS | {_ATTENTION, "linear", "einsum"}
"""What multiplies its operands; a function is given its weight, which may be computed, second, and maybe a bias."""


@dataclass(frozen=True, eq=False)
class Cost:
    """The cost of a model when of K classes some are kept; everything in float64, where integers are exact.

    Attributes:
        classes: The K classes.
        counts: (D, K), sparse: how often each class occurs along each dimension.
        fixed: (D,): how many channels along it stay in any case.
        rows: (T, 2): for each product its two dimensions; the last one stands for none, and is always 1.
        parameters: (T,): the entries of the tensor for one index of each of these dimensions.
        macs: (T,): the multiply-accumulates of a batch, likewise.
        base: Those of what does not shrink.
        images: How many images the batch has.
        unread: Parameters that the model has and does not read.
        layers: What takes the time: each layer, and the dimensions that it reads and makes.
        timing: How long they take; None where that is not asked for.
    """

    classes: tuple[int, ...]
    counts: csr_array
    fixed: Tensor
    rows: Tensor
    parameters: Tensor
    macs: Tensor
    base: int
    images: int = 1
    unread: int = 0
    layers: tuple[tuple[Layer, int, int], ...] = ()
    timing: Timing | None = None

    def of(self, mask: Tensor) -> Size:
        """The cost where classes are kept as a mask (K,) says."""
        return Size(*self.spent(mask)[:2])

    def spent(self, mask: Tensor) -> Spent:
        """The same, with the time."""
        alive = self._alive(mask)
        parameters, macs = self._of(alive)
        if self.timing is None or not self.layers:
            return Spent(int(parameters), int(macs), 0)
        time = self.timing.whole * self._sum(self.timing, alive) / self._own_sum
        return Spent(int(parameters), int(macs), round(1e9 * time))

    @functools.cached_property
    def _own_sum(self) -> float:
        whole = self._alive(torch.ones(len(self.classes)))
        return self._sum(self.timing, whole) if self.timing is not None else 1.0

    def _alive(self, mask: Tensor) -> Tensor:
        """How many channels are alive along each dimension, (D,)."""
        return self.fixed + torch.from_numpy(self.counts @ mask.double().cpu().numpy())

    def _sum(self, timing: Timing, widths: Tensor) -> float:
        """The sum over the layers where so many channels are alive along each dimension."""
        alive = [int(n) for n in widths.tolist()]
        seconds = sum(timing.times(layer, alive[reads], alive[makes]) for layer, reads, makes in self.layers)
        counted = sum(layer.macs(alive[reads], alive[makes]) for layer, reads, makes in self.layers)
        return seconds * max(1.0, float(self._of(widths)[1]) * self.images / counted)

    def spent_without(self, removed: Collection[int]) -> Spent:
        """The cost without some classes, with the time."""
        return self.spent(torch.tensor([class_id not in removed for class_id in self.classes]))

    def priced(self, what: str, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """What :func:`fxdistill.ir.masks.affordable` counts a budget with.

        Args:
            what: ``macs`` of an image, or ``parameters``.
            most: How many of them are allowed.

        Returns:
            Counts, dense; fixed; rows; what a tensor costs for one index of each of its dimensions; and how much may be
            spent on what shrinks.
        """
        counts = torch.from_numpy(self.counts.toarray())
        if what == "macs":
            return counts, self.fixed, self.rows, self.macs, most * self.images - self.base
        return counts, self.fixed, self.rows, self.parameters, most - self.unread

    def _of(self, alive: Tensor) -> tuple[Tensor, Tensor]:
        product = alive[self.rows[:, 0]] * alive[self.rows[:, 1]]
        of_batch = ((product * self.macs).sum() + self.base).round()
        parameters = (product * self.parameters).sum() + self.unread
        return parameters.round(), (of_batch / self.images).round()


def cost_of(
    traced: Traced, coupling: Coupling, classes: Sequence[int], *, unread: int = 0, timing: Timing | None = None
) -> Cost:
    """The cost of a model as a function of which classes are kept.

    Args:
        traced: The model in eval mode.
        coupling: Its coupled channels.
        classes: Those that may be removed.
        unread: Parameters that the model has beside those of its graph.
        timing: How long its layers take, for a cost in time as well.
    """
    place = torch.full((coupling.class_count + 1,), -1)
    place[list(classes)] = torch.arange(len(classes))
    rows, base = _Rows(place), 0
    first: dict[int, str] = {}
    for name, tensor in traced.module.named_parameters(remove_duplicate=False):
        if first.setdefault(id(tensor), name) == name:
            rows.add(tuple(coupling.parameter_labels(name).values()), tuple(tensor.shape), parameters=1.0)
    named = {name: first[id(tensor)] for name, tensor in traced.module.named_parameters(remove_duplicate=False)}
    for node in traced.graph.nodes:
        found = list(_spaces(node, traced, coupling, named)) if macs_of(node) else []
        for layers, shape, share in found:
            rows.add(layers, shape, macs=share)
        base += macs_of(node) if not found else 0
    placed = layers_of(traced, coupling) if timing is not None else ()
    timed = tuple((one.layer, rows.dim(one.reads), rows.dim(one.makes)) for one in placed)
    made = rows.cost(tuple(classes), base)
    return replace(made, images=traced.images, unread=unread, layers=timed, timing=timing)


_Space = tuple[Layers, Shape, float]
"""Label layers that broadcast, the points that they label, and the multiply-accumulates of each point."""
_Operand = tuple[Layers, Shape]


def _spaces(node: fx.Node, traced: Traced, coupling: Coupling, named: dict[str, str]) -> Iterator[_Space]:
    """What a node multiplies; nothing where that is not known."""
    name = op_name(node, traced.module)
    sources: list[fx.Node] = []
    called = [node.kwargs[one] for one in _NAMES if one in node.kwargs]
    fx.node.map_arg((*node.args, *called), sources.append)  # one that is read twice is there twice
    values = [_operand(source, coupling, named) for source in sources if shape_of(source)]
    own = [named[one] for one in weights_of(node, traced)] if node.op == "call_module" or name not in _WEIGHED else []
    weight = max(own, key=lambda one: traced.module.get_parameter(one).numel(), default=None)
    if weight is not None:
        shape = tuple(traced.module.get_parameter(weight).shape)
        values[1:] = [(tuple(coupling.parameter_labels(weight).values()), shape)]
    if name == "linear" and len(values) > 1:
        rows = _LETTERS[: len(values[0][1]) - 1]
        yield _product(node, values, f"{rows}X", "ZX")
    elif (name in CONVOLUTIONS or weight is not None) and len(values) > 1:
        yield *values[1], macs_of(node) / _points(values[1][1])
    elif name == _ATTENTION and len(values) > 2:
        yield from _attention(node, values)
    elif name == "einsum" and len(values) == 2 and "..." not in str(node.args[0]):
        yield _product(node, values, *str(node.args[0]).replace(" ", "").partition("->")[0].split(","))
    elif name in _PRODUCTS and len(values) > 1 and min(len(shape) for _, shape in values[-2:]) > 1:
        batches = [_LETTERS[: len(shape) - 2][::-1] for _, shape in values[-2:]]  # aligned at their ends
        yield _product(node, values[-2:], f"{batches[0]}YX", f"{batches[1]}XZ")


def _operand(value: fx.Node, coupling: Coupling, named: dict[str, str]) -> _Operand:
    name = str(value.target)
    labels = coupling.parameter_labels(named.get(name, name)) if value.op == "get_attr" else {}
    return tuple(labels.values()) or coupling.layers(path_of(value)), shape_of(value) or ()


def _attention(node: fx.Node, values: Sequence[_Operand]) -> Iterator[_Space]:
    """Each query is multiplied with each key, and each weight with a value; heads of queries may share one of these."""
    (asked, one), (told_by, other), (held, last) = values[:3]
    leading = ((1,) * (len(one) - len(shape)) + shape[:-2] for shape in (one, other, last))
    rows = math.prod(max(sizes) for sizes in zip(*leading, strict=True)) * one[-2] * other[-2]
    share = macs_of(node) / (rows * (one[-1] + last[-1]))
    yield (*asked, *_tokens(told_by)), (rows * one[-1],), share
    yield (*held, *_tokens(asked)), (rows * last[-1],), share


def _tokens(layers: Layers) -> Iterator[Tensor]:
    return (layer for layer in layers if varying(layer) == (layer.dim() - 2,))


def _product(node: fx.Node, values: Sequence[_Operand], *terms: str) -> _Space:
    """The points of a product of two values, by the names of their dimensions as in ``einsum``."""
    names = "".join(dict.fromkeys("".join(terms)))
    sizes: dict[str, int] = {}
    layers: list[Tensor] = []
    for (labels, shape), term in zip(values, terms, strict=False):
        for name, size in zip(term, shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
        order = sorted(range(len(term)), key=lambda at: names.index(term[at]))
        index = tuple(slice(None) if name in term else None for name in names)
        layers += [layer.permute(order)[index] for layer in labels]
    return tuple(layers), tuple(sizes.values()), macs_of(node) / _points(tuple(sizes.values()))


def _points(shape: Shape) -> int:
    return int(torch.Size(shape).numel())


_Along = tuple[int, ...]
"""The positions of the classes along one dimension, in order; -1 for what stays in any case."""


@dataclass
class _Rows:
    """The rows of a cost while they are collected; ``place`` is the position of each class among those that count."""

    place: Tensor
    dims: dict[_Along, int] = field(default_factory=dict)
    found: dict[tuple[int, int], list[float]] = field(default_factory=dict)

    def add(self, layers: Layers, shape: Shape, *, parameters: float = 0.0, macs: float = 0.0) -> None:
        """Count the points of a shape that are alive in all layers, so much for each of them."""
        small = self._distinct(layers)[:2]
        share = _points(shape) / _points(tuple(one.numel() for one in small))
        along = (tuple(one.flatten().tolist()) for one in small)
        first, second = (*(self.dims.setdefault(one, len(self.dims)) for one in along), -1, -1)[:2]
        sums = self.found.setdefault((first, second), [0.0, 0.0])
        sums[0] += parameters * share
        sums[1] += macs * share

    def dim(self, classes: Sequence[int]) -> int:
        """The dimension along which channels of these classes lie."""
        return self.dims.setdefault(tuple(self.place[list(classes)].tolist()), len(self.dims))

    def cost(self, classes: tuple[int, ...], base: int) -> Cost:
        """All that was counted."""
        where = [(row, i) for along, row in self.dims.items() for i in along if i >= 0]
        fixed = [float(sum(i < 0 for i in along)) for along in self.dims]
        rows, columns = np.array(where, dtype=np.int64).reshape(-1, 2).T
        counts = csr_array((np.ones(len(where)), (rows, columns)), shape=(len(self.dims) + 1, len(classes)))
        products = torch.tensor(list(self.found), dtype=torch.long).view(-1, 2) % (len(self.dims) + 1)
        sums = torch.tensor(list(self.found.values()), dtype=torch.float64).view(-1, 2)
        return Cost(
            classes, counts, torch.tensor([*fixed, 1.0], dtype=torch.float64), products, sums[:, 0], sums[:, 1], base
        )

    def _distinct(self, layers: Layers) -> list[Tensor]:
        """The layers as positions, size 1 where they do not vary; without those that are said twice, or say nothing."""
        found: list[Tensor] = []
        for layer in layers:
            small = self.place[core(layer)]
            for dim in set(range(small.dim())) - set(varying(small)):
                small = small.narrow(dim, 0, 1)
            if bool((small >= 0).any()) and not any(torch.equal(small, other) for other in found):
                found.append(small)
        return found
