"""Comparing methods: one plan becomes one of several arms, each a method, under the same budget.

    arm of a method = its warm-ups, then its main stage for what they leave of the plan's epochs

Every arm trains the exported member from the same weights on the same batches in the same order, with the optimiser and
schedule of the plan's main stage; a loss that the plan has as well has the plan's arguments, an arm that warms up as
the plan's own method does has the plan's warm-ups, and one whose main stage is of that method's has the plan's losses
there, with their weights. So arms differ in what they learn from alone. The plan's own method keeps its stages as the
plan has them. What the others are compared with is the first arm.
"""

from collections.abc import Sequence

from pydantic import ValidationError

from fxdistill.errors import InputError, PlanError
from fxdistill.methods import Recipe, composed
from fxdistill.passes.schedule import MAIN, Schedule
from fxdistill.plan.document import Plan
from fxdistill.plan.file import invalid
from fxdistill.plan.training import Arm, LossTerm, Stage
from fxdistill.tasks import TASKS


def compared(plan: Plan, methods: Sequence[str], *, seeds: int | None = None) -> Plan:
    """The plan with an arm for each method in place of the one that it exports and of its control.

    Args:
        plan: The plan; its main stage, its epochs and its pairs are those of all arms.
        methods: Their names, composed or not: ``supervised``, ``kd``, ``indistill+kd``; empty to keep the arms.
        seeds: How many seeds, from the plan's first one on; None for those of the plan.

    Raises:
        InputError: A method is unknown, occurs twice, or has nothing to do in this task.
        PlanError: The warm-ups leave no epoch, or the plan was extended.
    """
    changes: dict[str, object] = {}
    if seeds is not None:
        changes["seeds"] = [plan.seeds[0] + number for number in range(seeds)]
    if methods:
        own = plan.arm(plan.export.arm)
        if twice := [name for name in methods if list(methods).count(name) > 1]:
            raise InputError(f"'{twice[0]}' occurs twice", where="--arms", hint="name each method once")
        arms = [_arm(name, plan, own) for name in methods]
        others = [arm for arm in plan.arms if arm.name != own.name]
        changes |= {"arms": [*others, *arms], "control": None, "costed": ""}
        changes["export"] = plan.export.changed(arm=arms[-1].name)
    try:
        return plan.changed(**changes)
    except ValidationError as cause:
        raise invalid(cause, where="--arms, --seeds", hint="give others") from cause


def _arm(name: str, plan: Plan, own: Arm) -> Arm:
    method = composed(name, where="--arms", default_main=TASKS.get(plan.task).default_main)
    if any(stage.extends for stage in own.stages):
        raise PlanError(
            "the plan was extended, so that its arms are not as long as they were planned", where="--arms",
            hint="compare with the plan as it was before",
        )  # fmt: skip
    if method.parts == composed(plan.method).parts:
        return own.changed(name=name)
    if method.alone:
        raise InputError(
            f"'{name}' makes its student out of the teacher, and the plan has one that was given", where="--arms",
            hint="plan with it, and compare two runs",
        )  # fmt: skip
    main, total = own.stages[-1], sum(stage.epochs for stage in own.stages)
    try:
        made: tuple[Stage, ...] = Schedule(method.name)(_recipe(plan, own)).value
    except InputError as cause:  # which speaks of a plan that is yet to be written
        raise InputError(cause.what, where=f"--arms {name}", hint="leave it out") from cause
    known = {(term.loss, term.pair is None): term.args for stage in own.stages for term in stage.losses}
    names, ours = [stage.name for stage in own.stages], composed(plan.method).parts
    if MAIN in names and len(made) > 1 and method.parts[:-1] == ours[:-1]:
        made = (*own.stages[: names.index(MAIN)], made[-1])
    if MAIN in names and method.parts[-1] == ours[-1]:
        made = (*made[:-1], own.stages[names.index(MAIN)])
    *warm, last = [
        stage.changed(losses=[t.changed(args=known.get((t.loss, t.pair is None), t.args)) for t in stage.losses])
        for stage in made
    ]
    left = total - sum(stage.epochs for stage in warm)
    if left < 1:
        raise PlanError(
            f"the warm-ups of '{name}' take {total - left} epochs, and the plan has {total}", where="--arms",
            hint="plan more epochs",
        )  # fmt: skip
    last = last.changed(epochs=left, optimizer=main.optimizer, schedule=main.schedule)
    return own.changed(name=name, stages=[*warm, last])


def _recipe(plan: Plan, own: Arm) -> Recipe:
    """What the plan was expanded from, as far as it still says so."""
    task, student = TASKS.get(plan.task), own.trains[0]
    teachers = [term.teacher for stage in own.stages for term in stage.losses if term.teacher]
    teacher = teachers[0] if teachers else next((name for name in plan.members if name != student), student)
    labelled = task.supervised is not None and plan.data.labelled
    return Recipe(
        pairs=plan.pairs, embeds=task.embeds, teacher=teacher, student=student, lr=own.stages[-1].optimizer.lr,
        supervised=LossTerm(loss=str(task.supervised), student=student) if labelled else None,
        imitation=LossTerm(loss=task.imitation, student=student, teacher=teacher) if task.imitation else None,
    )  # fmt: skip
