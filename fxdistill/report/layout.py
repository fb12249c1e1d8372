"""How what people read is laid out: lines that wrap within their column, tables, numbers, remarks.

Everything is laid out in short lines rather than wide tables, so that it reads in a narrow terminal too.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from fxdistill.diagnostics import Diagnostic
from fxdistill.figures import figure
from fxdistill.tasks import Task

_FINE = 7  # places behind the point that nobody reads
_LEAST_COLUMNS = 16  # for a text behind its head
_THOUSANDS = {"G": 1e9, "M": 1e6, "k": 1e3}
_COLOURS = {"note": "dim", "warning": "yellow", "error": "red"}


@dataclass(frozen=True)
class Line:
    """A text behind a head. Where it wraps, what follows is indented, and no line ends in spaces.

    Attributes:
        text: What wraps.
        head: What stands before its first line.
        indent: Columns before each further line; None for the width of the head.
    """

    text: Text
    head: Text = field(default_factory=Text)
    indent: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lines that fit."""
        head, text = self.head, self.text
        indent = head.cell_len if self.indent is None else self.indent
        if options.max_width - head.cell_len < _LEAST_COLUMNS:  # so narrow that the head wraps as well
            head, text, indent = Text(), head + text, 4
        lines = text.wrap(console, max(1, options.max_width - max(head.cell_len, indent)))
        for number, line in enumerate(lines):
            line.rstrip()
            yield Text.assemble(" " * indent if number else head, line, no_wrap=True, overflow="ignore")


@dataclass(frozen=True)
class Table:
    """Rows under a header, the first column a name; where they are too wide, a paragraph a row."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lines that fit."""
        first, *others = (max(map(cell_len, column)) for column in zip(self.header, *self.rows, strict=True))
        if first + sum(others) + 2 * len(others) > options.max_width:
            yield Line(Text(self.header[0], "bold"), indent=2)
            for name, *values in self.rows:
                cells = (f"{label} {value}" for label, value in zip(self.header[1:], values, strict=True))
                yield Line(Text(f"{name}: {', '.join(cells)}"), indent=2)
            return
        for number, (name, *values) in enumerate((self.header, *self.rows)):
            cells = (f"  {_room(value, width)}{value}" for value, width in zip(values, others, strict=True))
            yield Text(f"{name}{_room(name, first)}{''.join(cells)}", "" if number else "bold", no_wrap=True)


def _room(text: str, width: int) -> str:
    """What is free of a column beside a text, which may have letters as wide as two."""
    return " " * (width - cell_len(text))


def diagnostics_view(remarks: Iterable[Diagnostic]) -> list[Line]:
    """One or two lines a remark."""
    lines = []
    for remark in remarks:
        colour = _COLOURS[remark.severity]
        hint = f" ({remark.hint})" if remark.hint else ""
        said = f"{remark.where}: {remark.why}{hint}"
        text = Text.assemble((f"{remark.severity} ", f"bold {colour}"), (f"{remark.code} ", colour), said)
        lines.append(Line(text, indent=2))
    return lines


def size(shape: Iterable[int]) -> str:
    """``1x3x32x32``."""
    return "x".join(map(str, shape))


def count(value: float, digits: int = 3) -> str:
    """A number to three digits, or more, with k, M or G."""
    return str(int(value)) if value < 1e3 else scaled(value, _THOUSANDS, digits)


def scaled(value: float, units: Mapping[str, float], digits: int = 3) -> str:
    """A number to so many digits in one of some units, the largest one that it reaches when it is rounded."""
    rounded = float(f"{value:.{digits}g}")
    unit, factor = next((one for one in units.items() if rounded >= one[1]), list(units.items())[-1])
    return f"{figure(value / factor, digits)} {unit}"


def points(value: float, task: Task, *, unit: bool = True) -> str:
    """A difference of two values of the primary metric: ``+1.20 points``, or in its own unit; ``-`` of no number."""
    if not math.isfinite(value):
        return "-"
    return f"{value * 100:+.2f}{' points' if unit else ''}" if task.is_share else figure(value, sign=True)


def not_apart(low: float, high: float) -> str:
    """What to add to the interval of a difference that contains zero: nothing tells the two apart."""
    return ": not told apart" if low <= 0 <= high else ""


def spread(value: float, deviation: float, task: Task, seeds: int = 1) -> str:
    """A mean of the primary metric with its standard deviation over seeds, which may be zero of several."""
    if not deviation and seeds < 2:
        return task.shown(value)
    if task.is_share:
        return f"{task.shown(value)} ± {deviation * 100:.2f}"
    places = (
        max(0, 1 - math.floor(math.log10(deviation))) if deviation else _FINE
    )  # as far as two digits of the deviation go
    return f"{f'{value:,.{places}f}' if places < _FINE else task.shown(value)} ± {figure(deviation, 2)}"
