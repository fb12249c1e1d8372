"""What mixup and cutmix have in common: each image gets a share of its neighbour in the batch, and so does its label.

Shares are a function of (seed, view, image), drawn from Beta(alpha, alpha); the neighbour is one of (seed, epoch,
step), as the order is. Images are mixed before any member reads them, so that teacher and student see the same.
"""

from typing import Annotated

import torch
from pydantic import Field
from scipy import special
from torch import Tensor

from fxdistill.arguments import Arguments
from fxdistill.data.augmentations import Change
from fxdistill.data.augmentations._draws import Draws


class MixArguments(Arguments):
    """``alpha``: 1 for shares that are uniform, less for shares near 0 and 1."""

    alpha: Annotated[float, Field(gt=0, le=100)] = 1.0


def shares(draws: Draws, alpha: float) -> Tensor:
    """What each image keeps of itself: (N,), float64, by the inverse of the distribution function."""
    return torch.from_numpy(special.betaincinv(alpha, alpha, draws.uniform(1)[:, 0].numpy()))


def mixed(kept: Tensor, share: Tensor) -> Change:
    """Mix images by (N, 1, H, W) or (N, 1, 1, 1) shares of each pixel, and rows of labels (N, classes) by (N,) ones."""

    def mix(values: Tensor, fill: float = 0) -> Tensor:
        own = (kept if values.ndim == 4 else share[:, None]).to(values.device, torch.float32)
        made = own * values + (1 - own) * values.roll(1, 0)
        return made if values.is_floating_point() else made.round().to(values.dtype)

    return mix
