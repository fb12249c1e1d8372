"""A mutant read under watch: what comes of it, what Python does meanwhile, and how much memory that takes.

An audit hook hears of every file that Python opens, every import, every piece of code and every program. What C code
writes it does not hear of; therefore the working directory is an empty folder that has to stay empty.
"""

import contextlib
import os
import random
import shutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.fuzz_kinds import Kind, Unsound
from fxdistill.errors import FxdistillError, TrainingError

_LONGEST = 4000
_PROGRAMS = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "pty.")
_CONNECTIONS = ("socket.", "urllib.", "http.", "ftplib.", "webbrowser.")
_CHANGES = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "shutil.", "tempfile.",
)  # fmt: skip
_OURS = ("<eval_with_key>",)  # torch.fx writes the text of a graph, whose names were all checked
Row = dict[str, Any]


def seeded(name: str, number: int) -> random.Random:
    """The random state that a mutant is made from."""
    return random.Random(f"{name}:{number}")


class Watch:
    """What Python does while a mutant is read; an audit hook cannot be taken away again, so that it is told when."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.on = False
        self.home = ""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and (kind := self._kind(event, arguments)):
            self.events.append((kind, f"{event} {arguments!r}"[:200]))

    def _kind(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event == "exec":
            name = str(getattr(arguments[0], "co_filename", ""))
            return "" if name.startswith(_OURS) else "code"
        if event == "pickle.find_class" or event.startswith(_PROGRAMS):
            return "code"
        if event.startswith(_CONNECTIONS):
            return "connection"
        if event == "import":
            return "import"
        if event == "open":
            name, mode, flags = arguments
            writes = (
                set(mode) & set("wax+") if isinstance(mode, str) else flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            return "write" if writes and not self._is_home((name,)) else ""
        if event.startswith(_CHANGES):
            return "" if self._is_home(arguments) else "write"
        return ""

    def _is_home(self, places: tuple[Any, ...]) -> bool:
        """Whether places, as a function of ``os`` takes them, with descriptors of folders, lie where one may write."""
        named = [place for place in places if isinstance(place, str | os.PathLike)]
        folders = [place for place in places[len(named) :] if isinstance(place, int) and place >= 0]
        base = f"/proc/self/fd/{folders[-1]}" if folders else "."
        whole = [str((Path(base) / place).resolve()) for place in named]
        return bool(self.home) and bool(whole) and all(place.startswith(self.home) for place in whole)

    @contextlib.contextmanager
    def watching(self, home: str) -> Iterator[list[tuple[str, str]]]:
        """What happens inside; what is written in a folder is allowed."""
        self.events, self.home, self.on = [], home, True
        try:
            yield self.events
        finally:
            self.on = False


class Bench:
    """The folders in a process that reads mutants, and the reading."""

    def __init__(self, originals: Path, folder: Path) -> None:
        self.originals, self.watch = originals, Watch()
        self.case, self.away = folder / "case", folder / "away"
        for name in ("data.npz", "plan.json", "teacher.pt", "student.pt"):
            shutil.copy(originals / name, folder / name)
        self.away.mkdir()
        os.chdir(self.away)

    def judged(self, name: str, kind: Kind, number: int) -> Row:
        """What becomes of a mutant."""
        files = kind.make(seeded(name, number), self.originals)
        shutil.rmtree(self.case, ignore_errors=True)
        for file, content in files.items():
            (self.case / file).parent.mkdir(parents=True, exist_ok=True)
            (self.case / file).write_bytes(content)
        size = sum(map(len, files.values()))
        before, mapped = _peak(again=True), _status("RssFile")
        with self.watch.watching(os.path.realpath(self.case) if kind.writes else "") as events:
            outcome, said, use = _read(kind, self.case)
        grown = _peak() - before - max(0, _status("RssFile") - mapped)  # a fork meets libraries' pages on its way
        if outcome == "read" and use is not None:
            with self.watch.watching(os.path.realpath(self.case)) as more:
                outcome, said = _used(use)
            events += more
        left = sorted(entry.name for entry in self.away.iterdir())
        found = dict(events[:1])
        if left:
            found["write"] = f"left {left}"
            shutil.rmtree(self.away)
            self.away.mkdir()
            os.chdir(self.away)
        if grown > 3 * size + kind.most:
            found["memory"] = f"{grown >> 20} MiB for {size:,} bytes"
        if outcome not in ("read", "refused"):
            found[outcome] = said
        return {"outcome": outcome, "said": said, "found": found, "grown": grown}


def _read(kind: Kind, case: Path) -> tuple[str, str, Any]:
    try:
        return "read", "", kind.read(case)
    except Unsound as found:
        return "altered" if kind.broken else "unsound", str(found), None
    except FxdistillError as error:
        wrong = _wrong(error)
        return ("message", f"{wrong}: {error!s:.300}", None) if wrong else ("refused", error.what, None)
    except BaseException as error:  # noqa: BLE001  # it is what is looked for
        return "raw", _told(error), None


def _used(use: Any) -> tuple[str, str]:
    try:
        use()
    except Unsound as found:
        return "unsound", str(found)
    except FxdistillError as error:
        wrong = _wrong(error)
        return ("message", f"{wrong}: {error!s:.300}") if wrong else ("read", error.what)
    except BaseException as error:  # noqa: BLE001
        return "raw", _told(error)
    return "read", ""


def _wrong(error: FxdistillError) -> str:
    """What is wrong with an error of ours; '' where nothing is."""
    if error.exit_code != 2 and not isinstance(error, TrainingError):
        return f"exit code {error.exit_code}"
    if "\n" in error.what or not error.what or not error.hint:
        return "more than one line, or no advice"
    if len(str(error)) > _LONGEST:
        return "too long"
    try:
        str(error).encode("utf-8")
    except UnicodeEncodeError:
        return "cannot be printed"
    return ""


def _told(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.name}" for frame in last if "fxdistill" in frame.filename]
    return f"{type(error).__name__}: {error!s:.160} at {places[-1] if places else '?'}"


def _peak(*, again: bool = False) -> int:
    """The largest memory of this process in bytes, since the last time that it was asked for again."""
    if again:
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmHWM")


def _status(name: str) -> int:
    """One of the sizes that the system keeps of this process, in bytes."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) << 10
