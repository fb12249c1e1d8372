"""What there is to say of a plan or a run, as plain data: collected here, drawn elsewhere.

A colour on the page stands for a part somebody plays, its **slot**: teacher, auxiliary, student (what the exported arm
trains), control, and the other arms in order.
"""

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxdistill.compiler.outline import Outline
from fxdistill.diagnostics import Diagnostic
from fxdistill.plan.document import Plan, edited
from fxdistill.plan.members import Hardened, Masked
from fxdistill.plan.training import CONTROL
from fxdistill.report import outcome
from fxdistill.report.page import words
from fxdistill.report.page.courses import Course, kept_of, losses_of, metric_of, rates_of
from fxdistill.runtime.deployment import exports
from fxdistill.runtime.deployment.exports import Export
from fxdistill.runtime.run import details
from fxdistill.runtime.run.details import Details
from fxdistill.runtime.run.directory import RunDir
from fxdistill.runtime.run.inspection import inspect
from fxdistill.tasks import TASKS, Task

_OTHERS = 4
"""Colours for arms beside the exported one and the control."""


@dataclass(frozen=True)
class Model:
    """A model of the table: a member as it was given, or what an arm makes of one.

    Attributes:
        name: What it is called.
        slot: Its colour.
        value: Its primary metric, the mean over seeds; None where nothing was measured.
        deviation: Standard deviation over seeds.
        values: The metric under each seed.
        parameters: How many; None where it is computed whole, whatever it masks.
        macs: Multiply-accumulates of an image.
        latency: Milliseconds of an image in ONNX Runtime.
    """

    name: str
    slot: str
    value: float | None
    deviation: float
    values: tuple[float, ...]
    parameters: int | None
    macs: int | None
    latency: float | None


@dataclass(frozen=True)
class Told:
    """A run, or a plan alone, as plain data.

    Attributes:
        name: Where it lies, as it was given.
        plan: Its plan.
        result: ``result.json``; None of a plan, and while the run is not complete.
        ran: Whether it is a run.
        verdict: What came out, in a sentence; '' of a plan.
        differences: How far each arm is from the one beside it, where these are too many for a sentence.
        models: The table of models.
        metric: How the primary metric went, arm by arm.
        rates: How the learning rate went, arm by arm.
        losses: How the losses went, a course a stage and arm.
        again: The command that repeats it; '' of a plan.
        remarks: Of the plan, and of what came out of training.
        kept: Of each level of a cascade, how many channels it kept of each layer in the end.
        outline: The members' layers, as far as they are known.
        details: What the run measured beside its result.
        files: Its files in less precision.
    """

    name: str
    plan: Plan
    result: dict[str, Any] | None = None
    ran: bool = False
    verdict: str = ""
    differences: tuple[str, ...] = ()
    models: tuple[Model, ...] = ()
    metric: Course | None = None
    rates: Course | None = None
    losses: tuple[Course, ...] = ()
    again: str = ""
    remarks: tuple[Diagnostic, ...] = ()
    kept: dict[str, dict[str, int]] = field(default_factory=dict)
    outline: Outline = field(default_factory=Outline)
    details: Details | None = None
    files: tuple[Export, ...] = ()

    @property
    def task(self) -> Task:
        """Its task."""
        return TASKS.get(self.plan.task)


def of_plan(plan: Plan, name: str, drawn: Outline | None = None) -> Told:
    """What there is to say of a plan before anything trains."""
    return Told(name, plan, remarks=(*plan.diagnostics, *edited(plan)), outline=drawn or Outline())


def of_run(path: Path, name: str) -> Told:
    """What there is to say of a run.

    Raises:
        InputError: It is no run, or a damaged one.
    """
    rundir = RunDir.existing(path)
    plan, result, records, _ = inspect(rundir)
    found, files = (details.read(rundir, plan), exports.read(rundir, plan)) if result else (None, [])
    task, slots = TASKS.get(plan.task), slots_of(plan)
    remarks = dict.fromkeys((*plan.diagnostics, *edited(plan), *(outcome.remarks(result) if result else ())))
    return Told(
        name, plan, result, ran=True, verdict=words.verdict(plan, result, task),
        differences=words.differences(plan, result, task),
        models=(*_models(plan, result, task), *_files(plan, files)) if result else (),
        metric=metric_of(plan, records, task, slots),
        rates=rates_of(plan, records, slots), losses=losses_of(plan, records), again=words.again(plan, result),
        details=found, files=tuple(files),
        kept=kept_of(records, (result or {}).get("exported_seed", plan.seeds[0])),
        outline=found.outline if found else Outline(), remarks=tuple(remarks),
    )  # fmt: skip


def slots_of(plan: Plan) -> dict[str, str]:
    """The colour of each arm."""
    others = (f"other-{number % _OTHERS + 1}" for number in itertools.count())
    found = {plan.export.arm: "student", CONTROL: "control"}
    for arm in plan.arms:
        if arm.once and plan.export.member not in arm.trains:
            found[arm.name] = "auxiliary"
        found.setdefault(arm.name, next(others) if arm.name not in found else "")
    return found


def role_of(plan: Plan, member: str) -> str:
    """The colour of a member: what is exported, what teaches as it is, what is made or trained to teach."""
    trained = {name for arm in plan.arms for name in arm.trains}
    if member == plan.export.member:
        return "student"
    return "auxiliary" if member in trained else "teacher"


def _models(plan: Plan, result: dict[str, Any], task: Task) -> Iterator[Model]:
    """Members that teach as they are, levels that were cut out, then the arms."""
    slots = slots_of(plan)
    for name, found in result["members"].items():
        yield _model(plan, result, name, _values([found], task), label=name, slot=role_of(plan, name))
    for name, found in result.get("levels", {}).items():
        timed = result["latency"].get(name)
        yield Model(
            f"{name}, cut out", "auxiliary", found.get(task.primary), 0.0, _values([found], task),
            int(found.get("parameters", 0)) or None, int(found.get("macs", 0)) or None,
            None if timed is None else timed["median_ms"],
        )  # fmt: skip
    for arm in plan.all_arms:
        values = _values([one for one in result["arms"] if one["name"] == arm.name], task)
        member = arm.trains[0]
        label = f"{member}, no distillation" if arm.name == CONTROL else f"{member}, {arm.name}"
        label = member if arm.name == member else label
        yield _model(plan, result, member, values, label=label, slot=slots[arm.name])


def _files(plan: Plan, files: Sequence[Export]) -> Iterator[Model]:
    """Files in less precision: as large as the exported member in all that is counted."""
    member = plan.members[plan.export.member]
    counted = not isinstance(member, Hardened | Masked)
    for one in files:
        yield Model(
            f"{plan.export.member}, {one.precision} file", "student", one.value, 0.0,
            () if one.value is None else (one.value,), member.parameters if counted else None,
            member.macs if counted else None, one.latency,
        )  # fmt: skip


def _values(found: Sequence[dict[str, Any]], task: Task) -> tuple[float, ...]:
    return tuple(float(one[task.primary]) for one in found if task.primary in one)


def _model(plan: Plan, result: dict[str, Any], name: str, values: tuple[float, ...], *, label: str, slot: str) -> Model:
    parameters, macs = outcome.size_of(plan, result, name) or (None, None)
    timed = result["latency"].get(name)
    return Model(
        label, slot, statistics.fmean(values) if values else None, statistics.stdev(values) if len(values) > 1 else 0.0,
        values, parameters, macs, None if timed is None else timed["median_ms"],
    )  # fmt: skip
