"""The smallest cut: which fixed values cross from the frozen half into the rest, so that the fewest bytes do.

A minimum cut between the nodes that cost, which the frozen half has to compute, and the nodes outside that read them;
of several the one that leaves least to the rest. A node's capacity is the bytes of its value for one image; only a
tensor with one row an image can cross, and only one whose memory nobody writes to later.
"""

from collections.abc import Mapping

import networkx as nx
from torch import fx

from fxdistill.ir.graph import macs_of, memory, submodule, written
from fxdistill.ir.program import Program


def smallest(program: Program, fixed: Mapping[fx.Node, int]) -> list[fx.Node]:
    """The nodes that cross, in order; none where nothing that costs is fixed, or what is cannot cross.

    Args:
        program: The program of a stage.
        fixed: The nodes that may be computed in the frozen half, with the bytes of their values for one image; 0 for
            values that cannot cross.
    """
    costly = [node for node in fixed if macs_of(node) > 0 or _has_weights(program, node)]
    readers = [node for node in fixed if any(user not in fixed for user in node.users)]
    if not costly or not readers:
        return []
    overwritten = _overwritten(program)
    network: nx.DiGraph[object] = nx.DiGraph()
    for node, size in fixed.items():
        # an edge without a capacity cannot be cut; the way from one node to another costs nothing of its own
        cannot = size == 0 or node.meta.get("role") == "input" or node in overwritten
        network.add_edge((node, "in"), (node, "out"), **({} if cannot else {"capacity": size}))
        for user in node.users:
            if user in fixed:
                network.add_edge((node, "out"), (user, "in"))
    for node in costly:
        network.add_edge("costs", (node, "in"))
    for node in readers:
        network.add_edge((node, "out"), "read")
    try:  # of equal cuts networkx gives the last one
        _, (_, rest) = nx.minimum_cut(network, "costs", "read")
    except nx.NetworkXUnbounded:
        return []
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    found = (node for node in fixed if (node, "out") in rest and (node, "in") not in rest)
    return sorted(found, key=order.__getitem__)


def _has_weights(program: Program, node: fx.Node) -> bool:
    module = submodule(program, node)
    return module is not None and any(True for _ in module.parameters())


def _overwritten(program: Program) -> set[fx.Node]:
    """The nodes whose memory is written to after they have run."""
    group, last = memory(program.graph, program), dict[int, int]()
    nodes = [node for node in program.graph.nodes if node.op != "output"]
    for place, node in enumerate(nodes):
        last |= {group[target]: place for target in written(node, program)}
    return {node for place, node in enumerate(nodes) if last.get(group[node], -1) > place}
