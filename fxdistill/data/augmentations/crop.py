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
    offsets = draws.below(2 * padding + 1, 2).T[:, :, None]

    def crop(values: Tensor, fill: float = 0) -> Tensor:
        device = values.device
        padded = F.pad(values.reshape(len(values), -1, height, width), [padding] * 4, value=fill)
        rows, columns = (
            place + torch.arange(size, device=device)
            for place, size in zip(offsets.to(device), (height, width), strict=True)
        )
        image, channel = (torch.arange(count, device=device) for count in padded.shape[:2])
        index = image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
        return padded[index].reshape(values.shape)

    return crop


AUGMENTATION = Augmentation(draw=draw, moves_pixels=True, arguments=CropArguments)
