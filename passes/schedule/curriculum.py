"""What the user says of a warm-up, whatever method it is of; without a word each stays as the method has it.

    share          of all epochs, of which the main stage has E: round(E share / (1 - share)) epochs, divided as before
    keep earlier   stage l has the terms of the stages before it as well, with weights that fall from their own stage on
                   by a factor an epoch: w k^n, n epochs after it (of Passalis et al., CVPR 2020: 0.7), with stages as
                   long as they are planned: the plan has the numbers, and a plateau does not change them
    plateau        a stage ends where its loss no longer falls, and the main stage gets the epochs that it leaves
    probe          difficulty is measured instead of assumed to grow with depth: ``order`` takes the easy pairs first,
                   ``lengths`` gives each pair its share of the difficulty of all, shallow to deep as before

How difficulty is measured: :mod:`fxdistill.compiler.probe`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fxdistill import checking
from fxdistill.errors import InputError
from fxdistill.plan.schema import Pair
from fxdistill.plan.training import LossTerm, Plateau, Stage

Probe = Literal["order", "lengths"]
SHARE, KEEP, PLATEAU, PROBE = "--warm-up-share", "--keep-earlier", "--plateau", "--probe"
_FAINT = 1e-6


@dataclass(frozen=True)
class Curriculum:
    """How warm-ups go, see the module docstring.

    Attributes:
        share: Their share of all epochs; None for the epochs that the method says.
        keep_earlier: What an earlier stage's weight is multiplied by with every epoch; None drops it.
        plateau: When a stage ends before its epochs are over; None for never.
        probe: What measured difficulty decides; None where nothing is measured.

    Raises:
        InputError: One of them is none.
    """

    share: float | None = None
    keep_earlier: float | None = None
    plateau: Plateau | None = None
    probe: Probe | None = None

    def __post_init__(self) -> None:
        if isinstance(self.probe, str) and self.probe not in get_args(Probe):
            raise InputError(
                f"'{self.probe}' is not something that the probe can decide", where=PROBE, hint="give order or lengths"
            )
        checking.fields(self)
        for option, value in ((SHARE, self.share), (KEEP, self.keep_earlier)):
            if value is not None and not 0 < value < 1:
                raise InputError(f"{value:g} is not between 0 and 1", where=option, hint=f"give {option} 0.5, say")

    @property
    def said(self) -> tuple[str, ...]:
        """The options that somebody gave."""
        given = {SHARE: self.share, KEEP: self.keep_earlier, PLATEAU: self.plateau, PROBE: self.probe}
        return tuple(option for option, value in given.items() if value is not None)

    def of(self, stages: Sequence[Stage], pairs: Sequence[Pair], *, main: int) -> list[Stage]:
        """The warm-ups of a method, as the user wants them.

        Args:
            stages: They.
            pairs: The pairs, from shallow to deep, with their difficulty where that decides.
            main: Epochs of the main stage.

        Raises:
            InputError: There are none to say anything of, they are not of a pair each, or a share is too small.
        """
        if not self.said:
            return list(stages)
        if not stages:
            raise InputError(
                "the method has no warm-up", where=self.said[0], hint="give one that has: --method indistill+METHOD"
            )
        difficulty = {pair.name: pair.difficulty for pair in pairs}
        hard = None if self.probe is None else [_difficulty(stage, difficulty) for stage in stages]
        made = self._kept(self._divided(self._ordered(list(stages), hard), hard, main))
        return [stage.changed(plateau=self.plateau) for stage in made] if self.plateau is not None else made

    def _ordered(self, stages: list[Stage], hard: Sequence[float] | None) -> list[Stage]:
        """The easy ones first, where difficulty decides that; names and epochs stay where they are."""
        if self.probe != "order" or hard is None:
            return stages
        found = [stages[place] for place in sorted(range(len(stages)), key=hard.__getitem__)]
        return [one.changed(name=own.name, epochs=own.epochs) for one, own in zip(found, stages, strict=True)]

    def _divided(self, stages: list[Stage], hard: Sequence[float] | None, main: int) -> list[Stage]:
        """Their epochs, or the share of all, divided as before or by difficulty."""
        epochs = [stage.epochs for stage in stages]
        total = sum(epochs) if self.share is None else round(main * self.share / (1 - self.share))
        if total < len(stages):
            raise InputError(
                f"{self.share:g} of all epochs are {total} beside a main stage of {main}, and there are {len(stages)} "
                "warm-ups", where=SHARE, hint="give a larger share, or more --epochs",
            )  # fmt: skip
        weights = hard if self.probe == "lengths" and hard is not None else epochs
        return [stage.changed(epochs=count) for stage, count in zip(stages, _apportioned(total, weights), strict=True)]

    def _kept(self, stages: list[Stage]) -> list[Stage]:
        if self.keep_earlier is None:
            return stages
        return [
            stage.changed(losses=[*stage.losses, *self._faded(stages, place)]) for place, stage in enumerate(stages)
        ]

    def _faded(self, stages: Sequence[Stage], place: int) -> list[LossTerm]:
        """The terms of the stages before one, as they are at its beginning."""
        found, keep = [], self.keep_earlier or 0.0
        for before in range(place - 1, -1, -1):
            since = sum(stage.epochs for stage in stages[before + 1 : place]) + 1
            for term in stages[before].losses:
                weight = round(term.weight * keep**since, 6)
                if weight >= _FAINT:
                    found.append(term.changed(weight=weight, decay=keep))
        return found


def _difficulty(stage: Stage, difficulty: Mapping[str, float | None]) -> float:
    """That of the one pair of a stage.

    Raises:
        InputError: It has none, or several, or it was not measured.
    """
    pairs = {term.pair for term in stage.losses if term.pair is not None}
    found = difficulty.get(next(iter(pairs))) if len(pairs) == 1 else None
    if found is None:
        raise InputError(
            f"the warm-up '{stage.name}' is not about one pair whose difficulty was measured", where=PROBE,
            hint="leave it out",
        )  # fmt: skip
    return found


def _apportioned(total: int, weights: Sequence[float]) -> list[int]:
    """So many epochs, divided by weights: at least one each, the largest remainders first."""
    spare, whole = total - len(weights), sum(weights) or 1.0
    exact = [max(0.0, total * weight / whole - 1) for weight in weights]
    scale = spare / (sum(exact) or 1.0)
    shares = [scale * value for value in exact] if any(exact) else [spare / len(weights)] * len(weights)
    found = [math.floor(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda place: (found[place] - shares[place], place))
    for place in order[: spare - sum(found)]:
        found[place] += 1
    return [count + 1 for count in found]
