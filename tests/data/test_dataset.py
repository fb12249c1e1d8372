"""Data sets: splits that go together and hold what a task wants."""

import time
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from fxdistill.data import dataset
from fxdistill.data.dataset import Images, Split, checked, measure
from fxdistill.errors import DataError
from fxdistill.tasks import TASKS

IMAGES = torch.zeros(4, 1, 2, 3, dtype=torch.uint8)
CLASSES, VALUES, MAPS = torch.tensor([0, 2, 1, 0]), torch.rand(4), torch.zeros(4, 2, 3, dtype=torch.uint8)


def made(
    labels: Tensor, task: str, test: Tensor | None = None, classes: Sequence[str] | None = None
) -> dataset.Dataset:
    splits = Split(IMAGES, labels), Split(IMAGES, labels if test is None else test)
    return checked(*splits, classes, where="here", task=TASKS.get(task))


@pytest.mark.parametrize(
    ("task", "labels", "dtype", "classes"),
    [
        ("classification", CLASSES, torch.int64, ("0", "1", "2")),
        ("classification", CLASSES.to(torch.uint16), torch.int64, ("0", "1", "2")),
        ("classification", CLASSES > 0, torch.int64, ("0", "1")),
        ("retrieval", CLASSES, torch.int64, ("0", "1", "2")),
        ("segmentation", MAPS, torch.int64, ("0",)),
        ("segmentation", MAPS.long().fill_(3).index_fill(1, torch.tensor(0), -100), torch.int64, tuple("0123")),
        ("regression", VALUES, torch.float32, ()),
        ("regression", VALUES.double().expand(2, 4).T, torch.float32, ()),
        ("regression", CLASSES, torch.float32, ()),
    ],
)
def test_what_each_task_takes(task: str, labels: Tensor, dtype: torch.dtype, classes: tuple[str, ...]) -> None:
    found = made(labels, task)
    assert found.train.labels.dtype == dtype
    assert torch.equal(found.train.labels, labels.to(dtype))
    assert found.classes == classes


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("classification", MAPS, "one whole number an image"),
        ("classification", VALUES, "one whole number an image"),
        ("retrieval", CLASSES - 2, "the label -2 is negative"),
        ("features", VALUES, "one whole number an image"),
        ("segmentation", CLASSES, r"one whole number a pixel, \(4, 2, 3\)"),
        ("segmentation", MAPS.transpose(1, 2), "one whole number a pixel"),
        ("segmentation", MAPS.float(), "one whole number a pixel"),
        ("segmentation", MAPS.long() - 2, "the label -2 is negative"),
        ("segmentation", MAPS.long() + 2**40, "more than 1,048,576 classes"),
        ("regression", MAPS, r"give numbers, \(images,\) or \(images, K\)"),
        ("regression", VALUES / 0, "infinite or not a number"),
        ("regression", torch.full((4,), 1e300, dtype=torch.float64), "infinite or not a number"),
        ("regression", VALUES[:, None][:, :0], "it is empty"),
    ],
)
def test_what_a_task_does_not_take(task: str, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        made(labels, task)
    assert caught.value.where == "here"
    assert ("give such labels, or none" in caught.value.hint) == (task in ("retrieval", "features"))


def test_splits_go_together() -> None:
    with pytest.raises(DataError, match=r"training labels are \(\), test labels \(2,\)"):
        made(VALUES, "regression", VALUES.expand(2, 4).T)
    with pytest.raises(DataError, match="the test split is not usable: the label 2 has no name; there are 2 classes"):
        made(CLASSES.clamp(max=1), "classification", CLASSES, ["a", "b"])
    assert made(CLASSES.clamp(max=1), "classification", CLASSES).classes == ("0", "1", "2")


def test_a_label_does_not_cost_memory() -> None:
    started = time.monotonic()
    for highest in (2**62, 2**30):
        with pytest.raises(DataError, match=f"the label {highest} would be one of more than 1,048,576 classes"):
            made(torch.tensor([0, 1, 2, highest]), "classification")
    assert time.monotonic() - started < 1


class Lazy:
    """A user's own images; says how many are read at once."""

    image_shape = (2, 1024, 1024)

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels
        self.most = 0

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            self.most = max(self.most, len(batch))
            yield torch.zeros(1, 2, 2, 2, dtype=torch.uint8)

    def to(self, device: dataset.Device) -> Images:
        return self

    def relabelled(self, labels: Tensor) -> Images:
        return Lazy(labels)

    def at(self, positions: Tensor) -> Images:
        return Lazy(self.labels[positions])


def test_images_of_ones_own_have_labels_of_the_right_type() -> None:
    for task, labels in (("classification", CLASSES), ("regression", VALUES)):
        own = Lazy(labels)
        assert checked(own, own, None, where="", task=TASKS.get(task)).train is own
        with pytest.raises(DataError, match="give them as torch"):
            checked(Lazy(labels.double()), Lazy(labels.double()), None, where="", task=TASKS.get(task))


def test_large_images_are_measured_a_few_at_a_time() -> None:
    own = Lazy(torch.zeros(300).long())
    measure(own)
    assert own.most == 32


def test_a_constant_channel_is_left_in_place() -> None:
    constant = Split(torch.full((3, 1, 2, 2), 51, dtype=torch.uint8), torch.zeros(3).long())
    assert measure(constant) == ((0.2,), (1.0,))
