import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from fxdistill.cli import commands, values
from fxdistill.cli.commands import app
from fxdistill.errors import InputError
from fxdistill.plan.file import load
from fxdistill.runtime import preflight
from fxdistill.runtime.execute import Settings
from tests import runs

ALLOW = ("--allow-factory", runs.ALLOW[0])
RESNET = "fxdistill.models:resnet?widths=[8,16]&blocks=1"
COMMAND = [sys.executable, "-m", "fxdistill"]


def call(*args: str) -> str:
    done = CliRunner().invoke(app, list(args))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_help_of_every_command() -> None:
    for command in ("plan", "run", "show", "export", "eval", "demo", "schema"):
        assert f"fxdistill {command}" in call(command, "--help").replace("root", "fxdistill")


@pytest.mark.parametrize("width", ["80", "50"])
def test_the_commands_are_summed_up_in_whole_sentences(width: str) -> None:
    environment = {**os.environ, "COLUMNS": width}
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True, env=environment)
    said = done.stdout
    assert "..." not in said.partition("Commands:")[2]
    assert "and compare the file with the model." in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= int(width)


def test_without_a_command_there_is_help() -> None:
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 2
    assert done.output.startswith("Usage: ")


def test_mistakes_and_help_import_nothing_heavy() -> None:
    program = "import sys; from fxdistill.cli.commands import app; app(sys.argv[1:], standalone_mode=False)"
    check = "; sys.exit('torch' in sys.modules)"
    for args in (["--help"], ["plan", "--help"], ["schema"]):
        done = subprocess.run(
            [sys.executable, "-c", program + check, *args], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    guard = "import sys; sys.modules['torch'] = None; from fxdistill.cli.commands import main; sys.argv[0] = 'fxdistill'; main()"
    done = subprocess.run(
        [sys.executable, "-c", guard, "run", "none.json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the plan cannot be read")


def test_schema_is_that_of_plans() -> None:
    assert "arms" in json.loads(call("schema"))["properties"]


def test_plan_shows_pairs_and_is_the_same_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.plan_file()
    monkeypatch.setattr(commands, "out", Console(width=60, highlight=False))
    teacher, student = (str(runs.workshop() / name) for name in ("teacher.pt", "student.pt"))
    said = [
        call("plan", teacher, student, *ALLOW, "--data", "digits", "-o", str(tmp_path / name)) for name in ("a", "b")
    ]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "runner-up" in said[0]
    assert "warm-up-1" in said[0]
    assert all(len(line) <= 60 for line in said[0].splitlines() if not line.startswith("wrote"))


def test_a_random_teacher_can_be_planned(tmp_path: Path) -> None:
    runs.plan_file()
    said = call("plan", RESNET, str(runs.workshop() / "student.pt"), *ALLOW, "-o", str(tmp_path / "plan.json"))
    assert "random-teacher" in said


@pytest.mark.parametrize("kind", ["bundle", "export"])
def test_a_teacher_shrunken_from_random_weights_cannot_be_run(tmp_path: Path, kind: str) -> None:
    runs.plan_file()
    teacher, student = tmp_path / "teacher.pt", str(runs.workshop() / "student.pt")
    source, allow = ("fxdistill_test_models:with_dropout?widths=[16,32]", ALLOW) if kind == "export" else (RESNET, ())
    small = ("--keep", "0.5", "--input", "1x1x8x8", "-o")
    assert "random weights" in call("shrink", source, *allow, *small, str(teacher))
    assert "random weights" in call("shrink", str(teacher), *small, str(tmp_path / "again.pt"))
    for name in ("teacher.pt", "again.pt"):
        plan, out = str(tmp_path / f"{name}.json"), tmp_path / "run"
        said = call("plan", str(tmp_path / name), student, *ALLOW, "--data", "digits", "--method", "kd", "-o", plan)
        assert "random-teacher" in said
        done = CliRunner().invoke(app, ["run", plan, "-o", str(out), *ALLOW])
        assert done.exit_code == 2
        assert done.stderr.startswith("error: the plan's teacher has random weights")
        assert name in done.stderr
        assert not out.exists()


def test_a_teacher_shrunken_from_a_file_can_be_run(tmp_path: Path) -> None:
    runs.plan_file()
    source, student = (str(runs.workshop() / name) for name in ("teacher.pt", "student.pt"))
    small, plan = str(tmp_path / "small.pt"), str(tmp_path / "plan.json")
    assert "random" not in call("shrink", source, "--keep", "0.5", "-o", small)
    planned = call("plan", small, student, *ALLOW, "--data", "digits", "--method", "kd", "--epochs", "1", "-o", plan)
    assert "random-teacher" not in planned
    ref = load(Path(plan)).given("teacher")
    assert isinstance(preflight.load_model(ref, tmp_path, seed=0, trained=True), nn.Module)


def test_show_a_plan_and_a_run(tmp_path: Path) -> None:
    assert "control  trains student, without a teacher" in call("show", str(runs.plan_file()))
    assert re.search(r"student, distilled +\d+\.\d\d%", call("show", str(runs.finished())))
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    (unfinished / "plan.json").write_bytes(runs.plan_file().read_bytes())
    assert "not complete" in call("show", str(unfinished))


def test_a_resumed_finished_run_prints_its_result() -> None:
    said = call("run", str(runs.plan_file()), "-o", str(runs.finished()), *ALLOW, "--resume")
    assert "student, distilled" in said
    assert "parity on 537 images" in said


def test_eval_a_run_and_a_file() -> None:
    found = json.loads((runs.finished() / "result.json").read_text())["arms"][0]["accuracy"]
    assert f"accuracy {found:.2%} on 537 test images" in call("eval", str(runs.finished()), *ALLOW)
    assert "on 537 test images" in call("eval", str(runs.workshop() / "teacher.pt"), "--data", "digits")


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [*COMMAND, "run", str(runs.plan_file()), "-o", str(out), *ALLOW, "--save-every", "0", "--device", "cpu"]
    paths = os.pathsep.join([str(Path.cwd()), str(runs.workshop())])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not (out / "checkpoint.pt").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert printed == ""
    assert said.splitlines()[-1].startswith("interrupted; continue with: fxdistill run ")
    assert said.splitlines()[-1].endswith("--resume")
    assert "Traceback" not in said
    assert "Warning" not in said
    runs.execute(runs.plan_file(), out, Settings(device="cpu", allow=runs.ALLOW, resume=True))
    assert (out / "student.pt").read_bytes() == (runs.finished() / "student.pt").read_bytes()


def test_ctrl_c_before_there_is_a_run_does_not_say_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fxdistill.runtime.execute.execute", interrupt)
    done = CliRunner().invoke(app, ["run", str(runs.plan_file()), "-o", str(tmp_path / "run"), "--device", "cpu"])
    assert done.exit_code == 130
    assert done.stderr.startswith("interrupted before anything was trained; start again with: fxdistill run ")
    assert done.stderr.endswith(f"-o {tmp_path / 'run'} --device cpu\n")


def test_arguments() -> None:
    assert values.shape("1x3x32x64") == (1, 3, 32, 64)
    assert values.shape("") is None
    assert values.first_shape(None, None) == (1, 3, 224, 224)
    assert values.pairs(["layer1=features.3"], "--pair") == (("layer1", "features.3"),)
    for wrong in ("3x32x32", "1x3x0x32", "1x3xax32"):
        with pytest.raises(InputError):
            values.shape(wrong)
