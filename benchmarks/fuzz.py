"""Fuzzing of what may come from strangers: structured mutants of every kind of file that SECURITY.md names.

    python -m benchmarks.fuzz                              what is not done yet; five minutes on a core that is free
    python -m benchmarks.fuzz --only npz                   one kind anew; npz:17 one mutant, and what becomes of it
    python -m benchmarks.fuzz --plant unpickles            a reader with a fault: its findings have to appear

A mutant is made anew from its kind and number (those of runs and of the old layout but for the times and addresses in
their originals). It is read by the functions that the commands call, in a child process
under an audit hook, with limits on time and memory, and what comes of it is one of two things:

    read         and what was read is written and read again to the same, and a model can be used or is refused there
    refused      by one error of ours: exit code 2, one line of what, a place, advice, in text that can be printed

Everything else is a finding: another exception; code, a program, a connection, an import of what was not imported; a
file opened for writing, or there afterwards; a damaged file of ours that is read; more than three times the file's size
and a constant of memory; more than ten seconds; a child that died. Results are kept as JSON after every batch, so that
an interrupted run goes on; those of other code are dropped. ``fuzz.md`` is the table of it.
"""

import argparse
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
import resource
import signal
import socket
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import rich.cells
import torch

import fxdistill
from benchmarks import fuzz_archives, fuzz_kinds, fuzz_originals
from benchmarks.fuzz_kinds import Kind
from benchmarks.fuzz_watch import Bench, Row
from fxdistill.errors import ModelError

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "fuzz.json", HERE / "fuzz.md"
TOTAL, BATCH = 21_000, 500
SECONDS, WAIT = 10.0, 60.0
_ADDRESSES = 3 << 30  # bytes that a child may have beside what it begins with
_TOLD = 12  # findings of a kind that are printed
_LATE = ("torch.utils.serialization", "PIL.AvifImagePlugin")  # what reading imports on its first use


def child(pipe: int, originals: Path, name: str, kind: Kind, numbers: range) -> None:
    """Read mutants, one after the other, and say of each that it begins and what became of it."""
    with tempfile.TemporaryDirectory(prefix="fxdistill-fuzz-") as folder, open(pipe, "w", buffering=1) as out:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        warnings.simplefilter("ignore")
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
            except Exception:  # no finding, but a fault of ours
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
        with os.fdopen(source) as lines:
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


