"""What a model by itself reaches on test images: all metrics of its task, and each class."""

from collections.abc import Sequence
from dataclasses import dataclass

from fxdistill.diagnostics import Diagnostic
from fxdistill.measure import by_image
from fxdistill.measure.by_image import OfClass, Tallying
from fxdistill.measure.model import evaluating
from fxdistill.runtime.deployment import deploy, finding
from fxdistill.runtime.deployment.finding import Found
from fxdistill.runtime.planning import normalised


@dataclass(frozen=True)
class Evaluated:
    """What a model reaches.

    Attributes:
        metrics: All metrics of the task by name.
        images: Test images that have a label.
        classes: What is reached on each; None where that was not asked for.
        remarks: What there is to say about it.
    """

    metrics: dict[str, float]
    images: int
    classes: list[OfClass] | None = None
    remarks: tuple[Diagnostic, ...] = ()


def evaluated(
    found: Found, *, where: str, at: Sequence[int] = (), top: Sequence[int] = (), per_class: bool = False
) -> Evaluated:
    """Measure a model that was found.

    Args:
        found: The model.
        where: It, for messages.
        at: In retrieval, at which ranks precision is measured beside 100.
        top: In classification, among how many first answers the class may be; () for what is usual.
        per_class: Whether each class is measured by itself.

    Raises:
        InputError: There is no data, or the task has no such metrics, or no classes.
    """
    if per_class:
        by_image.check_classes(found.task)
    dataset = finding.data_of(found, where=where)
    other = normalised.better(
        where, found.module, dataset, found.task, taken=found.preprocessing, entry=found.entry
    )  # fmt: skip
    remarks = found.remarks if other is None else (*found.remarks, other.remark)
    if not per_class:
        return Evaluated(*deploy.measured(found, where=where, at=at, top=top), remarks=remarks)
    kept = Tallying(found.task, len(dataset.classes))
    reached, images = deploy.measured(found, where=where, at=at, top=top, also=kept.add)
    with evaluating(found.module):
        made = kept.tally(found.module, dataset, view=found.view, entry=found.entry)
    return Evaluated(
        reached, images, None if made is None else by_image.by_class(made, found.task, dataset.classes), remarks
    )
