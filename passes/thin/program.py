"""The selection of blocks that share a constraint or a wanted width, solved exactly as an integer program.

Class c stays where x_c = 1, of x_c ∈ {0, 1}; the blocks' targets t_b are met as nearly as the rest allows:

    maximise    Σ importance_c x_c  -  P Σ_b step_b |z_b - t_b / step_b|
    subject to  Σ_{c in b} x_c = step_b z_b               every block b: a multiple
                Σ_{c in row} x_c = k_j ≥ 1                every row of constraint j: the same number
                Σ_{i in tap} x_{class of i} = width       every wanted width

with importance_c relative to the largest of its block, and |z - t| = over + under where z - over + under = t. The step
of a block that has fewer classes is 1; where the wanted multiples cannot be had, every step is.

The search is bounded by a number of nodes and not by time, so that the same inputs give the same selection on a slow
machine. The programs of torchvision's models are solved at the first node.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from torch import Tensor

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InputError, InvariantError, PairingError
from fxdistill.ir.coupling import Constraint
from fxdistill.passes.thin.blocks import Block, Width

if TYPE_CHECKING:
    from scipy.optimize import Bounds

_PENALTY = 1000.0
_NODES = 5_000

_End = Literal["solved", "limit", "infeasible"]
_Row = tuple[dict[int, float], float]
"""The factors of variables, and what their sum must be."""


class Program:
    """The integer program of one component.

    Its variables: x of every class; z, over and under of every block; k of every rule.
    """

    def __init__(
        self, blocks: Sequence[Block], rules: Sequence[Constraint], widths: Sequence[Width], scores: Tensor
    ) -> None:
        self.blocks, self.rules, self.widths, self.scores = blocks, rules, widths, scores
        self.classes = [i for block in blocks for i in block.classes]
        self.column = {class_id: index for index, class_id in enumerate(self.classes)}
        self.size = len(self.classes) + 3 * len(blocks) + len(rules)

    def solve(self) -> tuple[set[int], list[Diagnostic]]:
        """The classes to remove, and what the selection is not: of the wanted multiples, the best one.

        Raises:
            PairingError: The wanted widths cannot be had together.
            InputError: The equal counts cannot be met, or nothing that meets them was found in so many nodes.
        """
        ones, asked = [1] * len(self.blocks), [block.step for block in self.blocks]
        wanted = [block.step if block.step <= len(block.classes) else 1 for block in self.blocks]
        end: _End = "infeasible"
        for steps in (wanted, ones) if wanted != ones else (ones,):
            end, values = self._solved(steps)
            if values is not None:
                removed = {i for i, value in zip(self.classes, values, strict=False) if value < 0.5}
                return removed, [*self._remarks(end, rounded=steps == asked)]
        if end == "limit":
            raise InputError(
                f"no selection {self._asked()} was found in {_NODES} nodes of the search, nor that there is none",
                where="keep", hint="ask for other widths or another share, or protect these nodes",
            )  # fmt: skip
        rules = ", ".join(f"'{rule.where}' ({rule.kind})" for rule in self.rules)
        if not self.widths:
            raise InputError(f"the equal counts at {rules} cannot be met", where="keep", hint="protect these nodes")
        taps = ", ".join(f"{w.width} of {len(w.classes)} at '{w.path}'" for w in self.widths)
        raise PairingError(
            f"these widths cannot be had together: {taps}" + (f", with equal counts at {rules}" if rules else ""),
            where=f"tap {self.widths[0].path}", hint="these taps share their channels; ask for one width of them",
        )  # fmt: skip

    def _solved(self, steps: Sequence[int]) -> tuple[_End, NDArray[np.float64] | None]:
        """How the search ended, and the best solution that it met."""
        from scipy.optimize import LinearConstraint, milp  # noqa: PLC0415  # slow to import, and seldom needed

        rows = [*self._block_rows(steps), *self._rule_rows(), *self._width_rows()]
        entries = [(j, column, factor) for j, (factors, _) in enumerate(rows) for column, factor in factors.items()]
        row, column, data = zip(*entries, strict=True)
        matrix = coo_array((data, (row, column)), shape=(len(rows), self.size)).tocsr()
        totals = [total for _, total in rows]
        result = milp(
            self._costs(steps), integrality=np.ones(self.size, np.int64), bounds=self._bounds(steps),
            constraints=LinearConstraint(matrix, totals, totals),
            options={"node_limit": _NODES, "mip_rel_gap": 1e-4},
        )  # fmt: skip
        return _end(result.status, result.message), result.x

    def _remarks(self, end: _End, *, rounded: bool) -> Iterator[Diagnostic]:
        where = (self.rules[0].where if self.rules else "") or (self.widths[0].path if self.widths else "")
        if not rounded:
            yield Diagnostic(
                code="not-rounded", severity="note", where=where,
                why=f"its widths, and those tied to it, are no multiples of what was asked for: none of these were "
                f"found {self._asked()}",
            )  # fmt: skip
        if end == "limit":
            yield Diagnostic(
                code="search-ended", severity="warning", where=where,
                why=f"the channels that are kept {self._asked()} may not be the most important ones: "
                f"the search ended after {_NODES} nodes",
            )  # fmt: skip

    def _asked(self) -> str:
        """What the program must meet, for messages."""
        rules = [f"equal counts at '{rule.where}' ({rule.kind})" for rule in self.rules]
        taps = [f"{width.width} channels at '{width.path}'" for width in self.widths]
        return f"with {', '.join([*rules, *taps])}"

    def _of_block(self, index: int) -> tuple[int, int, int]:
        """The columns of a block's z, over and under."""
        first = len(self.classes) + 3 * index
        return first, first + 1, first + 2

    def _costs(self, steps: Sequence[int]) -> NDArray[np.float64]:
        costs = np.zeros(self.size)
        for index, (block, step) in enumerate(zip(self.blocks, steps, strict=True)):
            start = self.column[block.classes[0]]
            costs[start : start + len(block.classes)] = -block.relative(self.scores).numpy()
            if block.target is not None:
                costs[[*self._of_block(index)[1:]]] = _PENALTY * step / max(steps)
        return costs

    def _bounds(self, steps: Sequence[int]) -> "Bounds":
        from scipy.optimize import Bounds  # noqa: PLC0415

        lower, upper = np.zeros(self.size), np.ones(self.size)
        for index, (block, step) in enumerate(zip(self.blocks, steps, strict=True)):
            columns = [*self._of_block(index)]
            upper[columns] = len(block.classes) // step
            lower[columns[0]] = 1
        upper[self.size - len(self.rules) :] = np.inf
        lower[self.size - len(self.rules) :] = 1
        return Bounds(lower, upper)

    def _block_rows(self, steps: Sequence[int]) -> Iterator[_Row]:
        for index, (block, step) in enumerate(zip(self.blocks, steps, strict=True)):
            count, over, under = self._of_block(index)
            yield {**{self.column[i]: 1.0 for i in block.classes}, count: -float(step)}, 0.0
            if block.target is not None:
                yield {count: 1.0, over: -1.0, under: 1.0}, float(round(block.target / step))

    def _rule_rows(self) -> Iterator[_Row]:
        for total, rule in enumerate(self.rules, self.size - len(self.rules)):
            for row in rule.sets:
                factors, fixed = self._counted(row)
                yield {**factors, total: -1.0}, -fixed

    def _width_rows(self) -> Iterator[_Row]:
        for width in self.widths:
            factors, fixed = self._counted(width.classes)
            yield factors, width.width - fixed

    def _counted(self, classes: Sequence[int]) -> tuple[dict[int, float], int]:
        """The free classes among channels, how often each occurs, and the number of channels that stay anyway."""
        free = Counter(self.column[i] for i in classes if i in self.column)
        return {column: float(count) for column, count in free.items()}, len(classes) - free.total()


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
