"""The compiler on one screen: two models in, a plan out.

    teacher ─ trace ─ couple ─┐
                              ├─ match ─ prune ─ shrink ─ schedule ─▶ plan ─ instrument ─▶ program ─ specialize ─▶ costs
    student ─ trace ─ couple ─┘

or, where the student is made out of its teacher, teacher ─ trace ─ couple ─ mask ─ schedule ─▶ plan.

A :class:`Compilation` is what is known so far; a step reads it, runs passes, and returns it with more. A method names
its steps, and ``PIPELINE`` says what each name does and how what it made is shown.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fxdistill.compiler import auxiliary, cascade, checks, gap, remarks, shown
from fxdistill.compiler.options import Options
from fxdistill.compiler.probe import difficulties
from fxdistill.compiler.shrink_model import supervised_loss
from fxdistill.compiler.versions import versions
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import InputError, PairingError
from fxdistill.ir import answers, outputs
from fxdistill.ir.contract import PassManager
from fxdistill.ir.coupling import Coupling
from fxdistill.ir.graph import Shape, Traced, ladder
from fxdistill.ir.program import Batch, Program
from fxdistill.ir.running import in_mode
from fxdistill.methods import Composed, Recipe, composed
from fxdistill.methods.cascade import arms as cascade_arms
from fxdistill.passes.couple import Couple
from fxdistill.passes.instrument import Instrument, Joint
from fxdistill.passes.match import Match, MatchSource
from fxdistill.passes.prune import Prune, PruneSource
from fxdistill.passes.schedule import Schedule
from fxdistill.passes.schedule.curriculum import PROBE, Curriculum
from fxdistill.passes.specialize import Specialize
from fxdistill.passes.trace import Trace
from fxdistill.plan.document import VERSION, Plan
from fxdistill.plan.file import invalid
from fxdistill.plan.members import Hardened, Masked
from fxdistill.plan.schema import (
    Align,
    Arm,
    Control,
    InputSpec,
    Kept,
    LossTerm,
    ModelRef,
    Pair,
    Plugin,
    Shrunken,
    Stage,
)  # fmt: skip
from fxdistill.registry import GROUPS, origin, suggestion
from fxdistill.tasks import TASKS, Task

TEACHER, STUDENT, AUXILIARY, DISTILLED = "teacher", "student", "auxiliary", "distilled"


@dataclass(frozen=True)
class Compilation:
    """What is known so far.

    Attributes:
        options: The user's decisions.
        method: The method, read.
        task: The task.
        models: The given members: the user's modules.
        refs: Where they come from.
        batch: Images as the teacher takes them, and labels, for criteria that read data; None without data.
        sample: Batches to measure the difficulty of pairs on; empty without data.
        traced: Members in eval mode; the shrunken ones too.
        trainable: The members that an arm trains, in training mode.
        coupling: Their coupled channels.
        pairs: The pairs.
        kept: The kept channels.
        made: Members that are made from others.
        arms: The arms.
        plan: The plan, whose stages have their costs after the last step.
        programs: The program of the arm in which the student learns; after the last step those of its stages too.
        remarks: What steps have to say beside the passes.
    """

    options: Options
    method: Composed
    task: Task
    models: Mapping[str, nn.Module]
    refs: Mapping[str, ModelRef]
    batch: tuple[Tensor, Tensor] | None = None
    sample: Sequence[Batch] = ()
    traced: Mapping[str, Traced] = field(default_factory=dict)
    trainable: Mapping[str, Traced] = field(default_factory=dict)
    coupling: Mapping[str, Coupling] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    kept: tuple[Kept, ...] = ()
    made: Mapping[str, Shrunken | Masked | Hardened] = field(default_factory=dict)
    arms: tuple[Arm, ...] = ()
    plan: Plan | None = None
    programs: Mapping[str, Program] = field(default_factory=dict)
    remarks: tuple[Diagnostic, ...] = ()

    @property
    def supervised(self) -> LossTerm | None:
        """The task's own term; None for a task that has none, or data without labels."""
        if self.task.supervised is None or not self.options.data.labelled:
            return None
        return LossTerm(loss=self.task.supervised, student=STUDENT)

    @property
    def imitation(self) -> LossTerm | None:
        """The term by which the student's prediction imitates the teacher's; None for a task without such a loss."""
        if self.task.imitation is None:
            return None
        return LossTerm(loss=self.task.imitation, student=STUDENT, teacher=self.teaches)

    def shape_of(self, member: str) -> Shape:
        """Shape of one batch as a given member reads it."""
        found, shape = self.options.preprocessing.get(member), self.options.input_shape
        return shape if found is None else (*shape[:2], *found.size)

    @property
    def teaches(self) -> str:
        """The member that teaches the student."""
        return AUXILIARY if AUXILIARY in {*self.made, *self.models} else TEACHER

    @property
    def learns_first(self) -> int:
        """For how many epochs the auxiliary learns from the teacher; 0 where there is none, or it is trained."""
        said = self.options.via_epochs
        return 0 if self.teaches == TEACHER else self.options.epochs if said is None else said


