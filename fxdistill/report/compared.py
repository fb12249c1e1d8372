"""Two models beside each other, as people read it and as machines do."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from fxdistill.figures import figure
from fxdistill.measure.comparison import Apart, Comparison
from fxdistill.report.evaluated import number, shown
from fxdistill.report.layout import Line, Table, not_apart, points
from fxdistill.runtime.deployment.finding import Found
from fxdistill.tasks import Task

_MOST_CLASSES = 20


def view(made: Comparison, names: Sequence[str], found: Sequence[Found]) -> RenderableType:
    """A few lines, what changes class by class, and where the two differ most.

    Args:
        made: What was measured.
        names: The models.
        found: They.
    """
    heads = (
        Line(Text(f"{name}  reads {one.reads}"), Text(f"{letter}  ", "bold"))
        for letter, name, one in zip("AB", names, found, strict=True)
    )
    lines = (Line(Text(text), indent=2) for text in _said(made, found[0].task))
    return Group(*heads, Text(), *lines, *_classes(made, found[0].task), *_widest(made))


def _said(made: Comparison, task: Task) -> Iterator[str]:
    apart = made.difference
    if apart is None:
        yield f"what the two reach on the {made.images:,} images is not known: {made.unmeasured}"
    else:
        values = " and ".join(shown(value, task) for value in apart.values)
        yield f"{task.primary} {values}, on {made.labelled:,} image{'s' * (made.labelled != 1)} with a label"
        said, told = f"B - A: {points(apart.value, task)}", ""
        if apart.low is not None and apart.high is not None:
            said += f", {points(apart.low, task, unit=False)} to {points(apart.high, task, unit=False)} in 95 %"
            told = not_apart(apart.low, apart.high)
        yield f"{said} ({apart.interval if apart.low is not None else 'one image, which tells no interval'}){told}"
        if apart.alone is not None and apart.p is not None:
            one, other = apart.alone
            yield f"images right in A alone: {one:,}, in B alone: {other:,}; McNemar's exact test: p = {apart.p:.2g}"
    agreed = "" if made.agreement is None else f"{task.agreement_name} {made.agreement:.2%}, "
    yield f"{agreed}mean distance {figure(made.distance)}"


def _classes(made: Comparison, task: Task) -> Iterator[RenderableType]:
    if not made.classes:
        return
    rows = tuple(
        (
            one.name, f"{one.count:,}", *(shown(value, task) for value in one.values),
            points(one.difference, task, unit=False),
        )
        for one in made.classes[:_MOST_CLASSES]
    )  # fmt: skip
    yield Text()
    yield Table((f"{task.of_class} of", task.class_counts, "A", "B", "B - A"), rows)
    if len(made.classes) > _MOST_CLASSES:
        yield Line(Text(f"and {len(made.classes) - _MOST_CLASSES:,} more that change less (--json has all)", "dim"))


def _widest(made: Comparison) -> Iterator[RenderableType]:
    if made.widest:
        yield Text()
        yield Text("they differ most on", "bold")
    for one in made.widest:
        yield Line(Text(_image(one)), Text(f"  {one.index}  "))


def _image(one: Apart) -> str:
    said = [f"is {one.label}"] if one.label else []
    said += [f"A says {one.says[0]}, B {one.says[1]}"] if one.says is not None else []
    return ", ".join([*([one.file] if one.file else []), *said, f"distance {figure(one.distance)}"])


def as_json(made: Comparison, names: Sequence[str], found: Sequence[Found]) -> dict[str, Any]:
    """One object; what is not a number, or not known, is null."""
    task, apart = found[0].task, made.difference
    values = (None, None) if apart is None else tuple(map(number, apart.values))
    return {
        "task": found[0].metadata["fxdistill.task"], "metric": task.primary,
        "higher_is_better": task.higher_is_better, "images": made.images, "labelled": made.labelled,
        "models": [
            {"model": name, "reads": one.reads, "value": value}
            for name, one, value in zip(names, found, values, strict=True)
        ],
        "difference": None if apart is None else {
            "value": number(apart.value), "low": number(apart.low), "high": number(apart.high),
            "interval": apart.interval,
            "p": apart.p, "right_alone": None if apart.alone is None else list(apart.alone),
        },
        "agreement": {
            "name": task.agreement_name or None, "value": made.agreement, "mean_distance": number(made.distance),
        },
        "of_class": task.of_class or None,
        "classes": [
            {
                "class": one.name, "count": one.count, "values": [number(value) for value in one.values],
                "difference": number(one.difference),
            }
            for one in made.classes
        ],
        "widest": [
            {
                "index": one.index, "file": one.file or None, "label": one.label or None,
                "says": None if one.says is None else list(one.says), "distance": number(one.distance),
            }
            for one in made.widest
        ],
    }  # fmt: skip
