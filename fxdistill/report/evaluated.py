"""What a model reaches on test images, as people read it and as machines do."""

import math
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from fxdistill.report.layout import Line, Table
from fxdistill.runtime.deployment.evaluating import Evaluated
from fxdistill.runtime.deployment.finding import Found
from fxdistill.tasks import Task

_NOTHING = "-"


def view(made: Evaluated, task: Task) -> RenderableType:
    """A line a metric, and a table of the classes."""
    images = f"on {made.images:,} test image{'' if made.images == 1 else 's'}"
    lines = [Line(Text(f"{name} {task.shown(value)} {images}"), indent=2) for name, value in made.metrics.items()]
    if made.classes is None:
        return Group(*lines)
    header = ("class", task.class_counts, task.of_class)
    return Group(
        *lines,
        Text(),
        Table(header, tuple((one.name, f"{one.count:,}", shown(one.value, task)) for one in made.classes)),
    )


def shown(value: float, task: Task) -> str:
    """A value, or a dash where there is none."""
    return _NOTHING if math.isnan(value) else task.shown(value)


def as_json(made: Evaluated, found: Found, *, model: str) -> dict[str, Any]:
    """One object; what is not a number is null, and so are ``classes`` where they were not asked for."""
    of_class = found.task.of_class or None
    return {
        "model": model, "task": found.metadata["fxdistill.task"], "reads": found.reads, "images": made.images,
        "metric": found.task.primary, "metrics": {name: number(value) for name, value in made.metrics.items()},
        "of_class": of_class,
        "classes": None if made.classes is None else [
            {"class": one.name, "count": one.count, "value": number(one.value)} for one in made.classes
        ],
    }  # fmt: skip


def number(value: float | None) -> float | None:
    """A number; None for NaN and infinity, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None
