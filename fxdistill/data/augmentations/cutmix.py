"""``cutmix:ALPHA`` puts a rectangle of the neighbour in the batch into each image (Yun et al., 2019).

The label gets the neighbour's by the share of the pixels that come from it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fxdistill.data.augmentations import Augmentation, Change
from fxdistill.data.augmentations._draws import Draws
from fxdistill.data.augmentations._mixing import MixArguments, mixed, shares


def draw(shape: Sequence[int], draws: Draws, arguments: MixArguments) -> Change:
    """One rectangle an image: its middle lies anywhere, and what is outside is cut off."""
    half = (1 - shares(draws, arguments.alpha)).sqrt() / 2
    middle = draws.uniform(2)

    def inside(axis: int) -> Tensor:
        size = shape[axis - 2]
        first, last = (((middle[:, axis] + side * half) * size).round()[:, None] for side in (-1, 1))
        place = torch.arange(size)
        return (place >= first) & (place < last)

    kept = ~(inside(0)[:, None, :, None] & inside(1)[:, None, None, :])
    return mixed(kept, kept.double().mean((1, 2, 3)))


AUGMENTATION = Augmentation(draw=draw, mixes=True, arguments=MixArguments)
