"""What a run measured beside its result, ready to be written: similarity of taps, classes, images that differ."""

from dataclasses import dataclass

from fxdistill.report import outcome
from fxdistill.report.layout import points
from fxdistill.report.page.chart import metric_text
from fxdistill.report.page.dumbbell import Dumbbell, dumbbell
from fxdistill.report.page.told import Told
from fxdistill.runtime.run.details import Beside, OfClass, Shown, is_picture
from fxdistill.tasks import Task

_CLASSES = 16
"""Classes that are drawn: those that change most; a table has more."""
_TABLED = 200


@dataclass(frozen=True)
class Measured:
    """See the module docstring; None and () of what was not measured.

    Attributes:
        exported: Which training the exported member is of, where there were several.
        similarity: How alike the taps of each pair were and are.
        similar_on: On which images.
        classes: What teacher and student reach on the classes that change most.
        table: The classes: name, count, both values and their difference, as people read them, and ``up`` or ``down``.
        left_out: How many classes the table leaves out.
        beside: Teacher and student beside each other.
        apart: The images on which they differ most, with pictures.
    """

    exported: str = ""
    similarity: Dumbbell | None = None
    similar_on: str = ""
    classes: Dumbbell | None = None
    table: tuple[tuple[str, ...], ...] = ()
    left_out: int = 0
    beside: Beside | None = None
    apart: tuple[Shown, ...] = ()


def measured(told: Told) -> Measured:
    """What a run measured beside its result."""
    found = told.details
    if found is None:
        return Measured()
    similarity = dumbbell(
        "similarity of the taps", [(one.pair, one.before, one.after) for one in found.similarity],
        say=lambda value, _=2: f"{value:.2f}", names=("before training", "after"), slots=("student", "student"),
        x_label="linear CKA, 1 for the same", hollow=True, whole=True,
    )  # fmt: skip
    exported = outcome.exported(told.plan, told.result) if told.result else ""
    beside = found.beside
    if beside is None:
        return Measured(exported, similarity, found.on)
    rows = [one for one in beside.classes if one.teacher is not None or one.student is not None]
    task = told.task
    which = "the classes that change most" if len(rows) > _CLASSES else "each class"
    drawn = dumbbell(
        f"{beside.of_class} of {which}",
        [(one.name, one.teacher, one.student) for one in rows[:_CLASSES]], say=metric_text(task),
        names=(beside.teacher, beside.student), slots=("teacher", "student"), x_label=beside.of_class,
    )  # fmt: skip
    table = tuple(_row(one, task) for one in rows[:_TABLED])
    pictures = tuple(one for one in beside.apart if is_picture(one.png))
    return Measured(exported, similarity, found.on, drawn, table, max(0, len(rows) - _TABLED), beside, pictures)


def _row(one: OfClass, task: Task) -> tuple[str, ...]:
    values = ("-" if value is None else task.shown(value) for value in (one.teacher, one.student))
    change = None if one.teacher is None or one.student is None else one.student - one.teacher
    told = "-" if change is None else points(change, task, unit=False)
    direction = "" if not change else "up" if (change > 0) == task.higher_is_better else "down"
    return one.name, f"{one.count:,}", *values, told, direction