def code() -> str:
    """A hash of the code whose results these are."""
    found, root = hashlib.sha256(), HERE.parent
    for path in sorted([*root.glob("fxdistill/**/*.py"), *root.glob("passes/**/*.py"), *HERE.glob("fuzz*.py")]):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Of what reads files."""
    libraries = {"torch": torch.__version__, "numpy": np.__version__, "pillow": PIL.__version__}
    return {"python": platform.python_version(), **libraries}


def kept(results: Row, name: str, kind: Kind, rows: list[Row]) -> None:
    """Add a batch to the results."""
    new = {"code": code(), "mutants": 0, "outcomes": {}, "findings": [], "most_mib": 0, "of_mib": kind.most >> 20}
    mine = results["kinds"].setdefault(name, new)
    mine["mutants"] += len(rows)
    mine["outcomes"] = dict(sorted((Counter(mine["outcomes"]) + Counter(row["outcome"] for row in rows)).items()))
    mine["most_mib"] = max(mine["most_mib"], *(row["grown"] >> 20 for row in rows))
    mine["findings"] += [{"mutant": f"{name}:{row['number']}", **row["found"]} for row in rows if row["found"]]


def table(results: Row) -> str:
    """The results as Markdown."""
    rows = results["kinds"]
    total, findings = (
        sum(row["mutants"] for row in rows.values()),
        [f for row in rows.values() for f in row["findings"]],
    )
    said = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        "# Files from strangers: mutants", "",
        f"Made by `python -m benchmarks.fuzz`: {total:,} mutants, **{len(findings)} findings**. Each was read in a",
        "child process under an audit hook. *MiB* is the most that reading one of them added to the process's memory,",
        "which may be three times the files, each below 0.1 MiB, and a constant.", "",
        "| kind | mutants | read | refused | findings | MiB | of | code |", f"| --- |{' ---: |' * 6} --- |",
    ]  # fmt: skip
    for name, row in rows.items():
        read, refused = (row["outcomes"].get(outcome, 0) for outcome in ("read", "refused"))
        cells = (
            name,
            f"{row['mutants']:,}",
            f"{read:,}",
            f"{refused:,}",
            len(row["findings"]),
            row["most_mib"],
            row["of_mib"],
            row["code"],
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", f"Versions: {said}. *code* is a hash of the product's and this script's."]
    for one in findings:
        what = "; ".join(f"{kind}: {text}" for kind, text in one.items() if kind != "mutant")
        lines += ["", f"- `{one['mutant']}`: {' '.join(what.split())[:300]}"]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    """The originals, made by a child, so that no thread of autograd is there to be forked; all our modules imported."""
    torch.set_num_threads(1)
    for found in (
        *pkgutil.walk_packages(fxdistill.__path__, "fxdistill."),
        *pkgutil.iter_modules(encodings.__path__, "encodings."),
    ):
        with contextlib.suppress(Exception):  # another system's
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
    with tempfile.TemporaryDirectory(prefix="fxdistill-fuzz-") as folder:
        originals = Path(folder).resolve() / "originals"
        pid = os.fork()
        if not pid:
            code = 1
            try:
                warnings.simplefilter("ignore")
                torch.set_num_threads(1)  # a fork's pool is made anew by who comes first, and autograd's threads race
                fuzz_originals.make(originals)
                code = 0
            except BaseException:  # noqa: BLE001  # a fork must not go on as its parent
                traceback.print_exc()
            finally:
                os._exit(code)
        if os.waitpid(pid, 0)[1]:
            sys.exit("the originals cannot be made")
        warmed()
        gc.collect()
        gc.freeze()
        yield originals


def warmed() -> None:
    """Import what reading imports on its first use, of the libraries."""
    repr(torch.zeros(1))
    PIL.Image.init()
    rich.cells.cell_len("日")
    for name in _LATE:
        importlib.import_module(name)
    with contextlib.suppress(Exception):
        zipfile.ZipFile(io.BytesIO(fuzz_archives.zipped([("x", b"")], zipfile.ZIP_LZMA))).testzip()


def _unpickles(_folder: Path) -> None:
    pickle.loads(b"cbuiltins\nexec\n(X\x04\x00\x00\x00passtR.")


def _raises(folder: Path) -> None:
    raise KeyError(folder.name)


def _writes(_folder: Path) -> None:
    Path("here").write_text("x")


def _connects(_folder: Path) -> None:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", 1), timeout=1)


def _eats(_folder: Path) -> None:
    bytearray(b"x") * (128 << 20)


def _waits(_folder: Path) -> None:
    while True:
        pass


def _dies(_folder: Path) -> None:
    os.abort()


def _says_nothing(folder: Path) -> None:
    raise ModelError("wrong", where=str(folder))


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "unpickles": (_unpickles, "code"), "raises": (_raises, "raw"), "writes": (_writes, "write"),
    "eats": (_eats, "memory"), "connects": (_connects, "connection"), "waits": (_waits, "hang"),
    "dies": (_dies, "died"), "says nothing": (_says_nothing, "message"),
}  # fmt: skip
"""Faults of a reader by name, and as what they are found."""


def main() -> int:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--total", type=int, default=TOTAL, help="mutants, shared out among the kinds")
    parser.add_argument(
        "--only", default="", metavar="KIND[:NUMBER]", help="one kind anew, or one mutant of it: that is not kept"
    )
    parser.add_argument("--plant", default="", choices=FAULTS, help="read with this fault")
    given = parser.parse_args()
    results: Row = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    wanted, _, number = given.only.partition(":")
    if given.total != results.get("total") or given.plant or number:
        results = {"total": given.total, "kinds": {}}
    known = {name: row for name, row in results["kinds"].items() if name != wanted}
    stay = {name: row for name, row in known.items() if wanted or row["code"] == code()}
    results |= {"versions": versions(), "kinds": stay}
    with workshop() as originals:
        kinds = fuzz_kinds.kinds(originals)
        shares = sum(share for share, _ in kinds.values())
        for name, (share, kind) in kinds.items():
            if wanted not in ("", name):
                continue
            numbers = range(int(number), int(number) + 1) if number else range(-(-given.total * share // shares))
            reader = replace(kind, read=FAULTS[given.plant][0]) if given.plant else kind
            for some in batches(results, name, numbers):
                kept(results, name, kind, list(batch(originals, name, reader, some)))
                if not number and not given.plant:
                    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
                    TABLE.write_text(table(results))
            told(name, results["kinds"][name])
    return 1 if any(row["findings"] for row in results["kinds"].values()) else 0


def batches(results: Row, name: str, numbers: range) -> Iterator[range]:
    """The mutants of a kind that are still to do."""
    done = results["kinds"].get(name, {"mutants": 0})["mutants"]
    for begin in range(numbers.start + done, numbers.stop, BATCH):
        yield range(begin, min(begin + BATCH, numbers.stop))


def told(name: str, row: Row) -> None:
    """Say what became of a kind."""
    print(f"{name:32} {row['mutants']:6} {row['outcomes']} {row['most_mib']} MiB, {len(row['findings'])} findings")
    for one in row["findings"][-_TOLD:]:
        print("   ", one, flush=True)


if __name__ == "__main__":
    sys.exit(main())