@dataclass(frozen=True)
class Step:
    """A step of the pipeline: what it does, and what is shown of it."""

    run: Callable[[Compilation, PassManager], Compilation]
    show: Callable[[Any], str]


def _trace(c: Compilation, passes: PassManager) -> Compilation:
    entries = {name: c.refs[name].output for name in c.models}
    traced = {
        name: passes.run(Trace(c.shape_of(name), entry=entries[name], quick=not passes.prove), module)
        for name, module in c.models.items()
    }
    if remarks.takes_logits(c.task):  # of (probabilities, logits) the losses need the second, which nobody has to say
        traced = {name: replace(one, entry=one.entry or answers.logits_entry(one)) for name, one in traced.items()}
    if STUDENT not in traced:
        checks.is_for_task(
            traced[TEACHER], c.task, name=c.options.task, classes=len(c.options.data.classes), member=TEACHER
        )
        checks.has_entries(TEACHER, (traced[TEACHER],))
        return replace(c, traced=traced, remarks=(*c.remarks, *remarks.several_outputs(traced)))
    known = traced[STUDENT]
    checks.is_for_task(known, c.task, name=c.options.task, classes=len(c.options.data.classes))
    student = Trace(
        known.input_shape, training=True, entry=known.entry, rungs=ladder(known.rung), eval_mode=known,
        quick=not passes.prove,
    )  # fmt: skip
    trainable = {STUDENT: passes.run(student, c.models[STUDENT])}
    for name, one in traced.items():
        checks.has_entries(name, (one, trainable[name]) if name in trainable else (one,))
    return replace(c, traced=traced, trainable=trainable, remarks=(*c.remarks, *remarks.several_outputs(traced)))


def _couple(c: Compilation, passes: PassManager) -> Compilation:
    return replace(c, coupling={name: passes.run(Couple(), traced) for name, traced in c.traced.items()})


def _match(c: Compilation, passes: PassManager) -> Compilation:
    return _matched(c, passes, c.options.align)


def _matched(c: Compilation, passes: PassManager, align: Align) -> Compilation:
    options = c.options
    if align == "shrink" and not c.task.has_predictions:
        raise InputError(
            f"an auxiliary teacher cannot be fine-tuned in the task '{options.task}': it has no loss for predictions",
            where="--align", hint="use --align slice or project",
        )  # fmt: skip
    source = MatchSource(
        c.traced[c.teaches], c.traced[STUDENT], c.coupling[c.teaches], c.coupling[STUDENT], (c.teaches, STUDENT),
        headless=not c.task.has_predictions or c.task.embeds,
    )  # fmt: skip
    with source.teacher.running(), source.student.running():
        try:
            pairs = passes.run(Match(pins=options.pins, forbid=options.forbid, align=align), source)
        except PairingError as refusal:
            # a method that compares predictions alone can do without, unless the user asks for some
            if c.method.needs_pairs or options.pins or options.forbid or align == "shrink":
                raise
            note = Diagnostic(code="no-pairs", severity="note", where=refusal.where, why=refusal.what)
            return replace(c, remarks=(*c.remarks, note))
    return replace(c, pairs=pairs)


