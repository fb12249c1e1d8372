"""The demo calls the commands as a user would; here with fewer epochs, a smaller teacher, and in this process."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fxdistill.cli import demo
from fxdistill.cli.commands import app
from fxdistill.errors import FxdistillError, RunDirError
from fxdistill.measure import onnx_file


def in_here(command: list[str], *, cwd: Path, check: bool) -> "subprocess.CompletedProcess[Any]":
    """What a process of the command would do."""
    python, option, program, *arguments = command
    assert (python, option, program, check) == (sys.executable, "-m", "fxdistill", False)
    with contextlib.chdir(cwd):
        return subprocess.CompletedProcess(command, CliRunner().invoke(app, arguments).exit_code)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", in_here)
    monkeypatch.setattr(onnx_file, "_EXPORTERS", ("torchscript",))  # the quicker of the two; the other one has tests
    monkeypatch.setattr(demo, "TEACHER", (demo.TEACHER[0], demo.TEACHER[1] | {"widths": [8, 16]}))
    monkeypatch.setattr(demo, "_EPOCHS", 1)
    monkeypatch.setattr(demo, "_OPTIONS", "--data digits --epochs 1 --batch-size 256 --no-control")


def test_the_demo_leaves_two_models_a_plan_and_a_run(tmp_path: Path) -> None:
    said: list[str] = []
    demo.run(tmp_path / "demo", repeats=1, say=said.append)
    folder = tmp_path / "demo"
    assert {path.name for path in folder.iterdir()} == {"teacher.pt", "student.pt", "plan.json", "run"}
    last = said[-1]
    for name in ("student.onnx", "report.html"):
        assert str(folder / "run" / name) in last
        assert (folder / "run" / name).is_file()
    assert [line.strip() for line in said if "$" in line] == [
        f"$ fxdistill plan teacher.pt student.pt {demo._OPTIONS} --repeats 1",
        "$ fxdistill run plan.json -o run",
    ]


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(RunDirError, match="not empty"):
        demo.run(tmp_path, repeats=1, say=lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_command_that_fails_fails_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_OPTIONS", "--data nonsense")
    with pytest.raises(FxdistillError, match="exit code 2"):
        demo.run(tmp_path / "demo", repeats=1, say=lambda _: None)
