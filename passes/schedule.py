"""Schedule: a method's name becomes explicit stages with explicit numbers.

``indistill`` (Sarridis et al., WACV 2025): one warm-up stage a pair, from shallow to deep, 2 + l epochs of MSE for pair
l, one loss at a time, earlier ones dropped; then the main stage, any distillation method. ``kd`` is that main stage
alone: cross-entropy 0.1 + KD 0.9 at temperature 4, the weights of the common CIFAR-100 comparisons (Tian et al., 2020).

The control arm is the same budget without distillation: cross-entropy for as many epochs as all stages together.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fxdistill.errors import PairingError, PlanError
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.plan.schema import LossTerm, Optimizer, Pair, Stage

Method = Literal["indistill", "kd"]
_FIRST_WARM_UP = 3


@dataclass(frozen=True)
class Schedule(Pass[tuple[Pair, ...], tuple[Stage, ...]]):
    """Expand a method into stages.

    Attributes:
        method: ``indistill`` or ``kd``.
        epochs: Epochs of the main stage.
        lr: Learning rate of Adam in every stage; constant in warm-up, cosine to zero in the main stage.
    """

    method: Method = "indistill"
    epochs: int = 60
    lr: float = 1e-3

    def requires(self, source: tuple[Pair, ...]) -> None:
        """Numbers that a stage can have.

        Raises:
            PlanError: The epochs or the learning rate are not above zero.
        """
        del source
        for name, value in (("epochs", self.epochs), ("lr", self.lr)):
            if not 0 < value < math.inf:
                raise PlanError(f"{name} is {value}", where=name, hint="give a number above 0")

    def run(self, source: tuple[Pair, ...]) -> PassResult[tuple[Stage, ...]]:
        """The stages in order.

        Raises:
            PairingError: InDistill without pairs.
        """
        if self.method == "indistill" and not source:
            raise PairingError("InDistill needs at least one pair", where="pairs", hint="use --method kd, or pin pairs")
        warm_up = self._warm_up(source) if self.method == "indistill" else iter(())
        return PassResult((*warm_up, self._main()), modified=True)

    def _warm_up(self, pairs: tuple[Pair, ...]) -> Iterator[Stage]:
        for order, pair in enumerate(pairs):
            yield Stage(
                name=f"warm-up-{order + 1}", epochs=_FIRST_WARM_UP + order,
                losses=[LossTerm(loss="mse", pair=pair.name)], optimizer=self._optimizer,
            )  # fmt: skip

    def _main(self) -> Stage:
        return Stage(
            name="main", epochs=self.epochs, losses=main_losses(), optimizer=self._optimizer, schedule="cosine"
        )  # fmt: skip

    @property
    def _optimizer(self) -> Optimizer:
        return Optimizer(name="adam", lr=self.lr)


def main_losses() -> list[LossTerm]:
    """Cross-entropy and knowledge distillation, weighted as in the module docstring."""
    return [
        LossTerm(loss="cross_entropy", pair=None, weight=0.1, args={"label_smoothing": 0.0}),
        LossTerm(loss="kd", pair=None, weight=0.9, args={"temperature": 4.0}),
    ]


def control(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The control arm of some stages: their last stage's optimiser and schedule, cross-entropy, all of their epochs."""
    last = stages[-1]
    loss = LossTerm(loss="cross_entropy", pair=None, args={"label_smoothing": 0.0})
    epochs = sum(stage.epochs for stage in stages)
    return (Stage(name="control", epochs=epochs, losses=[loss], optimizer=last.optimizer, schedule=last.schedule),)
