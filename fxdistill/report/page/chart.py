"""Charts as geometry: what a template needs to write SVG, in the units of the view box.

All are drawn 360 units wide, which is what a column of the page has on a screen of any size: text keeps its size, and
nothing scrolls. Where a scale spans more than a factor of 40, it is logarithmic.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fxdistill.figures import figure
from fxdistill.report.layout import count
from fxdistill.report.page.courses import ON_TEST, Course, Series
from fxdistill.report.page.told import Model
from fxdistill.tasks import Task

WIDTH, HEIGHT = 360.0, 216.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 60.0, 14.0, 24.0, 36.0
_LOGARITHMIC = 40.0
_EARLY = 0.25  # of the epochs: what is reached in these does not decide how high a chart of the metric is
_LETTER, _LINE = 5.9, 14.0
"""Width of a letter of a label, and the least distance of two lines of text."""
_MOST_LETTERS = 44
"""Of a label, so that it has room in a chart."""
_RADIUS, _RING = 5.0, 3.0
"""Of a point, and how much larger it is for each that lies on it."""


Say = Callable[..., str]
"""Writes a number, in three digits or in more."""
_DIGITS, _MOST_DIGITS = 3, 17


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: where, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """A line with the range that it spans; both as paths."""

    name: str
    slot: str
    path: str
    band: str
    dots: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Dot:
    """A point with its name, in a label beside it where there is room for one, and a bar up and down."""

    x: float
    y: float
    low: float
    high: float
    slot: str
    name: str
    label: str
    label_x: float
    label_y: float
    anchor: str
    moved: bool
    radius: float = _RADIUS


@dataclass(frozen=True)
class Level:
    """A line across: what something reaches that is not trained here."""

    y: float
    label: str
    slot: str


@dataclass(frozen=True)
class Chart:
    """A chart, ready to be written; ``told`` describes it for those who do not see it."""

    title: str
    told: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()
    levels: tuple[Level, ...] = ()
    marks: tuple[Tick, ...] = ()
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


@dataclass(frozen=True)
class Scale:
    """From values to units.

    Attributes:
        low: The least value.
        high: The largest one.
        start: Where the least one lies.
        end: Where the largest one lies.
        log: Whether equal factors are equal lengths.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        low, high, at = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, say: Say, most: int = 5) -> tuple[Tick, ...]:
        """Round values that lie inside, with what they say, in as many digits as tell them apart."""
        found = _decades(self.low, self.high, most) if self.log else _steps(self.low, self.high, most)
        several = ([say(value, digits) for value in found] for digits in range(_DIGITS, _MOST_DIGITS + 1))
        told = next((told for told in several if len(set(told)) == len(found)), [""] * len(found))
        return tuple(Tick(self(value), label) for value, label in zip(found, told, strict=True))


def scale(values: Sequence[float], start: float, end: float, *, log: bool | None = None, room: float = 0.06) -> Scale:
    """A scale for some values, with room at its ends.

    Args:
        values: The values, at least one.
        start: Where the least one lies.
        end: Where the largest one lies.
        log: Whether it is logarithmic; None where that is needed.
        room: Share of it that stays free at each end.
    """
    low, high = min(values), max(values)
    log = low > 0 and high / low > _LOGARITHMIC if log is None else log and low > 0
    if log:
        factor = max((high / low) ** room, 1.3 if low == high else 1.05)
        return Scale(low / factor, high * factor, start, end, log=True)
    margin = (high - low) * room or abs(high) * 0.05 or 1.0
    floor = 0.0 if 0 <= low < margin else low - margin
    return Scale(floor, high + margin, start, end)


