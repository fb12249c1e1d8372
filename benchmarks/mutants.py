"""Plant faults in training, one at a time, and see that the tests notice each of them.

python benchmarks/mutants.py [--jobs N] [--only TEXT]

Each mutant of ``mutants.toml`` is a change of text in a copy of the package. The tests that should notice it run on
that copy until one of them fails. Writes ``mutants.md`` where all were planted; exits with 1 if one survived. A mutant
whose text is not there exactly once, or that does nothing but break the import or name something that is not there,
proves nothing: the script then stops. About 5 s of processor time a mutant.
"""

import argparse
import importlib
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAINING = ("tests/runtime/test_training.py",)
_COPIED = ("fxdistill", "passes", "tests", "pyproject.toml")
_BROKEN = ("SyntaxError", "IndentationError", "NameError", "ImportError", "UnboundLocalError")
_SECONDS = 600  # a test
_SLOW = (
    "torch", "torch._dynamo", "torchvision.models", "lightning_fabric", "torchmetrics.classification", "onnxruntime",
    "onnx", "sklearn.datasets", "networkx", "pydantic",
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A fault: ``old`` becomes ``new`` in a file; ``equivalent`` says why nothing can notice it, where that is so."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = TRAINING
    equivalent: str = ""


@dataclass(frozen=True)
class Outcome:
    """The test that noticed a mutant, '' where none did, and what it said."""

    mutant: Mutant
    test: str
    reason: str
    seconds: float


def mutants() -> list[Mutant]:
    """All mutants, in order."""
    content = tomllib.loads((ROOT / "benchmarks" / "mutants.toml").read_text(encoding="utf-8"))
    return [Mutant(**{**one, "tests": tuple(one.get("tests", TRAINING))}) for one in content["mutant"]]


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the package and its tests in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="fxdistill-mutant-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for entry in _COPIED:
            source = ROOT / entry
            if source.is_dir():
                shutil.copytree(source, folder / entry, symlinks=True)
            else:
                shutil.copy2(source, folder / entry)
        yield folder


def plant(mutant: Mutant, folder: Path) -> None:
    """Change the text; it must be there exactly once, and what comes out must still be Python."""
    path = folder / mutant.file
    before = path.read_text(encoding="utf-8")
    if before.count(mutant.old) != 1:
        sys.exit(f"'{mutant.name}': its text stands {before.count(mutant.old)} times in {mutant.file}, not once")
    after = before.replace(mutant.old, mutant.new)
    compile(after, str(path), "exec")
    path.write_text(after, encoding="utf-8")


@dataclass
class _Child:
    """Tests that run on a copy, in a process of their own."""

    pid: int
    folder: Path
    output: Path
    began: float

    def ended(self) -> tuple[int, str, float]:
        """Wait for it: exit code, output, seconds."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code, self.output.read_text(encoding="utf-8", errors="replace"), time.monotonic() - self.began


def tested(folder: Path, tests: tuple[str, ...]) -> _Child:
    """Start tests on a copy, until one fails, in a fork: it has torch and all else that is slow to import already."""
    output = folder / "output.txt"
    began = time.monotonic()
    pid = os.fork()
    if pid:
        return _Child(pid, folder, output, began)
    code = 99
    try:
        with output.open("wb") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = str(folder)
        _check_copied(folder)
        code = pytest.main(
            ["-x", "-q", "--tb=short", "-rfE", "-p", "no:cacheprovider", f"--timeout={_SECONDS}", *tests]
        )
    except BaseException:  # noqa: BLE001  # a fork must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _check_copied(folder: Path) -> None:
    spec = importlib.util.find_spec("fxdistill")
    if spec is None or spec.origin is None or not Path(spec.origin).is_relative_to(folder):
        raise RuntimeError("the package that would be tested is not the copy")


def outcome(mutant: Mutant, code: int, output: str, seconds: float) -> Outcome:
    """What the tests of a mutant that have ended say."""
    if code == 0:
        return Outcome(mutant, "", "", seconds)
    found = re.search(r"^FAILED (.+?)(?: - (.*))?$", output, re.MULTILINE)  # a test's name may have spaces
    reason = (found[2] or "") if found else ""
    if code != 1 or not found or reason.startswith(_BROKEN):
        sys.exit(f"'{mutant.name}' does not run at all, which proves nothing:\n{output[-3000:]}")
    return Outcome(mutant, found[1], reason, seconds)


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as Markdown."""
    caught = sum(1 for one in outcomes if one.test)
    rows = [
        f"| {one.mutant.name} | `{one.mutant.file}` | {_shown(one)} | {one.seconds:.0f} |" for one in outcomes
    ]  # fmt: skip
    return "\n".join(
        [
            "# Planted faults in training",
            "",
            "Made by `python benchmarks/mutants.py`: each fault is planted alone in a copy of the package, and the",
            "tests run until one fails. Seconds are wall-clock time up to there, import of the package and",
            "training of the teacher included.",
            "",
            f"{caught} of {len(outcomes)} noticed.",
            "",
            "| fault | file | first test that fails | s |",
            "| --- | --- | --- | ---: |",
            *rows,
            "",
        ]
    )


def _shown(one: Outcome) -> str:
    if one.test:
        return f"`{one.test.rpartition('/')[2]}`"
    return f"none: it is equivalent {one.mutant.equivalent}" if one.mutant.equivalent else "**none**"


def run(chosen: list[Mutant], jobs: int) -> list[Outcome]:
    """Plant mutants, several at a time, telling of each."""
    outcomes: list[Outcome] = []
    running: list[tuple[Mutant, _Child]] = []
    with ExitStack() as stack:
        for mutant in (*chosen, *[None] * jobs):
            if running and (mutant is None or len(running) == jobs):
                first, child = running.pop(0)
                one = outcome(first, *child.ended())
                shutil.rmtree(child.folder)
                print(f"{one.seconds:4.0f} s  {first.name:62} {one.test or 'SURVIVED'}  {one.reason[:100]}", flush=True)
                outcomes.append(one)
            if mutant is not None:
                folder = stack.enter_context(copied())
                plant(mutant, folder)
                running.append((mutant, tested(folder, mutant.tests)))
    return outcomes


def main() -> int:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once")
    parser.add_argument("--only", default="", help="a part of the names of those to plant")
    given = parser.parse_args()
    known = mutants()
    os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "400"}
    for name in _SLOW:  # once, for all forks
        importlib.import_module(name)
    with copied() as folder:
        for mutant in known:
            if (folder / mutant.file).read_text(encoding="utf-8").count(mutant.old) != 1:
                plant(mutant, folder)  # says so, before the first of them has run
        code, output, seconds = tested(folder, tuple(sorted({test for one in known for test in one.tests}))).ended()
    if code:
        sys.exit(f"the tests fail with nothing planted:\n{output[-3000:]}")
    print(f"{seconds:4.0f} s  nothing planted")
    outcomes = run([one for one in known if given.only in one.name], given.jobs)
    if not given.only:
        (ROOT / "benchmarks" / "mutants.md").write_text(table(outcomes), encoding="utf-8")
    survived = [one.mutant.name for one in outcomes if not (one.test or one.mutant.equivalent)]
    print(
        f"{sum(1 for one in outcomes if one.test)} of {len(outcomes)} noticed; survived:",
        *survived or ["none"],
        sep="\n",
    )
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
