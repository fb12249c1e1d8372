"""The compiler on one screen: two models in, a plan out; a plan and its models in, a program out.

teacher ─ trace ─ couple ─┐
                          ├─ match ─ prune ─ schedule ──▶ plan ──▶ instrument ──▶ program ─ specialize ─▶ stages
student ─ trace ─ couple ─┘
"""

import importlib.metadata
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fxdistill.compiler.auxiliary import propose
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import PairingError, PlanError
from fxdistill.ir.contract import PassManager
from fxdistill.ir.graph import Rung, Shape, Traced
from fxdistill.ir.program import Program
from fxdistill.ir.running import in_mode
from fxdistill.passes.couple import Couple
from fxdistill.passes.instrument import Instrument, Joint
from fxdistill.passes.match import Match, MatchSource
from fxdistill.passes.prune import Prune, PruneSource
from fxdistill.passes.schedule import Method, Schedule, control
from fxdistill.passes.specialize import Specialize
from fxdistill.passes.trace import Trace
from fxdistill.plan.schema import (
    VERSION,
    Align,
    Auxiliary,
    DataPlan,
    InputSpec,
    Kept,
    ModelRef,
    Pair,
    Plan,
    Precision,
    Stage,
)

_RUNGS: tuple[Rung, ...] = ("symbolic", "leaves", "export")


@dataclass(frozen=True)
class Options:
    """What a user decides about a plan.

    Attributes:
        input_shape: Shape of one batch, the batch size first; MACs are counted for it.
        method: ``indistill`` or ``kd``.
        align: How teacher widths are brought to the student's.
        pins: Pairs (teacher path, student path) that must be.
        forbid: Pairs that must not be.
        keep: With ``shrink``, the share of channels to keep where no tap decides; None keeps them all.
        criterion: Importance of a channel, by name.
        epochs: Epochs of the main stage.
        lr: Learning rate.
        seed: Everything random in a run comes from it.
        repeats: How many seeds to run, from ``seed`` on.
        control: Whether to run the same budget without distillation as well.
        data: Data, augmentation, normalisation; without a spec the plan is structural and cannot be run.
        precision: Lightning Fabric's name of the training precision.
    """

    input_shape: Shape
    method: Method = "indistill"
    align: Align = "slice"
    pins: tuple[tuple[str, str], ...] = ()
    forbid: tuple[tuple[str, str], ...] = ()
    keep: float | None = None
    criterion: str = "l1"
    epochs: int = 60
    lr: float = 1e-3
    seed: int = 0
    repeats: int = 1
    control: bool = False
    data: DataPlan = field(default_factory=lambda: DataPlan(spec=None))
    precision: Precision = "32-true"


def compile(  # noqa: A001  # what a compiler does
    teacher: nn.Module, student: nn.Module, options: Options, *,
    teacher_ref: ModelRef | None = None, student_ref: ModelRef | None = None, passes: PassManager | None = None,
) -> Plan:  # fmt: skip
    """Plan how a student learns from a teacher. Neither model is changed; no data is read.

    Args:
        teacher: Takes float images of ``options.input_shape``, returns logits.
        student: Takes the same, returns logits of the same shape.
        options: The user's decisions.
        teacher_ref: Where the teacher comes from; without it the plan works from Python only.
        student_ref: The same for the student.
        passes: A manager to run the passes in, for its timings and remarks.

    Raises:
        InputError: The models, or the options, do not fit each other.
        PassError: The compiler broke.
    """
    passes = passes or PassManager()
    with in_mode(student, training=student.training), torch.random.fork_rng(devices=[]):
        return _compile(teacher, student, options, (teacher_ref, student_ref), passes)


def _compile(
    teacher: nn.Module, student: nn.Module, options: Options, refs: tuple[ModelRef | None, ModelRef | None],
    passes: PassManager,
) -> Plan:  # fmt: skip
    traced_teacher = passes.run(Trace(options.input_shape), teacher)
    traced_student = passes.run(Trace(options.input_shape), student)
    trained_student = passes.run(_trace(options.input_shape, traced_student.rung, training=True), student)
    with traced_teacher.running(), traced_student.running():
        teacher_coupling = passes.run(Couple(), traced_teacher)
        student_coupling = passes.run(Couple(), traced_student)
    pairs, remarks = _paired(
        MatchSource(traced_teacher, traced_student, teacher_coupling, student_coupling), options, passes
    )
    kept: tuple[Kept, ...] = ()
    auxiliary: Auxiliary | None = None
    source = traced_teacher
    if options.align == "shrink":
        proposal = propose(
            teacher, pairs, input_shape=options.input_shape, keep=options.keep, criterion=options.criterion,
            epochs=options.epochs, lr=options.lr, passes=passes,
        )  # fmt: skip
        auxiliary, source, pairs = proposal.auxiliary, proposal.traced, proposal.pairs
        remarks = (*remarks, *proposal.diagnostics)
    else:
        kept = passes.run(Prune(criterion=options.criterion), PruneSource(traced_teacher, teacher_coupling, pairs))
    stages = passes.run(Schedule(method=options.method, epochs=options.epochs, lr=options.lr), pairs)
    draft = Plan(
        version=VERSION, method=options.method, seed=options.seed,
        teacher=_described(refs[0], teacher, traced_teacher),
        student=_described(refs[1], student, traced_student),
        input=InputSpec(shape=list(options.input_shape)), data=options.data,
        pairs=list(pairs), kept=list(kept), auxiliary=auxiliary, stages=list(stages),
        control=list(control(stages)) if options.control else [],
        seeds=[options.seed + repeat for repeat in range(options.repeats)],
        precision=options.precision, versions=versions(),
    )  # fmt: skip
    program = passes.run(Instrument(draft), Joint(source, trained_student))
    whole = program_cost(traced_teacher, traced_student)
    costed = [_costed(stage, passes.run(Specialize(stage.name), program), whole) for stage in stages]
    arm = [_share(stage, traced_student.macs, whole) for stage in draft.control]
    if auxiliary is not None:
        tuned = [_share(stage, traced_teacher.macs + source.macs, whole) for stage in auxiliary.stages]
        auxiliary = auxiliary.model_copy(update={"stages": tuned})
    found = list(dict.fromkeys((*passes.diagnostics, *remarks)))
    return draft.model_copy(update={"stages": costed, "control": arm, "auxiliary": auxiliary, "diagnostics": found})


