"""Calls in processes of their own, several at once: what one does to its process, or fails at, concerns no other."""

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Ended(NamedTuple):
    """How a call ended."""

    value: Any
    """What it returned; None if it failed."""
    failed: str
    """The traceback, or how its process ended; '' for a call that returned."""


def side_by_side(
    waiting: list[T], call: Callable[[T, int], tuple[Any, ...]], *, count: int, until: float,
    ready: Callable[[T], bool] = lambda _one: True, imports: Sequence[str] = (),
) -> Generator[tuple[T, Ended]]:  # fmt: skip
    """Make calls, each in a process of its own that ends with this one, and give them as they end.

    Args:
        waiting: What to make calls of, the first one that is ready first. What was not begun is left in it.
        call: The function and its arguments, of one of them and of its place, a number below ``count`` that no other
            call has at the same time.
        count: How many at once.
        until: When no more is begun, in seconds of :func:`time.monotonic`.
        ready: Whether one can be begun. It is asked again after each end.
        imports: Modules that all calls need: they are imported once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(imports))
    running: dict[Any, tuple[T, int, ForkServerProcess]] = {}
    free = list(range(count))
    try:
        while True:
            while free and time.monotonic() < until:
                one = next((index for index, item in enumerate(waiting) if ready(item)), None)
                if one is None:
                    break
                item, place = waiting.pop(one), free.pop(0)
                reader, writer = context.Pipe(duplex=False)
                child = context.Process(target=_called, args=(writer, *call(item, place)))
                child.start()
                writer.close()  # so that the end of the child is the end of what it says
                running[reader] = item, place, child
            if not running:
                return
            for heard in wait(list(running)):
                item, place, child = running.pop(heard)
                free.append(place)
                yield item, _said(heard, child)
    finally:
        for _, _, child in running.values():
            child.kill()
            child.join()


def _said(reader: Any, child: ForkServerProcess) -> Ended:
    try:
        said = Ended(*reader.recv())
    except (EOFError, OSError):  # before it said anything, or while it did
        child.join()
        said = Ended(None, f"its process ended with exit code {child.exitcode}")
    child.join()
    return said


def _called(writer: Connection, function: Callable[..., object], *arguments: object) -> None:
    """The child's part."""
    end_with_parent()
    try:
        said = Ended(function(*arguments), "")
    except Exception:  # noqa: BLE001  # the reason is what is handed over
        said = Ended(None, traceback.format_exc())
    writer.send(tuple(said))


def end_with_parent() -> None:
    """In a process that another one has started: end as soon as that one has ended, however it did."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
