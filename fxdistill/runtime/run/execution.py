"""One execution of a plan: what its user decides, who watches, and what its trials share."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from fxdistill import checking
from fxdistill.diagnostics import Diagnostic
from fxdistill.ir.program import Program
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import MOST_SEEDS, Precision
from fxdistill.runtime.run import checkpoint
from fxdistill.runtime.run.bench import Bench
from fxdistill.runtime.run.checkpoint import Checkpoint
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.log import Metrics
from fxdistill.runtime.run.reuse import Reuse
from fxdistill.runtime.run.trials import Trial, teaching
from fxdistill.runtime.training.aside import Aside
from fxdistill.runtime.training.compiling import Choice
from fxdistill.runtime.training.course import Progress
from fxdistill.runtime.training.layouts import Layout
from fxdistill.runtime.training.profiling import Clock, StageTimes, Stopwatch
from fxdistill.runtime.training.recording import Recorder

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # slow to import

State = dict[str, Tensor]
Losses = dict[tuple[str, str], dict[str, float]]
"""By arm and stage the losses by their keys."""


_LEAST = {
    "save_seconds": 0, "evaluate_every": 1, "cache_size": 1, "more_epochs": 0, "seeds": 1, "devices": 1, "trials": 0,
}  # fmt: skip
_OPTIONAL = {"seeds", "devices", "trials"}


@dataclass(frozen=True)
class Settings:
    """What a user decides about a run, beside its plan.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: Overrides the plan's training precision.
        resume: Whether to take up the run that the directory holds.
        compile: Whether to train through ``torch.compile``; ``auto`` tries it in each stage.
        cuda_graphs: Whether steps are recorded as CUDA graphs: ``auto`` where that pays, see
            :mod:`fxdistill.runtime.training.recording`.
        channels_last: Whether to train with weights and feature maps in channels-last memory; ``auto`` where that pays
            and the models stand it, see :mod:`fxdistill.runtime.training.layouts`.
        allow: Modules whose factories may be called.
        trust_code: Whether a model file that the plan says to unpickle may be: it can run any code.
        save_seconds: Seconds between two checkpoints; 0 takes one after every step.
        force: Whether to run although a teacher is at chance, or the machine's memory too small by far.
        evaluate_every: Epochs between two evaluations of what is trained; a stage's last epoch always has one.
        cache: Where to keep what frozen members compute: ``auto`` in memory, ``off`` nowhere, or in a folder, which
            runs may share.
        cache_size: Bytes that it may take.
        cache_half: Whether to keep it in half precision.
        arms: Methods to train and compare instead of the plan's, see :mod:`fxdistill.compiler.comparing`.
        seeds: How many seeds instead of the plan's.
        more_epochs: Epochs to add to the complete run in the directory, see :mod:`fxdistill.runtime.run.extension`.
        profile: Whether to time and trace some steps of every stage, see :mod:`fxdistill.runtime.training.profiling`.
        devices: On how many devices of this machine, a process each; None for as many as there are processes.
        trials: After how many trainings to stop; the run then stays one to be resumed. None to complete it.

    Raises:
        InputError: One of them is none.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision | None = None
    resume: bool = False
    compile: Literal["auto"] | bool = False
    cuda_graphs: Literal["auto", "off"] = "auto"
    channels_last: Literal["auto"] | bool = "auto"
    allow: tuple[str, ...] = ()
    trust_code: bool = False
    save_seconds: float = 30.0
    force: bool = False
    evaluate_every: int = 1
    cache: str | Path = "auto"
    cache_size: int = 4 << 30
    cache_half: bool = False
    arms: tuple[str, ...] = ()
    seeds: int | None = None
    more_epochs: int = 0
    profile: bool = False
    devices: int | None = None
    trials: int | None = None

    def __post_init__(self) -> None:
        checking.fields(self)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                most = MOST_SEEDS if name == "seeds" else math.inf
                checking.number(value, least, name, whole=name != "save_seconds", most=most)
        if self.cache not in ("auto", "off"):
            object.__setattr__(self, "cache", Path(self.cache))

    @property
    def asides(self) -> dict[str, Any]:
        """What was asked for that neither the plan nor a checkpoint says, for whoever repeats the run."""
        usual = {"forced": False, "cuda_graphs": "auto", "evaluate_every": 1, "cache": "auto"}
        given = {
            "forced": self.force, "cuda_graphs": self.cuda_graphs, "evaluate_every": self.evaluate_every,
            "cache": "off" if self.cache == "off" else "auto",
        }  # fmt: skip
        return {name: value for name, value in given.items() if value != usual[name]}

    def records(self, fabric: "Fabric") -> bool:
        """Whether steps are recorded: on a GPU, by one process, where they are not profiled part by part."""
        wanted = self.cuda_graphs == "auto" and not self.profile
        return wanted and fabric.device.type == "cuda" and fabric.world_size == 1


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
        records: Whether steps are recorded as CUDA graphs, where that pays.
        save_seconds: Seconds between two checkpoints.
        metrics: Where epochs are logged.
        checkpoint: Where to go on from.
        programs: Programs that were built already.
        evaluate_every: Epochs of a stage between two evaluations; after the last one there always is one.
        layout: How weights and feature maps lie in memory.
        before: The losses before anything was trained.
        reuse: What its trials keep of what frozen members compute.
        profile: Whether to profile the arms of the first seed.
        chosen: Which stages are compiled, where that was tried, see :mod:`fxdistill.runtime.training.compiling`.
        aside: Where the weights lie that no step reads.
        sizes: Of the members that were cut out of others, ``parameters`` and ``macs``.
        asides: What was asked for beside the plan, see :attr:`Settings.asides`.
    """

    rundir: RunDir
    initial: Callable[[Trial], Mapping[str, State]]
    observer: Observer
    compiled: Literal["auto"] | bool
    save_seconds: float
    metrics: Metrics
    checkpoint: Checkpoint
    reuse: Reuse
    aside: Aside
    programs: dict[Trial, Program] = field(default_factory=dict)
    evaluate_every: int = 1
    asides: Mapping[str, Any] = field(default_factory=dict)
    layout: Layout = field(default_factory=Layout)
    before: Losses = field(default_factory=dict)
    profile: bool = False
    chosen: dict[str, bool] = field(default_factory=dict)
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)
    records: bool = False

    def put_aside(self, tensors: Iterable[Tensor]) -> None:
        """Put aside what no step reads; what shares memory with a member that is trained stays."""
        still = teaching(self.plan)
        trained = (module for name, module in self.modules.items() if name not in still)
        self.aside.put(tensors, written=(parameter for module in trained for parameter in module.parameters()))
        self.aside.let_go()

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

    def recorder(self, trial: Trial) -> Recorder | None:
        """Who records a trial's steps; None for nobody."""
        if not self.records:
            return None

        def say(where: str, why: str) -> None:
            if trial.seed == self.plan.seeds[0]:  # the others are alike
                self.observer.on_diagnostic(Diagnostic(code="cuda-graph", severity="note", where=where, why=why))

        return Recorder(trial.name, say, self.fabric)

    def clock(self, trial: Trial) -> Clock:
        """What is told of the parts of a trial's steps."""
        if not self.profile or trial.seed != self.plan.seeds[0]:
            return Clock()
        return Stopwatch(trial.name, self.rundir.profile_path, self.fabric.device, self.observer.on_times)
