"""Fuzzing of what may come from strangers: structured mutants of every kind of file that SECURITY.md names.

    python -m benchmarks.fuzz                              what is not done yet; at most 10 minutes on one core
    python -m benchmarks.fuzz --only "npz:17"              one mutant again, and what becomes of it
    python -m benchmarks.fuzz --plant unpickles            a reader with a fault: its findings have to appear

A mutant is made anew from its kind and number. It is read by the functions that the commands call, in a child process
under an audit hook, with limits on time and memory, and what comes of it is one of two things:

    read         and what was read is written and read again to the same, and a model can be used or is refused there
    refused      by one error of ours: exit code 2, one line of what, a place, advice, in text that can be printed

Everything else is a finding: another exception; code, a program, a connection, an import of what was not imported; a
file opened for writing, or there afterwards; a damaged file of ours that is read; more than three times the file's size
and a constant of memory; more than ten seconds; a child that died. Results are kept as JSON after every batch, so that
an interrupted run goes on; those of other code are dropped. ``fuzz.md`` is the table of it.
"""

import argparse
import collections
import contextlib
import encodings
import gc
import hashlib
import importlib
import io
import json
import os
import pickle
import pkgutil
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

import fxdistill
from benchmarks import fuzz_changes, fuzz_kinds, fuzz_originals
from benchmarks.fuzz_kinds import Kind, Unsound
from fxdistill.errors import FxdistillError, TrainingError

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "fuzz.json", HERE / "fuzz.md"
TOTAL, BATCH = 24_000, 500
SECONDS, WAIT = 10, 60
CONSTANT = 64 << 20
_ADDRESSES = 3 << 30
_LONGEST = 2000
_TOLD = 12
_PROGRAMS = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "pty.")
_LINES = ("socket.", "urllib.", "http.", "ftplib.", "webbrowser.")
_CHANGES = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "shutil.",
    "tempfile.",
)  # fmt: skip
_OURS = ("<eval_with_key>",)  # torch.fx writes the text of a graph, whose names were all checked
Row = dict[str, Any]


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
        if event.startswith(_LINES):
            return "connection"
        if event == "import":
            return "import"
        if event == "open":
            name, mode, flags = arguments
            writes = set(mode) & set("wax+") if isinstance(mode, str) else flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            return "write" if writes and not self._is_home((name,)) else ""
        if event.startswith(_CHANGES):
            return "" if self._is_home(arguments) else "write"
        return ""

    def _is_home(self, places: tuple[Any, ...]) -> bool:
        """Whether places, the arguments of a function of ``os`` with its folders' descriptors, lie where writing is allowed."""
        named = [place for place in places if isinstance(place, str | os.PathLike)]
        folders = [place for place in places[len(named):] if isinstance(place, int) and place >= 0]
        base = f"/proc/self/fd/{folders[-1]}" if folders else "."
        whole = [os.path.realpath(os.path.join(base, os.fspath(place))) for place in named]  # noqa: PTH118  # quick
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
        files = kind.make(random.Random(f"{name}:{number}"), self.originals)
        shutil.rmtree(self.case, ignore_errors=True)
        for file, content in files.items():
            (self.case / file).parent.mkdir(parents=True, exist_ok=True)
            (self.case / file).write_bytes(content)
        size = sum(map(len, files.values()))
        before = _peak(again=True)
        with self.watch.watching(os.path.realpath(self.case) if kind.writes else "") as events:
            outcome, said, use = _read(kind, self.case)
        grown = _peak() - before
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
        if grown > 3 * size + CONSTANT:
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
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


# --- children


def child(pipe: int, originals: Path, name: str, kind: Kind, numbers: range) -> None:
    """Read mutants, one after the other, and say of each that it begins and what became of it."""
    with tempfile.TemporaryDirectory(prefix="fxdistill-fuzz-") as folder, open(pipe, "w", buffering=1) as out:  # noqa: PTH123
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        bench = Bench(originals, Path(folder).resolve())
        if kind.writes:
            fuzz_kinds.prepare(originals)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESSES, used + _ADDRESSES))
        for number in numbers:
            out.write(json.dumps({"begins": number}) + "\n")
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of processor time: the machine may be busy
            signal.setitimer(signal.ITIMER_REAL, WAIT)
            try:
                row = bench.judged(name, kind, number)
            except Exception:  # noqa: BLE001  # no finding, but a fault of ours
                out.write(json.dumps({"broken": f"{name}:{number}\n{traceback.format_exc()}"}) + "\n")
                raise
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            out.write(json.dumps({"number": number, **row}) + "\n")
            if number % 100 == 99:
                gc.collect()


def batch(originals: Path, name: str, kind: Kind, numbers: range) -> Iterator[Row]:
    """What became of mutants, read in a child, and in another one behind whichever kills it."""
    at = numbers.start
    while at < numbers.stop:
        source, sink = os.pipe()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.close(source)
                child(sink, originals, name, kind, range(at, numbers.stop))
                code = 0
            finally:
                os._exit(code)
        os.close(sink)
        with open(source) as lines:  # noqa: PTH123
            for line in lines:
                row = json.loads(line)
                if "broken" in row:
                    sys.exit(row["broken"])
                at = row.get("begins", row.get("number", at - 1) + 1)
                if "number" in row:
                    yield row
        status = os.waitpid(pid, 0)[1]
        if at < numbers.stop:
            killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            outcome = "hang" if killed in (signal.SIGPROF, signal.SIGALRM) else "died"
            said = f"signal {killed}" if killed else f"exit code {os.WEXITSTATUS(status)}"
            yield {"number": at, "outcome": outcome, "said": said, "found": {outcome: said}, "grown": 0}
            at += 1


# --- results


