"""How a run went, epoch by epoch: means over the seeds with the range that they span, from ``metrics.jsonl``."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fxdistill.plan.document import Plan
from fxdistill.plan.training import CONTROL
from fxdistill.report.terms import of_members
from fxdistill.tasks import Task

Record = Mapping[str, Any]
ON_TEST, ON_VALIDATION = "test images", "validation images"


class Point(NamedTuple):
    """After an epoch: the mean over seeds, the least and the most, and of how many seeds."""

    epoch: int
    mean: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    slot: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Course:
    """Lines over the same epochs.

    Attributes:
        arm: Of which arm; '' where each line is one.
        stage: Of which stage; '' for all of them.
        series: The lines.
        marks: Where stages of the exported arm begin, by name.
        on: What it was measured on.
    """

    arm: str
    stage: str
    series: tuple[Series, ...]
    marks: tuple[tuple[int, str], ...] = ()
    on: str = ""


def metric_of(plan: Plan, records: Sequence[Record], task: Task, slots: Mapping[str, str]) -> Course | None:
    """The primary metric of each arm over all its epochs; None where none was measured."""
    found: dict[str, dict[int, list[float]]] = {}
    begins: dict[str, int] = {}
    for at, record in _counted(records):
        if record["name"] == plan.export.arm and record["seed"] == plan.seeds[0]:
            begins.setdefault(record["stage"], at - 1)
        if task.primary in record["metrics"]:
            found.setdefault(record["name"], {}).setdefault(at, []).append(record["metrics"][task.primary])
    names = [arm.name for arm in plan.all_arms if arm.name in found]
    if not names:
        return None
    series = tuple(Series(_called(name), slots[name], points(found[name])) for name in names)
    marks = tuple((at, name) for name, at in begins.items())
    return Course("", "", series, marks if len(marks) > 1 else (), ON_TEST if plan.data.val is None else ON_VALIDATION)


def rates_of(plan: Plan, records: Sequence[Record], slots: Mapping[str, str]) -> Course | None:
    """The learning rate of each arm over all its epochs, as each of them ended; None where none is known."""
    found: dict[str, dict[int, list[float]]] = {}
    for at, record in _counted(records):
        if "learning_rate" in record:
            found.setdefault(record["name"], {}).setdefault(at, []).append(record["learning_rate"])
    named = [arm.name for arm in plan.all_arms if arm.name in found]
    series = tuple(Series(_called(name), slots[name], points(found[name])) for name in named)
    return Course("", "", series) if series else None


def _counted(records: Iterable[Record]) -> Iterator[tuple[int, Record]]:
    """Each record, after the number of epochs that its training has had."""
    epochs: dict[tuple[str, int], int] = {}
    for record in records:
        key = record["name"], record["seed"]
        epochs[key] = epochs.get(key, 0) + 1
        yield epochs[key], record


def losses_of(plan: Plan, records: Sequence[Record]) -> tuple[Course, ...]:
    """The losses of each stage of each arm, unweighted, means over an epoch."""
    found: dict[tuple[str, str], dict[str, dict[int, list[float]]]] = {}
    for record in records:
        stage = found.setdefault((record["name"], record["stage"]), {})
        for loss, value in record["losses"].items():
            stage.setdefault(loss, {}).setdefault(record["epoch"], []).append(value)
    courses = []
    for arm in plan.all_arms:
        names = of_members(arm.stages)
        for part in (part for part in arm.stages if (arm.name, part.name) in found):
            series = tuple(
                Series(names.get(loss, loss), f"loss-{number % 8 + 1}", points(values))
                for number, (loss, values) in enumerate(found[arm.name, part.name].items())
            )
            courses.append(Course(_called(arm.name), part.name, series))
    return tuple(courses)


def points(values: Mapping[int, Iterable[float]]) -> tuple[Point, ...]:
    """Means and ranges of the values of each epoch."""
    told = {epoch: [float(one) for one in found] for epoch, found in sorted(values.items())}
    return tuple(Point(epoch, statistics.fmean(one), min(one), max(one), len(one)) for epoch, one in told.items())


def kept_of(records: Sequence[Record], seed: int) -> dict[str, dict[str, int]]:
    """How many channels masked members kept of each layer when they were last trained under a seed."""
    found: dict[str, dict[str, int]] = {}
    for record in records:
        if record["seed"] == seed:
            for level, layers in record.get("kept", {}).items():
                found[level] = {str(layer): int(count) for layer, count in layers.items()}
    return found


def _called(arm: str) -> str:
    return "no distillation" if arm == CONTROL else arm
