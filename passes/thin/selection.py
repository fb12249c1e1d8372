"""Selection: which classes of each block stay, by importance, under equal counts and wanted widths.

A block alone is a sort, and so is one that a rule divides into equal rows. Blocks that share a constraint or a wanted
width are solved together, exactly, as an integer program over x_c ∈ {0, 1} (class c stays), with the blocks' targets
t_b met as nearly as the rest allows:

    maximise    Σ importance_c x_c  -  P Σ_b |z_b - t_b / step_b|
    subject to  Σ_{c in b} x_c = step_b z_b               every block b: a multiple
                Σ_{c in row} x_c = k_j ≥ 1                every row of constraint j: the same number
                Σ_{i in tap} x_{class of i} = width       every wanted width
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import networkx
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array
from torch import Tensor

from fxdistill.errors import InputError, PairingError
from fxdistill.ir.coupling import Constraint, Coupling

_PENALTY = 1000.0
_SECONDS = 20.0


@dataclass(frozen=True)
class Block:
    """Classes that the same weights produce.

    Attributes:
        classes: The free ones among them.
        step: Their number shall be a multiple of this.
        target: How many shall stay; None where wanted widths alone decide.
    """

    classes: tuple[int, ...]
    step: int
    target: int | None


@dataclass(frozen=True)
class Width:
    """A wanted width of a tap: the classes of its channels, in order, and how many channels shall stay."""

    path: str
    classes: tuple[int, ...]
    width: int


def select(
    coupling: Coupling, blocks: Sequence[Block], widths: Sequence[Width], scores: Tensor, *, frozen: Collection[int]
) -> frozenset[int]:
    """The classes to remove.

    Raises:
        PairingError: The wanted widths cannot be had together.
        InputError: The equal counts cannot be met.
    """
    removed: set[int] = set()
    free = {class_id for block in blocks for class_id in block.classes} - set(frozen)
    constraints = [c for c in coupling.constraints if any(i in free for row in c.sets for i in row)]
    for part, rules, taps in _components(blocks, constraints, widths):
        rows = _partition(part, rules) if not taps else None
        if rows is not None:
            removed |= _least_of_rows(part[0], rows, scores)
        elif rules or taps:
            removed |= _Program(part, rules, taps, scores).solve()
        else:
            for block in part:
                removed |= _least(coupling, block, scores)
    return frozenset(removed)


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
        graph.add_edges_from(((kind, index), ("block", owner[i])) for i in classes if i in owner)
    for component in networkx.connected_components(graph):
        yield (
            [blocks[i] for kind, i in sorted(component) if kind == "block"],
            [constraints[i] for kind, i in sorted(component) if kind == "rule"],
            [widths[i] for kind, i in sorted(component) if kind == "width"],
        )


def _least(coupling: Coupling, block: Block, scores: Tensor) -> set[int]:
    """All but the most important classes of a block; of each group in it the best one stays if there is room."""
    count = len(block.classes) if block.target is None else block.target
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

    def solve(self) -> set[int]:
        """The classes to remove, with steps of 1 where the wanted multiples cannot be had."""
        for steps in ([block.step for block in self.blocks], [1] * len(self.blocks)):
            self.rows = [*self._block_rows(steps), *self._rule_rows(), *self._width_rows()]
            found = self._solved(steps)
            if found is not None:
                return {i for i, value in zip(self.classes, found, strict=False) if value < 0.5}
        self._refuse()
        return set()

    def _solved(self, steps: Sequence[int]) -> NDArray[np.float64] | None:
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
            options={"time_limit": _SECONDS, "mip_rel_gap": 1e-4},
        )  # fmt: skip
        solution: NDArray[np.float64] | None = result.x
        return solution

    def _costs(self) -> NDArray[np.float64]:
        costs = np.zeros(self.size)
        start = 0
        for index, block in enumerate(self.blocks):
            values = self.scores[list(block.classes)].numpy()
            costs[start : start + len(values)] = -values / max(float(values.max()), 1e-30)
            start += len(values)
            if block.target is not None:
                _, over, under = self._of_block(index)
                costs[[over, under]] = _PENALTY
        return costs

    def _of_block(self, index: int) -> tuple[int, int, int]:
        first = len(self.classes) + 3 * index
        return first, first + 1, first + 2

    def _bounds(self, steps: Sequence[int]) -> Bounds:
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
