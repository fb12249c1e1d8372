"""Selection: which classes of each block stay, by importance, under equal counts and wanted widths.

A block alone is a sort, and so are one that a rule divides into equal rows, and blocks that one wanted width alone ties
together. Others that share a constraint or a wanted width are an integer program
(:mod:`fxdistill.passes.thin.program`).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx
from torch import Tensor

from fxdistill.diagnostics import Diagnostic
from fxdistill.ir.coupling import Constraint, Coupling
from fxdistill.passes.thin.blocks import Block, Width
from fxdistill.passes.thin.program import Program


@dataclass(frozen=True)
class Selection:
    """The classes to remove, and what was given up on the way."""

    removed: frozenset[int]
    diagnostics: tuple[Diagnostic, ...] = ()


Memory = dict[tuple[Block, ...], tuple[frozenset[int], tuple[Diagnostic, ...]]]
"""What was selected of blocks that are tied together."""


def select(
    coupling: Coupling, blocks: Sequence[Block], widths: Sequence[Width], scores: Tensor, *, frozen: Collection[int],
    memory: Memory | None = None,
) -> Selection:  # fmt: skip
    """The classes to remove.

    Args:
        coupling: The coupled channels.
        blocks: What may be removed, and how much of it stays.
        widths: Wanted widths of taps.
        scores: The importance of every class.
        frozen: Classes that stay.
        memory: What was selected before of the same model by the same scores, without wanted widths; it is added to.

    Raises:
        PairingError: The wanted widths cannot be had together.
        InputError: The equal counts cannot be met, or nothing that meets them was found in the given number of nodes.
    """
    removed: set[int] = set()
    remarks: list[Diagnostic] = []
    free = {class_id for block in blocks for class_id in block.classes} - set(frozen)
    constraints = [c for c in coupling.constraints if any(i in free for row in c.sets for i in row)]
    memory = {} if memory is None else memory
    for part, rules, taps in _components(blocks, constraints, widths):
        if tuple(part) not in memory:
            memory[tuple(part)] = _of_component(coupling, part, rules, taps, scores)
        removed |= memory[tuple(part)][0]
        remarks += memory[tuple(part)][1]
    return Selection(frozenset(removed), tuple(remarks))


def _of_component(
    coupling: Coupling, part: Sequence[Block], rules: Sequence[Constraint], taps: Sequence[Width], scores: Tensor
) -> tuple[frozenset[int], tuple[Diagnostic, ...]]:
    """The classes to remove of blocks that are tied together, and remarks."""
    rows = _partition(part, rules) if not taps else None
    least = _least_of_tap(part, taps[0], scores) if len(taps) == 1 and not rules else None
    if rows is not None:
        return frozenset(_least_of_rows(part[0], rows, scores)), ()
    if least is not None:
        return frozenset(least), ()
    if rules or taps:
        removed, remarks = Program(part, rules, taps, scores).solve()
        return frozenset(removed), tuple(remarks)
    return frozenset(i for block in part for i in _least(coupling, block, scores)), ()


def _components(
    blocks: Sequence[Block], constraints: Sequence[Constraint], widths: Sequence[Width]
) -> Iterator[tuple[list[Block], list[Constraint], list[Width]]]:
    """Blocks that constraints or widths tie together."""
    owner = {class_id: index for index, block in enumerate(blocks) for class_id in block.classes}
    graph: networkx.Graph[tuple[str, int]] = networkx.Graph()
    graph.add_nodes_from(("block", index) for index in range(len(blocks)))
    ties = [("rule", j, {i for row in c.sets for i in row}) for j, c in enumerate(constraints)]
    ties += [("width", j, set(width.classes)) for j, width in enumerate(widths)]
    for kind, index, classes in ties:
        graph.add_edges_from(((kind, index), ("block", number)) for number in {owner[i] for i in classes if i in owner})
    for component in networkx.connected_components(graph):
        yield (
            [blocks[i] for kind, i in sorted(component) if kind == "block"],
            [constraints[i] for kind, i in sorted(component) if kind == "rule"],
            [widths[i] for kind, i in sorted(component) if kind == "width"],
        )


def _least(coupling: Coupling, block: Block, scores: Tensor) -> set[int]:
    """All but the most important classes of a block; of each group in it the best one stays if there is room."""
    count = len(block.classes) if block.target is None else block.target
    if count >= len(block.classes):
        return set()
    groups = {class_id: coupling.group_of(class_id)[0] for class_id in block.classes}
    return set(block.classes) - _stay(_ranked(block.classes, scores), groups, count)


def _partition(blocks: Sequence[Block], rules: Sequence[Constraint]) -> tuple[tuple[int, ...], ...] | None:
    """The rows of the only rule, if they divide the only block into equal parts: the common case, a sort too."""
    if len(blocks) != 1 or len(rules) != 1 or blocks[0].target is None:
        return None
    return rules[0].sets if rules[0].divided == set(blocks[0].classes) else None


def _least_of_rows(block: Block, rows: tuple[tuple[int, ...], ...], scores: Tensor) -> set[int]:
    """All but the most important classes of each row, the same number in each."""
    target = len(block.classes) if block.target is None else block.target
    count = max(1, round(target / len(rows)))
    return {i for row in rows for i in _ranked(row, scores)[count:]}


def _least_of_tap(blocks: Sequence[Block], tap: Width, scores: Tensor) -> set[int] | None:
    """All but the most important classes of one tap, at least one of each block: the integer program's solution.

    It is a sort where the blocks have the tap's channels, each class one of them, and no wishes of their own: what a
    width allows is then the bases of a matroid. None where it is no sort, or where there is no solution.
    """
    free = {class_id for block in blocks for class_id in block.classes}
    channels = [class_id for class_id in tap.classes if class_id in free]
    count = tap.width - (len(tap.classes) - len(channels))
    plain = all(block.target is None and block.step == 1 for block in blocks)
    if not plain or len(channels) != len(free) or set(channels) != free or not len(blocks) <= count <= len(free):
        return None
    worth: dict[int, float] = {}
    for block in blocks:
        worth |= dict(zip(block.classes, block.relative(scores).tolist(), strict=True))
    owner = {class_id: number for number, block in enumerate(blocks) for class_id in block.classes}
    return free - _stay(_ranked(free, worth), owner, count)


def _ranked(classes: Iterable[int], scores: Tensor | Mapping[int, float]) -> list[int]:
    """Classes from the most important one to the least; of equal ones the first."""
    return sorted(classes, key=lambda i: (-float(scores[i]), i))


def _stay(ranked: Sequence[int], owner: Mapping[int, object], count: int) -> set[int]:
    """The first of a ranking; but the best one of every owner, if there is room for all these."""
    best = {owner[class_id]: class_id for class_id in reversed(ranked)}
    first = set(best.values()) if len(best) <= count else set()
    return {*[*first, *(i for i in ranked if i not in first)][:count]}
