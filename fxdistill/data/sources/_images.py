"""Image files: decoded, and whole folders of them that are read as they are wanted."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from fxdistill.data.dataset import Device, Images, Split
from fxdistill.data.decoding import check_size, opened
from fxdistill.data.workers import read_ahead
from fxdistill.errors import DataError
from fxdistill.preprocessing import Reading
from fxdistill.tasks import NO_LABEL

IN_MEMORY = 2 << 30
COLOURS = {1: "L", 3: "RGB"}
"""Pillow's modes by number of channels."""


def decoded(file: str | IO[bytes], *, name: str, where: str, hint: str, reading: Reading | None = None) -> Tensor:
    """An image file as a tensor (C, H, W), uint8, gray or in colours.

    Args:
        file: Its place or its bytes.
        name: What it is called in an error: ``the image``.
        where: What an error is about.
        hint: What to do about it.
        reading: How it is brought to a size; None for its own.

    Raises:
        DataError: It cannot be decoded.
    """
    try:
        image = opened(file)
        return pixels(image if reading is None else fitted(image, reading))
    except Exception as cause:  # Pillow's errors share no base class
        raise DataError(f"{name}: {cause or type(cause).__name__}", where=where, hint=hint) from cause


def fitted(image: Image.Image, reading: Reading, *, nearest: bool = False) -> Image.Image:
    """An image as a model reads it, to the pixel as torchvision's presets and timm's transforms give it.

    ``crop`` with equal sides is ``Resize(side), CenterCrop(size)``, with others timm's ``ResizeKeepRatio``; ``squash``
    is ``Resize((height, width))``; ``pad`` is timm's mode ``border``.

    Args:
        image: Gray or in colours; or a map of numbers (mode I).
        reading: How it is read.
        nearest: Whether it is such a map, whose values must not mix.
    """
    if not nearest and image.mode != COLOURS[reading.channels]:
        image = image.convert(COLOURS[reading.channels])
    how = InterpolationMode("nearest" if nearest else reading.interpolation)
    if reading.fit == "squash":
        target = list(reading.resize)
    elif reading.fit == "crop" and reading.resize[0] == reading.resize[1]:
        target = [reading.resize[0]]
    else:
        ratios = [side / wanted for side, wanted in zip((image.height, image.width), reading.resize, strict=True)]
        ratio = max(ratios) if reading.fit == "pad" else min(ratios)
        target = [round(side / ratio) for side in (image.height, image.width)]
    sides = (image.height, image.width)
    check_size(*(target if len(target) > 1 else (target[0], target[0] * max(sides) / max(1, min(sides)))))
    resized: Image.Image = transforms.resize(image, target, how)
    if nearest or reading.fit == "pad":
        resized = _padded(resized, reading)
    found: Image.Image = transforms.center_crop(resized, list(reading.size))
    return found


def _padded(image: Image.Image, reading: Reading) -> Image.Image:
    """The image on a ground of the mean that is nowhere smaller than what is read."""
    height, width = (max(own, wanted) for own, wanted in zip((image.height, image.width), reading.size, strict=True))
    fill = reading.fill or (0,) * reading.channels
    ground = Image.new(image.mode, (width, height), NO_LABEL if image.mode == "I" else fill if fill[1:] else fill[0])
    ground.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return ground


def pixels(image: Image.Image) -> Tensor:
    """An image's pixels (C, H, W), uint8."""
    array = torch.from_numpy(np.array(image, dtype=np.uint8))
    return array.unsqueeze(0) if array.ndim == 2 else array.permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class Folder:
    """Labelled image files, resized and cut to one shape as they are read; too many to hold.

    Attributes:
        files: The files.
        labels: (N,).
        reading: How they are brought to one size.
    """

    files: tuple[str, ...]
    labels: Tensor
    reading: Reading

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.reading.shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        """One image (C, H, W), uint8."""
        return decoded(
            self.files[index], name="the image cannot be read", where=self.files[index], hint="remove or replace it",
            reading=self.reading,
        )  # fmt: skip

    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each batch of indices, read ahead by worker processes."""
        return read_ahead(self, batches)

    def to(self, device: Device) -> "Folder":  # noqa: ARG002 - the other kind of images moves
        """The folder as it is."""
        return self

    def relabelled(self, labels: Tensor) -> "Folder":
        """The same files with other targets."""
        return replace(self, labels=labels)

    def at(self, positions: Tensor) -> "Folder":
        """Some of the files."""
        files = tuple(self.files[position] for position in positions.tolist())
        return replace(self, files=files, labels=self.labels[positions])

    def in_memory(self) -> Images:
        """All images read, if they take less than 2 GiB; else the folder as it is."""
        if len(self) * int(np.prod(self.image_shape)) > IN_MEMORY:
            return self
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = torch.stack(list(pool.map(self.__getitem__, range(len(self)))))
        return Split(images, self.labels, self.files)
