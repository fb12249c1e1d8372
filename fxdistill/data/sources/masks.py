"""Images with a map of class numbers each: DIR/train/images/x.jpg and DIR/train/masks/x.png, DIR/val or DIR/test too.

A mask is an image file of class numbers: the indices of a palette, or gray values, 255 where a pixel has no label. It
has its image's size, and is brought to the model's input as its image is, by nearest pixels.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fxdistill.data.dataset import Dataset, from_splits
from fxdistill.data.decoding import looked_at, upright_size
from fxdistill.data.sources import Request, Source
from fxdistill.data.sources._folders import images, reading, splits
from fxdistill.data.sources._images import Folder, fitted
from fxdistill.errors import DataError
from fxdistill.preprocessing import Reading
from fxdistill.tasks import NO_LABEL

_LAYOUT = "DIR/train must hold images/x.jpg and masks/x.png, which belong together, and DIR/val or DIR/test likewise"
_IGNORED = 255


def read(request: Request) -> Dataset:
    """Images and their maps, the images in memory if they take less than 2 GiB."""
    root, where = request.place, request.spec
    found = splits(root, _holds_both, where=where, hint=_LAYOUT)
    if not all(_holds_both(folder) for folder in found.values()):
        raise DataError(f"'{root}' has no folders images and masks", where=where, hint=_LAYOUT)
    pairs = {name: _pairs(folder, where) for name, folder in found.items()}
    how = reading(request)
    made = {}
    for name, part in pairs.items():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            maps = torch.stack(list(pool.map(lambda pair: _map(*pair, how=how), part)))
        _check(maps, found[name], where)
        maps = maps.masked_fill(maps == _IGNORED, NO_LABEL)
        made[name] = Folder(tuple(str(file) for file, _ in part), maps, how).in_memory()
    return from_splits(made, None, where=where, task=request.task)


def _holds_both(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def _pairs(folder: Path, where: str) -> list[tuple[Path, Path]]:
    """The images with their masks: the same path, whatever the extension."""
    files, masks = (
        {file.relative_to(folder / kind).with_suffix(""): file for file in images(folder / kind)}
        for kind in ("images", "masks")
    )
    if not files:
        raise DataError(f"there are no images in '{folder / 'images'}'", where=where, hint=_LAYOUT)
    for one, other, what in ((files, masks, "image has no mask"), (masks, files, "mask has no image")):
        alone = [one[name] for name in one if name not in other]
        if alone:
            raise DataError(f"the {what}, as {len(alone):,} of {len(one):,}", where=str(alone[0]), hint=_LAYOUT)
    return [(file, masks[name]) for name, file in files.items()]


def _map(file: Path, mask: Path, *, how: Reading) -> Tensor:
    """A map of class numbers (H, W), int64, as the file has them; -100 around it where it is padded."""
    try:
        with looked_at(str(mask)) as image:
            ImageOps.exif_transpose(image, in_place=True)
            values, mode = np.asarray(image), image.mode
        image_size = upright_size(str(file))
    except Exception as cause:  # Pillow's errors share no base class
        raise DataError(
            f"image or mask cannot be read: {cause or type(cause).__name__}", where=f"{file}, {mask}",
            hint="remove or replace it",
        ) from cause  # fmt: skip
    if mode not in ("P", "L", "1") and not mode.startswith("I"):
        raise DataError(
            f"the mask has the mode {mode}, which holds colours and no class numbers", where=str(mask),
            hint="write class numbers as gray values, or as indices of a palette",
        )  # fmt: skip
    numbers = Image.fromarray(values.astype(np.int32))
    if numbers.size != image_size:
        sizes = " and ".join(f"{width}x{height}" for width, height in (image_size, numbers.size))
        raise DataError(f"image and mask have the sizes {sizes}", where=str(mask), hint="make them the same")
    return torch.from_numpy(np.array(fitted(numbers, how, nearest=True))).long()


def _check(maps: Tensor, folder: Path, where: str) -> None:
    """Refuse masks of 0 and 255 alone: black and white ones, of which white would say that there is no label."""
    if set(maps.unique().tolist()) - {NO_LABEL} == {0, _IGNORED}:
        raise DataError(
            f"the masks in '{folder}' hold 0 and {_IGNORED} alone, and {_IGNORED} says that a pixel has no label",
            where=where, hint="if they are black and white, write the second class as 1",
        )  # fmt: skip


SOURCE = Source(read=read, place="DIR", layout=_LAYOUT, augmentation=lambda _: ("flip",))