def _prune(c: Compilation, passes: PassManager) -> Compilation:
    if c.options.align == "shrink":
        return c
    teaches = c.teaches
    prune = Prune(criterion=c.options.criterion or c.method.criterion, seed=c.options.seed)
    source = PruneSource(c.traced[teaches], c.coupling[teaches], c.pairs, c.batch, supervised_loss(c.task))
    return replace(c, kept=passes.run(prune, source))


def _shrink(c: Compilation, passes: PassManager) -> Compilation:
    if c.options.via == "auto":
        return _between(c, passes)
    return _shrunken(c, passes, lambda pair: pair.student.width) if c.options.align == "shrink" else c


def _between(c: Compilation, passes: PassManager) -> Compilation:
    """An assistant of widths between, where the gap is large and it can be made."""
    found = gap.between(c.models[TEACHER], c.models[STUDENT], (c.traced[TEACHER], c.traced[STUDENT]), c.pairs)
    if not found.is_wide:
        return replace(c, remarks=(*c.remarks, gap.needless(found)))
    apart = PassManager(
        prove=passes.prove
    )  # what it remarks of pairs that are to be shrunk is of no plan that slices them
    try:
        made = _shrunken(_matched(c, apart, "shrink"), apart, gap.middle)
    except (PairingError, InputError) as refusal:
        return replace(c, remarks=(*c.remarks, gap.needless(found, f"none can be made of the teacher: {refusal.what}")))
    made = replace(made, remarks=(*c.remarks, gap.proposed(found)))
    return _prune(
        replace(made, coupling={**c.coupling, AUXILIARY: passes.run(Couple(), made.traced[AUXILIARY])}), passes
    )


def _shrunken(c: Compilation, passes: PassManager, width: Callable[[Pair], int]) -> Compilation:
    proposal = auxiliary.propose(
        c.models[TEACHER], c.pairs, input_shape=c.shape_of(TEACHER), keep=c.options.keep,
        criterion=c.options.criterion or c.method.criterion, batch=c.batch, loss=supervised_loss(c.task),
        seed=c.options.seed, passes=passes, of=TEACHER, name=AUXILIARY, entry=c.traced[TEACHER].entry,
        width=width,
    )  # fmt: skip
    return replace(
        c, made={AUXILIARY: proposal.shrunken}, traced={**c.traced, AUXILIARY: proposal.traced}, pairs=proposal.pairs,
        remarks=(*c.remarks, *proposal.diagnostics),
    )  # fmt: skip


def _mask(c: Compilation, passes: PassManager) -> Compilation:
    if c.options.cascade is None:
        raise InputError(
            f"the method '{c.method.name}' has to know what the student keeps", where="--keep", hint="add --keep 0.2"
        )
    found = cascade.propose(
        c.traced[TEACHER], c.coupling[TEACHER], c.options.cascade, of=TEACHER, student=STUDENT, passes=passes,
        criterion=c.options.criterion or c.method.criterion,
    )  # fmt: skip
    return replace(c, made=found.members, pairs=found.pairs, remarks=(*c.remarks, *found.remarks))


def _in_levels(c: Compilation) -> Compilation:
    """The arms of a cascade; the cost of a stage is that of all its members, as the levels compute all channels."""
    masked = [name for name, member in c.made.items() if isinstance(member, Masked)]
    recipe = Recipe(
        pairs=c.pairs, supervised=c.supervised, imitation=c.imitation, teacher=TEACHER, student=STUDENT,
        epochs=c.options.epochs, lr=c.options.lr, embeds=c.task.embeds,
    )  # fmt: skip
    hints = 0.0 if c.options.cascade is None else c.options.cascade.hints
    joint, alone = cascade_arms(recipe, len(masked), hints=hints)
    student = c.made[STUDENT].macs / max(1, c.traced[TEACHER].macs)
    costs = {joint.name: len(masked) + 1.0, alone.name: round(1 + student, 4)}
    arms = [arm.changed(stages=[s.changed(cost=costs[arm.name]) for s in arm.stages]) for arm in (joint, alone)]
    c = replace(c, arms=tuple(arms), options=replace(c.options, control=False))
    plan = _planned(c)
    said = [*c.remarks, *cascade.watched(plan.data.val)]
    every = c.options.cascade is not None and c.options.cascade.export_all
    plan = plan.changed(diagnostics=list(dict.fromkeys(said)), export=plan.export.changed(levels=every))
    return replace(c, plan=plan.changed(costed=plan.cost_basis))


