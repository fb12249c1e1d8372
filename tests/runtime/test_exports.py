"""What files in less precision reach is noted in the run that they are of."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fxdistill.errors import RunDirError
from fxdistill.report.page import document, told
from fxdistill.runtime.deployment import exports
from fxdistill.runtime.run.directory import RunDir
from tests import jobs, runs

pytestmark = pytest.mark.usefixtures("few_digits")


def copied(tmp_path: Path) -> RunDir:
    shutil.copytree(runs.finished(), tmp_path / "run")
    origin = json.loads((tmp_path / "run" / "origin.json").read_text())
    (tmp_path / "run" / "origin.json").write_text(json.dumps({**origin, "plan": str(runs.plan_file())}))
    return RunDir.existing(tmp_path / "run")


def test_what_export_measures_of_a_run_is_in_its_report(tmp_path: Path) -> None:
    run = copied(tmp_path)
    options = ("-o", tmp_path / "s.onnx", "--tolerance-agreement", 90, "--tolerance-accuracy", 90)
    allowed = [part for module in runs.ALLOW for part in ("--allow-factory", module)]
    said = jobs.done("export", run.path, *allowed, "--fp16", "--int8", *options)
    found = exports.read(run, run.plan())
    assert [one.precision for one in found] == ["int8", "fp16"]
    for one in found:
        assert one.value is not None
        assert f"accuracy {one.value:.2%}" in said
        assert one.file == f"s-{one.precision}.onnx"
        assert one.bytes == (tmp_path / one.file).stat().st_size
    page = document.document([told.of_run(run.path, "run")])
    assert f"the int8 file was timed beside the float file, at {found[0].latency_of_float:.3f} ms then" in page
    rows = {model.name: model for model in told.of_run(run.path, "run").models}
    assert rows["student, int8 file"].value == found[0].value
    assert rows["student, int8 file"].latency == found[0].latency
    jobs.done(
        "export", run.path, *allowed, "--fp16", *options
    )  # again: the other one stays, no precision is there twice
    assert [one.precision for one in exports.read(run, run.plan())] == ["int8", "fp16"]


@pytest.mark.parametrize("other", [("--data", "digits"), ("--size", "12"), ("--input", "1x1x12x12")])
def test_what_was_measured_on_other_data_or_at_another_size_is_not_noted(
    tmp_path: Path, other: tuple[str, str]
) -> None:
    run = copied(tmp_path)
    allowed = [part for module in runs.ALLOW for part in ("--allow-factory", module)]
    jobs.done("export", run.path, *allowed, "--fp16", "-o", tmp_path / "s.onnx", *other)
    assert exports.read(run, run.plan()) == []


GOOD: dict[str, Any] = {
    "file": "a.onnx", "precision": "int8", "value": 0.5, "agreement": 0.9, "latency": 1.0, "latency_of_float": 2.0,
    "bytes": 10,
}  # fmt: skip


@pytest.mark.parametrize(
    "wrong", [{"value": "0.5"}, {"latency": None}, {"precision": "<b>"}, {"extra": 1, "agreement": "x"}, {"bytes": 0.5}]
)
def test_a_damaged_file_is_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    run = copied(tmp_path)
    run.exports_path.write_text(json.dumps({"plan": run.plan().sha256, "exports": [GOOD]}))
    assert len(exports.read(run, run.plan())) == 1
    run.exports_path.write_text(json.dumps({"plan": run.plan().sha256, "exports": [{**GOOD, **wrong}]}))
    with pytest.raises(RunDirError, match=r"exports\.json is damaged"):
        exports.read(run, run.plan())


def test_a_damaged_file_is_said_before_anything_is_exported(tmp_path: Path) -> None:
    run = copied(tmp_path)
    run.exports_path.write_text("{")
    allowed = [part for module in runs.ALLOW for part in ("--allow-factory", module)]
    found = jobs.call("export", run.path, *allowed, "--fp16", "-o", tmp_path / "s.onnx")
    assert found.exit_code == 2
    assert "exports.json is damaged" in " ".join(found.output.split())
    assert not list(tmp_path.glob("*.onnx"))


def test_files_of_another_plan_are_left_aside(tmp_path: Path) -> None:
    run = copied(tmp_path)
    run.exports_path.write_text(json.dumps({"plan": "0" * 64, "exports": [GOOD]}))
    assert exports.read(run, run.plan()) == []
