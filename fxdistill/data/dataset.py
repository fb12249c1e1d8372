"""A data set: splits that go together and hold what a task wants, with their normalisation.

There is a training and a test split, and perhaps a validation split. Data that comes as **one** split is both at once:
it is there to measure on, or to be divided (:mod:`fxdistill.data.division`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fxdistill import classnames
from fxdistill.data.remarks import of_labels
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import DataError
from fxdistill.preprocessing import Preprocessing, Source, names_of
from fxdistill.tasks import Task, labelled

Device = torch.device | str
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""The splits, by what folders and factories call them."""
FORM = "give images uint8 or float, (N, C, H, W), and one label an image"
_CHUNK = 256
_CHUNK_VALUES = 1 << 26
_SAMPLE = 2048
_OVERSHOOT = 0.25


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

    def relabelled(self, labels: Tensor) -> "Images":
        """The same images with other targets."""

    def at(self, positions: Tensor) -> "Images":
        """Some of the images, by their positions."""


@dataclass(frozen=True)
class Split:
    """Labelled images in memory.

    Attributes:
        images: (N, C, H, W), uint8 in 0 … 255 or float32 in 0 … 1.
        labels: (N, ...), int64 or float32.
        files: Where each image was read from; () where it was no file.
    """

    images: Tensor
    labels: Tensor
    files: tuple[str, ...] = ()

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
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def relabelled(self, labels: Tensor) -> "Split":
        """The same images with other targets."""
        return replace(self, labels=labels)

    def at(self, positions: Tensor) -> "Split":
        """Some of the images."""
        files = tuple(self.files[position] for position in positions.tolist()) if self.files else ()
        return Split(self.images[positions], self.labels[positions], files)


@dataclass(frozen=True)
class Dataset:
    """Training and test images with what is needed to read them.

    Attributes:
        train: The training split.
        test: The test split; the training split itself where the data is one split.
        classes: Class names in label order; () where the task has none, or nothing has a label.
        mean: Mean of the training pixels per channel, pixels in 0 … 1.
        std: Their standard deviation; 1 for a channel that is constant.
        val: The validation split; None for none.
        remarks: What there is to say about how it was read.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    val: Images | None = None
    remarks: tuple[Diagnostic, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.train.image_shape

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that the data itself says: its size, the mean and deviation of its training pixels."""
        channels, height, width = self.image_shape
        return Preprocessing(
            size=[height, width], mean=list(self.mean), std=list(self.std), channels=names_of(channels),
            source=Source(geometry="the data", normalisation="the data"),
        )  # fmt: skip

    def to(self, device: Device) -> "Dataset":
        """The data on a device, as far as it fits into memory."""
        return self.each(lambda split: split.to(device))

    @property
    def is_one(self) -> bool:
        """Whether it is one split, to measure on or to be divided."""
        return self.train is self.test

    def split(self, name: str) -> Images:
        """``train``, ``val`` or ``test``; for ``val`` the test split where there is no other."""
        watched = self.test if self.val is None else self.val
        return {"train": self.train, "val": watched, "test": self.test}[name]

    def has_labels(self, name: str) -> bool:
        """Whether an image of a split has a label."""
        return bool(labelled(self.split(name).labels).any())

    def each(self, change: Callable[[Images], Images]) -> "Dataset":
        """The same with every split changed."""
        train = change(self.train)
        test = train if self.is_one else change(self.test)
        return replace(self, train=train, test=test, val=None if self.val is None else change(self.val))


def checked(
    train: Images, test: Images, classes: Sequence[str] | None, *, where: str, task: Task, val: Images | None = None,
    remarks: Sequence[Diagnostic] = (),
) -> Dataset:  # fmt: skip
    """A data set of splits that go together and hold what a task wants, with its normalisation measured.

    Args:
        train: The training split.
        test: The test split; the same object where the data is one split.
        classes: Class names; the labels' numbers where None. Ignored for a task that has no classes.
        where: The spec.
        task: What the data is for.
        val: The validation split, where there is one.
        remarks: What there is to say about how it was read.

    Raises:
        DataError: They do not go together, one is malformed, or the task wants other targets.
    """
    given = {"train": train} | ({} if test is train else {"test": test}) | ({} if val is None else {"val": val})
    splits = _alike({name: _whole(split, name, where, task) for name, split in given.items()}, task)
    names = _names(tuple(splits.values()), classes, where, task) if task.has_classes else ()
    for name, split in splits.items():
        known = bool(labelled(split.labels).any())
        if known and (wrong := task.wrong_targets(split.labels, split.image_shape, len(names))):
            give = f"the task wants {task.summary}; give such data" if task.supervised else "give such labels, or none"
            raise _unusable(name, wrong, where, f"{give}, or another task")
        for what, one, other in (
            ("images", splits["train"].image_shape, split.image_shape),
            ("labels", tuple(splits["train"].labels.shape[1:]), tuple(split.labels.shape[1:])),
        ):
            if one != other:
                why = f"training {what} are {one}, {name} {what} {other}"
                raise DataError(why, where=where, hint="make them the same")
    train = splits["train"]
    mean, std = measure(train)
    said = (*remarks, *of_labels({name: split.labels for name, split in splits.items()}, names, where))
    return Dataset(train, splits.get("test", train), names, mean, std, splits.get("val"), said)


