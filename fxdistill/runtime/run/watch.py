"""Whoever watches a trial: its log, its evaluations, its checkpoints."""

import time
from dataclasses import asdict, replace

from fxdistill.ir.program import Program
from fxdistill.runtime.processes import stopping
from fxdistill.runtime.run.checkpoint import Checkpoint
from fxdistill.runtime.run.execution import Execution
from fxdistill.runtime.run.hardening import Succession, kept_in
from fxdistill.runtime.run.trials import Trial
from fxdistill.runtime.training.course import Moment, Progress
from fxdistill.runtime.training.halves import described

_SHARE_OF_SAVING = 0.05  # of the time, at most


class Watch:
    """Follows a trial: logs epochs, evaluates them, and takes a checkpoint now and then.

    A checkpoint is due at the end of every stage, and when the last one is ``save_seconds`` ago; but writing them takes
    at most a twentieth of the time.
    """

    def __init__(self, run: Execution, program: Program, index: int, trial: Trial, request: stopping.Request) -> None:
        self.run, self.program, self.index, self.trial, self.request = run, program, index, trial, request
        self._finished, self._before = run.checkpoint.finished, run.checkpoint.seconds
        self._started = self._last = time.monotonic()
        self._took, self.asked = 0.0, False
        self.succession = Succession(run)

    @property
    def seconds(self) -> float:
        """Time spent in this trial, that before a resume included."""
        return self._before + time.monotonic() - self._started

    def progress(self, progress: Progress) -> None:
        """Log an epoch that has ended, and tell the observer."""
        reached: dict[str, float] = {}
        if progress.position.step == 0:
            keeping = kept_in(self.run.plan, self.run.plan.arm(self.trial.name), self.run.modules)
            reached = self.succession.reached = self._log(progress, keeping)
            progress = replace(progress, kept={name: list(found.values()) for name, found in keeping.items()})
        report = self.run.reuse.reports.get(progress.stage.name)
        if report is not None and progress.ended:
            progress = replace(progress, note=described(report))
        self.run.observer.on_progress(self.trial, progress, reached)

    def _log(self, progress: Progress, keeping: dict[str, dict[str, int]]) -> dict[str, float]:
        """The metrics after an epoch; none after one that trains taps alone, of which a prediction says nothing."""
        epoch, every = progress.position.epoch, self.run.evaluate_every
        due = epoch % every == 0 or progress.ended or bool(progress.stage.successors)
        answers = due and any(term.pair is None for term in progress.stage.losses)
        reached = self.run.measured(self.run.plan.arm(self.trial.name).trains[0], on="val") if answers else {}
        self.run.metrics.log(
            {
                **asdict(self.trial),
                "stage": progress.stage.name,
                "epoch": progress.position.epoch,
                "losses": progress.losses,
                "split": "test" if self.run.plan.data.val is None else "val",
                "metrics": reached,
                "images_per_second": round(progress.images_per_second, 1),
                "learning_rate": progress.rate,
                **({"plateau": True} if progress.ended and epoch < progress.stage.epochs else {}),
                **({"kept": keeping} if keeping else {}),
            }
        )
        return reached

    def at(self, moment: Moment) -> Checkpoint:
        """The checkpoint of a moment."""
        return Checkpoint(
            arm=self.index, position=moment.position, state=self.program.trainable_state(),
            optimizer=moment.optimizer.state_dict() if moment.optimizer is not None else None,
            means=moment.means(), scaler=self.run.fabric.strategy.precision.state_dict(),
            metrics_size=self.run.metrics.size, seconds=self.seconds, finished=self._finished,
            how=self.run.checkpoint.how, compiled=dict(self.run.chosen),
            average=dict(moment.average) or None, reuse=dict(self.run.reuse.reports),
            course=moment.course,
        )  # fmt: skip

    def save(self, moment: Moment) -> None:
        """Take a checkpoint, if one is due; where somebody asked to stop, take one and stop."""
        self._ask_others()
        due = max(self.run.save_seconds, self._took * (1 / _SHARE_OF_SAVING - 1) if self.run.save_seconds else 0.0)
        if moment.optimizer is not None and time.monotonic() - self._last < due and not self.asked:
            return
        before = time.monotonic()
        self.run.save(self.at(moment))
        self._last = time.monotonic()
        self._took = self._last - before
        if self.asked or not self.run.crew.is_several:
            self.request.grant()

    def _ask_others(self) -> None:
        """Find out whether to stop here: of several processes all stop at the same step."""
        if self.run.crew.is_several:
            self.request.join(self.run.crew.most(self.request.number))
        self.asked = self.request.made