def _paired(
    source: MatchSource, options: Options, passes: PassManager
) -> tuple[tuple[Pair, ...], tuple[Diagnostic, ...]]:
    """The pairs; plain KD compares logits and can do without, unless the user asks for some."""
    try:
        return passes.run(Match(pins=options.pins, forbid=options.forbid, align=options.align), source), ()
    except PairingError as refusal:
        if options.method != "kd" or options.pins or options.forbid or options.align == "shrink":
            raise
        return (), (Diagnostic(code="no-pairs", severity="note", where=refusal.where, why=refusal.what),)


def build(plan: Plan, teacher: nn.Module, student: nn.Module, *, passes: PassManager | None = None) -> Program:
    """Turn a plan and its models into a program: ``program(x, y)`` gives the named losses of all stages.

    The student's layers in the program are the module's own: an optimiser over the program trains the module, and both
    share one mode. The teacher is frozen. ``program.stage(name)`` is what one stage runs. A projection's first weights
    come from torch's global generator: seed it. Where the plan has an auxiliary teacher, give that one as the teacher
    (:func:`fxdistill.compiler.auxiliary.make`, then trained with :func:`build_auxiliary`).

    Raises:
        PlanError: The plan does not fit the models.
    """
    passes = passes or PassManager()
    shape = tuple(plan.input.shape)
    joint = Joint(
        passes.run(_trace(shape, plan.teacher.rung, training=False), teacher),
        passes.run(_trace(shape, plan.student.rung, training=True), student),
    )
    return passes.run(Instrument(plan), joint)


def build_auxiliary(
    plan: Plan, teacher: nn.Module, auxiliary: nn.Module, *, passes: PassManager | None = None
) -> Program:
    """The program that fine-tunes a plan's auxiliary teacher from the teacher.

    Raises:
        PlanError: The plan has no auxiliary teacher.
    """
    if plan.auxiliary is None:
        raise PlanError("the plan has no auxiliary teacher", where="auxiliary", hint="plan with --align shrink")
    passes = passes or PassManager()
    shape = tuple(plan.input.shape)
    joint = Joint(
        passes.run(_trace(shape, plan.teacher.rung, training=False), teacher),
        passes.run(_trace(shape, "symbolic", training=True), auxiliary),
    )
    return passes.run(Instrument(plan, arm="auxiliary"), joint)


def build_control(plan: Plan, student: nn.Module, *, passes: PassManager | None = None) -> Program:
    """The program of the control arm: the student with its own loss, no teacher."""
    passes = passes or PassManager()
    traced = passes.run(_trace(tuple(plan.input.shape), plan.student.rung, training=True), student)
    return passes.run(Instrument(plan, arm="control"), Joint(None, traced))


def versions() -> dict[str, str]:
    """Versions of what decides about a plan and a run."""
    names = ("fxdistill", "torch", "torchvision", "torch-pruning", "onnx", "timm")
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def program_cost(teacher: Traced, student: Traced) -> int:
    """MACs of one forward pass of both models in full: what a stage's cost is a share of."""
    return max(1, teacher.macs + student.macs)


def _trace(shape: Shape, first: Rung, *, training: bool) -> Trace:
    """The rung that the plan names, then the others: a model's training mode may need another one."""
    return Trace(shape, training=training, rungs=(first, *(rung for rung in _RUNGS if rung != first)))


def _costed(stage: Stage, program: Program, whole: int) -> Stage:
    return _share(stage, program.macs, whole)


def _share(stage: Stage, macs: int, whole: int) -> Stage:
    return stage.model_copy(update={"cost": round(macs / whole, 4)})


def _described(ref: ModelRef | None, module: nn.Module, traced: Traced) -> ModelRef:
    measured: dict[str, Any] = {
        "rung": traced.rung, "macs": traced.macs, "parameters": sum(p.numel() for p in module.parameters()),
    }  # fmt: skip
    return (ref or ModelRef(path=None, sha256=None, factory=None, kwargs={})).model_copy(update=measured)
