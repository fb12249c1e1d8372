"""One execution of a plan: what its trials share, and who watches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from fxdistill.diagnostics import Diagnostic
from fxdistill.ir.program import Program
from fxdistill.plan.document import Plan
from fxdistill.runtime import checkpoint
from fxdistill.runtime.bench import Bench
from fxdistill.runtime.checkpoint import Checkpoint
from fxdistill.runtime.compiling import Choice
from fxdistill.runtime.course import Progress
from fxdistill.runtime.directory import RunDir
from fxdistill.runtime.layouts import Layout
from fxdistill.runtime.log import Metrics
from fxdistill.runtime.profiling import Clock, StageTimes, Stopwatch
from fxdistill.runtime.reuse import Reuse
from fxdistill.runtime.trials import Trial

State = dict[str, Tensor]
Losses = dict[tuple[str, str], dict[str, float]]
"""By arm and stage the losses by their keys."""


@dataclass
class Observer:
    """Who watches a run; each callback does nothing unless it is given."""

    on_begin: Callable[[Plan, list[Trial]], None] = lambda _plan, _trials: None
    on_diagnostic: Callable[[Diagnostic], None] = lambda _remark: None
    on_progress: Callable[[Trial, Progress, dict[str, float]], None] = lambda _trial, _progress, _metrics: None
    on_phase: Callable[[str], None] = lambda _phase: None
    on_times: Callable[[StageTimes], None] = lambda _times: None


@dataclass
class Execution(Bench):
    """One execution of a plan: what its steps share beside what it measures with.

    Attributes:
        rundir: Where everything is written.
        initial: For each trial the state dict that each trained member starts from.
        observer: Who watches.
        compiled: Whether to train through ``torch.compile``; ``auto`` tries it, stage by stage.
        save_seconds: Seconds between two checkpoints.
        metrics: Where epochs are logged.
        checkpoint: Where to go on from.
        programs: Programs that were built already.
        evaluate_every: Epochs of a stage between two evaluations; after the last one there always is one.
        layout: How weights and feature maps lie in memory.
        before: The losses before anything was trained.
        reuse: What its trials keep of what frozen members compute.
        profile: Whether to profile the arms of the first seed.
        chosen: Which stages are compiled, where that was tried, see :mod:`fxdistill.runtime.compiling`.
        sizes: Of the members that were cut out of others, ``parameters`` and ``macs``.
    """

    rundir: RunDir
    initial: Callable[[Trial], Mapping[str, State]]
    observer: Observer
    compiled: Literal["auto"] | bool
    save_seconds: float
    metrics: Metrics
    checkpoint: Checkpoint
    reuse: Reuse
    programs: dict[Trial, Program] = field(default_factory=dict)
    evaluate_every: int = 1
    layout: Layout = field(default_factory=Layout)
    before: Losses = field(default_factory=dict)
    profile: bool = False
    chosen: dict[str, bool] = field(default_factory=dict)
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)

    def save(self, state: Checkpoint) -> None:
        """Write a checkpoint in place of the last one; of several processes the first one does."""
        if self.crew.is_first:
            checkpoint.save(self.rundir, state)

    def choice(self, trial: Trial) -> Choice | bool:
        """Whether a trial's programs are compiled, or who chooses."""
        if self.compiled != "auto":
            return self.compiled

        def say(where: str, why: str) -> None:
            self.observer.on_diagnostic(Diagnostic(code="compile", severity="note", where=where, why=why))

        return Choice(trial.name, self.chosen, say, self.fabric.device)

    def clock(self, trial: Trial) -> Clock:
        """What is told of the parts of a trial's steps."""
        if not self.profile or trial.seed != self.plan.seeds[0]:
            return Clock()
        return Stopwatch(trial.name, self.rundir.profile_path, self.fabric.device, self.observer.on_times)
