"""Times of layers in a file: what is there is not measured again, and what is not of this machine is refused."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from fxdistill.errors import InputError
from fxdistill.ir.layers import Layer
from fxdistill.measure.layer_times import Case, Table
from fxdistill.runtime.smaller import latency_table
from fxdistill.runtime.smaller.latency_table import kept, machine, read, write

CPU = "CPUExecutionProvider"
WIDE, FLAT = Layer(48, 64, 1, (1, 8, 8), (8, 8), (3, 3)), Layer(64, 10, 1, (7,))
KNOWN = {Case(WIDE, 24, 32).alone: 0.25, Case(FLAT, 33, 10).alone: 1e-5 / 3}


def held(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_what_is_written_is_read_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    assert read(path, CPU) == {}
    write(path, CPU, KNOWN)
    assert read(path, CPU) == KNOWN
    assert len(path.read_text().splitlines()) == len(KNOWN) + 2
    assert held(path)["machine"] == machine(CPU)
    write(path, CPU, {Case(WIDE, 8, 8).alone: 0.5})  # another search, which did not know of these
    assert read(path, CPU) == {**KNOWN, Case(WIDE, 8, 8).alone: 0.5}


def test_a_search_reads_it_and_adds_to_it_whatever_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    write(path, CPU, KNOWN)
    asked: list[Case] = []

    def measure(case: Case) -> float:
        asked.append(case)
        return 0.75

    table = Table(measure)
    with contextlib.suppress(KeyboardInterrupt), kept(path, table, CPU):
        assert table(WIDE, 24, 32) == 0.25
        assert table(WIDE, 48, 64) == 0.75
        raise KeyboardInterrupt
    assert asked == [Case(WIDE, 48, 64).alone]
    assert read(path, CPU) == {**KNOWN, asked[0]: 0.75}
    before = path.stat().st_mtime_ns
    with kept(path, Table(measure), CPU):
        pass
    assert path.stat().st_mtime_ns == before
    with kept(None, table, CPU):
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("what", ["machine", "provider", "onnxruntime"])
def test_times_that_were_measured_elsewhere_are_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "times.json"
    write(path, CPU, KNOWN)
    path.write_text(json.dumps({**held(path), what: "another"}))
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"measured elsewhere: {what} another, here ") as caught:
        read(path, CPU)
    assert caught.value.exit_code == 2
    with pytest.raises(InputError, match="measured elsewhere"):
        write(path, CPU, KNOWN)
    assert path.read_bytes() == before


ROW = {"reads": 8, "makes": 8, "groups": 1, "sides": [1, 8, 8], "made": [8, 8], "kernel": [3, 3], "seconds": 0.5}


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"times": [{**ROW, "seconds": 0}]}, r"times.0.seconds: .*greater than 0"),
        ({"times": [{**ROW, "seconds": "1"}]}, "times.0.seconds"),
        ({"times": [{**ROW, "reads": -1}]}, "times.0.reads"),
        ({"times": [{**ROW, "sides": []}]}, "times.0.sides"),
        ({"times": [{**ROW, "kernel": [3]}]}, "such a kernel"),
        ({"times": [ROW, {**ROW, "seconds": 1.0}]}, "two times of one layer"),
        ({"dtype": "float16"}, "dtype"),
        ({"times": None}, "times"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, Any], needle: str) -> None:
    path = tmp_path / "times.json"
    write(path, CPU, KNOWN)
    path.write_text(json.dumps({**held(path), **change}))
    with pytest.raises(InputError, match=rf"times.json is damaged: .*{needle}"):
        read(path, CPU)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("[NaN")
    for name, needle in (("no.json", "is damaged"), ("", "no file of this name"), ("x/y.json", "no file of this name")):
        with pytest.raises(InputError, match=needle):
            read(tmp_path / name, CPU)


def test_a_machine_has_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags: x\n")
    monkeypatch.setattr(latency_table, "_CPU", tmp_path / "cpuinfo")
    assert machine(CPU).startswith("Some CPU @ 2 GHz (")
    monkeypatch.setattr(latency_table, "_CPU", tmp_path / "none")
    assert len(machine(CPU)) > 3
