"""The lock of a run directory: one process at a time is at work in it.

The system lets go of the lock when the process ends, however it ends; the file ``.lock`` stays.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fxdistill.errors import RunDirError

NAME = ".lock"


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of a run directory, which exists.

    Raises:
        RunDirError: Another process is at work in it.
    """
    with (path / NAME).open("a+") as file:
        try:
            _take(file)
        except OSError as cause:
            raise RunDirError(
                "another process is at work in this run directory", where=str(path),
                hint="wait for it, or stop it, then use --resume",
            ) from cause  # fmt: skip
        yield


def check_free(path: Path) -> None:
    """Refuse a run directory in which another process is at work: what its files say now is half of what they will.

    Raises:
        RunDirError: One is.
    """
    if (path / NAME).is_file():
        with lock(path):
            return


def _take(file: IO[str]) -> None:
    """Lock a file without waiting, by the means of the operating system."""
    if os.name == "nt":
        system = importlib.import_module("msvcrt")
        file.seek(0)
        system.locking(file.fileno(), system.LK_NBLCK, 1)
    else:
        system = importlib.import_module("fcntl")
        system.flock(file, system.LOCK_EX | system.LOCK_NB)