def _schedule(c: Compilation, passes: PassManager) -> Compilation:
    if c.method.alone:
        return _in_levels(c)
    alike = remarks.same_answers(c.traced[c.teaches], c.traced[STUDENT])
    if not alike and c.imitation is not None:
        if c.method.assumed:
            rest = "supervised" if c.supervised is not None else "features"
            c = replace(c, method=composed(c.options.method, default_main=rest))
        c = replace(c, remarks=(*c.remarks, remarks.other_classes(c.traced[c.teaches], c.traced[STUDENT], c.method)))
    curriculum = c.options.curriculum
    if curriculum.probe is None:
        return _scheduled(c, passes, curriculum, alike=alike)
    if not c.sample:
        raise InputError("difficulty is measured on data, and there is none", where=PROBE, hint="add --data")
    proving = replace(passes, prove=True)  # this program runs
    first = _instrument(_scheduled(c, passes, replace(curriculum, probe=None), alike=alike), proving)
    found = difficulties(first.programs[DISTILLED], c.sample)
    pairs = tuple(pair.changed(difficulty=found.get(pair.name)) for pair in c.pairs)
    return _scheduled(replace(c, pairs=pairs), passes, curriculum, alike=alike)


def _scheduled(c: Compilation, passes: PassManager, curriculum: Curriculum, *, alike: bool) -> Compilation:
    recipe = Recipe(
        pairs=c.pairs, supervised=c.supervised, imitation=c.imitation, teacher=c.teaches, student=STUDENT,
        epochs=c.options.epochs, lr=c.options.lr, embeds=c.task.embeds,
    )  # fmt: skip
    stages: tuple[Stage, ...] = passes.run(Schedule(c.method.name, curriculum), recipe)
    arms = [Arm(name=DISTILLED, trains=[STUDENT], stages=list(stages))]
    if c.learns_first:
        own = replace(
            recipe, pairs=(), teacher=TEACHER, student=AUXILIARY, epochs=c.learns_first,
            supervised=recipe.supervised.changed(student=AUXILIARY) if recipe.supervised and alike else None,
            imitation=recipe.imitation.changed(student=AUXILIARY, teacher=TEACHER) if recipe.imitation else None,
        )  # fmt: skip
        tuned: tuple[Stage, ...] = passes.run(Schedule(_without_pairs(c.method, own)), own)
        arms.insert(0, Arm(name=AUXILIARY, trains=[AUXILIARY], stages=[tuned[-1].changed(name="fine-tune")], once=True))
    c = replace(c, arms=tuple(arms))
    try:
        return replace(c, plan=_planned(c))
    except ValidationError as cause:  # numbers that a user may give each, and not together
        raise invalid(cause, where="the options", hint="give other numbers") from cause


def _without_pairs(method: Composed, recipe: Recipe) -> str:
    """How the auxiliary learns: as the main stage does, or by KD where that compares pairs."""
    name, main = method.parts[-1]
    terms = list(main.main(recipe)) if main.main is not None and not main.needs_pairs else []
    return name if any(term.teacher is not None for term in terms) else "kd"


def _instrument(c: Compilation, passes: PassManager) -> Compilation:
    plan = _plan_of(c)
    members = {name: c.trainable.get(name, c.traced[name]) for name in plan.arm(DISTILLED).members}
    return replace(c, programs={DISTILLED: passes.run(Instrument(plan, DISTILLED), Joint(members))})


