"""What people see while a run trains: one bar over all epochs, one line of what is happening.

On a terminal both are live and disappear at the end. Elsewhere (a log file) each epoch is a line, with the time since
the run began.
"""

import time
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from fxdistill.diagnostics import Diagnostic
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import ModelRef
from fxdistill.preprocessing import in_words
from fxdistill.report.layout import Line, diagnostics_view
from fxdistill.report.remaining import Remaining
from fxdistill.report.terms import of_members
from fxdistill.runtime.run.execution import Observer
from fxdistill.runtime.run.trials import Trial
from fxdistill.runtime.training.course import Progress as TrainProgress
from fxdistill.runtime.training.profiling import StageTimes
from fxdistill.tasks import TASKS, Task

_LEAST_COST = 0.05  # of an epoch: reading and augmenting images takes time too
_WORTH_SAYING = 0.01  # of the time
_UNKNOWN = "-:--:--"


class RunView(Observer):
    """The live view of a run.

    Args:
        console: Where to draw.
        begins: Whether to say what there is to say before anything is trained.
    """

    def __init__(self, console: Console, *, begins: bool = True) -> None:
        self.times: list[StageTimes] = []
        super().__init__(self._begin, self._remark, self._progress, self._phase, self.times.append)
        self.console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), TextColumn("left {task.fields[left]}"),
            console=console,
        )  # fmt: skip
        self._live = Live(self._bar, console=console, refresh_per_second=8, transient=True)
        self._bar_task = self._bar.add_task("loading", total=None, left=_UNKNOWN)
        self._shares: dict[str, list[float]] = {}
        self._losses: dict[str, dict[str, str]] = {}
        self._order: list[Trial] = []
        self._remaining = Remaining({}, ())
        self._task: Task | None = None
        self._watched = ""
        self._drawn = self._began = 0.0
        self._says, self._said = begins, not begins

    def __enter__(self) -> "RunView":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _begin(self, plan: Plan, trials: list[Trial]) -> None:
        """Learn how the cost of the run is spread over arms and stages."""
        self._order, self._task = trials, TASKS.get(plan.task)
        costs = {
            arm.name: [(stage.epochs, max(stage.cost, _LEAST_COST)) for stage in arm.stages] for arm in plan.all_arms
        }
        self._shares = {name: [epochs * cost for epochs, cost in stages] for name, stages in costs.items()}
        self._remaining = Remaining(costs, [trial.name for trial in trials])
        self._losses = {arm.name: of_members(arm.stages) for arm in plan.all_arms}
        self._watched = "" if plan.data.val is None else "validation "
        self._began = time.monotonic()
        self._says, self._said = not self._said, True  # a run in several parts begins several times
        for name, member in plan.members.items():
            if self._says and isinstance(member, ModelRef) and member.preprocessing is not None:
                self._tell(Text(f"{name} reads {in_words(member.preprocessing)}"))

    def _remark(self, remark: Diagnostic) -> None:
        for line in diagnostics_view([remark]) if self._says else ():
            self.console.print(line)

    def say(self, line: str) -> None:
        """Pass on a line of another process of the run."""
        self._tell(Text(line))

    def _tell(self, line: Text) -> None:
        """A line: in a log file one in any case, on a terminal indented where it goes on."""
        self.console.print(Line(line, indent=2) if self.console.is_terminal else line, soft_wrap=True)

    def _phase(self, phase: str) -> None:
        self._says = self._says or phase == "export"
        self._bar.update(self._bar_task, description=phase)
        self._live.update(self._bar, refresh=self.console.is_terminal)

    def _progress(self, arm: Trial, progress: TrainProgress, metrics: dict[str, float]) -> None:
        at, stage, self._says = progress.position, progress.stage, True
        ended = at.step == 0
        now = time.monotonic()
        within = at.epoch + at.step / max(1, progress.steps)
        self._remaining.note(self._order.index(arm), at.stage, within, now)
        if now - self._drawn > 0.1 or ended:
            self._drawn = now
            self._draw(arm, progress)
        self._kept(progress)
        finished = progress.ended
        if finished or (ended and not self.console.is_terminal):
            task = self._task
            shown = task is not None and task.primary in metrics
            reached = (
                f"  {self._watched}{task.primary} {task.shown(metrics[task.primary])}"
                if task is not None and shown
                else ""
            )
            where = "" if at.epoch == stage.epochs else f" {at.epoch}/{stage.epochs}"
            where += ", no longer falling" if finished and where else ""
            note = f"  {progress.note}" if progress.note else ""
            note += "" if self.console.is_terminal else f"  {timedelta(seconds=int(now - self._began))}"
            line = Text.assemble(
                f"{arm.name}, seed {arm.seed}: ", (stage.name, "bold cyan"),
                f"{where}  {self._reached(arm, progress)}{reached}{note}",
            )  # fmt: skip
            self._tell(line)

    def _kept(self, progress: TrainProgress) -> None:
        """A line an epoch of what masked members keep, layer by layer."""
        if progress.kept:
            told = "; ".join(f"{name} {' '.join(map(str, found))}" for name, found in progress.kept.items())
            self._tell(Text(f"epoch {progress.position.epoch} keeps {told}", "dim"))

    def _draw(self, arm: Trial, progress: TrainProgress) -> None:
        at, stage = progress.position, progress.stage
        shares = self._shares[arm.name]
        before = sum(sum(self._shares[one.name]) for one in self._order[: self._order.index(arm)])
        within = (at.epoch + at.step / max(1, progress.steps)) / stage.epochs
        done = before + sum(shares[: at.stage]) + within * shares[at.stage]
        total, name = sum(sum(self._shares[one.name]) for one in self._order), f"{arm.name}, seed {arm.seed}"
        if self._bar.tasks[0].total is None:
            # of a resumed run, what was done before says nothing about its speed
            self._bar.reset(self._bar_task, total=total, completed=int(done), description=name)
        left = self._remaining.seconds()
        told = _UNKNOWN if left is None else str(timedelta(seconds=round(left)))
        self._bar.update(self._bar_task, total=total, completed=done, description=name, left=told)
        epoch = at.epoch + (1 if at.step else 0)
        line = f"{stage.name}, epoch {epoch} of {stage.epochs}  {self._reached(arm, progress)}"
        speed = f"{progress.images_per_second:,.0f} images/s"
        speed += f", {progress.waiting:.0%} waiting for data" if progress.waiting >= _WORTH_SAYING else ""
        self._live.update(Group(self._bar, Text(f"{line}  {speed}")))

    def _reached(self, arm: Trial, progress: TrainProgress) -> str:
        """The losses by name, with their pair, and with their members where several have one."""
        called = self._losses.get(arm.name, {})
        return "  ".join(f"{called.get(key, key)} {value:.4g}" for key, value in progress.losses.items())
