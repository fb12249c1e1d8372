"""From an image file, or an image of Pillow's, to one in gray (L) or in colours (RGB), upright, 8 bits a channel.

What a file can hold beyond that is brought there as training pipelines expect it:

    palette, CMYK, YCbCr, LAB, HSV      RGB, as Pillow converts it
    1 bit                               gray, 0 and 255
    transparency (LA, RGBA, palette)    dropped: the colours behind it, as torchvision and timm read them
    16 bits gray                        gray by the range of the type, v / 257 rounded: 0 … 65535 to 0 … 255
    32 bits gray, float gray            gray where values are within 0 … 65535, or 0 … 1; else refused
    a rotation in the EXIF data         applied
    several frames, or pages            the first one

Pillow's own ``convert`` clips 16 bits at 255: nearly white all over.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from fxdistill.preprocessing import MOST_PIXELS

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "ICO")
_CHUNK = 1 << 20
_COLOURLESS = {"L", "LA", "La", "1"}
_ALPHA = {"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}
"""Modes that Pillow converts by way of another one only."""


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats of Pillow's that are read, told by content and not by name; some others start programs (EPS)."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextmanager
def looked_at(file: str | IO[bytes]) -> Iterator[Image.Image]:
    """An image file of Pillow's, not decoded yet.

    Raises:
        Exception: Whatever Pillow raises. ValueError for an image without pixels, or with more than any has.
    """
    with Image.open(file, formats=formats()) as image:
        check_size(*image.size)
        yield image


def check_size(width: float, height: float) -> None:
    """Refuse sizes that no image has.

    Raises:
        ValueError: There is no pixel, or there are too many.
    """
    if min(width, height) < 1 or width * height > MOST_PIXELS:
        raise ValueError(f"{width:g} x {height:g} pixels, and 1 to {MOST_PIXELS:,} are read")


def opened(file: str | IO[bytes]) -> Image.Image:
    """An image file, decoded; see the module docstring.

    Args:
        file: Its place or its bytes.

    Returns:
        An image of the mode L or RGB.

    Raises:
        Exception: Whatever Pillow raises: its errors share no base class. ValueError for values without a range.
    """
    with looked_at(file) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # without a copy: it may have all the pixels that there are
        return _converted(image)


def upright_size(file: str) -> tuple[int, int]:
    """Width and height of an image file as :func:`opened` gives it, without decoding it unless it is rotated."""
    with looked_at(file) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return image.size


def plain(image: Image.Image) -> Image.Image:
    """An image of Pillow's in the mode L or RGB, upright.

    Raises:
        ValueError: Its values have no range that is known.
    """
    return _converted(ImageOps.exif_transpose(image))


def _converted(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _scaled(image)
    wanted = "L" if image.mode in _COLOURLESS else "RGB"
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # asked for RGB at once, Pillow warns
    image = image.convert(_ALPHA[image.mode]) if image.mode in _ALPHA else image
    return image.convert(wanted)


def _scaled(image: Image.Image) -> Image.Image:
    """Gray of more than 8 bits, by the range of its type and not of its values: images stay comparable."""
    values = np.asarray(image)
    lowest, highest = values.min(initial=0), values.max(initial=0)
    most = 1 if image.mode == "F" else 65535
    if not (lowest >= 0 and highest <= most):  # so written, a NaN is refused
        raise ValueError(
            f"its gray values lie in {lowest:g} … {highest:g}, and in mode {image.mode} only 0 … {most} has a meaning"
        )
    found = np.empty(values.shape, np.uint8)
    for part, into in zip(*(np.array_split(a.reshape(-1), 1 + a.size // _CHUNK) for a in (values, found)), strict=True):
        into[:] = (part.astype(np.float64) * (255 / most)).round()
    return Image.fromarray(found)
