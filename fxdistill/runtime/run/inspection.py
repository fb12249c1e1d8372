"""A run directory as it was found: everything in it that a run goes on from, or that is shown, fits its plan.

Run directories are copied, edited and come from others. All parts are looked at before any of them is used, and none
is changed:

    origin.json      says where the plan was
    result.json      of this plan, or of the one that the run had before it was extended
    checkpoint.pt    at a place that the plan has, after the trainings before it
    metrics.jsonl    of trainings, stages and epochs that the plan has, as far as the checkpoint knows
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import RunDirError
from fxdistill.plan.document import Plan
from fxdistill.plan.schema import Count
from fxdistill.plan.training import Stage, lengths
from fxdistill.runtime.run import checkpoint, records
from fxdistill.runtime.run.checkpoint import Checkpoint
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.trials import trials_of
from fxdistill.runtime.training.course import Position
from fxdistill.runtime.training.halves import Report


class Found(NamedTuple):
    """What is in a run directory.

    Attributes:
        plan: Its plan.
        result: What came out; None while it is not complete.
        records: Its metrics, a record an epoch.
        how: How it was begun, if that is known.
    """

    plan: Plan
    result: dict[str, Any] | None
    records: list[records.Record]
    how: dict[str, Any]


def inspect(run: RunDir) -> Found:
    """Everything in a run directory.

    Raises:
        RunDirError: A part is damaged, or does not fit the plan; names it.
        PlanError: The plan does not.
    """
    plan = run.plan()
    _ = run.base
    result = run.result()
    size, how = None, dict[str, Any]()
    if run.checkpoint_path.exists():
        found = checkpoint.load(run)
        if result is None:
            check(found, plan, where=str(run.checkpoint_path))
        size, how = found.metrics_size, found.how
    elif result is None:
        size = 0
    return Found(plan, result, records.read(run.metrics_path, plan, size=size), how)


def check(found: Checkpoint, plan: Plan, *, where: str, steps: int | None = None) -> None:
    """Check that a checkpoint is at a place that a run of the plan comes to.

    Args:
        found: The checkpoint.
        plan: The plan.
        where: Its file.
        steps: Steps of an epoch; None where they are not known.

    Raises:
        RunDirError: It is not.
    """
    if wrong := _misplaced(found, plan, steps) or _unfinished(found, plan):
        raise RunDirError(
            f"the checkpoint is not one of this plan: {wrong}", where=where,
            hint="put the run's own checkpoint back, or run the plan anew elsewhere",
        )  # fmt: skip


def _misplaced(found: Checkpoint, plan: Plan, steps: int | None) -> str:
    trials, at = trials_of(plan), found.position
    if found.arm > len(trials):
        return f"it is after {found.arm} trainings, and the plan has {len(trials)}"
    if found.state is None and (at != Position() or found.optimizer is not None or found.average is not None):
        return "it is in the middle of a training, and has no weights"
    if found.arm == len(trials):
        return "" if found.state is None else "it trains after the last training"
    stages = plan.arm(trials[found.arm].name).stages
    if at.stage > len(stages) or (at.stage == len(stages) and (at.epoch or at.step)):
        return f"it is after {at.stage} stages, and '{trials[found.arm].name}' has {len(stages)}"
    taken = found.course.taken
    if len(taken) != at.stage or not all(_lasts(stages, taken, place) for place in range(len(taken))):
        return f"its stages took {', '.join(map(str, taken)) or 'no'} epochs, and it is after {at.stage} of them"
    if at.stage < len(stages) and at.epoch >= lengths(stages, taken)[at.stage]:
        return f"it is after {at.epoch} epochs of the stage '{stages[at.stage].name}', which has no more"
    if at.taught > (len(stages[at.stage].successors) if at.stage < len(stages) else 0):
        return f"it has had {at.taught} successors of its teacher, and the plan does not have as many"
    if (at.epoch or at.step) and found.optimizer is None:
        return "it is in the middle of a stage, and has no state of the optimiser"
    if found.means.count != at.step or not all(map(math.isfinite, found.means.values.values())):
        return f"it has the losses of {found.means.count} steps, and is after {at.step} of its epoch"
    return f"it is after {at.step} steps of an epoch, which has {steps}" if steps and at.step >= steps else ""


def _lasts(stages: Sequence[Stage], taken: Sequence[int], place: int) -> bool:
    """Whether a stage takes as many epochs as it is said to have taken, after those before it."""
    most = lengths(stages, taken[:place])[place]
    return taken[place] == most or (stages[place].plateau is not None and 0 < taken[place] < most)


_REMARKS, _EPOCHS = TypeAdapter(list[Diagnostic]), TypeAdapter(dict[str, Count])
_REUSE = TypeAdapter(dict[str, Report])


def _unfinished(found: Checkpoint, plan: Plan) -> str:
    """What is wrong with what a checkpoint says of the trainings before it."""
    trials = [(trial.seed, trial.name) for trial in trials_of(plan)][: found.arm]
    if [(one.get("seed"), one.get("name")) for one in found.finished] != trials:
        return f"it does not have what came of the {found.arm} trainings before it"
    for one in found.finished:
        known = ("seed", "name", "remarks", "epochs", "reuse")
        numbers = {name: value for name, value in one.items() if name not in known}
        if wrong := [name for name, value in numbers.items() if type(value) not in (int, float)]:
            return f"'{wrong[0][:80]}' of '{one['name']}' is no number"
        try:
            _EPOCHS.validate_python(one.get("epochs", {}))
            _REMARKS.validate_python(one.get("remarks", []))
            _REUSE.validate_python(one.get("reuse", {}))
        except ValidationError:
            return f"the remarks on '{one['name']}', or the epochs of its stages, are none"
    return ""
