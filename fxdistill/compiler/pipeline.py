"""The compiler on one screen: two models in, a plan out.

    teacher ─ trace ─ couple ─┐
                              ├─ match ─ prune ─ shrink ─ schedule ─▶ plan ─ instrument ─▶ program ─ specialize ─▶ costs
    student ─ trace ─ couple ─┘

or, where the student is made out of its teacher, teacher ─ trace ─ couple ─ mask ─ schedule ─▶ plan.

A :class:`Compilation` is what is known so far; a step reads it, runs passes, and returns it with more. A method names
its steps, and ``PIPELINE`` says what each name does and how what it made is shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fxdistill import checking
from fxdistill.compiler import cascade, checks, gap, pairing, programs, remarks, scheduling, shown
from fxdistill.compiler.compilation import AUXILIARY, STUDENT, TEACHER, Compilation
from fxdistill.compiler.options import Options
from fxdistill.errors import InputError
from fxdistill.ir import answers
from fxdistill.ir.contract import PassManager
from fxdistill.ir.graph import ladder
from fxdistill.ir.program import Batch
from fxdistill.ir.running import in_mode
from fxdistill.methods import composed
from fxdistill.passes.couple import Couple
from fxdistill.passes.trace import Trace
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import ModelRef
from fxdistill.registry import suggestion
from fxdistill.tasks import TASKS


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
    last = STUDENT if STUDENT in traced else TEACHER
    checks.is_for_task(traced[last], c.task, name=c.options.task, classes=len(c.options.data.classes), member=last)
    trainable = {}
    if (known := traced.get(STUDENT)) is not None:
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


def _mask(c: Compilation, passes: PassManager) -> Compilation:
    if c.options.cascade is None:
        raise InputError(
            f"the method '{c.method.name}' has to know what the student keeps", where="cascade",
            hint="give cascade=fxdistill.Cascade(keep=0.2)",
        )  # fmt: skip
    found = cascade.propose(
        c.traced[TEACHER], c.coupling[TEACHER], c.options.cascade, of=TEACHER, student=STUDENT, passes=passes,
        criterion=c.options.criterion or c.method.criterion, warms_up=len(c.method.parts) > 1,
    )  # fmt: skip
    remarks_ = (*c.remarks, *found.remarks)
    return replace(c, made=found.members, pairs=found.pairs, kept=found.kept, remarks=remarks_)


PIPELINE: dict[str, Step] = {
    "trace": Step(_trace, lambda c: shown.traces(c.traced)),
    "couple": Step(_couple, lambda c: shown.couplings(c.coupling)),
    "match": Step(pairing.match, lambda c: shown.pairs(c.pairs)),
    "prune": Step(pairing.prune, lambda c: shown.kept(c.kept)),
    "shrink": Step(pairing.shrink, lambda c: shown.members(c.made)),
    "mask": Step(_mask, lambda c: shown.members(c.made)),
    "schedule": Step(scheduling.schedule, lambda c: shown.arms(c.arms)),
    "instrument": Step(programs.instrument, lambda c: shown.programs(c.programs)),
    "specialize": Step(programs.specialize, lambda c: shown.programs(c.programs)),
}


@checking.checked("teacher", "student")
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
    checks.is_for_method(options, method)
    models = {TEACHER: teacher} if student is None else {TEACHER: teacher, STUDENT: student}
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise InputError(
                f"a {type(model).__name__} is no module", where=name,
                hint="give fxdistill.load(…).module; fxdistill.make_plan takes files",
            )  # fmt: skip
    refs = {TEACHER: teacher_ref or nothing, STUDENT: student_ref or nothing}
    c = Compilation(
        options=options, method=method, task=task, models=models, refs={name: refs[name] for name in models},
        batch=batch, sample=sample,
    )  # fmt: skip
    if via is not None:
        c = _with_assistant(c, via, via_ref or nothing)
    checks.are_of_one_precision(c.models)
    if batch is not None:
        checks.is_batch(*batch)
    last = models[STUDENT if student is not None else TEACHER]
    with in_mode(last, training=last.training), torch.random.fork_rng(devices=[]):
        for name in c.method.passes:
            step = _step(name)
            c = step.run(c, passes)
            after(name, partial(step.show, c))
    return c.finished()


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
