"""Data: from a spec to normalised batches on a device.

Data that fits is a tensor on the device, augmented there; larger image folders are read by a ``DataLoader``.
**Order and augmentation are a pure function of (seed, epoch, step)**, each drawn from a generator of its own
and never from the global state. A run that resumes at any step sees bit for bit what an undisturbed run would
have seen.

    batch(seed, epoch, step) = normalise(augment(images[permutation(seed, epoch)[step]], seed, epoch, step))
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fxdistill.errors import DataError
from fxdistill.plan.schema import DataPlan

Device = torch.device | str
_CHUNK = 256
_SAMPLE = 2048
_ORDER = -1  # takes the place of a step in the seed of an epoch's order


class Images(Protocol):
    """Labelled images of one size, in memory (:class:`Split`) or on disk."""

    @property
    def labels(self) -> Tensor:
        """Labels (N,), int64."""

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
        labels: (N,), int64.
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
        classes: Class names in label order.
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


def load(data: DataPlan | str, *, input_shape: Sequence[int] | None = None, allow: Sequence[str] = ()) -> Dataset:
    """Load what a spec or a plan names.

    Args:
        data: A spec, or the data of a plan, whose normalisation is then taken and whose classes are checked.
        input_shape: Shape of one input batch (N, C, H, W), to which an image folder is resized.
        allow: Modules whose factories may be called.

    Raises:
        DataError: The spec is unknown, the data is missing or damaged, or is not what the plan says.
    """
    from fxdistill.data import reading as sources  # noqa: PLC0415 - which needs the classes of this module

    if isinstance(data, str):
        return sources.read(data, input_shape=input_shape, allow=allow)
    if data.spec is None:
        raise DataError(
            "the plan names no data, so it cannot be run",
            where="data.spec",
            hint="plan again with --data SPEC",
        )
    found = sources.read(data.spec, input_shape=input_shape, allow=allow)
    augmentations(data.augmentation)
    if data.classes and tuple(data.classes) != found.classes:
        raise DataError(
            f"the plan has {len(data.classes)} classes, the data {len(found.classes)}, or their names differ",
            where=f"data.classes and {data.spec}", hint="plan again with this data",
        )  # fmt: skip
    if not data.mean and not data.std:
        return found
    channels = found.image_shape[0]
    if len(data.mean) != channels or len(data.std) != channels:
        raise DataError(
            f"the plan normalises {len(data.mean)} and {len(data.std)} channels; the images have {channels}",
            where="data.mean, data.std", hint="give one number a channel",
        )  # fmt: skip
    return replace(found, mean=tuple(data.mean), std=tuple(data.std))


def defaults(
    spec: str,
    *,
    dataset: Dataset | None = None,
    batch_size: int = 128,
    input_shape: Sequence[int] | None = None,
    allow: Sequence[str] = (),
) -> DataPlan:
    """The data of a plan, with every default spelled out.

    Args:
        spec: The data spec.
        dataset: What it stands for, where that is loaded already.
        batch_size: Images a training step.
        input_shape: As for :func:`load`.
        allow: As for :func:`load`.

    Raises:
        DataError: As for :func:`load`.
    """
    found = dataset if dataset is not None else load(spec, input_shape=input_shape, allow=allow)
    kind = spec.partition(":")[0]
    usual = {"cifar10": ["flip", "crop:4"], "cifar100": ["flip", "crop:4"], "fashion-mnist": ["flip"]}
    usual["imagefolder"] = ["flip"]
    if kind == "npz" and found.image_shape[1:] == (32, 32):
        usual["npz"] = ["flip", "crop:4"]
    return DataPlan(
        spec=spec, batch_size=batch_size, augmentation=usual.get(kind, []),
        mean=list(found.mean), std=list(found.std), classes=list(found.classes),
    )  # fmt: skip


def check_input(dataset: Dataset, input_shape: Sequence[int]) -> None:
    """Check that the images are what the models read.

    Raises:
        DataError: Channels or size differ.
    """
    expected = tuple(input_shape[1:])
    if expected != dataset.image_shape:
        have, want = ("x".join(map(str, shape)) for shape in (dataset.image_shape, expected))
        raise DataError(
            f"the images are {have} (channels x height x width), the models read {want}",
            where="input.shape", hint=f"plan with --input 1x{have}, or use other data",
        )  # fmt: skip


def steps_per_epoch(split: Images, batch_size: int, *, shuffle: bool = True) -> int:
    """Batches an epoch; in training one image left over is dropped, for BatchNorm cannot be trained on it."""
    whole, rest = divmod(len(split), batch_size)
    return whole + int(rest > 1 or (rest == 1 and (whole == 0 or not shuffle)))


def batches(
    split: Images,
    batch_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
    shuffle: bool = False,
    augment: Sequence[str] = (),
    device: Device = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch from a step on; see the module docstring for what they depend on.

    Args:
        split: The images.
        batch_size: Images a batch; the last one may be smaller.
        mean: Subtracted per channel, pixels in 0 … 1.
        std: Divided by, per channel.
        seed: Seed of the run.
        epoch: Number of the epoch.
        start: The first step to give.
        shuffle: Whether the order is a permutation drawn for the epoch.
        augment: Names of augmentations, applied in order.
        device: Where the batches are wanted.

    Yields:
        Images (n, C, H, W), float32, normalised; labels (n,), int64.

    Raises:
        DataError: An augmentation is unknown.
    """
    chain = augmentations(augment)
    steps = steps_per_epoch(split, batch_size, shuffle=shuffle)
    order = torch.arange(len(split))
    if shuffle:
        order = torch.randperm(len(split), generator=_generator(seed, epoch, _ORDER))
    indices = [order[step * batch_size : (step + 1) * batch_size] for step in range(start, steps)]
    norm = tuple(torch.tensor(v, dtype=torch.float32, device=device)[:, None, None] for v in (mean, std))

    def produce() -> Iterator[tuple[Tensor, Tensor]]:
        for step, (chosen, images) in enumerate(zip(indices, split.read(indices), strict=True), start=start):
            x = images.to(device, non_blocking=True)
            generator = _generator(seed, epoch, step)
            for augmentation in chain:
                x = augmentation(x, generator)
            x = x.to(torch.float32).div(255) if x.dtype == torch.uint8 else x.to(torch.float32)
            labels = split.labels[chosen.to(split.labels.device)].to(device, non_blocking=True)
            yield x.sub(norm[0]).div(norm[1]), labels

    return produce()


