"""Schedule: a method's name becomes explicit stages with explicit numbers.

What a name means lies in :mod:`fxdistill.methods`; this pass expands it over the pairs. The main stage is last, at a
learning rate that follows half a cosine to zero:

    stages = warm-ups of every part of the name, main(terms of the last part)

What the user says of the warm-ups is in :mod:`fxdistill.passes.schedule.curriculum`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InvariantError, PairingError, PlanError
from fxdistill.ir.contract import Pass, PassResult
from fxdistill.methods import Composed, Recipe, composed, with_terms
from fxdistill.passes.schedule.curriculum import SHARE, Curriculum
from fxdistill.plan.schema import MOST_EPOCHS
from fxdistill.plan.training import MOST_RATE, LossTerm, Optimizer, Stage

MAIN = "main"
"""The name of the main stage."""


@dataclass(frozen=True)
class Schedule(Pass[Recipe, tuple[Stage, ...]]):
    """Expand a method into stages.

    Attributes:
        method: Its name, composed with ``+`` or not.
        curriculum: What the user says of its warm-ups.
    """

    method: str = "indistill"
    curriculum: Curriculum = field(default_factory=Curriculum)

    def requires(self, source: Recipe) -> None:
        """Numbers that a stage can have, and pairs where the method compares some.

        Raises:
            InputError: The method is unknown.
            PlanError: The epochs or the learning rate are not above zero, or more than a stage may have.
            PairingError: The method needs pairs, and there are none.
        """
        for name, value, most in (("epochs", source.epochs, MOST_EPOCHS), ("lr", source.lr, MOST_RATE)):
            if not 0 < value <= most:
                raise PlanError(f"{name} is {value}", where=name, hint=f"give a number above 0, {most:,} at most")
        if composed(self.method).lacks_pairs(source):
            raise PairingError(
                f"the method '{self.method}' needs at least one pair", where="pairs",
                hint="use --method kd, or pin pairs",
            )  # fmt: skip

    def run(self, source: Recipe) -> PassResult[tuple[Stage, ...]]:
        """The stages in order."""
        method = composed(self.method)
        terms = method.main_terms(source)
        if not terms:
            raise PlanError(
                f"the method '{method.parts[-1][0]}' {_lack(method, source)}", where="--method",
                hint=f"choose another one for the main stage: {', '.join(with_terms(source)) or 'none has one'}",
            )  # fmt: skip
        main = Stage(
            name=MAIN, epochs=source.epochs, losses=terms, optimizer=Optimizer(name="adam", lr=source.lr),
            schedule="cosine",
        )  # fmt: skip
        warm_ups = self.curriculum.of(method.warm_ups(source), source.pairs, main=source.epochs)
        return PassResult((*warm_ups, main), modified=True, diagnostics=tuple(self._long(warm_ups, main)))

    def _long(self, warm_ups: Sequence[Stage], main: Stage) -> Iterator[Diagnostic]:
        """Warm-ups that take more epochs than the main stage, unless somebody asked for their share."""
        epochs = sum(stage.epochs for stage in warm_ups)
        if epochs > main.epochs and self.curriculum.share is None:
            yield Diagnostic(
                code="long-warm-up", severity="note", where="--epochs",
                why=f"warm-ups take {epochs} epochs and the main stage {main.epochs}, in which a student that has "
                "learnt the teacher's layers has to learn to predict",
                hint=f"more epochs, or a share for the warm-ups: {SHARE}",
            )  # fmt: skip

    def ensures(self, source: Recipe, value: tuple[Stage, ...]) -> None:
        """Names differ, the main stage is last with the epochs that were asked for, every pair named is there."""
        names = [stage.name for stage in value]
        if len(set(names)) != len(names):
            raise InvariantError(f"two stages have one name: {', '.join(names)}")
        if not value or value[-1].name != MAIN or value[-1].epochs != source.epochs:
            raise InvariantError("the main stage is not last, or not as long as was asked for")
        known = {pair.name for pair in source.pairs}
        named = {term.pair for stage in value for term in stage.losses} - {None}
        if not named <= known:
            raise InvariantError(f"a stage names the pair '{sorted(map(str, named - known))[0]}', which there is not")


def _lack(method: Composed, source: Recipe) -> str:
    """Why a method has no main stage: predictions to imitate and no labels mean images that have none."""
    labelled = replace(source, supervised=LossTerm(loss="cross-entropy", student=source.student))
    if source.supervised is None and source.imitation is not None and method.main_terms(labelled):
        return "learns from labels, and the images have none"
    return "has no term for this task"
