"""Mirrors each image left to right with probability one half."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fxdistill.data.augmentations import Augmentation, Change


def draw(shape: Sequence[int], generator: torch.Generator, arguments: None) -> Change:
    """One coin an image."""
    del arguments
    heads = torch.rand(shape[0], generator=generator).lt(0.5)

    def flip(values: Tensor, fill: float = 0) -> Tensor:
        del fill  # nothing comes in
        mirrored = heads.to(values.device).reshape(-1, *[1] * (values.ndim - 1))
        return torch.where(mirrored, values.flip(-1), values)

    return flip


AUGMENTATION = Augmentation(draw=draw, moves_pixels=True)
