"""ONNX files of any origin in less precision: from Python and from the command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fxdistill
from fxdistill.cli.commands import app
from fxdistill.errors import FxdistillError
from fxdistill.ir.running import quiet
from fxdistill.measure.onnx_model import OnnxModel
from fxdistill.runtime.deployment import exports
from fxdistill.runtime.run.directory import RunDir
from tests import runs

ANY: dict[str, Any] = {"tolerance_accuracy": 100.0, "tolerance_agreement": 100.0}


def file(folder: Path, batch: int | None = None) -> Path:
    """As another tool writes it: an input of another name, no metadata, any number of images or a fixed one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 10))
    path = folder / f"of-{batch}.onnx"
    with quiet():
        torch.onnx.export(
            model.eval(), (torch.randn(batch or 2, 1, 8, 8),), path, input_names=["pixels"], output_names=["scores"],
            dynamic_axes=None if batch else {"pixels": {0: "n"}, "scores": {0: "n"}}, dynamo=False,
        )  # fmt: skip
    return path


def test_a_file_says_the_same_whatever_number_of_images_it_takes(tmp_path: Path) -> None:
    images = torch.randn(7, 1, 8, 8)
    expected = OnnxModel(file(tmp_path))(images)
    for batch in (1, 3, 7, 9):
        model = OnnxModel(file(tmp_path, batch))
        assert model.batch == batch
        torch.testing.assert_close(model(images), expected)
    assert OnnxModel(file(tmp_path)).batch is None


@pytest.mark.parametrize("batch", [None, 1, 50])
def test_the_file_of_another_tool_is_written_beside_it(tmp_path: Path, batch: int | None) -> None:
    path = file(tmp_path, batch)
    made = fxdistill.quantize(path, data="digits", calibration_images=70, **ANY)
    assert made.path == path.with_name(f"{path.stem}-int8.onnx")
    assert made.of_float == fxdistill.evaluate(str(path), "digits")["accuracy"]
    assert made.value == fxdistill.evaluate(str(made.path), "digits")["accuracy"]
    assert made.agreement is not None
    assert made.agreement > 0.9
    done = CliRunner().invoke(app, ["export", str(path), "--fp16", "--data", "digits"], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    assert f"wrote {path.with_name(f'{path.stem}-fp16.onnx')}: accuracy {made.of_float:.2%}" in done.stdout
    assert not (Path.cwd() / "student.onnx").exists()


def test_what_a_run_exported_is_noted_in_the_run(tmp_path: Path) -> None:
    with runs.few_digits():
        shutil.copytree(runs.finished(), tmp_path / "run")
        origin = json.loads((tmp_path / "run" / "origin.json").read_text())
        (tmp_path / "run" / "origin.json").write_text(json.dumps({**origin, "plan": str(runs.plan_file())}))
        made = fxdistill.quantize(tmp_path / "run", "fp16", allow=runs.ALLOW, **ANY)
        run = RunDir.existing(tmp_path / "run")
        (noted,) = exports.read(run, run.plan())
        assert (noted.file, noted.value, made.path) == ("student-fp16.onnx", made.value, run.path / noted.file)
        fxdistill.quantize(tmp_path / "run", data="digits", allow=runs.ALLOW, **ANY)  # other data than the run's
        assert exports.read(run, run.plan()) == [noted]


def test_what_does_not_go_leaves_nothing(tmp_path: Path) -> None:
    path, words = file(tmp_path, 50), ("export", str(tmp_path / "of-50.onnx"), "--int8", "--data", "digits")
    with pytest.raises(FxdistillError, match="it takes 50 images at once, and there are 20 to calibrate on"):
        fxdistill.quantize(path, data="digits", calibration_images=20)
    with pytest.raises(FxdistillError, match="measured on test images, and there are none"):
        fxdistill.quantize(path)
    with pytest.raises(FxdistillError, match="there is no such ONNX file"):
        fxdistill.quantize(tmp_path / "student.pt", data="digits")
    with pytest.raises(FxdistillError, match="is no whole number from 1 on"):
        fxdistill.quantize(path, data="digits", calibration_images=0)
    with pytest.raises(FxdistillError, match="is no number from 0 on"):
        fxdistill.quantize(path, data="digits", tolerance_agreement=-1)
    for option in (
        ["-o", "student.onnx"],
        ["-o", str(tmp_path / "other.onnx")],
        ["--optimize"],
        ["--opset", "17"],
        ["--only-output", "scores"],
    ):
        done = CliRunner().invoke(app, [*words, *option], env={"COLUMNS": "300"})
        assert done.exit_code == 2
        assert "an ONNX file stays as it is" in done.stderr
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    made = fxdistill.quantize(path, data="digits", **ANY)
    for precision in ("int8", "fp16"):
        with pytest.raises(FxdistillError, match="the file is in INT8 already"):
            fxdistill.quantize(made.path, precision, data="digits", **ANY)
    assert sorted(one.name for one in tmp_path.iterdir()) == [made.path.name, path.name]
