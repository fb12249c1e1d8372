"""Being asked to stop while training: the step in hand is finished, a checkpoint is taken, and then the run ends.

Ctrl-C (SIGINT), SIGTERM and SIGHUP ask alike. Whoever handled the signal before then handles it, at a place where
nothing is half done; whoever asks twice is not kept waiting.
"""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Request:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self._number: int | None = None

    @property
    def made(self) -> bool:
        """Whether it was asked for."""
        return self._number is not None

    @property
    def number(self) -> int:
        """The signal by which it was asked for; 0 where it was not."""
        return self._number or 0

    def join(self, number: int) -> None:
        """Take over what another process of the run was asked for, by its :attr:`number`."""
        self._number = self._number or number or None

    def grant(self) -> None:
        """Hand the signal on to whoever handled it before, which raises; nothing where nobody asked."""
        if self._number is not None:
            self._hand_on(self._number, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.made:
            self._hand_on(number, frame)
        self._number = number

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        handler = self._before.get(number)
        if callable(handler):
            handler(number, frame)
        raise KeyboardInterrupt


@contextmanager
def handled(by: Callable[[int, FrameType | None], object], numbers: Iterable[int] = SIGNALS) -> Iterator[None]:
    """Inside, signals are handled by a function; ignored ones (nohup) stay ignored, and so do all in other threads."""
    ours = threading.current_thread() is threading.main_thread()  # Python's rule for handlers
    before = {number: signal.getsignal(number) for number in numbers if ours}
    taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, by)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


@contextmanager
def deferred() -> Iterator[Request]:
    """Inside, being asked to stop is noted and does not interrupt; see :func:`handled`."""
    request = Request()
    with handled(request._note):  # noqa: SLF001
        yield request
    request.grant()
