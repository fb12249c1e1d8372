"""How a run went, epoch by epoch: means over the seeds with the range that they span, from ``metrics.jsonl``."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fxdistill.plan.document import CONTROL, Plan
from fxdistill.tasks import Task

Record = Mapping[str, Any]


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
    epochs: dict[tuple[str, int], int] = {}
    for record in records:
        key = record["name"], record["seed"]
        epochs[key] = at = epochs.get(key, 0) + 1
        if record["name"] == plan.export.arm and record["seed"] == plan.seeds[0]:
            begins.setdefault(record["stage"], at - 1)
        if task.primary in record["metrics"]:
            found.setdefault(record["name"], {}).setdefault(at, []).append(record["metrics"][task.primary])
    names = [arm.name for arm in plan.all_arms if arm.name in found]
    if not names:
        return None
    split = "validation" if plan.data.val is not None else "test"
    series = tuple(Series(_called(name), slots[name], points(found[name])) for name in names)
    marks = tuple((at, name) for name, at in begins.items())
    return Course("", "", series, marks if len(marks) > 1 else (), f"{split} images")


def losses_of(plan: Plan, records: Sequence[Record]) -> tuple[Course, ...]:
    """The losses of each stage of each arm, unweighted, means over an epoch."""
    found: dict[tuple[str, str], dict[str, dict[int, list[float]]]] = {}
    for record in records:
        stage = found.setdefault((record["name"], record["stage"]), {})
        for loss, value in record["losses"].items():
            stage.setdefault(loss, {}).setdefault(record["epoch"], []).append(value)
    return tuple(
        Course(
            _called(arm.name), stage.name,
            tuple(
                Series(loss, f"loss-{number % 6 + 1}", points(values))
                for number, (loss, values) in enumerate(found[arm.name, stage.name].items())
            ),
        )
        for arm in plan.all_arms for stage in arm.stages if (arm.name, stage.name) in found
    )  # fmt: skip


def points(values: Mapping[int, Iterable[float]]) -> tuple[Point, ...]:
    """Means and ranges of the values of each epoch."""
    told = {epoch: [float(one) for one in found] for epoch, found in sorted(values.items())}
    return tuple(Point(epoch, statistics.fmean(one), min(one), max(one), len(one)) for epoch, one in told.items())


def _called(arm: str) -> str:
    return "no distillation" if arm == CONTROL else arm
