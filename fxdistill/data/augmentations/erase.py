"""``erase:SHARE`` makes a rectangle of so large a share of the images black (random erasing, Zhong et al., 2017).

Its area is 2 % to a third of the image, its aspect ratio 0.3 to 3.3, as torchvision's; it has to lie inside.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fxdistill.arguments import Arguments
from fxdistill.data.augmentations import Augmentation, Change
from fxdistill.data.augmentations._draws import Draws

_AREA, _RATIO = (0.02, 1 / 3), (0.3, 3.3)
_TRIES = 10


class EraseArguments(Arguments):
    """``share``: how many of the images."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.25


def draw(shape: Sequence[int], draws: Draws, arguments: EraseArguments) -> Change:
    """One rectangle an image, or none."""
    height, width = shape[-2:]
    heads = draws.uniform(1) < arguments.share
    area, ratio = draws.uniform(2 * _TRIES).split(_TRIES, dim=1)
    area = (_AREA[0] + (_AREA[1] - _AREA[0]) * area) * height * width
    ratio = torch.exp(math.log(_RATIO[0]) + ratio * math.log(_RATIO[1] / _RATIO[0]))
    sizes = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=-1).round()
    whole = torch.tensor([height, width], dtype=torch.float64)
    fits = ((sizes >= 1) & (sizes < whole)).all(-1)
    size = sizes[torch.arange(len(sizes)), fits.int().argmax(1)]
    first = (draws.uniform(2) * (whole - size + 1)).floor()
    erased = heads & fits.any(1)[:, None]

    def inside(axis: int) -> Tensor:
        place = torch.arange(shape[axis - 2])
        return (place >= first[:, axis, None]) & (place < (first + size)[:, axis, None]) & erased

    hidden = inside(0)[:, None, :, None] & inside(1)[:, None, None, :]

    def erase(values: Tensor, fill: float = 0) -> Tensor:
        return values.masked_fill(hidden.to(values.device), fill)

    return erase


AUGMENTATION = Augmentation(draw=draw, arguments=EraseArguments)
