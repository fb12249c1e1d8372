"""Paths: what the nodes of a trace are called (see :mod:`fxdistill.ir.graph`).

One model has one vocabulary, that of its graph in eval mode:

    eval       x ─ a ─ relu ─────────────── b ─ relu_1
    training   x ─ a ─ relu ─ aux ─ relu_2 ─ b ─ relu_1 ─ dropout

Both graphs record one ``forward``, so the training graph is aligned with the other one as two versions of a text are.
What stands in both has the path that it has in eval mode; what training adds gets a path that eval mode does not have.
A module that is one node here and several there is called as the node at which it ends. So a path that both graphs
have is the same place of the model, and the rung does not matter.
"""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fxdistill.errors import PairingError
from fxdistill.ir.graph import Traced, op_name, path_of, scope_end, scope_of

_Token = tuple[object, ...]
_MOST_COMPARISONS = 1_000_000  # about a second


def name_nodes(module: fx.GraphModule, eval_mode: Traced | None = None) -> None:
    """Give every node its ``path`` and ``scope``.

    Args:
        module: The graph to name.
        eval_mode: The same model's graph in eval mode, whose paths count; None where ``module`` is that graph.
    """
    bare = _place(module)
    known = {} if eval_mode is None else _known(module, eval_mode)
    taken = Counter() if eval_mode is None else Counter(path_of(node) for node in _named(eval_mode.graph.nodes))
    for node, path in bare.items():
        node.meta["path"] = known[node] if node in known else _free(path, taken)


def _place(module: fx.GraphModule) -> dict[fx.Node, str]:
    """Note every node's scope; gives its path, apart from the number that makes it unique."""
    bare: dict[fx.Node, str] = {}
    for node in module.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        scope = str(stack[-1][0]) if stack else ""
        if node.op == "call_module":
            path = str(node.target)
            scope = scope if scope != path else path.rpartition(".")[0]
        elif node.op in ("placeholder", "output"):
            path = node.op if node.op == "output" else str(node.target)
        else:
            target = node.target if isinstance(node.target, str) else _target_name(node.target)
            path = f"{scope}.{target}" if scope and node.op != "get_attr" else target
        node.meta["scope"] = scope
        bare[node] = path
    return bare


def _free(path: str, taken: Counter[str]) -> str:
    """The path, or the first with a number behind it that no other node has; a module may be called relu_1 as well."""
    count = taken[path]
    while count and f"{path}_{count}" in taken:
        count += 1
    taken[path] = count + 1
    found = f"{path}_{count}" if count else path
    taken.setdefault(found, 1)
    return found


def _target_name(target: Any) -> str:
    packet = getattr(target, "overloadpacket", None)
    return str(getattr(packet or target, "__name__", target))


def _named(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes whose paths tell them apart; an attribute is called by its name, however often it is read."""
    return [node for node in nodes if node.op != "get_attr"]


def _known(module: fx.GraphModule, eval_mode: Traced) -> dict[fx.Node, str]:
    """The paths of the nodes that stand in the graph of eval mode as well."""
    here, there = _named(module.graph.nodes), _named(eval_mode.graph.nodes)
    pairs = _aligned(_calls(here, module), _calls(there, eval_mode.module))
    known = {here[i]: path_of(there[j]) for i, j in pairs}
    free = {path_of(node) for node in there} - set(known.values())
    calls = Counter(str(node.target) for node in here if node.op == "call_module")
    for node in here:
        if node in known or node.op != "call_module" or calls[str(node.target)] > 1:
            continue
        try:
            end = path_of(scope_end(eval_mode, str(node.target)))
        except PairingError:  # training alone has this module
            continue
        if end in free:
            known[node] = end
            free.remove(end)
    return known


@dataclass(frozen=True)
class _Call:
    """A node as the alignment sees it: an operation at a place, what it reads, and what reads it."""

    what: _Token
    reads: tuple[object, ...]
    read_by: tuple[_Token, ...]

    def likeness(self, other: "_Call") -> int:
        """How many of its neighbours are alike; none where another operation is called."""
        if self.what != other.what:
            return 0
        neighbours = (Counter(self.reads) & Counter(other.reads)) + (Counter(self.read_by) & Counter(other.read_by))
        return 1 + neighbours.total()


def _calls(nodes: list[fx.Node], root: nn.Module) -> list[_Call]:
    tokens = {node: _token(node, root) for node in nodes}
    return [_Call(tokens[n], tuple(_reads(n, tokens)), tuple(tokens[user] for user in n.users)) for n in nodes]


def _token(node: fx.Node, root: nn.Module) -> _Token:
    if node.op in ("placeholder", "output"):
        return (node.op,)
    place = str(node.target) if node.op == "call_module" else scope_of(node)
    return place, op_name(node, root)


def _reads(node: fx.Node, tokens: dict[fx.Node, _Token]) -> Iterator[object]:
    for source in node.all_input_nodes:
        yield tokens.get(source, ("get_attr", str(source.target)))
    constants: list[object] = []
    fx.node.map_aggregate(
        (node.args, node.kwargs), lambda value: None if isinstance(value, fx.Node) else constants.append(value)
    )
    yield str(constants)


def _aligned(here: list[_Call], there: list[_Call]) -> Iterator[tuple[int, int]]:
    """Positions that correspond, in order: first where calls read the same, then, between those, the likest ones."""
    start = other = 0
    blocks = _blocks([(c.what, c.reads) for c in here], [(c.what, c.reads) for c in there])
    for i, j, size in (*blocks, (len(here), len(there), 0)):
        for m, n in _likest(here[start:i], there[other:j]):
            yield start + m, other + n
        yield from ((i + k, j + k) for k in range(size))
        start, other = i + size, j + size


def _blocks(one: list[_Token], other: list[_Token]) -> list[tuple[int, int, int]]:
    if one == other:
        return [(0, 0, len(one))]
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    return [(block.a, block.b, block.size) for block in matcher.get_matching_blocks() if block.size]


def _likest(one: list[_Call], other: list[_Call]) -> list[tuple[int, int]]:
    """The common subsequence of calls with the largest sum of likeness."""
    if len(one) * len(other) > _MOST_COMPARISONS:
        blocks = _blocks([(c.what,) for c in one], [(c.what,) for c in other])
        return [(i + k, j + k) for i, j, size in blocks for k in range(size)]
    best = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, call in reversed(list(enumerate(one))):
        for j, candidate in reversed(list(enumerate(other))):
            like = call.likeness(candidate)
            best[i][j] = max(best[i + 1][j], best[i][j + 1], like and like + best[i + 1][j + 1])
    found: list[tuple[int, int]] = []
    i = j = 0
    while i < len(one) and j < len(other):
        like = one[i].likeness(other[j])
        if like and best[i][j] == like + best[i + 1][j + 1]:
            found.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return found
