"""Candidates: the nodes of one model at which a person would tap it.

A tap must see everything that reaches the prediction, so candidates are **dominators**: nodes that every path from
input to output passes. Of these, people tap where a block ends (:mod:`~fxdistill.passes.match.blocks`). So MobileNetV2
is tapped at ``features.3``, not at the expansion in ``features.4.conv.0``, although the latter is the last dominator
before the resolution drops.

    stage = a run of candidates of about the same size; its nodes in order of preference:
            end of a block of several layers, of those inside of no other first
            > end of a module of one layer > activation > other,
            and among equals the deepest

Where branches of several resolutions run side by side (HRNet), no node between two dominators sees everything. There a
stage for each size that neither of these has ends where the branch of the lowest resolution so far does: whatever is
smaller is made of it.

Nothing is asked of a channel but where it lies. Whether it could be removed matters to ``shrink`` alone: a slice picks
channels of a feature and changes no teacher.

Left out: stems, whatever follows the global pooling, and the logits. Vectors (B, C) and class
tokens on their own are candidates only where a model has nothing else.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import networkx as nx
from torch import fx

from fxdistill.errors import PairingError
from fxdistill.ir.coupling import Coupling, Structure
from fxdistill.ir.graph import Shape, Traced, macs_of, op_name, path_of, shape_of
from fxdistill.ir.operators import is_a
from fxdistill.operators import Trait
from fxdistill.passes.match.blocks import (
    LEAST_TOKENS,
    Blocks,
    Candidate,
    Kind,
    activated,
    alike,
    close_by_pooling,
    is_stem,
    runs,
)
from fxdistill.plan.schema import LAYOUTS, Layout, Tap

_MAP = 4  # dimensions


@dataclass(frozen=True, eq=False)
class Survey:
    """One model's candidates, in stages, found when they are first asked for: who pairs it again keeps its survey.

    Attributes:
        traced: The model.
        coupling: Its coupled channels.
        member: Its name in the plan.
        headless: Whether it answers with a feature, and no prediction: its last layer is a candidate as well.
    """

    traced: Traced
    coupling: Coupling
    member: str = "teacher"
    headless: bool = False

    @property
    def single_resolution(self) -> bool:
        """Whether the whole model works at one resolution, so that stages cannot be told by size."""
        return len(runs(self.candidates)) == 1

    @cached_property
    def stages(self) -> list[list[Candidate]]:
        """Candidates by stage, shallow stages first, each in order of preference.

        A model of one resolution has a stage for each of its repeated blocks; nodes between which nothing is computed
        are of one.
        """
        found = [sorted(run, key=lambda c: c.preference) for run in runs(self.candidates)]
        if len(found) == 1:
            best = found[0][0].preference[:2]
            ends = (c for c in found[0] if c.preference[:2] == best)
            found = [list(same) for _, same in itertools.groupby(ends, key=lambda c: c.layers)][::-1]
        return [[replace(c, rank=rank) for rank, c in enumerate(run)] for run in found]

    def describe(self, node: fx.Node) -> Candidate:
        """Any node as a candidate.

        Raises:
            PairingError: Its value is the same for all images, or has no channel dimension that could be compared.
        """
        if node not in self._data:
            raise PairingError(
                "this node cannot be tapped: its value does not depend on the image",
                where=path_of(node), hint="choose the output of a block",
            )  # fmt: skip
        for candidate in (c for stage in self.stages for c in stage):
            if candidate.path == path_of(node):
                return candidate
        found = self._describe(node)
        if found is None:
            raise PairingError(
                "this node cannot be tapped: it is not known which dimension holds its channels, or its "
                "layout is none of (N, C, H, W), (N, H, W, C), (N, tokens, C) and (N, C), N being the images",
                where=f"{path_of(node)}, shape {shape_of(node)}", hint="choose the output of a block",
            )  # fmt: skip
        return replace(found, depth=min(1.0, found.layers / max(1, self._last_layer)))

    @property
    def _last_layer(self) -> int:
        return max((c.layers for c in self.candidates), default=self._prediction)

    @cached_property
    def _prediction(self) -> int:
        """The layers up to the prediction."""
        return self._layers[self.traced.output]

    @cached_property
    def candidates(self) -> list[Candidate]:
        """All candidates, shallow first."""
        described = [(n, c) for n in self._trunk() if (c := self._describe(n)) is not None]
        maps = [(n, c) for n, c in described if not c.is_vector]
        beside = self._beside(maps)
        maps = sorted([*maps, *beside], key=lambda found: found[1].index) or described
        blocks = Blocks(self.traced, self._nodes, maps)
        placed = [(n, c) for n, d in maps if (c := blocks.place(n, d)) is not None]
        found = close_by_pooling(activated(placed))
        has_blocks = any(c.tier == 0 for c in found)
        kept = [c for c in found if not is_stem(c, has_blocks=has_blocks)]
        last = max((c.layers for c in kept), default=1)
        return [replace(c, depth=c.layers / max(1, last)) for c in kept]

    @cached_property
    def unlike(self) -> list[fx.Node]:
        """Layers on the trunk whose values have a layout that no tap has, as those of (N, C, L) and (N, C, D, H, W)."""
        layers = [node for node in self._trunk() if macs_of(node) and self._describe(node) is None]
        shapes = {node: shape_of(node) or () for node in layers}
        return [node for node, shape in shapes.items() if shape[:1] == self.traced.input_shape[:1]]

    def _beside(self, trunk: Sequence[tuple[fx.Node, Candidate]]) -> Iterator[tuple[fx.Node, Candidate]]:
        """Ends of blocks between two nodes of the trunk, where there is a size that neither of these has.

        Of branches side by side the smallest map so far counts.
        """
        blocks = Blocks(self.traced, self._nodes, trunk)
        known, ahead = dict(trunk), self._ahead()
        before, floor, region = list[Candidate](), math.inf, list[tuple[fx.Node, Candidate]]()
        for node in (*self._nodes, None):
            if node is None or node in known:
                ends = [*before, *([known[node]] if node is not None else [])]
                yield from ((n, c) for n, c in region if not any(alike(end, c) for end in ends))
                before, region = ends[-1:], []
                floor = ends[-1].side if ends else math.inf
            elif node in ahead and (found := self._describe(node)) is not None and not found.is_vector:
                placed = blocks.place(node, found) if 1 < found.side <= floor else None
                if placed is not None and placed.inside == 0:
                    region += [(node, replace(found, beside=True))] if placed.tier == 0 else []
                    floor = found.side

    def _ahead(self) -> set[fx.Node]:
        """The nodes that carry data to the prediction, and have a layer ahead of them."""
        reaches = {self.traced.output}
        for node in reversed(self._data):
            if any(user in reaches for user in node.users):
                reaches.add(node)
        return {n for n in reaches if n in self._data and self._layers[n] < self._prediction}

    @cached_property
    def _prefixes(self) -> dict[int, tuple[Shape, int]]:
        """By length, the sequences that tokens of no place are laid before: the grid of the others, and how many."""
        grids: dict[int, Shape] = {}
        found: dict[int, tuple[Shape, int]] = {}
        for node in self._data:
            shape = shape_of(node)
            if shape is not None and len(shape) == _MAP:
                grids |= {math.prod(grid): grid for grid in (shape[2:], shape[1:3]) if _fits(grid, self.traced)}
            elif shape is not None and is_a(op_name(node, self.traced.module), Trait.CONCATENATES):
                last = node.all_input_nodes[-1]
                size = (shape_of(last) or (0, 0))[1]
                if last in self._data and size in grids and size < shape[1]:
                    found[shape[1]] = grids[size], shape[1] - size
        return found

    def _trunk(self) -> Iterator[fx.Node]:
        """The dominators that have a layer ahead of them, up to the global pooling."""
        for node in self._dominators():
            predicts = self._layers[node] == self._prediction and not self.headless
            if predicts or _pools_globally(node, self.traced):
                return
            if not _is_idle_pooling(node, self.traced):
                yield node

    def _dominators(self) -> list[fx.Node]:
        graph: nx.DiGraph[fx.Node] = nx.DiGraph()
        graph.add_edges_from((n, user) for n in self._data for user in n.users if user in self._data)
        start, node = self.traced.input, self.traced.output
        if start not in graph or node not in graph or not nx.has_path(graph, start, node):
            raise PairingError("the prediction does not depend on the input", where=path_of(node))
        above = nx.immediate_dominators(graph, start)
        chain = []
        while node != start:
            chain.append(node)
            node = above[node]
        return chain[::-1]

    @cached_property
    def _nodes(self) -> list[fx.Node]:
        return [n for n in self.traced.graph.nodes if n.op != "get_attr"]

    @cached_property
    def _index(self) -> dict[fx.Node, int]:
        return {node: index for index, node in enumerate(self._nodes)}

    @cached_property
    def _data(self) -> dict[fx.Node, None]:
        return _data_nodes(self._nodes, self.traced, self.coupling)

    @cached_property
    def _spent(self) -> dict[fx.Node, int]:
        """The multiply-accumulates up to each node."""
        return dict(zip(self._nodes, itertools.accumulate(map(macs_of, self._nodes)), strict=True))

    @cached_property
    def _layers(self) -> dict[fx.Node, int]:
        """The layers on the longest way to each node."""
        layers: dict[fx.Node, int] = {}
        for node in self._nodes:
            before = max((layers.get(n, 0) for n in node.all_input_nodes), default=0)
            layers[node] = before + (macs_of(node) > 0)
        return layers

    def _describe(self, node: fx.Node) -> Candidate | None:
        shape, dim = shape_of(node), self.coupling.channel_dim(path_of(node))
        layout = LAYOUTS.get((len(shape), dim)) if shape is not None and dim is not None else None
        if shape is None or dim is None or layout is None or shape[0] != self.traced.input_shape[0]:
            return None  # windows of an attention, say, are no images
        image = self.traced.input_shape[2:]
        grid, prefix = _spatial(shape, layout, image)
        if layout == "tokens" and grid is None:
            grid, prefix = self._prefixes.get(shape[1], (None, 0))
        side = math.sqrt(math.prod(grid or shape[1:2] * (layout == "tokens")))
        tap = Tap(
            member=self.member, path=path_of(node), shape=list(shape), channel_dim=dim, width=shape[dim],
            layout=layout, class_token=prefix > 0, registers=max(0, prefix - 1),
        )  # fmt: skip
        return Candidate(
            index=self._index[node], tap=tap, grid=_square(grid, layout),
            side=side, stride=math.sqrt(math.prod(image)) / side,
            layers=self._layers[node], depth=self._layers[node] / max(1, self._prediction),
            cost=self._spent[node] / max(1, self._spent[self._nodes[-1]]), kind=_kind(node, self.traced),
        )  # fmt: skip


def _data_nodes(nodes: Iterable[fx.Node], traced: Traced, coupling: Coupling) -> dict[fx.Node, None]:
    """The nodes whose value carries the image's data; sizes read off a tensor do not, nor those handed on with one."""
    data: dict[fx.Node, None] = {traced.input: None}
    for node in nodes:
        if _holds_tensor(coupling.values[path_of(node)]) and any(n in data for n in node.all_input_nodes):
            data[node] = None
    return data