def _steps(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float, most: int) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**power for power in exponents for factor in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) <= most:
            break
    every = max(1, -(-len(found) // most))
    return found[::every] or _steps(low, high, most)


def short(value: float, digits: int = _DIGITS) -> str:
    """A number as short as an axis wants it."""
    return "0" if value == 0 else count(value, digits) if value >= 1e4 else figure(value, digits)


def metric_text(task: Task) -> Say:
    """How an axis writes the primary metric."""
    return (lambda value, digits=_DIGITS: f"{value * 100:.{digits + 1}g}%") if task.is_share else short


def metric_chart(course: Course, task: Task, teachers: Sequence[Model]) -> Chart:
    """The primary metric over epochs, what teachers reach across it."""
    aside = "" if course.on == ON_TEST else f", {ON_TEST}"  # what a run measures its members on
    levels = [(f"{one.name}{aside}", one.slot, one.value) for one in teachers if one.value is not None]
    said = f"{task.primary} on {course.on} over the epochs: " + "; ".join(
        f"{series.name} ends at {task.shown(series.points[-1].mean)}" for series in course.series
    )
    return _lines(
        course, f"{task.primary} on {course.on}", said, y_label="", say=metric_text(task), log=False,
        levels=levels, higher=task.higher_is_better,
    )  # fmt: skip


def loss_chart(course: Course) -> Chart:
    """The losses of a stage over its epochs."""
    said = "; ".join(
        f"{one.name} from {short(one.points[0].mean, 4)} to {short(one.points[-1].mean, 4)}" for one in course.series
    )
    return _lines(
        course, f"{course.arm} · {course.stage}", f"Losses over the epochs: {said}", y_label="loss", say=short, log=None
    )


def rate_chart(course: Course) -> Chart:
    """The learning rate over epochs."""
    said = "; ".join(f"{one.name} ends at {short(one.points[-1].mean)}" for one in course.series)
    return _lines(course, "learning rate", f"Learning rate over the epochs: {said}", y_label="", say=short, log=False)


def _lines(
    course: Course, title: str, told: str, *, y_label: str, say: Say, log: bool | None,
    levels: Sequence[tuple[str, str, float]] = (), higher: bool | None = None,
) -> Chart:  # fmt: skip
    points = [point for one in course.series for point in one.points]
    ends = [end for point in points for end in (point.low, point.high)]
    epochs = [point.epoch for point in points]
    last = max(epochs)
    x = Scale(0.0 if last == 1 else min(1, *epochs), last if last > 1 else 2.0, _LEFT, WIDTH - _RIGHT)
    if higher is not None:  # what is reached in the end counts: where it comes from may lie outside
        late = [end for point in points if point.epoch > last * _EARLY for end in (point.low, point.high)]
        ends = [end for end in ends if (end >= min(late) if higher else end <= max(late))] if late else ends
    y = scale([*ends, *(value for _, _, value in levels)], HEIGHT - _BOTTOM, _TOP, log=log)
    whole = [tick for tick in x.ticks(lambda value, _: f"{value:g}", 6) if "." not in tick.label]
    y_label += ", logarithmic" if y.log else ""
    return Chart(
        title, told, "epoch", y_label, tuple(whole), y.ticks(say),
        lines=tuple(_line(one, x, y) for one in course.series),
        levels=tuple(Level(y(value), name, slot) for name, slot, value in levels),
        marks=tuple(Tick(x(max(at, x.low)), name) for at, name in course.marks[1:]),
    )  # fmt: skip


def _line(series: Series, x: Scale, y: Scale) -> Line:
    middle = [(x(point.epoch), y(point.mean)) for point in series.points]
    upper = [(x(point.epoch), y(point.high)) for point in series.points]
    lower = [(x(point.epoch), y(point.low)) for point in series.points]
    spread = any(point.low != point.high for point in series.points)
    band = _path([*upper, *reversed(lower)]) + "Z" if spread else ""
    return Line(series.name, series.slot, _path(middle), band, tuple(middle) if len(middle) < 3 else ())


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


@dataclass
class _Placed:
    """Labels that were placed already: boxes (left, right, top)."""

    boxes: list[tuple[float, float, float]] = field(default_factory=list)

    def is_free(self, left: float, right: float, y: float) -> bool:
        """Whether a text fits there."""
        return all(right < a or left > b or abs(y - t) >= _LINE for a, b, t in self.boxes)


def scatter(models: Sequence[Model], task: Task, what: str) -> Chart | None:
    """The primary metric against a cost: ``macs``, ``parameters`` or ``latency``; None where fewer than two have both.

    Args:
        models: The models.
        task: The task.
        what: The cost: an attribute of a model.
    """
    shown = [one for one in models if one.value is not None and getattr(one, what) is not None]
    if len(shown) < 2:
        return None
    costs = [float(getattr(one, what)) for one in shown]
    ends = [value for one in shown for value in (_middle(one) - one.deviation, _middle(one) + one.deviation)]
    x = scale(costs, _LEFT, WIDTH - _RIGHT, log=min(costs) > 0 and max(costs) / max(min(costs), 1e-12) > 4, room=0.12)
    y = scale(ends, HEIGHT - _BOTTOM, _TOP, log=False, room=0.1)
    label, say = {
        "macs": ("multiply-accumulates of an image", count),
        "parameters": ("parameters", count),
        "latency": ("milliseconds an image, ONNX Runtime", short),
    }[what]
    said = "; ".join(
        f"{one.name}: {task.shown(_middle(one))} at {say(cost)}" for one, cost in zip(shown, costs, strict=True)
    )
    placed = _Placed([(x(c) - 5, x(c) + 5, y(_middle(one))) for c, one in zip(costs, shown, strict=True)])
    dots = _apart([_dot(one, x(cost), y, placed) for one, cost in zip(shown, costs, strict=True)])
    return Chart(
        f"{task.primary} against {what if what != 'macs' else 'MACs'}", f"{label}: {said}",
        label + (", logarithmic" if x.log else ""), "", x.ticks(say, 4), y.ticks(metric_text(task)), dots=dots,
    )  # fmt: skip


def _apart(dots: Sequence[Dot]) -> tuple[Dot, ...]:
    """The points as they are drawn: the first ones on top, and what lies below others as a ring around them."""
    drawn: list[Dot] = []
    for dot in dots:
        on = [one.radius for one in drawn if math.dist((one.x, one.y), (dot.x, dot.y)) < _RADIUS]
        drawn.append(replace(dot, radius=max(on) + _RING if on else _RADIUS))
    return tuple(reversed(drawn))


def _middle(model: Model) -> float:
    return model.value or 0.0


def _dot(model: Model, at: float, y: Scale, placed: _Placed) -> Dot:
    """A point; its label right or left of it, as near as nothing else stands, and none where all is full."""
    label = model.name if len(model.name) <= _MOST_LETTERS else f"{model.name[: _MOST_LETTERS - 1]}…"
    middle, wide = y(_middle(model)), len(label) * _LETTER
    sides = [(at + 10, at + 10 + wide, "start"), (at - 10 - wide, at - 10, "end")]
    sides = [one for one in sides if one[0] >= _LEFT and one[1] <= WIDTH] or [(WIDTH - wide - 2, WIDTH - 2, "fixed")]
    shifts = sorted((k * 7.0 * sign for k in range(14) for sign in (1, -1)), key=abs)
    best = next(
        (
            (left, right, anchor, shift)
            for shift in shifts for left, right, anchor in sides
            if _TOP - 4 <= middle + shift <= HEIGHT - _BOTTOM - 4 and placed.is_free(left, right, middle + shift)
        ),
        None,
    )  # fmt: skip
    left, right, anchor, shift = best or (at, at, "start", 0.0)
    placed.boxes.extend([(left, right, middle + shift)] if best else [])
    low, high = (y(_middle(model) + sign * model.deviation) for sign in (-1, 1))
    return Dot(
        at, middle, low, high, model.slot, model.name, label if best else "",
        right if anchor == "end" else left, middle + shift, "end" if anchor == "end" else "start", abs(shift) > 7,
    )  # fmt: skip
