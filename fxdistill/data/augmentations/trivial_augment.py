"""One random change an image, of a random strength (TrivialAugment, Müller and Hutter, 2021)."""

from collections.abc import Sequence

from torchvision.transforms import v2

from fxdistill.data.augmentations import Augmentation, Change
from fxdistill.data.augmentations._draws import Draws
from fxdistill.data.augmentations._torchvision import each


def draw(shape: Sequence[int], draws: Draws, arguments: None) -> Change:
    """A seed an image."""
    return each("trivial-augment", v2.TrivialAugmentWide(), shape, draws)


AUGMENTATION = Augmentation(draw=draw, warps=True)
