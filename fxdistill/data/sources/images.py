"""Image files without labels: all in DIR and below it, or those of DIR/train and DIR/val or DIR/test.

A student learns from them by what reads no labels: the teacher's predictions and its layers.
"""

import torch

from fxdistill.data.dataset import SPLITS, Dataset, from_splits
from fxdistill.data.sources import Request, Source
from fxdistill.data.sources._folders import folders, images, reading, splits
from fxdistill.data.sources._images import Folder
from fxdistill.errors import DataError

_LAYOUT = "DIR must hold image files, at any depth; or DIR/train and DIR/test"


def read(request: Request) -> Dataset:
    """The images of a folder, in memory if they take less than 2 GiB."""
    root, where = request.place, request.spec
    apart = all(folder.name in SPLITS for folder in folders(root)) and not any(
        file.parent == root for file in images(root)
    )
    found = splits(root, lambda folder: bool(images(folder)), where=where, hint=_LAYOUT) if apart else {"test": root}
    files = {name: images(folder) for name, folder in found.items()}
    for name, part in files.items():
        if not part:
            raise DataError(f"there are no images in '{found[name]}'", where=where, hint=_LAYOUT)
    how = reading(request)
    unknown = torch.tensor(request.task.no_label)
    made = {
        name: Folder(tuple(map(str, part)), unknown.expand(len(part)), how).in_memory() for name, part in files.items()
    }
    return from_splits(made, None, where=where, task=request.task)


SOURCE = Source(read=read, place="DIR", layout=_LAYOUT, augmentation=lambda _: ("flip",))
