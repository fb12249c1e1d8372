"""Search: how many classes each block keeps, so that a whole model costs what it may.

Blocks compete in **pools**. Of a pool's classes, in the order of their worth, the best share ``keep`` stays; what that
leaves of a block is rounded to its multiple, and no block falls below its floor:

    uniform      each block is a pool of its own: all lose the same share
    global       one pool: what matters least goes, wherever it is
    isomorphic   blocks of one structure are a pool: like is compared with like (Fang et al., ECCV 2024,
                 arXiv 2407.04616)

What a class is worth is its importance, by the first of two criteria, which layers measure on scales of their own:

    importance / mean of the block          in general
    importance / sqrt(cost)                 where importance is what the loss loses with it (a criterion's ``of_loss``);
                                            its cost is what one class of the block takes of the budget

Importance alone would cut the cheap channels of late layers, importance by cost the dear ones of early layers; the root
between the two was best on images that were set aside (``benchmarks/README.md``).

A budget is met by bisection over that one share, with the costs of :mod:`fxdistill.ir.cost`, which build no model. What
is left of it then goes to single blocks, those first whose next class was the nearest to staying.
"""

import heapq
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import BudgetError
from fxdistill.ir.budget import Limit, Spent, check_limit, told
from fxdistill.ir.cost import Cost
from fxdistill.ir.coupling import Coupling
from fxdistill.passes.thin.blocks import Block, Importance, Width
from fxdistill.passes.thin.selection import Memory, Selection, select

Ranking = Literal["global", "isomorphic", "uniform"]
TOLERANCE = 0.02
"""How far below a budget a model may stay."""
_ENOUGH = 0.002
"""How far below it nothing more is given to single blocks."""
_HALVINGS = 40
_FEWER = 256
"""So many ways of giving one block less are tried where steps are too large to come near; four of each block at least.
"""
_LOOSE = 0.2
"""The same for budgets of time: how near the whole comes is measured, and searched again for."""
_WIDER = 8
"""So many classes further a block is looked for a width that takes less time."""
_ROUNDING = 1e-9
Targets = tuple[int, ...]


def pools(blocks: Sequence[Block], ranking: Ranking, coupling: Coupling) -> list[list[int]]:
    """Which blocks compete with each other, by number; those of a fixed size with none."""
    found: dict[object, list[int]] = {}
    for number, block in enumerate(blocks):
        if block.target is None:
            key = number if ranking == "uniform" else 0 if ranking == "global" else _structure(coupling, block)
            found.setdefault(key, []).append(number)
    return list(found.values())


def _structure(coupling: Coupling, block: Block) -> tuple[object, ...]:
    """What a class of a block is made of: the kinds of the weights that it has slices of, and what it does there."""
    parts = coupling.slices(block.classes[0])
    dims = {part.parameter: len(next(iter(coupling.parameters[part.parameter].values())).shape) for part in parts}
    return tuple(sorted((p.parameter.rpartition(".")[2], dims[p.parameter], p.dim, p.kind) for p in parts))


