"""Selection: which classes of each block stay, by importance, under equal counts and wanted widths.

A block alone is a sort, and so are one that a rule divides into equal rows, and blocks that one wanted width alone ties
together. Others that share a constraint or a wanted width are solved together, exactly, as an integer program over
x_c ∈ {0, 1} (class c stays), with the blocks' targets t_b met as nearly as the rest allows:

    maximise    Σ importance_c x_c  -  P Σ_b |z_b - t_b / step_b|
    subject to  Σ_{c in b} x_c = step_b z_b               every block b: a multiple
                Σ_{c in row} x_c = k_j ≥ 1                every row of constraint j: the same number
                Σ_{i in tap} x_{class of i} = width       every wanted width

The search is bounded by a number of nodes and not by time, so that the same inputs give the same selection on a slow
machine. The programs of torchvision's models are solved at the first node.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import networkx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from torch import Tensor

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InputError, InvariantError, PairingError
from fxdistill.ir.coupling import Constraint, Coupling

if TYPE_CHECKING:
    from scipy.optimize import Bounds

_PENALTY = 1000.0
_NODES = 5_000


@dataclass(frozen=True)
class Block:
    """Classes that the same weights produce.

    Attributes:
        classes: The free ones among them.
        step: Their number shall be a multiple of this.
        target: How many shall stay; None where wanted widths alone decide.
        whole: How many there were before earlier steps; shares are of it. 0 for as many as there are.
    """

    classes: tuple[int, ...]
    step: int
    target: int | None
    whole: int = 0

    def share(self, share: float) -> float:
        """So much of it, in classes."""
        return share * (self.whole or len(self.classes))

    def nearest(self, count: float, least: int = 1) -> int:
        """The number of classes that it can keep which is nearest to a count, and not below another one."""
        least = self.step * max(1, math.ceil(least / self.step))
        return min(len(self.classes), max(least, self.step * round(count / self.step)))


@dataclass(frozen=True)
class Width:
    """A wanted width of a tap: the classes of its channels, in order, and how many channels shall stay."""

    path: str
    classes: tuple[int, ...]
    width: int


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
        program = _Program(part, rules, taps, scores)
        return frozenset(program.solve()), tuple(program.remarks)
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
    ranked = sorted(block.classes, key=lambda i: (-float(scores[i]), i))
    first: dict[tuple[int, ...], int] = {}
    for class_id in ranked:
        first.setdefault(coupling.group_of(class_id), class_id)
    best = list(first.values()) if len(first) <= count else []
    stay = [*best, *(i for i in ranked if i not in set(best))][:count]
    return set(block.classes) - set(stay)


def _partition(blocks: Sequence[Block], rules: Sequence[Constraint]) -> tuple[tuple[int, ...], ...] | None:
    """The rows of the only rule, if they divide the only block into equal parts: the common case, a sort too."""
    if len(blocks) != 1 or len(rules) != 1 or blocks[0].target is None:
        return None
    rows = rules[0].sets
    classes = [class_id for row in rows for class_id in row]
    equal = len(classes) == len(set(classes)) and len({len(row) for row in rows}) == 1
    return rows if equal and set(classes) == set(blocks[0].classes) else None


def _least_of_rows(block: Block, rows: tuple[tuple[int, ...], ...], scores: Tensor) -> set[int]:
    """All but the most important classes of each row, the same number in each."""
    size, target = len(rows[0]), block.target or len(block.classes)
    step = math.lcm(block.step, len(rows)) // len(rows)
    step = step if step <= size else 1
    count = min(size // step * step, max(step, step * round(target / len(rows) / step)))
    return {i for row in rows for i in sorted(row, key=lambda i: (-float(scores[i]), i))[count:]}


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
        values = scores[list(block.classes)]
        worth |= dict(zip(block.classes, (values / max(float(values.abs().max()), 1e-30)).tolist(), strict=True))
    ranked = sorted(free, key=lambda i: (-worth[i], i))
    owner = {class_id: number for number, block in enumerate(blocks) for class_id in block.classes}
    best = {owner[class_id]: class_id for class_id in reversed(ranked)}
    stay = [*best.values(), *(i for i in ranked if i != best[owner[i]])][:count]
    return free - set(stay)


class _Program:
    """The integer program of one component.

    Its variables: x of every class; z, over and under of every block; k of every rule.
    """

    def __init__(
        self, blocks: Sequence[Block], rules: Sequence[Constraint], widths: Sequence[Width], scores: Tensor
    ) -> None:
        self.blocks, self.rules, self.widths = blocks, rules, widths
        self.classes = [i for block in blocks for i in block.classes]
        self.column = {class_id: index for index, class_id in enumerate(self.classes)}
        self.size = len(self.classes) + 3 * len(blocks) + len(rules)
        self.scores = scores
        self.rows: list[tuple[dict[int, float], float, float]] = []
        self.remarks: list[Diagnostic] = []

    def solve(self) -> set[int]:
        """The classes to remove, with steps of 1 where the wanted multiples cannot be had."""
        wanted, ones = [block.step for block in self.blocks], [1] * len(self.blocks)
        outcomes = []
        for steps in (wanted, ones) if wanted != ones else (ones,):
            self.rows = [*self._block_rows(steps), *self._rule_rows(), *self._width_rows()]
            outcome = self._solved(steps)
            outcomes.append(outcome.end)
            if outcome.values is not None:
                self._remark(outcome, rounded=steps == wanted)
                return {i for i, value in zip(self.classes, outcome.values, strict=False) if value < 0.5}
        if outcomes[-1] == "limit":
            raise InputError(
                f"no selection {self._asked()} was found in {_NODES} nodes of the search, nor that there is none",
                where="keep", hint="ask for other widths or another share, or protect these nodes",
            )  # fmt: skip
        self._refuse()
        return set()

    def _solved(self, steps: Sequence[int]) -> "_Outcome":
        from scipy.optimize import LinearConstraint, milp  # noqa: PLC0415  # slow to import, and seldom needed

        data, row, column = [], [], []
        for index, (entries, _, _) in enumerate(self.rows):
            for variable, factor in entries.items():
                data.append(factor)
                row.append(index)
                column.append(variable)
        matrix = coo_array((data, (row, column)), shape=(len(self.rows), self.size)).tocsr()
        limits = LinearConstraint(matrix, [low for _, low, _ in self.rows], [high for _, _, high in self.rows])
        integral = np.ones(self.size, np.int64)
        result = milp(
            self._costs(), integrality=integral, bounds=self._bounds(steps), constraints=limits,
            options={"node_limit": _NODES, "mip_rel_gap": 1e-4},
        )  # fmt: skip
        return _Outcome(_end(result.status, result.message), result.x)

    def _remark(self, outcome: "_Outcome", *, rounded: bool) -> None:
        """Say what the selection is not: of the wanted multiples, the best one."""
        where = (self.rules[0].where if self.rules else "") or (self.widths[0].path if self.widths else "")
        if not rounded:
            self.remarks.append(Diagnostic(
                code="not-rounded", severity="note", where=where,
                why=f"its widths, and those tied to it, are no multiples of what was asked for: none of these were "
                f"found {self._asked()}",
            ))  # fmt: skip
        if outcome.end == "limit":
            self.remarks.append(Diagnostic(
                code="search-ended", severity="warning", where=where,
                why=f"the channels that are kept {self._asked()} may not be the most important ones: "
                f"the search ended after {_NODES} nodes",
            ))  # fmt: skip

    def _asked(self) -> str:
        """What the program must meet, for messages."""
        rules = [f"equal counts at '{rule.where}' ({rule.kind})" for rule in self.rules]
        taps = [f"{width.width} channels at '{width.path}'" for width in self.widths]
        return f"with {', '.join([*rules, *taps])}"

    def _costs(self) -> NDArray[np.float64]:
        costs = np.zeros(self.size)
        start = 0
        for index, block in enumerate(self.blocks):
            values = self.scores[list(block.classes)].numpy()
            costs[start : start + len(values)] = -values / max(float(np.abs(values).max()), 1e-30)
            start += len(values)
            if block.target is not None:
                _, over, under = self._of_block(index)
                costs[[over, under]] = _PENALTY
        return costs

    def _of_block(self, index: int) -> tuple[int, int, int]:
        first = len(self.classes) + 3 * index
        return first, first + 1, first + 2

    def _bounds(self, steps: Sequence[int]) -> "Bounds":
        from scipy.optimize import Bounds  # noqa: PLC0415

        upper = np.ones(self.size)
        lower = np.zeros(self.size)
        for index, (block, step) in enumerate(zip(self.blocks, steps, strict=True)):
            count, over, under = self._of_block(index)
            upper[[count, over, under]] = max(1, len(block.classes) // step)
            lower[count] = 1
        upper[self.size - len(self.rules) :] = np.inf
        lower[self.size - len(self.rules) :] = 1
        return Bounds(lower, upper)

    def _block_rows(self, steps: Sequence[int]) -> Iterator[tuple[dict[int, float], float, float]]:
        for index, (block, step) in enumerate(zip(self.blocks, steps, strict=True)):
            count, over, under = self._of_block(index)
            step = step if step <= len(block.classes) else 1  # noqa: PLW2901  # a block smaller than its step
            yield {**{self.column[i]: 1.0 for i in block.classes}, count: -float(step)}, 0.0, 0.0
            if block.target is not None:
                goal = float(round(block.target / step))
                yield {count: 1.0, over: -1.0, under: 1.0}, goal, goal

    def _rule_rows(self) -> Iterator[tuple[dict[int, float], float, float]]:
        for index, rule in enumerate(self.rules):
            total = self.size - len(self.rules) + index
            for row in rule.sets:
                entries, fixed = self._counted(row)
                yield {**entries, total: -1.0}, -fixed, -fixed

    def _width_rows(self) -> Iterator[tuple[dict[int, float], float, float]]:
        for width in self.widths:
            entries, fixed = self._counted(width.classes)
            yield entries, width.width - fixed, width.width - fixed

    def _counted(self, classes: Sequence[int]) -> tuple[dict[int, float], float]:
        """The free classes among channels, how often each occurs, and the number of channels that stay anyway."""
        entries: dict[int, float] = {}
        fixed = 0.0
        for class_id in classes:
            if class_id in self.column:
                entries[self.column[class_id]] = entries.get(self.column[class_id], 0.0) + 1.0
            else:
                fixed += 1.0
        return entries, fixed

    def _refuse(self) -> None:
        rules = ", ".join(f"'{rule.where}' ({rule.kind})" for rule in self.rules)
        if self.widths:
            taps = ", ".join(f"{w.width} of {len(w.classes)} at '{w.path}'" for w in self.widths)
            raise PairingError(
                f"these widths cannot be had together: {taps}" + (f", with equal counts at {rules}" if rules else ""),
                where=f"tap {self.widths[0].path}", hint="these taps share their channels; ask for one width of them",
            )  # fmt: skip
        raise InputError(f"the equal counts at {rules} cannot be met", where="keep", hint="protect these nodes")


_End = Literal["solved", "limit", "infeasible"]


@dataclass(frozen=True)
class _Outcome:
    """How a search ended, and the best solution that it met."""

    end: _End
    values: NDArray[np.float64] | None


def _end(status: int, message: str) -> _End:
    """How HiGHS ended: by scipy's status, which is 4 ('other') for a limit on nodes.

    Raises:
        InvariantError: It failed.
    """
    if status == 0:
        return "solved"
    if status == 2 or "infeasible" in message.lower():  # 'unbounded or infeasible': our objective is bounded
        return "infeasible"
    if status == 1 or "limit" in message.lower():
        return "limit"
    raise InvariantError(f"the integer program of the selection failed: {message}", where="keep")
