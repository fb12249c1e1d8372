"""Execute a plan: load, check, train every arm, evaluate, export, write what came out.

Everything that can be wrong with the input is found before the run directory is touched: the programs of both kinds of
arm are built, and cut down to each stage, before the first is trained.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from fxdistill.compiler.auxiliary import make
from fxdistill.data.batches import Dataset
from fxdistill.ir.program import Program
from fxdistill.plan.file import load as load_plan
from fxdistill.plan.schema import Plan, Precision
from fxdistill.runtime import checkpoint, preflight
from fxdistill.runtime.arms import Arm, Execution, Observer, accuracy, arms_of, build_program, train_arm
from fxdistill.runtime.directory import RunDir, lock
from fxdistill.runtime.log import Metrics
from fxdistill.runtime.result import finish


@dataclass(frozen=True)
class Settings:
    """What a user decides about a run, beside its plan.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: Overrides the plan's training precision.
        resume: Whether to take up the run that the directory holds.
        compile: Whether to train through ``torch.compile``.
        allow: Modules whose factories may be called.
        trust_pickle: Whether a model file that the plan says to unpickle may be: it can run any code.
        save_seconds: Seconds between two checkpoints; 0 takes one after every step.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision | None = None
    resume: bool = False
    compile: bool = False
    allow: tuple[str, ...] = ()
    trust_pickle: bool = False
    save_seconds: float = 30.0


@dataclass(frozen=True)
class _Parts:
    """What a plan names, loaded, checked and found to fit."""

    teacher: nn.Module
    student: nn.Module
    auxiliary: nn.Module | None
    dataset: Dataset
    initial: dict[Arm, dict[str, Tensor]]
    programs: dict[Arm, Program]


def execute(
    plan_path: Path, out: Path, settings: Settings | None = None, observer: Observer | None = None
) -> dict[str, Any]:
    """Run a plan and return what came out, as ``result.json`` has it.

    Args:
        plan_path: The plan; the places in it are relative to its folder.
        out: The run directory, new or empty, or one to resume.
        settings: The user's decisions.
        observer: Who watches.

    Raises:
        InputError: Plan, models, data or run directory do not fit; nothing was written.
        TrainingError: A loss is not a number; the last checkpoint stays.
        ParityError: The exported student is not the trained one.
    """
    settings, observer = settings or Settings(), observer or Observer()
    plan = load_plan(plan_path)
    preflight.runnable(plan, plan_path)
    held = RunDir(out)
    if held.holds(plan, resume=settings.resume) and settings.resume and (done := held.result()) is not None:
        return done
    precision = settings.precision or plan.precision
    accelerator = preflight.accelerator(settings.device, precision)
    observer.on_phase("loading")
    parts = _load(plan, plan_path.resolve().parent, settings)
    rundir = RunDir.open(out, plan, origin=plan_path, resume=settings.resume)
    from lightning_fabric import Fabric  # noqa: PLC0415  # slow to import, and only now needed

    with lock(rundir):
        fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
        at = checkpoint.load(rundir)
        run = Execution(
            plan, rundir, parts.dataset.to(fabric.device), parts.teacher, parts.student, parts.auxiliary, fabric,
            parts.initial.__getitem__, observer, settings.compile, settings.save_seconds,
            Metrics(rundir, size=at.metrics_size), at, parts.programs,
        )  # fmt: skip
        return _train(run)


def _train(run: Execution) -> dict[str, Any]:
    arms = arms_of(run.plan)
    run.observer.on_begin(run.plan, arms)
    teacher_accuracy = accuracy(run, run.teacher)
    for remark in preflight.near_chance(teacher_accuracy, len(run.dataset.classes)):
        run.observer.on_diagnostic(remark)
    for index, arm in enumerate(arms):
        if index >= run.checkpoint.arm:
            train_arm(run, index, arm)
        elif arm.name == "auxiliary" and run.auxiliary is not None:
            run.auxiliary.load_state_dict(checkpoint.state_dict(run.rundir.auxiliary_path))
    return finish(run, teacher_accuracy=teacher_accuracy)


def _load(plan: Plan, base: Path, settings: Settings) -> _Parts:
    def load(role: Literal["teacher", "student"], seed: int) -> nn.Module:
        ref = plan.teacher if role == "teacher" else plan.student
        return preflight.load_model(
            ref, base, seed=seed, allow=settings.allow, trust_pickle=settings.trust_pickle, trained=role == "teacher"
        )

    dataset = preflight.load_data(plan, base, allow=settings.allow)
    teacher, student = load("teacher", plan.seed), load("student", plan.seed)
    spec = str(plan.data.spec)
    for module in (teacher, student):
        preflight.classes_fit(module, dataset, input_shape=plan.input.shape, spec=spec)
    # a file holds the same weights whatever the seed
    fixed = plan.student.path is not None
    initial = {
        seed: copy.deepcopy((student if fixed or seed == plan.seed else load("student", seed)).state_dict())
        for seed in plan.seeds
    }
    auxiliary = None
    if plan.auxiliary is not None:
        auxiliary = make(plan.auxiliary, teacher, input_shape=tuple(plan.input.shape))
    starts = {arm: initial[arm.seed] for arm in arms_of(plan)}
    if auxiliary is not None:
        starts[arms_of(plan)[0]] = copy.deepcopy(auxiliary.state_dict())
    return _Parts(teacher, student, auxiliary, dataset, starts, _programs(plan, teacher, student, auxiliary))


def _programs(plan: Plan, teacher: nn.Module, student: nn.Module, auxiliary: nn.Module | None) -> dict[Arm, Program]:
    """Build the programs of the arms of one seed and of their stages, to find what does not fit; keep what serves."""
    programs = {
        arm: build_program(plan, arm, teacher, student, auxiliary=auxiliary)
        for arm in arms_of(plan)
        if arm.seed == plan.seeds[0]
    }
    for program in programs.values():
        for stage in program.stages:
            program.stage(stage.name)
    # a program keeps its teacher as it was: an auxiliary one is yet to be trained
    return {arm: program for arm, program in programs.items() if auxiliary is None or arm.name != "distilled"}
