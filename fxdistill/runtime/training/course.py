"""Where a training is, and how it has gone: what steers it, is saved and is shown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fxdistill.plan.schema import Count
from fxdistill.plan.training import Plateau, Stage


@dataclass(frozen=True)
class Position:
    """A place in an arm of a run: so many stages, epochs of this stage and steps of this epoch are done.

    ``taught`` says how many of the stage's successors have taken the teacher's place.
    """

    stage: Count = 0
    epoch: Count = 0
    step: Count = 0
    taught: Count = 0


@dataclass
class Means:
    """Means of an epoch's losses over its first ``count`` steps, by the key of the loss, unweighted."""

    count: Count = 0
    values: dict[str, float] = field(default_factory=dict)

    def add(self, losses: Mapping[str, float]) -> None:
        """Take in the losses of the step after those counted."""
        self.count += 1
        for key, value in losses.items():
            mean = self.values.get(key, 0.0)
            self.values[key] = mean + (value - mean) / self.count


@dataclass
class Course:
    """How an arm has gone so far, as far as it decides on how it goes on: stages may end on a plateau.

    Attributes:
        taken: How many epochs each of the stages took that are over.
        lowest: The lowest loss of an epoch of this stage, of those that fell by enough; None before the first one.
        waited: Epochs since then.
    """

    taken: list[Count] = field(default_factory=list)
    lowest: Annotated[float, Field(allow_inf_nan=False)] | None = None
    waited: Count = 0

    def ends(self, plateau: Plateau | None, loss: float) -> bool:
        """Take in the loss of an epoch; whether the stage ends with it."""
        if plateau is None:
            return False
        if self.lowest is None or loss < self.lowest - plateau.share * abs(self.lowest):
            self.lowest, self.waited = loss, 0
        else:
            self.waited += 1
        return self.waited >= plateau.epochs

    def anew(self) -> None:
        """Losses are of other things from here on, such as another teacher: those before say nothing of them."""
        self.lowest, self.waited = None, 0

    def next(self, epochs: int) -> None:
        """A stage is over, after so many epochs."""
        self.taken = [*self.taken, epochs]
        self.anew()


@dataclass(frozen=True)
class Moment:
    """Where a checkpoint may be taken.

    Attributes:
        position: The place reached.
        optimizer: The optimiser in use; None between stages.
        means: Gives the losses of the epoch so far. Waits for the device; raises :class:`TrainingError` where one of
            them is not a number.
        average: The running mean of the weights by name; empty where there is none.
        course: How the arm has gone so far.
    """

    position: Position
    optimizer: torch.optim.Optimizer | None = None
    means: Callable[[], Means] = Means
    average: Mapping[str, Tensor] = field(default_factory=dict)
    course: Course = field(default_factory=Course)


@dataclass(frozen=True)
class Progress:
    """What the loop reports after some steps.

    Attributes:
        stage: The stage in training, with the epochs that it has here.
        position: The place reached.
        steps: Steps of an epoch.
        losses: Mean of each loss over the epoch so far, unweighted.
        images_per_second: Over the epoch so far.
        ended: Whether the stage ends here.
        kept: At the end of an epoch, how many channels each masked member keeps, layer by layer.
        note: At the end of a stage, what was done about what frozen members compute; '' for nothing to say.
        waiting: The share of the epoch's time that went by until batches were there.
        rate: The learning rate of the last step.
    """

    stage: Stage
    position: Position
    steps: int
    losses: dict[str, float]
    images_per_second: float
    ended: bool = False
    note: str = ""
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)
    waiting: float = 0.0
    rate: float = 0.0
