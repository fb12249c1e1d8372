"""``rand-augment:NUMBER:MAGNITUDE``: so many random changes an image, of a strength of 0 to 30 (Cubuk et al., 2019)."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torchvision.transforms import v2

from fxdistill.arguments import Arguments
from fxdistill.data.augmentations import Augmentation, Change
from fxdistill.data.augmentations._draws import Draws
from fxdistill.data.augmentations._torchvision import each


class RandAugmentArguments(Arguments):
    """``number`` of changes an image, and their ``magnitude``."""

    number: Annotated[int, Field(gt=0, le=20)] = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9


def draw(shape: Sequence[int], draws: Draws, arguments: RandAugmentArguments) -> Change:
    """A seed an image."""
    transform = v2.RandAugment(arguments.number, arguments.magnitude)
    return each("rand-augment", transform, shape, draws)


AUGMENTATION = Augmentation(draw=draw, warps=True, arguments=RandAugmentArguments)
