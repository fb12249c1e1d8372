"""Two values a row, joined by a bar: how alike taps were and are, what two models reach on each class."""

from collections.abc import Sequence
from dataclasses import dataclass

from fxdistill.report.page.chart import WIDTH, Say, Tick, scale

_ROW, _TOP, _BOTTOM, _LEFT, _RIGHT = 22.0, 8.0, 34.0, 112.0, 14.0
_LETTERS = 17


@dataclass(frozen=True)
class Row:
    """A row: where its two values lie, None where there is none."""

    label: str
    told: str
    y: float
    first: float | None
    second: float | None


@dataclass(frozen=True)
class Dumbbell:
    """Rows over one scale, ready to be written.

    Attributes:
        slots: The colours of the two values.
        names: What they are.
        hollow: Whether the first one is drawn as a ring.
    """

    title: str
    told: str
    x_label: str
    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    names: tuple[str, str]
    slots: tuple[str, str]
    hollow: bool
    height: float
    width: float = WIDTH
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP

    @property
    def bottom(self) -> float:
        """Where the rows end."""
        return self.height - _BOTTOM


Values = tuple[str, float | None, float | None]


def dumbbell(
    title: str, rows: Sequence[Values], *, say: Say, names: tuple[str, str],
    slots: tuple[str, str], x_label: str, hollow: bool = False, whole: bool = False,
) -> Dumbbell | None:  # fmt: skip
    """A chart of two values a row; None where no row has any.

    Args:
        title: Its title.
        rows: A label and two values each.
        say: What a value says.
        names: What the two values are.
        slots: Their colours.
        x_label: What the scale says.
        hollow: Whether the first value is a ring.
        whole: Whether the scale goes from 0 to 1 at least.
    """
    values = [value for _, one, other in rows for value in (one, other) if value is not None]
    if not values:
        return None
    x = scale([*values, *((0.0, 1.0) if whole else ())], _LEFT, WIDTH - _RIGHT, log=False, room=0.04)
    drawn = []
    for number, (label, one, other) in enumerate(rows):
        told = ", ".join(f"{name} {say(v)}" for name, v in zip(names, (one, other), strict=True) if v is not None)
        shown = label if len(label) <= _LETTERS else f"{label[: _LETTERS - 1]}…"
        places = (None if value is None else x(value) for value in (one, other))
        drawn.append(Row(shown, f"{label}: {told}", _TOP + (number + 0.5) * _ROW, *places))
    described = "; ".join(row.told for row in drawn)
    height = _TOP + len(rows) * _ROW + _BOTTOM
    return Dumbbell(
        title, described, x_label, tuple(drawn), x.ticks(say, 4), names, slots, hollow, height
    )  # fmt: skip
