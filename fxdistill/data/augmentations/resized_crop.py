"""``resized-crop:SCALE`` cuts a part out of each image, of SCALE to all of its area, and resizes it to the whole.

The part's area and its aspect ratio (3/4 to 4/3) are drawn as ``torchvision.transforms.v2.RandomResizedCrop`` draws
them (Szegedy et al., 2015): ten tries, and where none lies inside the image the largest part of such a ratio in the
middle. Images (N, C, H, W) are resized bilinearly; maps (N, H, W) take the nearest value.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from pydantic import Field
from torch import Tensor

from fxdistill.arguments import Arguments
from fxdistill.data.augmentations import Augmentation, Change
from fxdistill.data.augmentations._draws import Draws

_RATIO = (3 / 4, 4 / 3)
_TRIES = 10


class ResizedCropArguments(Arguments):
    """``scale``: the smallest part, as a share of the area."""

    scale: Annotated[float, Field(gt=0, le=1)] = 0.08


def boxes(draws: Draws, height: int, width: int, scale: float) -> tuple[Tensor, Tensor]:
    """First pixel and size of each image's part along both axes: (N, 2) each, whole numbers as float64."""
    area, ratio = draws.uniform(2 * _TRIES).split(_TRIES, dim=1)
    area = (scale + (1 - scale) * area) * height * width
    ratio = torch.exp(math.log(_RATIO[0]) + ratio * math.log(_RATIO[1] / _RATIO[0]))
    sizes = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], dim=-1).round()
    whole = torch.tensor([height, width], dtype=torch.float64)
    fits = ((sizes >= 1) & (sizes <= whole)).all(-1)
    middle = torch.tensor(_largest(height, width), dtype=torch.float64).expand(len(sizes), 2)
    found = fits.any(1)[:, None]
    size = torch.where(found, sizes[torch.arange(len(sizes)), fits.int().argmax(1)], middle)
    place = (draws.uniform(2) * (whole - size + 1)).floor()
    return torch.where(found, place, ((whole - size) / 2).floor()), size


def _largest(height: int, width: int) -> tuple[int, int]:
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    return (height, round(height * ratio)) if width / height > ratio else (round(width / ratio), width)


def draw(shape: Sequence[int], draws: Draws, arguments: ResizedCropArguments) -> Change:
    """One part an image."""
    height, width = shape[-2:]
    place, size = boxes(draws, height, width, arguments.scale)
    extents = torch.tensor([height, width], dtype=torch.float64)

    def centres(axis: int) -> Tensor:
        """Where each pixel's centre lies in the image, in pixels from its first one's border."""
        steps = (torch.arange(extents[axis].item(), dtype=torch.float64) + 0.5) / extents[axis]
        return place[:, axis, None] + steps * size[:, axis, None]

    def nearest(values: Tensor) -> Tensor:
        rows, columns = (centres(axis).floor().long().to(values.device) for axis in (0, 1))
        image = torch.arange(len(values), device=values.device)
        return values[image[:, None, None], rows[:, :, None], columns[:, None, :]]

    def crop(values: Tensor, fill: float = 0) -> Tensor:
        del fill  # nothing comes in
        if values.ndim < 4:
            return nearest(values)
        first, last = place, place + size - 1  # beyond them lie pixels that are not of the part
        at = [(centres(a) - 0.5).clamp(first[:, a, None], last[:, a, None]) for a in (0, 1)]
        rows, columns = (2 * at[a] / max(1, int(extents[a]) - 1) - 1 for a in (0, 1))
        grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1)
        made = F.grid_sample(
            values.float(), grid.float().to(values.device), mode="bilinear", padding_mode="border", align_corners=True
        )
        return made.to(values.dtype) if values.is_floating_point() else made.round().to(values.dtype)

    return crop


AUGMENTATION = Augmentation(draw=draw, moves_pixels=True, arguments=ResizedCropArguments)
