"""Candidates: the nodes of one model at which a person would tap it.

A tap must see everything that reaches the prediction, so candidates are **dominators**: nodes that every path
from input to output passes. Of these, people tap where a block ends. A block is the outermost module around a
node that is not a container (one that spans the network: ``features``, ``encoder.layers``); what lies inside
of a block is no candidate. So MobileNetV2 is tapped at ``features.3``, not at the expansion in
``features.4.conv.0``, although the latter is the last dominator before the resolution drops.

    stage = a run of candidates of about the same size; its nodes in order of preference:
            end of a block of several layers, outermost first
            > end of a module of one layer > activation > other,
            and among equals the deepest

Left out: stems, whatever follows the global pooling, and the logits. Vectors (B, C) and class
tokens on their own are candidates only where a model has nothing else.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import networkx as nx
from torch import fx

from fxdistill.errors import PairingError
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Shape, Traced, macs_of, op_name, path_of, scope_of, shape_of, within
from fxdistill.ir.operators import is_a
from fxdistill.operators import Trait
from fxdistill.plan.schema import Layout, Tap

Kind = Literal[
    "an activation", "a norm", "an addition", "a concatenation", "a gate", "pooling", "a layer",
    "another operation",
]  # fmt: skip

_LAYOUTS: dict[tuple[int, int], Layout] = {
    (4, 1): "nchw", (4, 3): "nhwc", (3, 2): "tokens", (2, 1): "features",
}  # fmt: skip
_SAME_STAGE = 0.625  # 7 to 4 and 5 to 3 are halved; 15 to 13 and 6 to 4 are unpadded convolutions
_CONTAINER_SHARE = 0.75  # of the network's layers or cost
_STEM_LAYERS, _STEM_DEPTH = 5, 0.08


@dataclass(frozen=True)
class Candidate:
    """A node that may be tapped, and what speaks for it.

    Attributes:
        index: Position in the graph.
        grid: Height and width of the positions, a class token left aside; None for vectors, and for tokens that form no
            square (register tokens, distillation tokens, a class token alone).
        side: Geometric mean of height and width, 1 for vectors.
        stride: Side of the input over ``side``.
        layers: Layers that compute (have a cost) on the longest way from the input to here.
        depth: The same as a share of the way to the last candidate: the depth of a classifier does not count.
        cost: Share of the network's MACs that are spent when the node is reached.
        kind: What the value comes from, data movement left aside.
        block: Path of the block that ends here; '' where none does.
        tier: 0 end of a block of several layers, 1 of a single layer's module, 2 activation, 3 other.
        rank: Place in the order of preference in its stage, 0 the first choice.
    """

    index: int
    tap: Tap
    grid: Shape | None
    side: float
    stride: float
    layers: int
    depth: float
    cost: float
    kind: Kind
    block: str = ""
    tier: int = 3
    rank: int = 99

    @property
    def path(self) -> str:
        """The node's path."""
        return self.tap.path

    @property
    def is_vector(self) -> bool:
        """Whether there is one position only by layout: a pooled feature, or a class token on its own."""
        return self.tap.layout == "features" or (self.tap.layout == "tokens" and self.tap.shape[1] == 1)

    @property
    def size(self) -> str:
        """The size of the value in words."""
        shape, layout = self.tap.shape, self.tap.layout
        if layout in ("nchw", "nhwc") and self.grid is not None:
            return "x".join(map(str, self.grid))
        return f"{shape[1]} tokens" if layout == "tokens" else f"{shape[1]} values"

    @property
    def preference(self) -> tuple[int, int, int]:
        """Sorts a stage, first choice first."""
        return self.tier, self.block.count(".") if self.tier == 0 else 0, -self.index