def _holds_tensor(value: Structure) -> bool:
    return any(_holds_tensor(item) for item in value) if isinstance(value, list) else value is not None


def _pools_globally(node: fx.Node, traced: Traced) -> bool:
    name, before, after = op_name(node, traced.module), _input_shape(node), shape_of(node)
    if not any(word in name for word in ("mean", "avg", "adaptive")) or before is None or after is None:
        return False
    squeezed = len(after) == 2 or set(after[2:]) == {1} or set(after[1:3]) == {1}
    return len(before) == 4 and squeezed and math.prod(after) < math.prod(before)


def _is_idle_pooling(node: fx.Node, traced: Traced) -> bool:
    return "pool" in op_name(node, traced.module) and _input_shape(node) == shape_of(node)


def _input_shape(node: fx.Node) -> Shape | None:
    return next((shape_of(n) for n in node.all_input_nodes), None)


def _spatial(shape: Shape, layout: Layout, image: Shape) -> tuple[Shape | None, int]:
    """Height and width of a value, and how many class tokens come before them: none or one."""
    if layout == "nchw":
        return shape[2:], 0
    if layout == "nhwc":
        return shape[1:3], 0
    if layout == "features":
        return None, 0
    whole, rest = _grid(shape[1], image), _grid(shape[1] - 1, image)
    return (rest, 1) if rest and not whole else (whole, 0)


