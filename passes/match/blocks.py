"""Blocks: where a person would say that a part of a network ends, and what may be said of a node that ends one.

A block is the outermost module around a node that is not a container (one that spans the network: ``features``,
``encoder.layers``); what lies inside of a block is no candidate.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import fx

from fxdistill.ir.graph import Shape, Traced, macs_of, modules_around, scope_of, within
from fxdistill.plan.schema import Tap

Kind = Literal[
    "an activation", "a norm", "an addition", "a concatenation", "a gate", "pooling", "a layer",
    "another operation",
]  # fmt: skip

LEAST_TOKENS = 4  # fewer are class tokens on their own
_SAME_STAGE = 0.625  # 7 to 4 and 5 to 3 are halved; 15 to 13 and 6 to 4 are unpadded convolutions
_CONTAINER_SHARE = 0.75  # of the network's layers or cost
_STEM_LAYERS, _STEM_DEPTH, _STEM_STRIDE = 5, 0.08, 3


@dataclass(frozen=True)
class Candidate:
    """A node that may be tapped, and what speaks for it.

    Attributes:
        index: Position in the graph.
        grid: Height and width of the positions, class token and registers left aside; None for vectors, and for tokens
            that form no square.
        side: Geometric mean of height and width, 1 for vectors.
        stride: Side of the input over ``side``.
        layers: Layers that compute (have a cost) on the longest way from the input to here.
        depth: The same as a share of the way to the last candidate: the depth of a classifier does not count.
        cost: Share of the network's MACs that are spent when the node is reached.
        kind: What the value comes from, data movement left aside.
        beside: Whether other branches lead past it.
        block: Path of the block that ends here; '' where none does.
        inside: How many other blocks that block lies in.
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
    beside: bool = False
    block: str = ""
    inside: int = 0
    tier: int = 3
    rank: int = 99

    @property
    def path(self) -> str:
        """The node's path."""
        return self.tap.path

    @property
    def is_vector(self) -> bool:
        """Whether there are no positions, by layout: a pooled feature, or class tokens on their own."""
        return self.tap.layout == "features" or (self.tap.layout == "tokens" and self.tap.shape[1] < LEAST_TOKENS)

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
        return self.tier, self.inside if self.tier == 0 else 0, -self.index


class Blocks:
    """The module scopes of a model, told apart into containers and blocks."""

    def __init__(self, traced: Traced, nodes: list[fx.Node], maps: Sequence[tuple[fx.Node, Candidate]]) -> None:
        self._count: dict[str, int] = {}
        self._layers: dict[str, int] = {}
        self._costs: dict[str, int] = {}
        for node in nodes:
            for scope in modules_around(scope_of(node)):
                self._count[scope] = self._count.get(scope, 0) + 1
                self._layers[scope] = self._layers.get(scope, 0) + (macs_of(node) > 0)
                self._costs[scope] = self._costs.get(scope, 0) + macs_of(node)
        self._total_cost = max(1, traced.macs)
        self._total_layers = max(1, sum(macs_of(node) > 0 for node in nodes))
        self._spans: dict[str, set[int]] = {}
        stage_of = {c.path: number for number, run in enumerate(runs(c for _, c in maps)) for c in run}
        for node, candidate in maps:
            for scope in modules_around(scope_of(node)):
                self._spans.setdefault(scope, set()).add(stage_of[candidate.path])

    def place(self, node: fx.Node, candidate: Candidate) -> Candidate | None:
        """The candidate with its block and tier; None where it lies inside of a block."""
        around = [s for s in modules_around(scope_of(node)) if self._is_block(s)]
        ended = [s for s in around if not any(within(scope_of(user), s) for user in node.users)]
        block = next((s for s in ended if self._layers[s] > 1), None)
        if block is not None:
            return replace(candidate, block=block, inside=around.index(block), tier=0)
        if not around:
            return replace(candidate, tier=2 if candidate.kind == "an activation" else 3)
        return replace(candidate, block=around[0], tier=1) if around[0] in ended else None

    def _is_block(self, scope: str) -> bool:
        layers = self._layers[scope]
        share = max(self._costs[scope] / self._total_cost, layers / self._total_layers)
        contains = layers > 1 and share >= _CONTAINER_SHARE
        spans_stages = layers > 2 and len(self._spans.get(scope, ())) > 2
        return layers > 0 and self._count[scope] > 1 and not contains and not spans_stages


def runs(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Successive candidates of about the same size."""
    runs: list[list[Candidate]] = []
    for candidate in candidates:
        if runs and alike(runs[-1][-1], candidate):
            runs[-1].append(candidate)
        else:
            runs.append([candidate])
    return runs


def alike(one: Candidate, other: Candidate) -> bool:
    """Whether two candidates are of about the same size."""
    return _SAME_STAGE <= one.side / other.side <= 1 / _SAME_STAGE


def activated(placed: Sequence[tuple[fx.Node, Candidate]]) -> list[Candidate]:
    """A block that ends in a bare layer ends with the activation, if norm and activation of no block follow it."""
    found = dict(placed)
    for node, bare in placed:
        end = node
        while (after := next(iter(end.users))) in found and len(end.users) == 1 and not found[after].block:
            end = after
            if found[end].kind != "a norm":
                break
        if bare.tier == 0 and bare.kind == "a layer" and found[end].kind == "an activation":
            found[end] = replace(found[end], block=bare.block, inside=bare.inside, tier=bare.tier)
            found[node] = replace(bare, block="", inside=0, tier=3)
    return list(found.values())


def close_by_pooling(candidates: list[Candidate]) -> list[Candidate]:
    """In a network without blocks whose every layer is followed by pooling, the pooling ends the block."""
    pools = [c for c in candidates if c.kind == "pooling"]
    layers = {c.layers for c in candidates}
    if len(pools) < 2 or any(c.block for c in candidates) or [c.layers for c in pools] != sorted(layers):
        return candidates
    return [replace(c, tier=1) for c in pools]


def is_stem(candidate: Candidate, *, has_blocks: bool) -> bool:
    """Whether it comes before the first stage: after few layers, and no block of several at a quarter of the size."""
    if candidate.layers <= 1 and has_blocks:
        return True
    is_stage = candidate.tier == 0 and candidate.stride > _STEM_STRIDE
    return candidate.layers <= _STEM_LAYERS and candidate.depth < _STEM_DEPTH and not is_stage