def _specialize(c: Compilation, passes: PassManager) -> Compilation:
    """Cut every stage out, and note what it costs."""
    plan, program = _plan_of(c), c.programs[DISTILLED]
    for member in () if passes.prove else program.members:
        module = program.get_submodule(member.name)
        scripted = any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())  # these cannot move there
        if not (member.trained or scripted):  # what nothing runs needs no weights; they would be copied for every stage
            module.to("meta")
    staged = {stage.name: passes.run(Specialize(stage.name), program) for stage in program.stages}
    whole = max(1, sum(c.traced[name].macs for name in c.models))
    costs = {name: round(one.macs / whole, 4) for name, one in staged.items()}
    arms = [
        arm.changed(stages=[stage.changed(cost=_cost(c, arm, stage, costs, whole)) for stage in arm.stages])
        for arm in plan.arms
    ]
    control = plan.control and plan.control.changed(cost=round(c.traced[STUDENT].macs / whole, 4))
    read = {**c.traced, **c.trainable}
    taught = remarks.untaught(STUDENT, c.models[STUDENT], staged.values(), c.traced[STUDENT])
    said = dict.fromkeys((*passes.diagnostics, *c.remarks, *remarks.not_logits(plan, read), *taught))
    plan = plan.changed(arms=arms, control=control, costed=plan.cost_basis, diagnostics=list(said))
    return replace(c, plan=plan.changed(costed=plan.cost_basis), programs={**c.programs, **staged})


def _cost(c: Compilation, arm: Arm, stage: Stage, costs: Mapping[str, float], whole: int) -> float:
    if arm.name == DISTILLED:
        return costs[stage.name]
    return round(sum(c.traced[name].macs for name in arm.members) / whole, 4)


PIPELINE: dict[str, Step] = {
    "trace": Step(_trace, lambda c: shown.traces(c.traced)),
    "couple": Step(_couple, lambda c: shown.couplings(c.coupling)),
    "match": Step(_match, lambda c: shown.pairs(c.pairs)),
    "prune": Step(_prune, lambda c: shown.kept(c.kept)),
    "shrink": Step(_shrink, lambda c: shown.members(c.made)),
    "mask": Step(_mask, lambda c: shown.members(c.made)),
    "schedule": Step(_schedule, lambda c: shown.arms(c.arms)),
    "instrument": Step(_instrument, lambda c: shown.programs(c.programs)),
    "specialize": Step(_specialize, lambda c: shown.programs(c.programs)),
}


def compile(  # noqa: A001  # what a compiler does
    teacher: nn.Module, student: nn.Module | None, options: Options, *, teacher_ref: ModelRef | None = None,
    student_ref: ModelRef | None = None, via: nn.Module | None = None, via_ref: ModelRef | None = None,
    batch: tuple[Tensor, Tensor] | None = None, sample: Sequence[Batch] = (),
    passes: PassManager | None = None,
    after: Callable[[str, Callable[[], str]], None] = lambda _step, _text: None,
) -> Plan:  # fmt: skip
    """Plan how a student learns from a teacher. Neither model is changed; no data is read.

    Args:
        teacher: Takes float images of ``options.input_shape``, or of the size in its preprocessing.
        student: Takes the same, gives a prediction for the same task; None for a method that makes it of the teacher.
        options: The user's decisions.
        teacher_ref: Where the teacher comes from; without it the plan works from Python only.
        student_ref: The same for the student.
        via: An assistant that learns from the teacher, and teaches the student in its place; None for none.
        via_ref: Where that comes from.
        batch: Images as the teacher takes them, and labels, for criteria that read data.
        sample: Batches as programs take them, to measure the difficulty of pairs on, where the options say so.
        passes: A manager to run the passes in, for its timings and remarks; without one programs, which are only looked
            at here, are not proved: whoever builds the plan's programs proves them.
        after: Called after every step with its name, and what gives the text that shows what the step made.

    Raises:
        InputError: The models, or the options, do not fit each other.
        PassError: The compiler broke.
    """
    passes = passes or PassManager(prove=False)
    nothing = ModelRef(path=None, sha256=None, factory=None, kwargs={})
    task = TASKS.get(options.task, where="--task")
    method = composed(options.method, default_main=task.default_main)
    if method.alone != (student is None):
        raise InputError(
            f"the method '{method.name}' {'makes its student out of the teacher' if method.alone else 'has a student'}",
            where="STUDENT", hint="leave it out" if method.alone else "name it behind the teacher",
        )  # fmt: skip
    models = {TEACHER: teacher} if student is None else {TEACHER: teacher, STUDENT: student}
    refs = {TEACHER: teacher_ref or nothing, STUDENT: student_ref or nothing}
    c = Compilation(
        options=options, method=method, task=task, models=models, refs={name: refs[name] for name in models},
        batch=batch, sample=sample,
    )  # fmt: skip
    if via is not None:
        c = _with_assistant(c, via, via_ref or nothing)
    last = models[STUDENT if student is not None else TEACHER]
    with in_mode(last, training=last.training), torch.random.fork_rng(devices=[]):
        for name in c.method.passes:
            step = _step(name)
            c = step.run(c, passes)
            after(name, partial(step.show, c))
    return _plan_of(c)


