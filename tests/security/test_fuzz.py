"""The fuzzer notices each kind of fault, and finds none in some mutants of every kind.

It forks, which torch allows a process that has not trained yet: a process of its own makes one report for all tests.
"""

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fuzz, fuzz_kinds, fuzz_watch

ROOT = Path(__file__).parents[2]
ALTERED = "a damaged file was read"


def altered(_folder: Path) -> None:
    raise fuzz_kinds.Unsound(ALTERED)


def main() -> None:
    """Read two mutants with every planted fault, and a few of every kind without one."""
    found: dict[str, Any] = {"planted": {}, "kinds": {}}
    with fuzz.workshop() as originals:
        kinds = fuzz_kinds.kinds(originals)
        simple, damaged = kinds["class map"][1], kinds["container, damaged"][1]
        for fault, (read, _) in fuzz.FAULTS.items():
            fuzz.SECONDS = 0.3 if fault == "waits" else 10.0
            found["planted"][fault] = list(fuzz.batch(originals, "class map", replace(simple, read=read), range(2)))
        found["altered"] = list(fuzz.batch(originals, "x", replace(damaged, read=altered), range(1)))
        for name, (_, kind) in kinds.items():
            found["kinds"][name] = list(fuzz.batch(originals, name, kind, range(9)))
            one, again, *others = (kind.make(fuzz_watch.seeded(name, n), originals) for n in (3, 3, *range(4, 12)))
            assert one == again, f"{name}: a mutant is not made again from its number"
            assert any(other != one for other in others), f"{name}: all mutants are alike"
    sys.stdout.write(f"\n{json.dumps(found)}\n")


@functools.cache
def report() -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.security.test_fuzz"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.parametrize("fault", fuzz.FAULTS)
def test_a_fault_of_a_reader_is_a_finding_of_every_mutant(fault: str) -> None:
    rows = report()["planted"][fault]
    assert [row["number"] for row in rows] == [0, 1]
    assert all(fuzz.FAULTS[fault][1] in row["found"] for row in rows), rows


def test_damage_that_is_read_is_a_finding() -> None:
    assert [row["found"] for row in report()["altered"]] == [{"altered": ALTERED}]


@pytest.mark.parametrize("name", fuzz_kinds.kinds(Path()))
def test_a_few_mutants_are_read_or_refused(name: str) -> None:
    rows = report()["kinds"][name]
    assert len(rows) == 9
    assert {row["outcome"] for row in rows} <= {"read", "refused"}
    assert not [row for row in rows if row["found"]]


if __name__ == "__main__":
    main()
