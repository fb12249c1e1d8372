"""Two models on the same images: how far apart their metrics are, how often they agree, where they differ most."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fxdistill.data.dataset import Dataset
from fxdistill.errors import DataError, line
from fxdistill.measure.agreeing import Agreeing
from fxdistill.measure.by_image import Tallying
from fxdistill.measure.model import evaluating, predictions
from fxdistill.measure.paired import Paired, paired
from fxdistill.preprocessing import PLAIN, View
from fxdistill.tasks import NO_LABEL, Task, labelled, no_images
from fxdistill.tasks._tallies import Tally


@dataclass(frozen=True)
class Looking:
    """A model and how it looks at images.

    Attributes:
        module: Takes images, gives a prediction.
        dataset: The data as it reads it.
        view: How it looks at its images.
        entry: Which entry of a structured output is the prediction.
    """

    module: nn.Module
    dataset: Dataset
    view: View = PLAIN
    entry: str = ""

    def says(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """What it says of the test images, batch after batch, and their targets."""
        images = self.dataset.test
        return predictions(self.module, images, view=self.view, batch_size=batch_size, entry=self.entry)


@dataclass(frozen=True)
class Changed:
    """What both models reach on a class.

    Attributes:
        name: The class.
        count: How many test images, or pixels, are of it.
        values: What is reached; not a number where nothing tells of it.
    """

    name: str
    count: int
    values: tuple[float, float]

    @property
    def difference(self) -> float:
        """The second minus the first."""
        return self.values[1] - self.values[0]


@dataclass(frozen=True)
class Apart:
    """An image of which two models say different things.

    Attributes:
        index: Its number in the test split.
        file: Where it lies, as a line that can be printed; '' where it is no file.
        label: Its class; '' where it has none.
        says: What both say, where that is a class.
        distance: How far apart they are, as the task measures it.
    """

    index: int
    file: str
    label: str
    says: tuple[str, str] | None
    distance: float


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images.

    Attributes:
        images: How many.
        labelled: How many of them have a label.
        difference: Of the primary metric; None where it was not measured.
        unmeasured: Why that and the classes were not; '' where they were.
        agreement: Share of what they say that is the same, as the task counts it; None where that is numbers.
        distance: How far apart they are on the mean.
        classes: What changes, the largest difference first; empty where the task has no classes.
        widest: Where they differ most, the widest first: before all others the images that they give other classes.
    """

    images: int
    labelled: int
    difference: Paired | None
    agreement: float | None
    distance: float
    classes: list[Changed] = field(default_factory=list)
    widest: list[Apart] = field(default_factory=list)
    unmeasured: str = ""


def compared(first: Looking, second: Looking, task: Task, *, most: int = 10, batch_size: int = 128) -> Comparison:
    """Compare two models on the test images of their data, which they may read in two sizes; their modes are restored.

    Args:
        first: The one that the other is held against.
        second: The other.
        task: What their predictions are.
        most: How many of the images to name on which they differ most.
        batch_size: Images at once.

    Raises:
        DataError: There are no images, or they are not the same ones.
    """
    _same_images(first.dataset, second.dataset)
    both, names = (first, second), first.dataset.classes
    tallying = [Tallying(task, len(names)) for _ in both]
    unmeasured = _unmeasured(first.dataset, task)
    chooses = _chooses(task)
    agreeing, said = Agreeing(task, apart=True), list[Tensor]()
    with contextlib.ExitStack() as modes:
        for one in both:
            modes.enter_context(evaluating(one.module))
        for (ours, targets), (theirs, _) in zip(*(one.says(batch_size) for one in both), strict=True):
            ours, theirs = ours.cpu(), theirs.cpu()  # noqa: PLW2901
            for each, output in zip(tallying, (ours, theirs), strict=True) if not unmeasured else ():
                each.add(output, targets.cpu())
            agreeing.add(ours, theirs)
            if chooses:
                chosen = torch.stack([task.says(output) for output in (ours, theirs)])
                chooses = chosen.shape == (2, len(ours)) and not chosen.is_floating_point()  # a class of each image
                said.append(chosen)
        if not agreeing.images:
            raise no_images("test")
        tallies = [
            each.tally(one.module, one.dataset, view=one.view, entry=one.entry)
            for each, one in zip(tallying, both, strict=True)
        ]
    apart = agreeing.distances()
    widest = _widest(apart, torch.cat(said, 1) if chooses else None, first.dataset, task, most)
    known = int(labelled(first.dataset.test.labels).sum())
    found = Comparison(len(apart), known, None, agreeing.found().share, float(apart.mean()), [], widest, unmeasured)
    own, other = tallies
    if own is None or other is None:
        return found
    return replace(found, difference=paired(own, other), classes=_changed(own, other, task, names))


def _unmeasured(dataset: Dataset, task: Task) -> str:
    """Why nothing can be measured on the images, image by image; '' where it can."""
    if not dataset.has_labels("test"):
        return "the images have no labels"
    if task.ranks_train and dataset.is_one:
        return "the task compares them with training images, and the data is one split"
    return "" if task.tells_images else "the task does not say what a model reaches image by image"


def _same_images(first: Dataset, second: Dataset) -> None:
    one, other = (data.test.labels.nan_to_num(nan=-1) for data in (first, second))
    files = [[Path(file).name for file in getattr(data.test, "files", ())] for data in (first, second)]
    if files[0] != files[1] or one.shape != other.shape or not torch.equal(one, other):
        raise DataError(
            f"they would be compared on other images: {len(one):,} and {len(other):,}, or with other labels or files",
            where="the test split", hint="name the same data for both: --data SPEC",
        )  # fmt: skip
    if first.classes != second.classes:
        raise DataError(
            "the classes of their data have other names", where="the test split",
            hint="name the same data for both: --data SPEC",
        )  # fmt: skip


def _chooses(task: Task) -> bool:
    """Whether what a model says of an image is a class."""
    return (
        task.has_classes
        and task.has_predictions
        and not (task.embeds or task.moves_targets or task.no_label != NO_LABEL)
    )


def _changed(first: Tally, second: Tally, task: Task, names: tuple[str, ...]) -> list[Changed]:
    """The classes, those first that change most; those that nothing tells of last."""
    if not task.of_class:
        return []
    (own, counts), (other, _) = (one.by_class(len(names)) for one in (first, second))
    rows = zip(names, counts.tolist(), own.tolist(), other.tolist(), strict=True)
    changed = [Changed(name, count, (one, two)) for name, count, one, two in rows]
    return sorted(changed, key=lambda one: -abs(one.difference) if one.difference == one.difference else 1)


def _widest(apart: Tensor, says: Tensor | None, dataset: Dataset, task: Task, most: int) -> list[Apart]:
    files, labels = getattr(dataset.test, "files", ()), dataset.test.labels
    names = dict(enumerate(dataset.classes))  # none of images without labels
    found, ranks = [], apart if says is None else apart + (says[0] != says[1]) * (1 + apart.max())
    for index in ranks.argsort(descending=True, stable=True)[:most].tolist():
        if not float(apart[index]):
            break
        number = int(labels[index]) if task.has_classes and labels.ndim == 1 else NO_LABEL
        found.append(
            Apart(
                index, line(files[index]) if files else "", "" if number == NO_LABEL else names[number],
                None if says is None else (_named(names, says[0, index]), _named(names, says[1, index])),
                float(apart[index]),
            )
        )  # fmt: skip
    return found


def _named(names: Mapping[int, str], said: Tensor) -> str:
    return names.get(int(said), str(int(said)))
