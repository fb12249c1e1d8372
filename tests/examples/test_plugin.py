"""The plug-in of the examples, installed for real: its names work, plans record it, and without it a run says so."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fxdistill import registry
from fxdistill.data.load import load as load_data
from fxdistill.measure import onnx_file
from fxdistill.modelfiles.bundle import save
from fxdistill.modelfiles.factories import build
from tests import children
from tests.runs import taught_head

ROOT = Path(__file__).parents[2]
CONVNETS = ("fxdistill.models:convnet?widths=[8,16]", "fxdistill.models:convnet?widths=[4,8]", "--input", "1x1x8x8")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the plug-in."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "examples" / "plugin", folder / "source")
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
        "--disable-pip-version-check", "--target", str(folder / "site"), str(folder / "source"),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return folder / "site"


def _carried_out(args: tuple[str, ...], site: Path | None) -> None:
    """The command line as ``python -m`` has it, in a process with the heavy imports and nothing of the plug-in."""
    os.environ["COLUMNS"] = "100"
    sys.path[:0] = [str(site)] if site else []
    sys.argv = ["fxdistill", *args]
    registry._entry_points.cache_clear()
    onnx_file._EXPORTERS = ("torchscript",)  # the quicker one; the other has tests
    runpy.run_module("fxdistill", run_name="__main__")


def fxdistill(folder: Path, *args: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command line in a folder, with or without the plug-in, in a process of its own."""
    return subprocess.CompletedProcess(args, *children.done(folder, _carried_out, args, site))


def test_a_plan_by_its_method_records_where_the_names_come_from(installed: Path, tmp_path: Path) -> None:
    done = fxdistill(tmp_path, "plan", *CONVNETS, "--method", "example", site=installed)
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["method"] == "example"
    assert [stage["name"] for stage in plan["arms"][0]["stages"]] == ["vid", "main"]
    assert {kept["criterion"] for kept in plan["kept"]} == {"spread"}
    assert {(p["kind"], p["name"], p["distribution"], p["version"]) for p in plan["plugins"]} == {
        (kind, name, "fxdistill-example", "0.1.0")
        for kind, name in (("method", "example"), ("loss", "vid-linear"), ("criterion", "spread"))
    }
    without = fxdistill(tmp_path, "run", "plan.json")
    assert without.returncode == 2
    assert "pip install fxdistill-example" in without.stderr
    assert fxdistill(tmp_path, "show", "plan.json").returncode == 2
    assert "vid-linear[block1]" in fxdistill(tmp_path, "show", "plan.json", site=installed).stdout


def test_help_and_hints_know_its_names(installed: Path, tmp_path: Path) -> None:
    words = " ".join(fxdistill(tmp_path, "plan", "--help", site=installed).stdout.split())
    assert "example, " in words or ", example" in words
    assert "spread" in words
    assert "example" not in fxdistill(tmp_path, "plan", "--help").stdout
    near = fxdistill(tmp_path, "plan", *CONVNETS, "--method", "exampel", site=installed)
    assert near.returncode == 2
    assert "did you mean 'example'?" in near.stderr
    assert "did you mean 'spread'?" in fxdistill(
        tmp_path, "shrink", CONVNETS[1], "--keep", "0.5", "--by", "spred", site=installed
    ).stderr  # fmt: skip


def test_its_loss_is_trained_along_and_gone_in_the_end(installed: Path, tmp_path: Path) -> None:
    factory = "fxdistill.models:convnet"
    for name, widths in (("teacher", [8, 16]), ("student", [4, 8])):
        kwargs = {"widths": widths}
        made = taught_head(build(factory, kwargs), "classifier", load_data("digits"))
        save(made, tmp_path / f"{name}.pt", factory=factory, kwargs=kwargs, input_shape=(1, 1, 8, 8))
    options = ("--data", "digits", "--method", "example+kd", "--epochs", "1", "--batch-size", "256", "--no-control")
    planned = fxdistill(tmp_path, "plan", "teacher.pt", "student.pt", *options, site=installed)
    assert planned.returncode == 0, planned.stderr
    done = fxdistill(tmp_path, "run", "plan.json", site=installed)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, last = (line["losses"] for line in lines if line["stage"] == "vid" and line["epoch"] in (1, 3))
    assert all(last[key] < first[key] for key in first)
    trained = torch.load(tmp_path / "run" / "student_state_dict.pt", weights_only=True)
    assert trained.keys() == build(factory, {"widths": [4, 8]}).state_dict().keys()
