"""The steps on pairs: which layers are compared, what is kept of them, and who stands between teacher and student."""

from collections.abc import Callable
from dataclasses import replace

from fxdistill.compiler import auxiliary, gap
from fxdistill.compiler.compilation import AUXILIARY, STUDENT, TEACHER, Compilation
from fxdistill.compiler.shrink_model import supervised_loss
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import CriterionError, InputError, PairingError
from fxdistill.ir.contract import PassManager
from fxdistill.methods import Recipe
from fxdistill.passes.couple import Couple
from fxdistill.passes.match import Match, MatchSource
from fxdistill.passes.match.candidates import Survey
from fxdistill.passes.prune import Prune, PruneSource
from fxdistill.plan.schema import Align, Kept, Pair


def match(c: Compilation, passes: PassManager) -> Compilation:
    """Pair the layers of who teaches with those of the student."""
    return _matched(c, passes, c.options.align)


def _matched(c: Compilation, passes: PassManager, align: Align) -> Compilation:
    options = c.options
    if align == "shrink" and not c.task.has_predictions:
        raise InputError(
            f"an auxiliary teacher cannot be fine-tuned in the task '{options.task}': it has no loss for predictions",
            where="--align", hint="use --align slice or project",
        )  # fmt: skip
    headless = not c.task.has_predictions or c.task.embeds
    surveys = (Survey(c.traced[name], c.coupling[name], name, headless) for name in (c.teaches, STUDENT))
    source = MatchSource(*surveys)
    with source.teacher.traced.running(), source.student.traced.running():
        try:
            pairs = passes.run(Match(pins=options.pins, forbid=options.forbid, align=align), source)
        except PairingError as refusal:
            # a method that compares predictions alone can do without, unless the user asks for some
            needed = c.method.lacks_pairs(Recipe((), embeds=c.task.embeds))
            if needed or options.pins or options.forbid or align == "shrink":
                raise
            note = Diagnostic(code="no-pairs", severity="note", where=refusal.where, why=refusal.what)
            return replace(c, remarks=(*c.remarks, note))
    return replace(c, pairs=pairs)


def prune(c: Compilation, passes: PassManager) -> Compilation:
    """Choose the channels of each pair that the student imitates."""
    if c.options.align == "shrink":
        return c
    kept, by_weights = _kept(c, passes)
    return replace(c, kept=kept, remarks=(*c.remarks, *by_weights))


def _kept(c: Compilation, passes: PassManager) -> tuple[tuple[Kept, ...], tuple[Diagnostic, ...]]:
    """The kept channels by the criterion that is named, or the method's own: on data if it can tell anything of it."""
    source = PruneSource(c.traced[c.teaches], c.coupling[c.teaches], c.pairs, c.batch, supervised_loss(c.task))
    own = c.method.criterion if c.batch is None else c.method.on_data
    try:
        return passes.run(Prune(criterion=c.options.criterion or own, seed=c.options.seed), source), ()
    except CriterionError as why:
        if c.options.criterion is not None or own == c.method.criterion:
            raise
        told = Diagnostic(
            code="by-weights", severity="note", where=c.teaches,
            why=f"channels are chosen by their weights alone ({c.method.criterion}): {why.what}",
        )  # fmt: skip
        return passes.run(Prune(criterion=c.method.criterion, seed=c.options.seed), source), (told,)


def shrink(c: Compilation, passes: PassManager) -> Compilation:
    """Make the assistant that is asked for out of the teacher, if any is."""
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
    return prune(
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
