"""Folders of image files: which files are images, which folders are splits, and how they are read.

Hidden files and folders are nobody's data, and neither is what has no image's extension; a folder that is linked to
from inside itself is read once. Splits are folders named ``train``, ``val`` (``valid``, ``validation``) and ``test``.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from fxdistill.data.dataset import SPLITS
from fxdistill.data.sources import Request
from fxdistill.data.sources._images import COLOURS
from fxdistill.errors import DataError
from fxdistill.preprocessing import USUAL_RESIZE, USUAL_SIZE, Reading

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".tif", ".tiff", ".webp",
    ".gif", ".jp2", ".avif", ".tga",
)  # fmt: skip


def images(folder: Path) -> list[Path]:
    """The image files in a folder and below it, in the order of their paths."""
    return sorted(_below(folder, set()))


def _below(folder: Path, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _below(entry, seen)
        elif entry.suffix.lower() in EXTENSIONS:
            yield entry


def folders(folder: Path) -> list[Path]:
    """The visible folders in a folder, by name."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def splits(root: Path, is_split: Callable[[Path], bool], *, where: str, hint: str) -> dict[str, Path]:
    """The folders of the splits by their names; the root itself as ``test`` where it has none.

    Args:
        root: The folder.
        is_split: Whether a folder that is called like a split holds what a split holds.
        where: The spec.
        hint: How the data must lie.

    Raises:
        DataError: Two folders are one split, or one split lies beside folders that are none.
    """
    found: dict[str, Path] = {}
    for folder in folders(root):
        name = SPLITS.get(folder.name)
        if name is None or not is_split(folder):
            continue
        if name in found:
            both = f"{found[name].name} and {folder.name}"
            raise DataError(f"{both} are both the {name} split", where=where, hint="rename one of them")
        found[name] = folder
    others = [folder.name for folder in folders(root) if folder not in found.values()]
    if len(found) == 1 and others:
        (only,) = found
        other = "neither val nor test" if only == "train" else "no train"
        raise DataError(
            f"'{root}' has {only} and {other}, beside folders that are no splits: {', '.join(others[:3])}",
            where=where, hint=hint,
        )  # fmt: skip
    return found or {"test": root}


def reading(request: Request) -> Reading:
    """How images are read: as the models do, else the usual way.

    Raises:
        DataError: Images do not have so many channels.
    """
    found = request.reading or Reading(USUAL_SIZE, USUAL_RESIZE)
    if found.channels not in COLOURS:
        raise DataError(f"images have 1 or 3 channels, not {found.channels}", where=request.spec, hint="change --input")
    return found
