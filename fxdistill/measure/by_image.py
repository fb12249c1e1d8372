"""What a model reaches image by image, which the primary metric is made of, and class by class, which explains it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxdistill.data.dataset import Dataset
from fxdistill.errors import InputError
from fxdistill.measure.model import check_splits, evaluating, predictions
from fxdistill.preprocessing import PLAIN, View
from fxdistill.tasks import Task, labelled, no_images, no_labels, not_by_image
from fxdistill.tasks._tallies import Tally


@dataclass(frozen=True)
class OfClass:
    """What a model reaches on a class.

    Attributes:
        name: The class.
        count: How many images, or pixels, of the test split are of it.
        value: What is reached, as the task says (``of_class``); not a number where nothing tells of it.
    """

    name: str
    count: int
    value: float


class Tallying:
    """Takes in what a model says of a split, batch after batch; what is kept of it is on the CPU.

    Args:
        task: What is measured.
        classes: Number of classes.
    """

    def __init__(self, task: Task, classes: int) -> None:
        self.task, self.classes, self.images = task, classes, 0
        self._kept: list[tuple[Tensor, ...]] = []

    def add(self, output: Tensor, targets: Tensor) -> None:
        """Take in the predictions for a batch."""
        known = labelled(targets)
        self.images += len(targets)
        if bool(known.any()):
            kept = self.task.kept(output[known], targets[known], self.classes)
            self._kept.append(tuple(part.cpu() for part in kept))

    def tally(self, module: nn.Module, dataset: Dataset, *, view: View = PLAIN, entry: str = "") -> Tally | None:
        """All of it; the model reads the training split where the task compares with it. None without a label.

        Args:
            module: As for :func:`fxdistill.measure.model.predictions`.
            dataset: Whose test split was taken in.
            view: How the model looks at the images.
            entry: Which entry of a structured output is the prediction.
        """
        if not self._kept:
            return None

        def train() -> Iterator[tuple[Tensor, Tensor]]:
            return predictions(module, dataset.train, view=view, entry=entry)

        return self.task.tally([torch.cat(parts) for parts in zip(*self._kept, strict=True)], train)


def tally(module: nn.Module, dataset: Dataset, task: Task, *, view: View = PLAIN, entry: str = "") -> Tally:
    """What a model reaches on each test image that has a label; its modes are restored.

    Args:
        module: Takes images, gives a prediction.
        dataset: Its images are moved to the module's device.
        task: What is measured.
        view: How the model looks at the images.
        entry: Which entry of a structured output is the prediction.

    Raises:
        DataError: There are no images or no labels to measure by, or the task compares two splits and there is one.
        InputError: The task measures nothing image by image.
    """
    check_splits(dataset, task)
    found = Tallying(task, len(dataset.classes))
    with evaluating(module):
        for output, targets in predictions(module, dataset.test, view=view, entry=entry):
            found.add(output, targets)
        made = found.tally(module, dataset, view=view, entry=entry)
    if made is None:
        raise no_labels("test") if found.images else no_images("test")
    return made


def check_classes(task: Task) -> None:
    """Check that a task measures classes, and does so image by image.

    Raises:
        InputError: It does not.
    """
    if not task.of_class:
        raise InputError(
            f"this task ({task.summary}) has no classes to measure one by one", where="--per-class",
            hint="leave it out",
        )  # fmt: skip
    if not task.tells_images:
        raise not_by_image(task)


def by_class(found: Tally, task: Task, names: Sequence[str]) -> list[OfClass]:
    """What was reached on each class, in the order of their numbers.

    Args:
        found: What was reached image by image.
        task: What is measured.
        names: The classes.

    Raises:
        InputError: The task has no classes.
    """
    check_classes(task)
    values, counts = found.by_class(len(names))
    return [OfClass(*one) for one in zip(names, counts.tolist(), values.tolist(), strict=True)]