def from_splits(
    parts: Mapping[str, Images], classes: Sequence[str] | None, *, where: str, task: Task,
    remarks: Sequence[Diagnostic] = (),
) -> Dataset:  # fmt: skip
    """A data set of the splits that somebody has, by their names ``train``, ``val`` and ``test``.

    Where there is train and val, val is the test split, and that is said. Train alone, or none, makes one split; of
    val and test without train, that is test, and that is said as well.

    Raises:
        DataError: As for :func:`checked`.
    """
    if not parts:
        raise DataError("there are no images", where=where, hint="check the path")
    train, test = (
        next(parts[name] for name in order if name in parts)
        for order in (("train", "test", "val"), ("test", "val", "train"))
    )
    said = [*remarks]
    if set(parts) == {"train", "val"}:
        said.append(
            Diagnostic(
                code="val-is-test", severity="note", where=where,
                why="there is train and val and no test: val is the test split, and nothing is chosen by it",
                hint="--val 0.1 sets images of train aside to watch the training by",
            )
        )  # fmt: skip
    if set(parts) == {"val", "test"}:
        said.append(
            Diagnostic(
                code="val-unread", severity="note", where=where,
                why="there is val and test and no train: test is read as one split, and val is not",
                hint="give the images of val alone to read those",
            )
        )  # fmt: skip
    val = parts.get("val") if {"train", "val", "test"} <= set(parts) else None
    return checked(train, test, classes, where=where, task=task, val=val, remarks=said)


def _alike(splits: dict[str, Images], task: Task) -> dict[str, Images]:
    """The splits, those without any label with targets of the shape that others have, or that the task wants."""
    known = {name: bool(labelled(split.labels).any()) for name, split in splits.items()}
    shapes = [tuple(splits[name].labels.shape[1:]) for name in splits if known[name]]

    def alike(name: str, split: Images) -> Images:
        if known[name]:
            return split
        shape = shapes[0] if shapes else split.image_shape[1:] if task.moves_targets else ()
        return split.relabelled(torch.tensor(task.no_label).expand(len(split), *shape))

    return {name: alike(name, split) for name, split in splits.items()}


def _whole(split: Images, name: str, where: str, task: Task) -> Images:
    """The split with its labels in their type, if it is a split at all."""
    if isinstance(split, Split):
        images, labels = split.images, split.labels
        if wrong := malformed(split):
            raise _unusable(name, wrong, where, FORM)
        if images.dtype != torch.uint8 and (wrong := wrong_pixels(images)):
            raise _unusable(name, wrong, where, "give them in 0 … 1: normalising is the model's preprocessing")
        images = images if images.dtype == torch.uint8 else images.float()
        split = replace(split, images=images, labels=task.typed(labels))
    elif split.labels.dtype != (wanted := task.typed(split.labels[:0]).dtype):
        raise _unusable(name, f"labels are {split.labels.dtype}", where, f"give them as {wanted}")
    if not split.labels.numel() or not all(split.image_shape):
        raise _unusable(name, "it is empty", where, "check the data")
    return split


def malformed(split: Split) -> str:
    """What is wrong with the form of images in memory and their labels; '' where nothing is."""
    images, labels = split.images, split.labels
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        return f"images are {images.dtype} of shape {tuple(images.shape)}"
    if labels.ndim == 0 or labels.is_complex():
        return f"labels are {labels.dtype} of shape {tuple(labels.shape)}"
    return "" if len(images) == len(labels) else f"{len(images)} images, {len(labels)} labels"


def wrong_pixels(images: Tensor) -> str:
    """What is wrong with pixels that are no whole numbers; '' where they lie in 0 … 1, or little beside it.

    Resizing overshoots a little; what was normalised already lies far outside.
    """
    if not images.numel():
        return ""
    lowest, highest = float(images.min()), float(images.max())
    if not math.isfinite(lowest + highest):
        return "pixels are infinite or not a number"
    inside = lowest >= -_OVERSHOOT and highest <= 1 + _OVERSHOOT
    return "" if inside else f"pixels lie in {lowest:g} … {highest:g}"


def check_labels(labels: Tensor, *, where: str, task: Task) -> None:
    """Check that a file's class numbers are within all bounds, before memory is taken by their values.

    Raises:
        DataError: One is not.
    """
    if not task.has_classes or not labels.numel() or labels.is_complex():
        return
    count = task.count_classes(torch.nan_to_num(task.typed(labels), nan=0.0))
    if count > classnames.MOST:
        raise DataError(
            f"the label {count - 1} would be one of more than {classnames.MOST:,} classes",
            where=where, hint="number the classes from 0 without gaps",
        )  # fmt: skip


def _names(splits: Sequence[Images], classes: Sequence[str] | None, where: str, task: Task) -> tuple[str, ...]:
    """The names of the classes, theirs or their numbers."""
    if classes is None:
        for split in splits:
            check_labels(split.labels, where=where, task=task)
        known = (torch.nan_to_num(split.labels, nan=0.0) for split in splits)
        return tuple(map(str, range(max(task.count_classes(labels) for labels in known))))
    if wrong := classnames.wrong(classes):
        raise DataError(wrong, where=f"{where}, classes", hint="give every class a name of its own")
    return tuple(classes)


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
