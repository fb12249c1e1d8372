"""A teacher that no exporter takes is trained from all the same; a student that none takes is found out at once."""

import json
from pathlib import Path

import pytest

from fxdistill.runtime.run import result
from tests import jobs, runs

pytestmark = pytest.mark.usefixtures("few_digits")

STRANGE = {"widths": [8, 16], "answers": "strange"}  # computes what ONNX has no operation for


def test_a_teacher_without_onnx_has_no_latency_and_the_run_is_complete(tmp_path: Path) -> None:
    jobs.planned(tmp_path, STRANGE, {}, "--data", "digits", "--method", "kd", "--no-control")
    said = jobs.done("run", tmp_path / "plan.json", "-o", tmp_path / "run", *jobs.ALLOW, "--device", "cpu")
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(found["latency"]) == {"student"}
    assert found["members"]["teacher"]["accuracy"] >= 0
    assert (tmp_path / "run" / "student.onnx").exists()
    for text in (said, jobs.done("show", tmp_path / "run")):
        (row,) = [line for line in text.splitlines() if line.startswith("teacher ") and "%" in line]
        assert row.split()[-1] == "-"
    again = jobs.done("run", tmp_path / "plan.json", "-o", tmp_path / "run", *jobs.ALLOW, "--resume")
    assert "student, distilled" in again


def test_it_is_said_and_a_resumed_run_ends_as_well(tmp_path: Path) -> None:
    jobs.planned(tmp_path, STRANGE, {}, "--data", "digits", "--method", "kd", "--no-control")
    run = ("run", tmp_path / "plan.json", "-o", tmp_path / "run", *jobs.ALLOW, "--device", "cpu")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:  # everything is trained, nothing measured
        patch.setattr(result, "_latencies", interrupt)
        assert jobs.call(*run).exit_code == 130
    assert not (tmp_path / "run" / "result.json").exists()
    done = jobs.call(*run, "--resume")
    assert done.exit_code == 0, done.output
    said = " ".join(done.stderr.split())
    assert "warning no-latency teacher: it has no latency, because it cannot be exported to ONNX" in said
    assert "graph(" not in done.output
    assert set(json.loads((tmp_path / "run" / "result.json").read_text())["latency"]) == {"student"}


def test_a_student_without_onnx_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    jobs.planned(tmp_path, {"widths": [8, 16]}, {"answers": "strange"}, "--data", "digits", "--method", "kd")
    before = runs.snapshot(tmp_path)
    done = jobs.call("run", tmp_path / "plan.json", "-o", tmp_path / "run", *jobs.ALLOW, "--device", "cpu")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: the model cannot be exported to ONNX; torchscript: UnsupportedOperatorError")
    assert done.stdout == ""
    assert runs.snapshot(tmp_path) == before
    assert not (tmp_path / "run").exists()
