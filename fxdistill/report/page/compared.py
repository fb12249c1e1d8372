"""Several runs beside each other: one table, one chart of costs, one of how their metrics went.

Each run has a colour of its own here. Runs are held against the first one seed by seed where both have the seeds and
measured on the same images; what is not paired has no interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fxdistill.measure.differences import paired
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Hardened
from fxdistill.plan.schema import ExportPlan
from fxdistill.report.layout import points
from fxdistill.report.page import chart
from fxdistill.report.page.chart import Chart
from fxdistill.report.page.courses import Course
from fxdistill.report.page.told import Model, Told

_SLOTS = ("student", "other-1", "other-2", "other-3", "other-4", "auxiliary", "control")


@dataclass(frozen=True)
class Side:
    """A run in the table: what it exports, and how far that is from the first run's."""

    name: str
    slot: str
    anchor: str
    method: str
    epochs: int
    model: Model | None
    difference: str


@dataclass(frozen=True)
class Compared:
    """See the module docstring."""

    sides: tuple[Side, ...]
    charts: tuple[Chart, ...]
    remark: str


def compared(told: Sequence[Told]) -> Compared:
    """Some runs of one task beside each other."""
    names, first = _names(told), told[0]
    own = [next((model for model in one.models if model.slot == "student"), None) for one in told]
    slots = [_SLOTS[number % len(_SLOTS)] for number in range(len(told))]
    sides = tuple(
        Side(
            names[n], slots[n], f"r{n + 1}-run", _method(one.plan), _epochs(one.plan), own[n],
            "" if n == 0 else _difference(first, one),
        )
        for n, one in enumerate(told)
    )  # fmt: skip
    models = [
        replace(model, name=names[n], slot=slots[n]) for n, model in enumerate(own) if model is not None
    ]  # fmt: skip
    teachers = _teachers(told, names)
    models += teachers
    costs = [chart.scatter(models, first.task, what) for what in ("macs", "parameters", "latency")]
    course = _course(told, names, slots)
    drawn = [*costs, chart.metric_chart(course, first.task, teachers) if course else None]
    same = {one.details.fingerprint if one.details else "" for one in told}
    remark = "" if len(same) == 1 and "" not in same else (
        "Nothing says that these runs were measured on the same images." if "" in same
        else "These runs were measured on different images: their values are no measure of one another."
    )  # fmt: skip
    return Compared(sides, tuple(one for one in drawn if one is not None), remark)


def _method(plan: Plan) -> str:
    """What the exported member learned by: an arm of a comparison is called after its own method."""
    return plan.method if plan.export.arm == ExportPlan().arm else plan.export.arm


def _epochs(plan: Plan) -> int:
    """Those that the exported member was trained for: with those of the level that it was cut out of."""
    exported = plan.members[plan.export.member]
    before = [arm for arm in plan.arms if isinstance(exported, Hardened) and exported.of in arm.trains]
    return sum(stage.epochs for arm in (*before, plan.arm(plan.export.arm)) for stage in arm.stages)


def _teachers(told: Sequence[Told], names: Sequence[str]) -> list[Model]:
    """The teachers, each once; where they are not the same in all runs, with the run that has them first."""
    found: dict[object, list[tuple[str, Model]]] = {}
    for name, one in zip(names, told, strict=True):
        for model in one.models:
            if model.slot == "teacher":
                key = model.name, model.value, model.parameters, model.macs
                found.setdefault(key, []).append((name, model))
    shared = all(len(of) == sum(bool(one.models) for one in told) for of in found.values())
    return [
        model if shared else replace(model, name=f"{model.name} of {', '.join(run for run, _ in of)}")
        for of in found.values() for _, model in of[:1]
    ]  # fmt: skip


def _names(told: Sequence[Told]) -> list[str]:
    """The runs by the end of their paths, as far as that tells them apart."""
    parts = [Path(one.name).parts or (one.name,) for one in told]
    for length in range(1, max(map(len, parts)) + 1):
        found = ["/".join(one[-length:]) for one in parts]
        if len(set(found)) == len(found):
            return found
    return [one.name for one in told]


def _difference(first: Told, other: Told) -> str:
    """How far the exported arm is from the first run's, seed by seed."""
    both = [_by_seed(one) for one in (other, first)]
    prints = [one.details.fingerprint if one.details else None for one in (first, other)]
    found = paired(*both, beside=first.name) if prints[0] and prints[0] == prints[1] else None
    if found is None:
        return ""
    said = points(found.mean, first.task)
    if found.low is not None and found.high is not None:
        low, high = (points(end, first.task, unit=False) for end in (found.low, found.high))
        said = f"{said} ({low} to {high})"
    if found.seeds == max(map(len, both)):
        return said
    return f"{said} over {found.seeds} shared seed{'s' * (found.seeds > 1)}"


def _by_seed(told: Told) -> dict[int, float]:
    arms = told.result["arms"] if told.result else []
    return {
        int(arm.get("seed", 0)): float(arm[told.task.primary])
        for arm in arms if arm["name"] == told.plan.export.arm and told.task.primary in arm
    }  # fmt: skip


def _course(told: Sequence[Told], names: Sequence[str], slots: Sequence[str]) -> Course | None:
    series = []
    for one, name, slot in zip(told, names, slots, strict=True):
        own = [line for line in one.metric.series if line.slot == "student"] if one.metric else []
        series += [replace(line, name=name, slot=slot) for line in own]
    on = {one.metric.on for one in told if one.metric}
    return Course("", "", tuple(series), on=" and ".join(sorted(on))) if series else None
