"""Shelves: where rows that a frozen half has computed are kept, in memory or as files of a folder.

What is kept lies at a place: the key of a frozen half (a hash of all that decides its values), a view of the images,
and a block of them in the order of the split. A file is a container (:mod:`fxdistill.container`), written whole or not
at all and sealed, so that nothing half-written or damaged is ever taken for rows, and no code can lie in it. Whoever
takes rows from a shelf checks that they are what he wants; nothing is lost when they are gone.

    DIR/KEY/VIEW-BLOCK.fxcache  =  {"rows": {"cached.teacher_fc": (n, 1000), "pixels": (n,)}}
"""

import contextlib
import glob
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from fxdistill import container
from fxdistill.errors import InputError, StorageError

Rows = dict[str, Tensor]
_KIND = "cache"
_SUFFIX = ".fxcache"


@dataclass(frozen=True)
class Place:
    """Which frozen half's rows, of which view, and which block of images."""

    key: str
    view: int
    block: int


class Shelf(Protocol):
    """Where rows are kept, up to a number of bytes."""

    @property
    def where(self) -> str:
        """In words."""

    @property
    def room(self) -> int:
        """Bytes that still fit."""

    @property
    def lasts(self) -> bool:
        """Whether other runs find what this one keeps."""

    def get(self, place: Place) -> Rows | None:
        """What lies at a place; None for nothing that can be read."""

    def put(self, place: Place, rows: Rows) -> str:
        """Keep rows, if they fit; returns why they are not kept, '' where they are."""

    def drop(self, key: str) -> None:
        """Remove everything of a key."""


def size_of(rows: Rows) -> int:
    """Bytes of some rows."""
    return sum(value.numel() * value.element_size() for value in rows.values())


@dataclass
class Memory:
    """Rows in memory, for one run."""

    budget: int
    _rows: dict[Place, Rows] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """In words."""
        return "in memory"

    @property
    def room(self) -> int:
        """Bytes that still fit."""
        return self.budget - sum(map(size_of, self._rows.values()))

    @property
    def lasts(self) -> bool:
        """Whether other runs find what this one keeps."""
        return False

    def get(self, place: Place) -> Rows | None:
        """What lies at a place."""
        return self._rows.get(place)

    def put(self, place: Place, rows: Rows) -> str:
        """Keep rows, if they fit."""
        if size_of(rows) > self.room:
            return _full(self)
        self._rows[place] = rows
        return ""

    def drop(self, key: str) -> None:
        """Remove everything of a key."""
        self._rows = {place: rows for place, rows in self._rows.items() if place.key != key}


@dataclass
class Folder:
    """Rows as files, which runs may share. A file that is opened was checked; it is mapped, and read as it is wanted.

    Attributes:
        path: The folder; it is made when something is written.
        budget: Bytes that its files may take, those that were there before among them.
        trouble: What went wrong in writing: nothing more is written then.
    """

    path: Path
    budget: int
    trouble: str = ""
    _open: dict[Place, Rows] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """In words."""
        return f"in {self.path}"

    @property
    def room(self) -> int:
        """Bytes that still fit."""
        return 0 if self.trouble else self.budget - sum(_sizes(self.path))

    @property
    def lasts(self) -> bool:
        """Whether other runs find what this one keeps."""
        return True

    def get(self, place: Place) -> Rows | None:
        """What lies at a place; None for nothing, or for a file that is none of ours."""
        if place not in self._open:
            file = self._file(place)
            try:
                rows = container.mapped(file, kinds=(_KIND,))["rows"] if file.is_file() else None
            except (InputError, KeyError):  # damaged, or nobody knows what: it is computed again
                rows = None
            if not isinstance(rows, dict) or not all(isinstance(value, Tensor) for value in rows.values()):
                return None
            self._open[place] = rows
        return self._open[place]

    def put(self, place: Place, rows: Rows) -> str:
        """Write rows, if they fit; what goes wrong is :attr:`trouble`."""
        if size_of(rows) > self.room:
            return self.trouble or _full(self)
        file = self._file(place)
        self._open.pop(place, None)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            container.write(file, _KIND, {"rows": rows})
        except (InputError, StorageError) as cause:
            self.trouble = f"nothing can be written {self.where}: {cause.what}"
        except OSError as cause:
            self.trouble = f"nothing can be written {self.where}: {cause.strerror or cause}"
        return self.trouble

    def drop(self, key: str) -> None:
        """Remove everything of a key."""
        self._open = {place: rows for place, rows in self._open.items() if place.key != key}
        shutil.rmtree(self.path / key, ignore_errors=True)

    def _file(self, place: Place) -> Path:
        return self.path / place.key / f"{place.view}-{place.block}{_SUFFIX}"


def _full(shelf: Shelf) -> str:
    return f"there is no room for more {shelf.where}"


def _sizes(folder: Path) -> Iterator[int]:
    """The sizes of a shelf's files; other runs may remove files and folders meanwhile, at which Path.glob raises."""
    for name in glob.iglob(f"*/*{_SUFFIX}", root_dir=folder):  # noqa: PTH207
        with contextlib.suppress(OSError):
            yield (folder / name).stat().st_size
