"""Mirrors each image left to right with probability one half."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fxdistill.data.augmentations import Augmentation, Change
from fxdistill.data.augmentations._draws import Draws


def draw(shape: Sequence[int], draws: Draws, arguments: None) -> Change:
    """One coin an image."""
    heads = draws.uniform(1).lt(0.5)

    def flip(values: Tensor, fill: float = 0) -> Tensor:
        del fill  # nothing comes in
        mirrored = heads.to(values.device).reshape(-1, *[1] * (values.ndim - 1))
        return torch.where(mirrored, values.flip(-1), values)

    return flip


AUGMENTATION = Augmentation(draw=draw, moves_pixels=True)