def code() -> str:
    """A hash of the code whose results these are."""
    found = hashlib.sha256()
    for path in sorted([*HERE.parent.glob("fxdistill/**/*.py"), *HERE.parent.glob("passes/**/*.py"), *HERE.glob("fuzz*.py")]):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Of what reads files."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "pillow": PIL.__version__}


def kept(results: Row, name: str, rows: list[Row]) -> None:
    """Add a batch to the results."""
    mine = results["kinds"].setdefault(name, {"mutants": 0, "outcomes": {}, "findings": [], "most_mib": 0})
    mine["mutants"] += len(rows)
    mine["outcomes"] = dict(sorted((Counter(mine["outcomes"]) + Counter(row["outcome"] for row in rows)).items()))
    mine["most_mib"] = max(mine["most_mib"], *(row["grown"] >> 20 for row in rows))
    mine["findings"] += [{"mutant": f"{name}:{row['number']}", **row["found"]} for row in rows if row["found"]]


def table(results: Row) -> str:
    """The results as Markdown."""
    rows = results["kinds"]
    total, findings = (sum(row["mutants"] for row in rows.values()), [one for row in rows.values() for one in row["findings"]])
    lines = [
        "# Files from strangers: mutants", "",
        f"Made by `python -m benchmarks.fuzz`: {total:,} mutants, {len(findings)} findings. Each was read in a child process under an",
        "audit hook. *MiB* is the largest growth of memory that reading one of them took, of at most three times the file and "
        f"{CONSTANT >> 20} MiB.",
        "", "| kind | mutants | read | refused | findings | MiB |", "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {row['mutants']:,} | {row['outcomes'].get('read', 0):,} | {row['outcomes'].get('refused', 0):,} | "
            f"{len(row['findings'])} | {row['most_mib']} |"
            for name, row in rows.items()
        ),
        "", "Versions: " + ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + f"; code {results['code']}.",
    ]  # fmt: skip
    for one in findings:
        said = "; ".join(f"{kind}: {text}" for kind, text in one.items() if kind != "mutant")
        lines += ["", f"- `{one['mutant']}`: {' '.join(said.split())[:300]}"]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    """The originals, made by a child, so that no thread of autograd is there to be forked; all our modules imported."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for found in (*pkgutil.walk_packages(fxdistill.__path__, "fxdistill."), *pkgutil.iter_modules(encodings.__path__, "encodings.")):
        with contextlib.suppress(Exception):  # another system's
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
    with tempfile.TemporaryDirectory(prefix="fxdistill-fuzz-") as folder:
        originals = Path(folder).resolve() / "originals"
        pid = os.fork()
        if not pid:
            code = 1
            try:
                fuzz_originals.make(originals)
                code = 0
            except BaseException:  # noqa: BLE001  # a fork must not go on as its parent
                traceback.print_exc()
            finally:
                os._exit(code)
        if os.waitpid(pid, 0)[1]:
            sys.exit("the originals cannot be made")
        warmed(originals)
        gc.collect()
        gc.freeze()
        yield originals


def warmed(originals: Path) -> None:
    """Import what reading imports on its first use, of the libraries."""
    repr(torch.zeros(1))
    with contextlib.suppress(Exception):
        zipfile.ZipFile(io.BytesIO(fuzz_changes.zipped([("x", b"")], zipfile.ZIP_LZMA))).testzip()


def planted(name: str, kind: Kind) -> Kind:
    """A kind whose reader has a fault."""

    def unpickles(folder: Path) -> None:
        pickle.loads(b"cbuiltins\nexec\n(X\x04\x00\x00\x00pass\x85\x94tR.")

    def raises(folder: Path) -> None:
        raise KeyError(folder.name)

    def writes(folder: Path) -> None:
        Path("here").write_text("x")

    def eats(folder: Path) -> None:
        bytearray(CONSTANT * 2)

    def waits(folder: Path) -> None:
        while True:
            pass

    def dies(folder: Path) -> None:
        os.abort()

    faults = {"unpickles": unpickles, "raises": raises, "writes": writes, "eats": eats, "waits": waits, "dies": dies}
    return Kind(kind.make, faults[name])


def main() -> int:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--total", type=int, default=TOTAL, help="mutants, shared out among the kinds")
    parser.add_argument("--only", default="", metavar="KIND[:NUMBER]", help="one kind, or one mutant of it; nothing is kept")
    parser.add_argument("--plant", default="", help="read by a reader with this fault")
    given = parser.parse_args()
    results: Row = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if results.get("code") != code() or given.total != results.get("total"):
        results = {"code": code(), "total": given.total, "versions": versions(), "kinds": {}}
    if given.only or given.plant:
        results["kinds"] = {}
    with workshop() as originals:
        kinds = fuzz_kinds.kinds(originals)
        wanted, _, number = given.only.partition(":")
        shares = sum(share for share, _ in kinds.values())
        for name, (share, kind) in kinds.items():
            if wanted not in ("", name):
                continue
            most = int(number) + 1 if number else -(-given.total * share // shares)
            reader = planted(given.plant, kind) if given.plant else kind
            for begin in range(int(number or results["kinds"].get(name, {"mutants": 0})["mutants"]), most, BATCH):
                rows = list(batch(originals, name, reader, range(begin, min(begin + BATCH, most))))
                kept(results, name, rows)
                if number:
                    print(json.dumps(rows[0], indent=1))
                if not given.only and not given.plant:
                    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
                    TABLE.write_text(table(results))
            mine = results["kinds"][name]
            print(f"{name:32} {mine['mutants']:6} {mine['outcomes']} {mine['most_mib']} MiB, {len(mine['findings'])} findings", flush=True)
            for one in collections.deque(mine["findings"], _TOLD):
                print("   ", one, flush=True)
    return 1 if any(row["findings"] for row in results["kinds"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
