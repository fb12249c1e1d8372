"""A data set: a training and a test split that go together and hold what a task wants, with their normalisation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fxdistill.errors import DataError
from fxdistill.tasks import Task, labelled

Device = torch.device | str
_MOST_CLASSES = 1 << 20
_CHUNK = 256
_CHUNK_VALUES = 1 << 26
_SAMPLE = 2048


class Images(Protocol):
    """Labelled images of one size, in memory (:class:`Split`) or on disk."""

    @property
    def labels(self) -> Tensor:
        """Targets (N, ...): int64 class numbers, an image or a pixel each, or float32 values."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""

    def __len__(self) -> int: ...

    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each batch of indices: (n, C, H, W), uint8 or float in 0 … 1."""

    def to(self, device: Device) -> "Images":
        """The images on a device, if they fit into memory; else as they are."""


@dataclass(frozen=True)
class Split:
    """Labelled images in memory.

    Attributes:
        images: (N, C, H, W), uint8 in 0 … 255 or float32 in 0 … 1.
        labels: (N, ...), int64 or float32.
    """

    images: Tensor
    labels: Tensor

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each batch of indices."""
        return (self.images[indices.to(self.images.device)] for indices in batches)

    def to(self, device: Device) -> "Split":
        """The split on a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Training and test images with what is needed to read them.

    Attributes:
        train: The training split.
        test: The test split.
        classes: Class names in label order; () where the task has none.
        mean: Mean of the training pixels per channel, pixels in 0 … 1.
        std: Their standard deviation; 1 for a channel that is constant.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.train.image_shape

    def to(self, device: Device) -> "Dataset":
        """The data on a device, as far as it fits into memory."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def checked(train: Images, test: Images, classes: Sequence[str] | None, *, where: str, task: Task) -> Dataset:
    """A data set of two splits that go together and hold what a task wants, with its normalisation measured.

    Args:
        train: The training split.
        test: The test split.
        classes: Class names; the labels' numbers where None. Ignored for a task that has no classes.
        where: The spec.
        task: What the data is for.

    Raises:
        DataError: They do not go together, one is malformed, or the task wants other targets.
    """
    train, test = (_whole(split, name, where, task) for split, name in ((train, "train"), (test, "test")))
    names = _names((train, test), classes, where, task) if task.has_classes else ()
    for split, name in ((train, "train"), (test, "test")):
        if bool(labelled(split.labels).any()) and (
            wrong := task.wrong_targets(split.labels, split.image_shape, len(names))
        ):
            raise _unusable(name, wrong, where, f"the task wants {task.summary}; give such data, or another task")
    for what, one, other in (
        ("images", train.image_shape, test.image_shape),
        ("labels", tuple(train.labels.shape[1:]), tuple(test.labels.shape[1:])),
    ):
        if one != other:
            raise DataError(f"training {what} are {one}, test {what} {other}", where=where, hint="make them the same")
    mean, std = measure(train)
    return Dataset(train, test, names, mean, std)


def _whole(split: Images, name: str, where: str, task: Task) -> Images:
    """The split with its labels in their type, if it is a split at all."""
    if isinstance(split, Split):
        images, labels = split.images, split.labels
        if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
            found = f"images are {images.dtype} of shape {tuple(images.shape)}"
            raise _unusable(name, found, where, "give uint8 or float, (N, C, H, W)")
        if labels.ndim == 0 or labels.is_complex():
            found = f"labels are {labels.dtype} of shape {tuple(labels.shape)}"
            raise _unusable(name, found, where, "give one label an image")
        if len(images) != len(labels):
            raise _unusable(name, f"{len(images)} images, {len(labels)} labels", where, "give one label an image")
        if images.dtype != torch.uint8 and not bool(torch.isfinite(images).all()):
            raise _unusable(name, "pixels are infinite or not a number", where, "clean the data")
        split = Split(images if images.dtype == torch.uint8 else images.float(), task.typed(labels))
    elif split.labels.dtype != (wanted := task.typed(split.labels[:0]).dtype):
        raise _unusable(name, f"labels are {split.labels.dtype}", where, f"give them as {wanted}")
    if not split.labels.numel() or not all(split.image_shape):
        raise _unusable(name, "it is empty", where, "check the data")
    return split


def _names(splits: Sequence[Images], classes: Sequence[str] | None, where: str, task: Task) -> tuple[str, ...]:
    """The names of the classes. Their number is bounded: a name is made for every label up to the highest."""
    if classes is not None:
        return tuple(classes)
    count = max(task.count_classes(split.labels) for split in splits)
    if count > _MOST_CLASSES:
        raise DataError(
            f"the label {count - 1} would be one of more than {_MOST_CLASSES:,} classes",
            where=where, hint="number the classes from 0 without gaps",
        )  # fmt: skip
    return tuple(str(label) for label in range(count))


def _unusable(name: str, what: str, where: str, hint: str) -> DataError:
    return DataError(f"the {name} split is not usable: {what}", where=where, hint=hint)


def measure(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels per channel, pixels in 0 … 1, to six places.

    Of images that are on disk, 2,048 evenly spaced ones are read.
    """
    count = len(images) if isinstance(images, Split) else min(len(images), _SAMPLE)
    chosen = torch.linspace(0, len(images) - 1, count, dtype=torch.float64).round().long()
    channels, height, width = images.image_shape
    chunk = max(1, min(_CHUNK, _CHUNK_VALUES // (channels * height * width)))
    total = torch.zeros(channels, dtype=torch.float64)
    squares, pixels = total.clone(), 0
    for part in images.read(torch.split(chosen, chunk)):
        values = part.to(torch.float64) / (255 if part.dtype == torch.uint8 else 1)
        total += values.sum(dim=(0, 2, 3)).cpu()
        squares += values.square().sum(dim=(0, 2, 3)).cpu()
        pixels += values.numel() // channels
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std < 1e-6, 1.0, std)
    return tuple(round(v, 6) for v in mean.tolist()), tuple(round(v, 6) for v in std.tolist())
