"""Transforms of torchvision, image by image, each under a generator of its own.

They draw from torch's global generator: it is forked, seeded from what the image draws, and left as it was.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fxdistill.data.augmentations import Change
from fxdistill.data.augmentations._draws import Draws
from fxdistill.errors import DataError


def each(name: str, transform: Callable[[Tensor], Tensor], shape: Sequence[int], draws: Draws) -> Change:
    """A transform of colours, of each image by itself.

    Raises:
        DataError: The images are neither gray nor RGB.
    """
    if shape[1] not in (1, 3):
        raise DataError(
            f"{name} changes colours, and the images have {shape[1]} channels",
            where="data.augmentation", hint="leave it out: it is for RGB images, and gray ones",
        )  # fmt: skip
    seeds = draws.seeds()

    def change(values: Tensor, fill: float = 0) -> Tensor:
        made = torch.empty_like(values)
        with torch.random.fork_rng(devices=[]):
            for place, seed in enumerate(seeds):
                torch.default_generator.manual_seed(seed)
                made[place] = transform(values[place])
        return made if values.dtype == torch.uint8 else made.clamp(0, 1)

    return change
