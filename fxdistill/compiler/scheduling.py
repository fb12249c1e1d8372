"""The step that makes the arms: who learns from whom, by which losses, for how long."""

from dataclasses import replace

from pydantic import ValidationError
from torch import fx

from fxdistill.compiler import cascade, checks, remarks
from fxdistill.compiler.compilation import AUXILIARY, DISTILLED, STUDENT, TEACHER, Compilation
from fxdistill.compiler.draft import drafted
from fxdistill.compiler.probe import difficulties
from fxdistill.compiler.programs import instrument
from fxdistill.errors import InputError
from fxdistill.ir.contract import PassManager
from fxdistill.ir.graph import find, macs_of
from fxdistill.methods import Composed, Recipe, composed
from fxdistill.methods.cascade import arms as cascade_arms
from fxdistill.methods.cascade import warm_ups
from fxdistill.passes.schedule import Schedule
from fxdistill.passes.schedule.curriculum import PROBE, Curriculum
from fxdistill.passes.specialize.needed import upto
from fxdistill.plan.file import invalid
from fxdistill.plan.members import Masked
from fxdistill.plan.training import Arm, Stage


def schedule(c: Compilation, passes: PassManager) -> Compilation:
    """Make the arms of the method, and the plan of them."""
    if c.method.alone:
        return _in_levels(c, passes)
    alike = remarks.same_answers(c.traced[c.teaches], c.traced[STUDENT])
    if not alike and c.imitation is not None:
        if c.method.assumed:
            rest = "supervised" if c.supervised is not None else "features"
            c = replace(c, method=composed(c.options.method, default_main=rest))
        said = remarks.other_classes(c.teaches, c.traced[c.teaches], c.traced[STUDENT], c.method)
        c = replace(c, remarks=(*c.remarks, said))
    curriculum = c.options.curriculum
    if curriculum.probe is None:
        return _scheduled(c, passes, curriculum, alike=alike)
    if not c.sample:
        raise InputError("difficulty is measured on data, and there is none", where=PROBE, hint="add --data")
    proving = replace(passes, prove=True)  # this program runs
    first = instrument(_scheduled(c, passes, replace(curriculum, probe=None), alike=alike), proving)
    found = difficulties(first.programs[DISTILLED], c.sample)
    pairs = tuple(pair.changed(difficulty=found.get(pair.name)) for pair in c.pairs)
    return _scheduled(replace(c, pairs=pairs), passes, curriculum, alike=alike)


def _in_levels(c: Compilation, passes: PassManager) -> Compilation:
    """The arms of a cascade."""
    masked = [name for name, member in c.made.items() if isinstance(member, Masked)]
    recipe = Recipe(
        pairs=c.pairs, supervised=c.supervised, imitation=c.imitation, teacher=TEACHER, student=STUDENT,
        epochs=c.options.epochs, lr=_rate(c), embeds=c.task.embeds,
    )  # fmt: skip
    before = c.options.curriculum.of(warm_ups(c.method, recipe, len(masked)), c.pairs, main=recipe.epochs)
    joint, alone = cascade_arms(recipe, len(masked), options=c.options.cascade, before=before)
    arms = [arm.changed(stages=[s.changed(cost=_cost(c, s)) for s in arm.stages]) for arm in (joint, alone)]
    c = replace(c, arms=tuple(arms))
    plan = drafted(c)
    said = [*passes.diagnostics, *c.remarks, *cascade.watched(plan.data)]
    every = c.options.cascade is not None and c.options.cascade.export_all
    plan = plan.changed(diagnostics=list(dict.fromkeys(said)), export=plan.export.changed(levels=every))
    return replace(c, plan=plan.changed(costed=plan.cost_basis))


def _cost(c: Compilation, stage: Stage) -> float:
    """What a stage of a cascade costs: its members, as far as it reads them.

    A level computes all channels, and so does here the teacher of hints, which of it are left being known later.
    """
    teacher, pairs = c.traced[TEACHER], {pair.name: pair for pair in c.pairs}
    whole = {member for term in stage.losses if term.pair is None for member in term.members}
    tapped: dict[str, dict[str, fx.Node]] = {}
    for term in stage.losses:
        for member in set(term.members) - whole:  # the pair's teacher is the frozen one: its tap lies where theirs do
            path = pairs[term.pair or ""].teacher.path
            tapped.setdefault(member, {})[path] = find(teacher, path)
    student = c.made[STUDENT].macs * teacher.images
    macs = sum(student if member == STUDENT else teacher.macs for member in whole)
    for taps in tapped.values():
        macs += sum(map(macs_of, upto(teacher.graph, teacher.module, taps).nodes))
    return round(macs / max(1, teacher.macs), 4)


def _rate(c: Compilation) -> float:
    return c.method.lr if c.options.lr is None else c.options.lr


def _scheduled(c: Compilation, passes: PassManager, curriculum: Curriculum, *, alike: bool) -> Compilation:
    recipe = Recipe(
        pairs=c.pairs, supervised=c.supervised, imitation=c.imitation, teacher=c.teaches, student=STUDENT,
        epochs=c.options.epochs, lr=_rate(c), embeds=c.task.embeds,
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
        checks.answer_alike(c.traced[TEACHER], c.traced[AUXILIARY], tuned[-1].losses)
        arms.insert(0, Arm(name=AUXILIARY, trains=[AUXILIARY], stages=[tuned[-1].changed(name="fine-tune")], once=True))
    c = replace(c, arms=tuple(arms))
    try:
        return replace(c, plan=drafted(c))
    except ValidationError as cause:  # numbers that a user may give each, and not together
        raise invalid(cause, where="the options", hint="give other numbers") from cause


def _without_pairs(method: Composed, recipe: Recipe) -> str:
    """How the auxiliary learns: as the main stage does, or by KD, or PKT of embeddings, where that compares pairs.

    Raises:
        InputError: It can learn nothing: the task has no loss for predictions.
    """
    name, main = method.parts[-1]
    terms = list(main.main(recipe)) if main.main is not None and not main.lacks_pairs(recipe) else []
    if any(term.teacher is not None for term in terms):
        return name
    if recipe.imitation is None and not recipe.embeds:
        raise InputError(
            "the assistant cannot learn first: the task has no loss for predictions", where="--via",
            hint="give one that is trained, with --via-epochs 0",
        )  # fmt: skip
    return "pkt" if recipe.embeds else "kd"
