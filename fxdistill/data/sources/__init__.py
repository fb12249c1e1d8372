"""Data sources, one file each: from the place that a spec names to a checked data set.

A spec is a source's name, with its place behind a colon where it has one: ``digits``, ``npz:FILE``. Nothing is
downloaded. What is read goes through :func:`fxdistill.data.dataset.checked`:

    SOURCE = Source(read=read, place="FILE", layout="the file must hold ...")

Names are known without importing a source, places are not: a source's file imports what reads it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fxdistill.errors import InputError
from fxdistill.registry import Registry

if TYPE_CHECKING:
    from fxdistill.data.dataset import Dataset
    from fxdistill.preprocessing import Reading
    from fxdistill.tasks import Task


@dataclass(frozen=True)
class Request:
    """What is asked of a source.

    Attributes:
        spec: The whole spec, for messages.
        place: What stands behind its colon; the current folder where there is nothing.
        reading: How the models read image files, for sources of such; None for the usual way. Data that has a size of
            its own ignores it.
        task: What the data is for.
    """

    spec: str
    place: Path
    reading: "Reading | None"
    task: "Task"


@dataclass(frozen=True)
class Source:
    """A source.

    Attributes:
        read: Reads the data.
        place: What its spec names behind the colon, a path: ``ROOT``, ``DIR``, ``FILE``; '' for nothing.
        layout: How the data must lie there, in one sentence: the hint where it does not.
        augmentation: The augmentations that are usual for it, for an image shape (C, H, W).
    """

    read: "Callable[[Request], Dataset]"
    place: str = ""
    layout: str = ""
    augmentation: Callable[[tuple[int, int, int]], tuple[str, ...]] = lambda _shape: ()


SOURCES: Registry[Source] = Registry("data source", __name__, "SOURCE", Source)


def split(spec: str) -> tuple[str, str]:
    """The source that a spec names and its place: '' where it has none; both '' where it names no source of ours.

    Raises:
        InputError: The source cannot be imported.
    """
    name, _, place = spec.partition(":")
    if name not in SOURCES.names():
        return "", ""
    return name, place if SOURCES.get(name).place else ""


def forms() -> tuple[str, ...]:
    """What a spec may be, for messages: ``digits``, ``npz:FILE``. Imports all sources."""
    return tuple(_form(name) for name in SOURCES.names())


def _form(name: str) -> str:
    try:
        place = SOURCES.get(name).place
    except InputError:  # one that cannot be imported is not what the message is about
        return name
    return f"{name}:{place}" if place else name
