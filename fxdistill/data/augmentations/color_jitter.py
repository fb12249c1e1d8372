"""``color-jitter:BRIGHTNESS:CONTRAST:SATURATION:HUE`` changes colours by up to these shares, in a random order.

Gray images change in brightness and contrast alone.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torchvision.transforms import v2

from fxdistill.arguments import Arguments
from fxdistill.data.augmentations import Augmentation, Change
from fxdistill.data.augmentations._draws import Draws
from fxdistill.data.augmentations._torchvision import each

_Share = Annotated[float, Field(ge=0, le=1)]


class ColorJitterArguments(Arguments):
    """How far each may change: factors of 1 - share to 1 + share; the hue by up to half a turn."""

    brightness: _Share = 0.4
    contrast: _Share = 0.4
    saturation: _Share = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


def draw(shape: Sequence[int], draws: Draws, arguments: ColorJitterArguments) -> Change:
    """A seed an image."""
    return each("color-jitter", v2.ColorJitter(**arguments.model_dump()), shape, draws)


AUGMENTATION = Augmentation(draw=draw, arguments=ColorJitterArguments)