def _with_assistant(c: Compilation, via: nn.Module, ref: ModelRef) -> Compilation:
    if c.options.via is not None or c.options.align == "shrink" or c.method.alone:
        raise InputError(
            "an assistant is given, and others would be made of the teacher", where="--via",
            hint="leave one of them out",
        )  # fmt: skip
    models, refs = {TEACHER: c.models[TEACHER], AUXILIARY: via}, {TEACHER: c.refs[TEACHER], AUXILIARY: ref}
    c = replace(c, models={**models, STUDENT: c.models[STUDENT]}, refs={**refs, STUDENT: c.refs[STUDENT]})
    return replace(c, remarks=(gap.given(c.learns_first),))


def _step(name: str) -> Step:
    if name not in PIPELINE:
        raise InputError(
            f"no pass is named '{name}'", where="passes", hint=suggestion(name, tuple(PIPELINE), "the passes are")
        )
    return PIPELINE[name]


def _plan_of(c: Compilation) -> Plan:
    if c.plan is None:
        raise InputError(
            f"the passes of the method '{c.method.name}' make no plan", where="method",
            hint="'schedule' has to be among them",
        )  # fmt: skip
    return c.plan


def _planned(c: Compilation) -> Plan:
    """The plan without costs."""
    options = c.options
    given = {
        name: _described(c.refs[name], module, c.traced[name]).changed(preprocessing=options.preprocessing.get(name))
        for name, module in c.models.items()
    }
    main = c.arms[-1].stages[-1]
    control = None
    if options.control and c.supervised is not None:
        control = Control(of=DISTILLED, losses=[c.supervised], optimizer=main.optimizer, schedule=main.schedule)
    plan = Plan(
        version=VERSION, method=c.method.name, task=options.task, seed=options.seed, members={**given, **c.made},
        input=InputSpec(shape=list(options.input_shape)), data=options.data, pairs=list(c.pairs), kept=list(c.kept),
        arms=list(c.arms), control=control, seeds=[options.seed + repeat for repeat in range(options.repeats)],
        precision=options.precision, recalibration=options.recalibrate, versions=versions(),
    )  # fmt: skip
    return plan.changed(plugins=_plugins(c, plan))


def _plugins(c: Compilation, plan: Plan) -> list[Plugin]:
    """The names in the plan that do not come with this package."""
    data = c.options.data
    scored = [one.criterion for one in c.made.values() if not isinstance(one, Hardened)]
    used = {
        "method": [name for name, _ in c.method.parts], "task": [c.options.task],
        "loss": [term.loss for arm in plan.all_arms for stage in arm.stages for term in stage.losses],
        "criterion": [*(kept.criterion for kept in c.kept), *scored],
        "data source": [data.spec.partition(":")[0]] if data.spec is not None else [],
        "augmentation": [name.partition(":")[0] for name in data.augmentation],
    }  # fmt: skip
    return [
        Plugin(kind=kind, name=name, distribution=found.distribution, version=found.version)
        for kind, names in used.items()
        for name in dict.fromkeys(names)
        if (found := origin(GROUPS[kind], name)) is not None
    ]


def _described(ref: ModelRef, module: nn.Module, traced: Traced) -> ModelRef:
    entry = traced.entry or outputs.choose(traced.output_value)
    size = sum(p.numel() for p in module.parameters())
    return ref.changed(rung=traced.rung, macs=traced.macs, parameters=size, output=entry)
