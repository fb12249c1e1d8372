"""``crop:PADDING`` shifts each image by up to PADDING pixels either way, along both axes; what comes in is black.

It is a random crop of the image's own size from the image with PADDING pixels around it.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from pydantic import Field
from torch import Tensor

from fxdistill.arguments import Arguments
from fxdistill.data.augmentations import Augmentation, Change
from fxdistill.data.augmentations._draws import Draws
from fxdistill.errors import DataError


class CropArguments(Arguments):
    """``padding``: pixels, less than an image is high and wide."""

    padding: Annotated[int, Field(gt=0, lt=1 << 16)]


def draw(shape: Sequence[int], draws: Draws, arguments: CropArguments) -> Change:
    """One place an image."""
    padding, height, width = arguments.padding, shape[-2], shape[-1]
    if padding >= min(height, width):
        raise DataError(
            f"crop:{padding} can shift images of {height}x{width} pixels out of sight",
            where="data.augmentation", hint=f"use crop:1 to crop:{min(height, width) - 1}, or leave it out"
            if min(height, width) > 1 else "leave it out",
        )  # fmt: skip
    rows, columns = draws.below(2 * padding + 1, 2).T

    def crop(values: Tensor, fill: float = 0) -> Tensor:
        padded = F.pad(values.reshape(len(values), -1, height, width), [padding] * 4, value=fill)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (N, C, places, places, height, width)
        image, row, column = (each.to(values.device) for each in (torch.arange(len(values)), rows, columns))
        return windows[image, :, row, column].reshape(values.shape)

    return crop


AUGMENTATION = Augmentation(draw=draw, moves_pixels=True, arguments=CropArguments)