def first_batch(dataset: Dataset, size: int = 128) -> tuple[Tensor, Tensor]:
    """Normalised training images (size, C, H, W) and their labels (size,), shuffled under seed 0."""
    return next(batches(dataset.train, size, mean=dataset.mean, std=dataset.std, shuffle=True))


Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def augmentations(names: Sequence[str]) -> list[Augmentation]:
    """The augmentations with these names.

    ``flip`` mirrors each image left to right with probability one half. ``crop:PADDING`` shifts each image by
    up to PADDING pixels either way, along both axes; what comes in is black.

    Raises:
        DataError: A name is unknown.
    """
    return [_augmentation(name) for name in names]


def _augmentation(name: str) -> Augmentation:
    kind, _, argument = name.partition(":")
    if name == "flip":
        return _flip
    if kind == "crop" and argument.isdecimal() and int(argument) > 0:
        return lambda images, generator: _crop(images, generator, int(argument))
    raise DataError(
        f"the augmentation '{name}' is unknown",
        where="data.augmentation",
        hint="use flip, or crop:PADDING (crop:4)",
    )


def _flip(images: Tensor, generator: torch.Generator) -> Tensor:
    mirrored = torch.rand(len(images), generator=generator).lt(0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def _crop(images: Tensor, generator: torch.Generator, padding: int) -> Tensor:
    count, channels, height, width = images.shape
    offsets = torch.randint(2 * padding + 1, (2, count, 1), generator=generator).to(images.device)
    device = images.device
    rows = offsets[0] + torch.arange(height, device=device)
    columns = offsets[1] + torch.arange(width, device=device)
    padded = F.pad(images, [padding] * 4)
    image, channel = torch.arange(count, device=device), torch.arange(channels, device=device)
    return padded[image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def measure(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels per channel, pixels in 0 … 1, to six places.

    Of images that are on disk, 2,048 evenly spaced ones are read.
    """
    count = len(images) if isinstance(images, Split) else min(len(images), _SAMPLE)
    chosen = torch.linspace(0, len(images) - 1, count, dtype=torch.float64).round().long()
    total = torch.zeros(images.image_shape[0], dtype=torch.float64)
    squares, pixels = total.clone(), 0
    for chunk in images.read(torch.split(chosen, _CHUNK)):
        values = chunk.to(torch.float64) / (255 if chunk.dtype == torch.uint8 else 1)
        total += values.sum(dim=(0, 2, 3)).cpu()
        squares += values.square().sum(dim=(0, 2, 3)).cpu()
        pixels += values.numel() // len(total)
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std < 1e-6, 1.0, std)
    return tuple(round(v, 6) for v in mean.tolist()), tuple(round(v, 6) for v in std.tolist())


def _generator(seed: int, epoch: int, step: int) -> torch.Generator:
    """A generator for one place in a run; hashed, so that neighbours share nothing."""
    digest = hashlib.sha256(f"{seed},{epoch},{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
