"""An epoch in training: its losses, how fast it goes, and whether it still goes anywhere.

Losses are looked at every few steps, since a look waits for the device. One that is not a number ends the run, and so
does an epoch after which one is far beyond what it was before training: the numbers hold still, the training does not.
"""

import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxdistill.data.batches import Batch
from fxdistill.errors import TrainingError
from fxdistill.ir.program import Program
from fxdistill.plan.training import Stage
from fxdistill.runtime.training.average import Average
from fxdistill.runtime.training.course import Means, Position, Progress
from fxdistill.runtime.training.profiling import Clock

if TYPE_CHECKING:
    from fxdistill.runtime.training.halves import Halves

_LOST = 1000
"""Times a loss before training, or 1 where that is less: a mean over an epoch that no training comes back from."""


class Epoch:
    """An epoch in training: its losses, looked at every few steps; one that is not a number stops the run."""

    def __init__(
        self, stage: Stage, program: Program, means: Means, average: Average, *, every: int,
        halves: "Halves | None" = None,
    ) -> None:  # fmt: skip
        self.stage, self.program, self.means, self.average, self.every = stage, program, means, average, every
        self.halves, self._speed = halves, 0.0
        # losses of the fewest members first, which say best in which something is wrong
        self._narrow = [one.key for one in sorted(program.terms, key=lambda term: len(term.loss.members))]
        self._pending: list[tuple[Position, Tensor]] = []
        self._images = 0
        self._waited, self._since = 0.0, time.perf_counter()

    def waiting(self, found: Iterator[Batch], clock: Clock) -> Iterator[Batch]:
        """The batches, with the time that it takes until each is there."""
        while True:
            clock.step()
            clock.mark("data")
            before = time.perf_counter()
            batch = next(found, None)
            self._waited += time.perf_counter() - before
            clock.mark("rest" if batch is None else "forward")
            if batch is None:
                return
            yield batch

    def progress(self, position: Position, steps: int, *, ended: bool = False) -> Progress:
        """What there is to report."""
        waiting = self._waited / max(time.perf_counter() - self._since, 1e-9)
        return Progress(self.stage, position, steps, dict(self.means.values), self._speed, ended, waiting=waiting)

    def loss(self) -> float:
        """The loss of the epoch: the sum of its terms by their weights in the stage's first epoch."""
        return sum(term.loss.weight * self.means.values[term.key] for term in self.program.terms)

    def add(self, losses: dict[str, Tensor], position: Position, images: int) -> bool:
        """Take one step's losses; returns whether the means are up to date."""
        self._pending.append((position, torch.stack([losses[t.key].detach().float() for t in self.program.terms])))
        self._images += images
        if len(self._pending) < self.every:
            return False
        self.flush()
        return True

    def flush(self) -> Means:
        """The means, with what is pending taken in."""
        if not self._pending:
            return self.means
        values = torch.stack([value for _, value in self._pending]).cpu()
        for (position, _), row in zip(self._pending, values.tolist(), strict=True):
            found = dict(zip((term.key for term in self.program.terms), row, strict=True))
            for key in self._narrow:
                if not math.isfinite(found[key]):
                    raise self._not_finite(key, position)
            self.means.add(found)
        self._speed = self._images / max(time.perf_counter() - self._since, 1e-9)
        self._pending = []
        return self.means

    def check(self, before: Mapping[str, float], position: Position) -> None:
        """Stop where a loss is far beyond what it was before training: the numbers hold still, the training does not.

        Raises:
            TrainingError: It is.
        """
        for key, value in sorted(self.means.values.items(), key=lambda one: self._narrow.index(one[0])):
            if key in before and abs(value) > _LOST * max(1.0, abs(before[key])):
                raise TrainingError(
                    f"the training diverged: the loss '{key}'{self._whose(key)} is {value:.3g} over the epoch, and "
                    f"was {before[key]:.3g} before anything was trained",
                    where=f"stage '{self.stage.name}', epoch {position.epoch + 1}",
                    hint="lower the learning rate of that stage in the plan",
                )

    def _whose(self, key: str) -> str:
        """The members that a loss reads, in words, where several learn at once."""
        term = next(term for term in self.program.terms if term.key == key)
        several = len({one.loss.student for one in self.program.terms}) > 1
        return f" of {' and '.join(term.loss.members)}" if several else ""

    def _not_finite(self, key: str, position: Position) -> TrainingError:
        term = next(term for term in self.program.terms if term.key == key)
        tap = f"the taps of the pair '{term.loss.pair}'" if term.loss.pair else "the logits"
        tap += self._whose(key)
        return TrainingError(
            f"the loss '{key}' is not a number; it reads {tap}",
            where=f"stage '{self.stage.name}', epoch {position.epoch + 1}, batch {position.step}",
            hint="lower the learning rate of that stage in the plan, or train in --precision 32-true",
        )
