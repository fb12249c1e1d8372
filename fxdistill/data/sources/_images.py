"""Image files: decoded, and whole folders of them that are read as they are wanted."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fxdistill.data.dataset import Device, Images, Split
from fxdistill.data.decoding import opened
from fxdistill.data.workers import read_ahead
from fxdistill.errors import DataError

IN_MEMORY = 2 << 30
COLOURS = {1: "L", 3: "RGB"}
"""Pillow's modes by number of channels."""


def decoded(file: str | IO[bytes], *, name: str, where: str, hint: str, shape: Sequence[int] | None = None) -> Tensor:
    """An image file as a tensor (C, H, W), uint8, gray or in colours.

    Args:
        file: Its place or its bytes.
        name: What it is called in an error: ``the image``.
        where: What an error is about.
        hint: What to do about it.
        shape: Channels (1 or 3), height and width to bring it to: its largest middle part of the right proportions,
            resized. None for its own.

    Raises:
        DataError: It cannot be decoded.
    """
    try:
        image = opened(file)
        return pixels(image if shape is None else fitted(image, shape))
    except Exception as cause:  # Pillow's errors share no base class
        raise DataError(f"{name}: {cause or type(cause).__name__}", where=where, hint=hint) from cause


def fitted(image: Image.Image, shape: Sequence[int], *, nearest: bool = False) -> Image.Image:
    """An image brought to a shape: its largest middle part of the right proportions, resized.

    Args:
        image: Gray or in colours; or a map of numbers (mode I).
        shape: Channels (1 or 3), height and width.
        nearest: Whether it is such a map, whose values must not mix.
    """
    channels, height, width = shape
    if nearest:
        return ImageOps.fit(image, (width, height), Image.Resampling.NEAREST)
    return ImageOps.fit(image.convert(COLOURS[channels]), (width, height), Image.Resampling.BILINEAR)


def pixels(image: Image.Image) -> Tensor:
    """An image's pixels (C, H, W), uint8."""
    array = torch.from_numpy(np.array(image, dtype=np.uint8))
    return array.unsqueeze(0) if array.ndim == 2 else array.permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class Folder:
    """Labelled image files, cut to one shape and resized as they are read; too many to hold.

    Attributes:
        files: The files.
        labels: (N,).
        image_shape: Channels (1 or 3), height and width.
    """

    files: tuple[str, ...]
    labels: Tensor
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        """One image (C, H, W), uint8: the largest middle part of the right proportions, resized."""
        return decoded(
            self.files[index], name="the image cannot be read", where=self.files[index], hint="remove or replace it",
            shape=self.image_shape,
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
            return Split(torch.stack(list(pool.map(self.__getitem__, range(len(self))))), self.labels)
