"""Barriers: places that cannot be shrunk, found by trying. The channels that touch one stay, and it is tried again.

couple ─ decide ─ shrink ─┬─ proven
▲                      └─ obstacle at a path ─ next_barrier ─┐
└──────────────────── with_barriers ─────────────────────────┘
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import fx

from fxdistill.diagnostics import Diagnostic
from fxdistill.ir.coupling import Coupling, Lock, core, flat_layers
from fxdistill.ir.graph import Traced, path_of, scope_of, shape_of, within


def next_barrier(traced: Traced, path: str, barriers: Collection[str]) -> str:
    """What to keep for a place that failed: the place itself or, where that was not enough, the module around it."""
    nodes = {path_of(node): node for node in traced.graph.nodes}
    while path in barriers:
        path = scope_of(nodes[path]) if path in nodes and scope_of(nodes[path]) != path else path.rpartition(".")[0]
    return path


def barrier_remarks(barriers: Mapping[str, str]) -> Iterator[Diagnostic]:
    """A note for each node that cannot be shrunk, by its path, and why."""
    for path, why in barriers.items():
        yield Diagnostic(
            code="shrink-barrier", severity="note", where=path, why=f"the channels that it touches stay, because {why}"
        )


def with_barriers(traced: Traced, coupling: Coupling, barriers: Sequence[str]) -> Coupling:
    """The coupling with everything locked that enters, leaves or lies in these nodes and parameters."""
    locks = dict(coupling.locks)
    nodes = {path_of(node): node for node in traced.graph.nodes}
    for path in barriers:
        labels = list(coupling.parameter_labels(path).values())
        node = nodes.get(path)
        inside = [node] if node is not None else [n for n in nodes.values() if not path or within(scope_of(n), path)]
        touched = dict.fromkeys(n for one in inside for n in (one, *_sources(one)))
        labels += [layer for n in touched for layer in flat_layers(coupling.structure(path_of(n)))]
        if node is not None and node.op == "call_module":
            owned = traced.module.get_submodule(str(node.target)).named_parameters(str(node.target))
            labels += [layer for name, _ in owned for layer in coupling.parameter_labels(name).values()]
        for class_id in {i for layer in labels for i in core(layer).flatten().tolist()} - {0}:
            locks.setdefault(class_id, Lock("goes through what cannot be shrunk", path))
    return replace(coupling, locks=locks, _cache={})


def _sources(node: fx.Node) -> Iterator[fx.Node]:
    """The tensors that a node reads, and those whose widths it reads as numbers."""
    for source in node.all_input_nodes:
        yield source
        if shape_of(source) is None:
            yield from _sources(source)
