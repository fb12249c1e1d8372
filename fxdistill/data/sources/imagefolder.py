"""Image files by class: DIR/train/CLASS/*.jpg and DIR/val or DIR/test, resized to the model's input."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from fxdistill.data.dataset import Dataset, checked
from fxdistill.data.sources import Request, Source
from fxdistill.data.sources._images import COLOURS, Folder
from fxdistill.errors import DataError

_LAYOUT = "DIR/train/CLASS/ and DIR/val/CLASS/ (or test) must hold the images of each class"


def read(request: Request) -> Dataset:
    """The images of a folder, in memory if they take less than 2 GiB."""
    root = request.place
    testing = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if testing is None or not (root / "train").is_dir():
        raise DataError(f"'{root}' has no train, or neither val nor test", where=request.spec, hint=_LAYOUT)
    parts = [ImageFolder(str(folder)) for folder in (root / "train", testing)]
    if parts[0].classes != parts[1].classes:
        odd = sorted(set(parts[0].classes) ^ set(parts[1].classes))
        raise DataError(
            f"train and {testing.name} have different classes: {', '.join(odd[:3])}",
            where=request.spec, hint="give both the same folders",
        )  # fmt: skip
    shape = _shape(request.input_shape, parts[0].samples[0][0])
    if shape[0] not in COLOURS:
        raise DataError(f"images have 1 or 3 channels, not {shape[0]}", where=request.spec, hint="change --input")
    train, test = (
        Folder(tuple(f for f, _ in part.samples), request.task.typed(torch.tensor(part.targets)), shape).in_memory()
        for part in parts
    )
    return checked(train, test, parts[0].classes, where=request.spec, task=request.task)


def _shape(input_shape: Sequence[int] | None, first: str) -> tuple[int, int, int]:
    """Channels, height and width: those of the model's input, else those of the first image."""
    if input_shape is not None:
        channels, height, width = input_shape[1:]
        return channels, height, width
    with Image.open(Path(first)) as image:
        return (1 if image.mode == "L" else 3, image.height, image.width)


SOURCE = Source(read=read, place="DIR", layout=_LAYOUT, augmentation=lambda _: ("flip",))