class Survey:
    """One model's candidates, in stages."""

    def __init__(self, traced: Traced, coupling: Coupling, member: str = "teacher") -> None:
        self.traced = traced
        self.member = member
        self.coupling = coupling
        self._nodes = [n for n in traced.graph.nodes if n.op != "get_attr"]
        self._index = {node: index for index, node in enumerate(self._nodes)}
        self._data = _data_nodes(self._nodes, traced)
        self._layers = self._longest_ways()
        spent, self._spent = 0, dict[fx.Node, int]()
        for node in self._nodes:
            spent += macs_of(node)
            self._spent[node] = spent

    @property
    def single_resolution(self) -> bool:
        """Whether the whole model works at one resolution, so that stages cannot be told by size."""
        return len(_runs(self.candidates)) == 1

    @cached_property
    def stages(self) -> list[list[Candidate]]:
        """Candidates by stage, shallow stages first, each in order of preference.

        A model of one resolution has a stage for each of its repeated blocks.
        """
        runs = [sorted(run, key=lambda c: c.preference) for run in _runs(self.candidates)]
        if len(runs) == 1:
            best = runs[0][0].preference[:2]
            runs = [[c] for c in reversed(runs[0]) if c.preference[:2] == best]
        return [[replace(c, rank=rank) for rank, c in enumerate(run)] for run in runs]

    def describe(self, node: fx.Node) -> Candidate:
        """Any node as a candidate.

        Raises:
            PairingError: Its value has no channel dimension that could be compared.
        """
        for candidate in (c for stage in self.stages for c in stage):
            if candidate.path == path_of(node):
                return candidate
        found = self._describe(node)
        if found is None:
            raise PairingError(
                "this node cannot be tapped: it is not known which dimension holds its channels, or its "
                "layout is none of (N, C, H, W), (N, H, W, C), (N, tokens, C) and (N, C)",
                where=f"{path_of(node)}, shape {shape_of(node)}", hint="choose the output of a block",
            )  # fmt: skip
        return replace(found, depth=min(1.0, found.layers / max(1, self._last_layer)))

    @property
    def _last_layer(self) -> int:
        return max((c.layers for c in self.candidates), default=self._layers[self.traced.output])

    @cached_property
    def candidates(self) -> list[Candidate]:
        """All candidates, shallow first."""
        described = [(n, c) for n in self._trunk() if (c := self._describe(n)) is not None]
        maps = [(n, c) for n, c in described if not c.is_vector] or described
        blocks = _Blocks(self.traced, self._nodes, maps)
        placed = [blocks.place(node, candidate) for node, candidate in maps]
        found = _close_by_pooling([c for c in placed if c is not None])
        has_blocks = any(c.tier == 0 for c in found)
        kept = [c for c in found if not _is_stem(c, has_blocks=has_blocks)]
        last = max((c.layers for c in kept), default=1)
        return [replace(c, depth=c.layers / max(1, last)) for c in kept]

    def _trunk(self) -> Iterator[fx.Node]:
        """The dominators that have a layer ahead of them, up to the global pooling."""
        for node in self._dominators():
            if self._layers[node] == self._layers[self.traced.output] or _pools_globally(node, self.traced):
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

    def _longest_ways(self) -> dict[fx.Node, int]:
        layers: dict[fx.Node, int] = {}
        for node in self._nodes:
            before = max((layers.get(n, 0) for n in node.all_input_nodes), default=0)
            layers[node] = before + (macs_of(node) > 0)
        return layers

    def _describe(self, node: fx.Node) -> Candidate | None:
        shape, dim = shape_of(node), self.coupling.channel_dim(path_of(node))
        layout = _LAYOUTS.get((len(shape), dim)) if shape is not None and dim is not None else None
        if shape is None or dim is None or layout is None:
            return None
        image = self.traced.input_shape[2:]
        grid, class_token = _spatial(shape, layout, image)
        side = math.sqrt(math.prod(grid or shape[1:2] * (layout == "tokens")))
        depth = self._layers[self.traced.output]
        tap = Tap(
            member=self.member, path=path_of(node), shape=list(shape), channel_dim=dim, width=shape[dim],
            layout=layout, class_token=class_token,
        )  # fmt: skip
        return Candidate(
            index=self._index[node], tap=tap, grid=_square(grid, layout),
            side=side, stride=math.sqrt(math.prod(image)) / side,
            layers=self._layers[node], depth=self._layers[node] / max(1, depth),
            cost=self._spent[node] / max(1, self.traced.macs), kind=_kind(node, self.traced),
        )  # fmt: skip


