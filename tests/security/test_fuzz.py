"""The fuzzer notices each kind of fault, and finds none in some mutants of every kind.

It forks, which torch allows a process that has not trained yet: one of :mod:`tests.children` makes a report for all
tests.
"""

import functools
import json
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fuzz, fuzz_kinds, fuzz_watch
from tests import children

FEW = 5
ALTERED = "a damaged file was read"


def altered(_folder: Path) -> None:
    raise fuzz_kinds.Unsound(ALTERED)


def main() -> None:
    """Read two mutants with every planted fault, and a few of every kind without one."""
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {"planted": {}, "kinds": {}}
    with fuzz.workshop() as originals:
        kinds = fuzz_kinds.kinds(originals)
        simple, damaged = kinds["class map"][1], kinds["container, damaged"][1]
        for fault, (read, _) in fuzz.FAULTS.items():
            fuzz.SECONDS = 0.3 if fault == "waits" else 10.0
            found["planted"][fault] = list(fuzz.batch(originals, "class map", replace(simple, read=read), range(2)))
        found["altered"] = list(fuzz.batch(originals, "x", replace(damaged, read=altered), range(1)))
        for name, (_, kind) in kinds.items():
            found["kinds"][name] = list(fuzz.batch(originals, name, kind, range(FEW)))
            one, again, *others = (kind.make(fuzz_watch.seeded(name, n), originals) for n in (3, 3, *range(4, 12)))
            assert one == again, f"{name}: a mutant is not made again from its number"
            assert any(other != one for other in others), f"{name}: all mutants are alike"
    sys.stdout.write(f"\n{json.dumps(found)}\n")


@functools.cache
def report() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        code, said, errors = children.done(Path(folder), main)
    assert code == 0, errors[-2000:]
    found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
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
    assert len(rows) == FEW
    assert {row["outcome"] for row in rows} <= {"read", "refused"}
    assert not [row for row in rows if row["found"]]
