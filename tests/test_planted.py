"""The faults that ``benchmarks/mutants.py`` plants: each can be planted, and in one way."""

import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FAULTS = tomllib.loads((ROOT / "benchmarks/mutants.toml").read_text())["mutant"]


def test_what_a_fault_replaces_stands_once_in_its_file() -> None:
    wrong = {
        fault["name"]: count
        for fault in FAULTS
        if (count := (ROOT / fault["file"]).read_text().count(fault["old"])) != 1
    }
    assert not wrong, f"change what stands in benchmarks/mutants.toml: {wrong}"


def test_what_takes_its_place_is_python() -> None:
    for fault in FAULTS:
        compile((ROOT / fault["file"]).read_text().replace(fault["old"], fault["new"]), fault["name"], "exec")


def test_a_fault_has_a_name_of_its_own_and_changes_something() -> None:
    assert [name for name, count in Counter(fault["name"] for fault in FAULTS).items() if count > 1] == []
    assert [fault["name"] for fault in FAULTS if fault["old"] == fault["new"]] == []


def test_the_tests_that_should_notice_are_there() -> None:
    named = {path.partition("::")[0] for fault in FAULTS for path in fault.get("tests", [])}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_readme_says_how_many_there_are() -> None:
    assert f" plants {len(FAULTS)} faults" in (ROOT / "README.md").read_text(encoding="utf-8")