class _Blocks:
    """The module scopes of a model, told apart into containers and blocks."""

    def __init__(self, traced: Traced, nodes: list[fx.Node], maps: list[tuple[fx.Node, Candidate]]) -> None:
        self._count: dict[str, int] = {}
        self._layers: dict[str, int] = {}
        self._costs: dict[str, int] = {}
        for node in nodes:
            for scope in _scopes(node):
                self._count[scope] = self._count.get(scope, 0) + 1
                self._layers[scope] = self._layers.get(scope, 0) + (macs_of(node) > 0)
                self._costs[scope] = self._costs.get(scope, 0) + macs_of(node)
        self._total_cost = max(1, traced.macs)
        self._total_layers = max(1, sum(macs_of(node) > 0 for node in nodes))
        self._spans: dict[str, set[int]] = {}
        stage_of = {c.path: number for number, run in enumerate(_runs(c for _, c in maps)) for c in run}
        for node, candidate in maps:
            for scope in _scopes(node):
                self._spans.setdefault(scope, set()).add(stage_of[candidate.path])

    def place(self, node: fx.Node, candidate: Candidate) -> Candidate | None:
        """The candidate with its block and tier; None where it lies inside of a block."""
        around = [s for s in _scopes(node) if self._is_block(s)]
        ended = [s for s in around if not any(within(scope_of(user), s) for user in node.users)]
        block = next((s for s in ended if self._layers[s] > 1), None)
        if block is not None:
            return replace(candidate, block=block, tier=0)
        if not around:
            return replace(candidate, tier=2 if candidate.kind == "an activation" else 3)
        return replace(candidate, block=around[0], tier=1) if around[0] in ended else None

    def _is_block(self, scope: str) -> bool:
        layers = self._layers[scope]
        share = max(self._costs[scope] / self._total_cost, layers / self._total_layers)
        contains = layers > 1 and share >= _CONTAINER_SHARE
        spans_stages = layers > 2 and len(self._spans.get(scope, ())) > 2
        return layers > 0 and self._count[scope] > 1 and not contains and not spans_stages


def _scopes(node: fx.Node) -> list[str]:
    """The modules around a node, outermost first."""
    parts = scope_of(node).split(".") if scope_of(node) else []
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]


def _data_nodes(nodes: Iterable[fx.Node], traced: Traced) -> dict[fx.Node, None]:
    """The nodes whose value carries the image's data; sizes read off a tensor do not."""
    data: dict[fx.Node, None] = {traced.input: None}
    for node in nodes:
        asks_size = shape_of(node) is None and is_a(op_name(node, traced.module), Trait.METADATA)
        if not asks_size and any(n in data for n in node.all_input_nodes):
            data[node] = None
    return data


def _runs(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Successive candidates of about the same size."""
    runs: list[list[Candidate]] = []
    for candidate in candidates:
        previous = runs[-1][-1].side if runs else math.inf
        if _SAME_STAGE <= candidate.side / previous <= 1 / _SAME_STAGE:
            runs[-1].append(candidate)
        else:
            runs.append([candidate])
    return runs


def _close_by_pooling(candidates: list[Candidate]) -> list[Candidate]:
    """In a network without blocks whose every layer is followed by pooling, the pooling ends the block."""
    pools = [c for c in candidates if c.kind == "pooling"]
    layers = {c.layers for c in candidates}
    if len(pools) < 2 or any(c.block for c in candidates) or [c.layers for c in pools] != sorted(layers):
        return candidates
    return [replace(c, tier=1) for c in pools]


def _is_stem(candidate: Candidate, *, has_blocks: bool) -> bool:
    if candidate.layers <= 1 and has_blocks:
        return True
    return candidate.layers <= _STEM_LAYERS and candidate.depth < _STEM_DEPTH


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


def _spatial(shape: Shape, layout: Layout, image: Shape) -> tuple[Shape | None, bool]:
    """Height and width of a value, and whether a class token comes with them."""
    if layout == "nchw":
        return shape[2:], False
    if layout == "nhwc":
        return shape[1:3], False
    if layout == "features":
        return None, False
    whole, rest = _grid(shape[1], image), _grid(shape[1] - 1, image)
    return (rest, True) if rest and not whole else (whole, False)


def _grid(tokens: int, image: Shape) -> Shape | None:
    """The grid of the image's proportions that has so many cells; fewer than four may be class tokens on their own."""
    if len(image) != 2 or tokens < 4:
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
