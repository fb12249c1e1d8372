"""``mixup:ALPHA`` blends each image, and its label, with its neighbour in the batch (Zhang et al., 2017)."""

from collections.abc import Sequence

from fxdistill.data.augmentations import Augmentation, Change
from fxdistill.data.augmentations._draws import Draws
from fxdistill.data.augmentations._mixing import MixArguments, mixed, shares


def draw(shape: Sequence[int], draws: Draws, arguments: MixArguments) -> Change:
    """One share an image."""
    share = shares(draws, arguments.alpha)
    return mixed(share[:, None, None, None], share)


AUGMENTATION = Augmentation(draw=draw, mixes=True, arguments=MixArguments)