def _fits(grid: Shape, traced: Traced) -> bool:
    """Whether a grid has the image's proportions: the map that tokens were made of."""
    return _grid(math.prod(grid), traced.input_shape[2:]) == tuple(grid)


def _grid(tokens: int, image: Shape) -> Shape | None:
    """The grid of the image's proportions that has so many cells; fewer than four may be class tokens on their own."""
    if len(image) != 2 or tokens < LEAST_TOKENS:
        return None
    height = round(math.sqrt(tokens * image[0] / image[1]))
    width = tokens // max(1, height)
    fits = height * width == tokens and math.isclose(height * image[1], width * image[0], rel_tol=0.1)
    return (height, width) if fits else None


def _square(grid: Shape | None, layout: Layout) -> Shape | None:
    """A grid as the adapters read it: they unfold tokens to a square."""
    return None if grid is None or (layout == "tokens" and grid[0] != grid[1]) else grid


def _kind(node: fx.Node, traced: Traced) -> Kind:
    name = op_name(node, traced.module)
    while is_a(name, Trait.CARRIES) and node.all_input_nodes:
        node = node.all_input_nodes[0]
        name = op_name(node, traced.module)
    by_name: dict[str, Kind] = {"add": "an addition", "mul": "a gate"}
    if is_a(name, Trait.ACTIVATION):
        return "an activation"
    if is_a(name, Trait.CONCATENATES):
        return "a concatenation"
    if name in by_name:
        return by_name[name]
    if "norm" in name:
        return "a norm"
    if "pool" in name or name == "mean":
        return "pooling"
    return "a layer" if macs_of(node) else "another operation"