class Search:
    """How many classes each block keeps, by the share that each pool keeps, and what that costs."""

    def __init__(
        self, coupling: Coupling, blocks: Sequence[Block], pooled: Sequence[Sequence[int]], scores: Importance, *,
        frozen: Collection[int], floor: float = 0.0, costs: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        self.coupling, self.blocks, self.scores, self.frozen = coupling, tuple(blocks), scores, frozen
        self.least = [min(len(block.classes), math.ceil(block.share(floor) - _ROUNDING)) for block in blocks]
        self.costs = costs
        self.order: list[list[int]] = []  # of each pool the block of each class, the best one first
        self.places: dict[int, list[float]] = {}  # of each block the share of its pool at which its best, second … stay
        for pool in pooled:
            ranked = self._ranked(pool)
            self.order.append(ranked)
            for place, number in enumerate(ranked):
                self.places.setdefault(number, []).append(place / len(ranked))
        self._memory: Memory = {}
        self._sizes: dict[Targets, Spent] = {}

    def _ranked(self, pool: Sequence[int]) -> list[int]:
        values, owners = [], []
        for number in pool:
            found = self.scores.across[list(self.blocks[number].classes)].numpy()
            scale = np.abs(found).mean() if self.costs is None else math.sqrt(self.costs[number])
            values.append(np.sort(found / scale)[::-1] if scale > 0 else np.full(len(found), self._free))
            owners.append(np.full(len(found), number))
        order = np.argsort(-np.concatenate(values), kind="stable")
        return [int(number) for number in np.concatenate(owners)[order]]

    @property
    def _free(self) -> float:
        """What classes are worth that say nothing, or cost nothing."""
        return 1.0 if self.costs is None else math.inf

    def targets(self, keep: float) -> Targets:
        """How many classes each block keeps where each pool keeps a share."""
        found = [float(block.target or 0) for block in self.blocks]
        for order in self.order:
            whole = int(keep * len(order))
            for number in order[:whole]:
                found[number] += 1
            if whole < len(order):
                found[order[whole]] += keep * len(order) - whole
        return tuple(
            block.nearest(count, least) if block.target is None else block.target
            for block, least, count in zip(self.blocks, self.least, found, strict=True)
        )

    def selected(self, targets: Targets, widths: Sequence[Width] = ()) -> Selection:
        """The classes to remove, where each block keeps so many, and taps are as wide as wanted."""
        blocks = [replace(block, target=target) for block, target in zip(self.blocks, targets, strict=True)]
        memory = None if widths else self._memory
        return select(self.coupling, blocks, widths, self.scores.within, frozen=self.frozen, memory=memory)

    def meet(self, limits: Sequence[Limit], cost: Cost, *, roughly: bool = False) -> tuple[Selection, Spent]:
        """The selection that costs as much as it may, within :data:`TOLERANCE` of the budget that is met first.

        Args:
            limits: The budgets.
            cost: What the model costs.
            roughly: Whether the nearest below will do where nothing comes so near; then that is remarked.

        Raises:
            BudgetError: A budget is below the least or above the most that can be had, or nothing comes near to it.
        """
        own, least = cost.spent_without(()), self._costs(self.targets(0.0), cost)
        if least == own:
            raise BudgetError(
                "no channel would be removed: no layer may have fewer than it has", where=limits[0].option,
                hint=f"{self._or_multiples('lower --floor')}, or give parts a smaller --scope",
            )  # fmt: skip
        caps = (min((n.most(own) for n in limits if n.what == what), default=math.inf) for what in Spent._fields)
        most = Spent(*caps)  # type: ignore[arg-type]
        for limit in limits:
            floor = "with the fewest channels that a layer may have"
            check_limit(limit.what, limit.most(own), least=least, whole=own, where=limit.option, floor=floor)
        tolerance = TOLERANCE if cost.timing is None else _LOOSE
        if not roughly and _share(self._costs(self.targets(1.0), cost), most) < 1 - tolerance:
            parts = "what is said of single parts"
            raise BudgetError(
                f"{f'the largest multiples, or {parts}, leave' if self._coarse else f'{parts} leaves'} less than the "
                "budget already", where=limits[0].option,
                hint=f"{self._or_multiples('give those parts more')}, or leave the budget out",
            )  # fmt: skip
        met = self._near(self._filled(self._bisected(most, cost), most, cost), most, cost)
        if cost.timing is not None:
            met = self._filled(self._widened(met, most, cost), most, cost, step=_WIDER)
        if _share(self._costs(met, cost), most) < 1 - tolerance:
            found = self._costs(met, cost)
            near = " and ".join(told(limit.what, getattr(found, limit.what)) for limit in limits)
            why = f"no widths were found within {tolerance:.0%} of the budget: the nearest below it have {near}"
            hint = f"give that, or {self._or_multiples('another --floor')}"
            if not roughly:
                raise BudgetError(why, where=limits[0].option, hint=hint)
            below = Diagnostic(code="below-budget", severity="warning", where=limits[0].option, why=why, hint=hint)
            chosen = self.selected(met)
            return replace(chosen, diagnostics=(below, *chosen.diagnostics)), found
        return self.selected(met), self._costs(met, cost)

    @property
    def _coarse(self) -> bool:
        return any(block.step > 1 for block in self.blocks)

    def _or_multiples(self, hint: str) -> str:
        return f"lower --round-to, {hint}" if self._coarse else hint

    def _costs(self, targets: Targets, cost: Cost) -> Spent:
        if targets not in self._sizes:
            self._sizes[targets] = cost.spent_without(self.selected(targets).removed)
        return self._sizes[targets]

    def _bisected(self, most: Spent, cost: Cost) -> Targets:
        """What the largest share leaves that can be paid."""
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            if self.targets(low) == self.targets(high):
                break
            middle = (low + high) / 2
            low, high = (middle, high) if _share(self._costs(self.targets(middle), cost), most) <= 1 else (low, middle)
        return self.targets(low)

    def _filled(self, targets: Targets, most: Spent, cost: Cost, but: int = -1, step: int = 1) -> Targets:
        """More for single blocks, but one, while that can be paid."""
        found = list(targets)
        waiting = [(at[found[n]], n) for n, at in self.places.items() if n != but and found[n] < len(at)]
        heapq.heapify(waiting)
        while waiting and _share(self._costs(tuple(found), cost), most) < 1 - _ENOUGH:
            _, number = heapq.heappop(waiting)
            places, own = self.places[number], self.blocks[number].step
            more = [*found]
            more[number] = min(len(places), found[number] + own * math.ceil(step / own))
            if _share(self._costs(tuple(more), cost), most) <= 1:
                found = more
                if found[number] < len(places):
                    heapq.heappush(waiting, (places[found[number]], number))
        return tuple(found)

    def _widened(self, targets: Targets, most: Spent, cost: Cost) -> Targets:
        """More for single blocks where that costs no more: some widths take longer than wider ones."""
        best = targets
        for number, places in self.places.items():
            step = self.blocks[number].step
            last = min(len(places), best[number] + max(step, _WIDER))
            for count in range(best[number] + step, last + 1, step):
                more = (*best[:number], count, *best[number + 1 :])
                if _share(self._costs(more, cost), most) <= _share(self._costs(best, cost), most):
                    best = more
        return best

    def _near(self, targets: Targets, most: Spent, cost: Cost) -> Targets:
        """Where steps are too large to come near: some less for one block, and what that leaves for the others."""
        found = self._nearer(targets, most, cost)
        while found != targets and cost.timing is None:  # from there on perhaps for another block
            targets, found = found, self._nearer(found, most, cost)
        return found

    def _nearer(self, targets: Targets, most: Spent, cost: Cost) -> Targets:
        """The nearest that is so found for a single block."""
        best = targets
        for less, number in itertools.islice(self._fewer(targets), max(_FEWER, 4 * len(self.places))):
            if _share(self._costs(best, cost), most) >= 1 - TOLERANCE:
                break
            found = self._filled(less, most, cost, but=number)
            best = max(best, found, key=lambda one: _share(self._costs(one, cost), most))
        return best

    def _fewer(self, targets: Targets) -> Iterator[tuple[Targets, int]]:
        """One step less for one block, the nearest to going first, then two; and which block has less."""
        ranked = sorted(self.places, key=lambda n: -self.places[n][targets[n] - 1])
        for steps in itertools.count(1):
            some = [(number, self.blocks[number].less(targets[number], steps)) for number in ranked]
            some = [(number, count) for number, count in some if count >= max(1, self.least[number])]
            if not some:
                return
            yield from (((*targets[:number], count, *targets[number + 1 :]), number) for number, count in some)


def costs_of(blocks: Sequence[Block], limits: Sequence[Limit], cost: Cost) -> list[float]:
    """What a class of each block takes of a budget; of several that of which it takes most.

    Budgets of time count in multiply-accumulates: one channel less takes no time less.
    """
    own = cost.spent_without(())
    asked = {"macs" if limit.what == "latency" else limit.what for limit in limits}
    without = [cost.spent_without(block.classes[:1]) for block in blocks]
    return [max((getattr(own, w) - getattr(less, w)) / max(getattr(own, w), 1) for w in asked) for less in without]


def _share(size: Spent, most: Spent) -> float:
    """What part of the budgets a size is; of several that of which the most is used."""
    return max(one / limit for one, limit in zip(size, most, strict=True))
