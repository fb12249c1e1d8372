"""What there is to say of a data set's labels: images that have none, classes that have no images."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from fxdistill.diagnostics import Diagnostic
from fxdistill.tasks import labelled


def of_labels(splits: Mapping[str, Tensor], classes: Sequence[str], where: str) -> Iterator[Diagnostic]:
    """A remark for each split in which images have no label, or, where each image has one class, classes no image.

    Args:
        splits: The labels (N, ...) of each split.
        classes: Their names; none for a task that has no classes.
        where: The spec.
    """
    for name, labels in splits.items():
        known = labelled(labels)
        if not bool(known.all()):
            yield Diagnostic(
                code="no-labels", severity="note", where=f"{where}, {name}",
                why=f"{int((~known).sum()):,} of {len(labels):,} images have no label: no metric and no loss that "
                "reads labels takes them in",
            )  # fmt: skip
        empty: list[str] = []
        if classes and labels.ndim == 1 and bool(known.any()):
            found = set(labels[known].tolist())
            empty = [each for number, each in enumerate(classes) if number not in found]
        if empty:
            some = ", ".join(empty[:3]) + (f" and {len(empty) - 3} more" if len(empty) > 3 else "")
            yield Diagnostic(
                code="empty-class", severity="warning" if name == "train" else "note", where=f"{where}, {name}",
                why=f"there are no images of the class{'es' if len(empty) > 1 else ''} {some}",
            )  # fmt: skip
