"""Needed: the nodes that some values of a graph need, and the graph of these alone.

A node is needed where its value is, or where it writes into memory that is read later: ``relu_(x)`` where ``x`` itself
is used, and a buffer that is needed at all, since the next call reads it. Running statistics are a side effect only for
what reads the normalised value: in a stage that does not reach it, a BatchNorm would learn from features that are not
trained yet.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter

from torch import fx, nn

from fxdistill.ir.graph import memory, op_name, scope_of, written
from fxdistill.ir.operators import is_a
from fxdistill.operators import Trait


def upto(graph: fx.Graph, root: nn.Module, values: Mapping[str, fx.Node]) -> fx.Graph:
    """A copy of what some values of a graph need, which gives these by name; ``root`` owns the targets."""
    live, new = _needed(graph, root, values.values()), dict[fx.Node, fx.Node]()
    made = fx.Graph()
    for node in graph.nodes:
        if node in live:
            new[node] = made.node_copy(node, new.__getitem__)
    made.output({name: new[value] for name, value in values.items()})
    return made


def remove_dead(graph: fx.Graph, root: nn.Module) -> None:
    """Remove nodes that the graph's output does not need."""
    nodes = list(graph.nodes)
    live = _needed(graph, root, nodes[-1].all_input_nodes)
    for node in reversed(nodes):
        if node not in live and node.op != "output":
            graph.erase_node(node)


def _needed(graph: fx.Graph, root: nn.Module, values: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that some values need; the inputs are among them, so that every stage is called alike."""
    wanted, again, effects = set(values), set[int](), _Effects.of(graph, root)
    while True:  # a buffer may be read in front of what writes into it
        live = _live(graph, wanted, again, effects)
        sources = wanted.union(*(node.all_input_nodes for node in live))
        read = {buffer for source in sources for buffer in effects.buffers[source]}
        if read <= again:
            return live
        again |= read


@dataclass(frozen=True)
class _Effects:
    """What nodes do to memory.

    Attributes:
        writes: For each node the inputs whose memory it writes into.
        group: A number for each node, the same for those that may share memory.
        buffers: Of each node the tensors of the program, by identity, whose memory its value may be.
    """

    writes: Mapping[fx.Node, list[fx.Node]]
    group: Mapping[fx.Node, int]
    buffers: Mapping[fx.Node, set[int]]

    @classmethod
    def of(cls, graph: fx.Graph, root: nn.Module) -> "_Effects":
        """Those of a graph whose targets ``root`` owns."""
        writes = {node: written(node, root) for node in graph.nodes}
        return cls(writes, memory(graph, root, writes), _buffers(graph, root, writes))


def _live(graph: fx.Graph, wanted: set[fx.Node], again: set[int], effects: _Effects) -> set[fx.Node]:
    """The nodes that are needed where the next call reads some buffers."""
    live: set[fx.Node] = set()
    group, buffers = effects.group, effects.buffers
    read = {group[node] for node in wanted}
    scopes: set[str] = set()
    for node in reversed(list(graph.nodes)):
        if node.op == "output":
            continue
        targets = effects.writes[node]
        later = any(group[target] in read or not again.isdisjoint(buffers[target]) for target in targets)
        counts = any(target.op == "get_attr" for target in targets) and scope_of(node) in scopes
        used = node in wanted or any(user in live for user in node.users)
        if node.op == "placeholder" or later or counts or used:
            live.add(node)
            read.update(group[source] for source in node.all_input_nodes)
            if any(target.op == "get_attr" for target in targets):
                scopes.add(scope_of(node))
    return live


def _buffers(graph: fx.Graph, root: nn.Module, writes: Mapping[fx.Node, list[fx.Node]]) -> dict[fx.Node, set[int]]:
    found: dict[fx.Node, set[int]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            found[node] = {id(attrgetter(str(node.target))(root))}
            continue
        first = node.all_input_nodes[:1]
        same = {node.all_input_nodes[position] for position in node.meta.get("shares", ())}
        if node.op not in ("placeholder", "output"):
            same |= set(first) & set(writes[node])
            same |= set(first) if is_a(op_name(node, root), Trait.VIEW) else set()
        found[node] = {buffer for source in same for buffer in found[source]}
    return found
