"""Image files by class: DIR/train/CLASS/*.jpg and DIR/val or DIR/test, or DIR/CLASS/*.jpg; see ``_folders``.

A class is the first folder below a split; what lies deeper belongs to it. Every split has the classes of ``train``, or
some of them.
"""

from pathlib import Path

import torch

from fxdistill.data.dataset import SPLITS, Dataset, from_splits
from fxdistill.data.sources import Request, Source
from fxdistill.data.sources._folders import folders, images, reading, splits
from fxdistill.data.sources._images import Folder
from fxdistill.errors import DataError

_LAYOUT = (
    "DIR/train/CLASS/ and DIR/val/CLASS/ (or test) must hold the images of each class, or DIR/CLASS/ those to measure "
    "on; images without classes are images:DIR"
)


def read(request: Request) -> Dataset:
    """The images of a folder, in memory if they take less than 2 GiB."""
    root, where = request.place, request.spec
    found = splits(root, lambda folder: bool(folders(folder)), where=where, hint=_LAYOUT)
    parts = {name: {each.name: images(each) for each in folders(folder)} for name, folder in found.items()}
    names = sorted(parts.get("train") or next(iter(parts.values())))
    _same_classes(parts, names, found, where)
    files = {
        name: [(file, names.index(each)) for each in names for file in part.get(each, ())]
        for name, part in parts.items()
    }
    for name, part in files.items():
        if not part:
            raise DataError(f"there are no images in classes in '{found[name]}'", where=where, hint=_LAYOUT)
    if not set(names) - set(SPLITS):
        raise DataError(f"{' and '.join(names)} in '{root}' have no classes in them", where=where, hint=_LAYOUT)
    how = reading(request)
    made = {
        name: Folder(
            tuple(str(file) for file, _ in part), request.task.typed(torch.tensor([label for _, label in part])), how
        ).in_memory()
        for name, part in files.items()
    }
    return from_splits(made, names, where=where, task=request.task)


def _same_classes(
    parts: dict[str, dict[str, list[Path]]], names: list[str], found: dict[str, Path], where: str
) -> None:
    first = found["train" if "train" in parts else next(iter(parts))].name
    for name, part in parts.items():
        if set(part) - set(names):
            odd = sorted(set(part) ^ set(names))
            raise DataError(
                f"{first} and {found[name].name} have different classes: {', '.join(odd[:3])}",
                where=where, hint="give both the same folders",
            )  # fmt: skip


SOURCE = Source(read=read, place="DIR", layout=_LAYOUT, augmentation=lambda _: ("flip",))
