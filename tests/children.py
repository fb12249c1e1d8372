"""Processes that begin with what the tests have imported, and in which nothing has been trained yet.

A parent of them is forked before the first test, and forks one for each thing to do: once anything has started
autograd's threads, a forked child can no longer train.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_UNTOLD = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
"""What a process of Python's says nothing of, where nobody asks."""
_PARENT: list[tuple[int, Connection]] = []


def begin() -> None:
    """Fork the parent of the children."""
    ours, theirs = multiprocessing.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads
        pid = os.fork()
    if pid:
        theirs.close()
        _PARENT.append((pid, ours))
        return
    ours.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the tests
    try:
        while True:
            theirs.send(_done(*theirs.recv()))
    finally:  # EOFError: there are no tests any more
        os._exit(0)


def end() -> None:
    """End the parent of the children."""
    while _PARENT:
        pid, ours = _PARENT.pop()
        ours.close()
        os.waitpid(pid, 0)


def _done(folder: Path, work: Callable[..., object], args: tuple[Any, ...]) -> int:
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code: Any = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        faulthandler.disable()
        warnings.resetwarnings()
        for kind in _UNTOLD:
            warnings.simplefilter("ignore", kind)
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
        work(*args)
        code = 0
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):  # what is wrong, in words
            sys.stderr.write(f"{code}\n")
            code = 1
    except BaseException:  # noqa: BLE001  # a forked child must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def done(folder: Path, work: Callable[..., object], *args: Any) -> tuple[int, str, str]:
    """What becomes of a function of a module in a process of its own: exit code, standard output, errors.

    Args:
        folder: Where it works, and where ``stdout`` and ``stderr`` are left.
        work: The function.
        args: What it is called with.
    """
    _, parent = _PARENT[-1]
    parent.send((folder, work, args))
    code = parent.recv()
    return code, *((folder / name).read_text() for name in ("stdout", "stderr"))
