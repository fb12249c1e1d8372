"""One command in several processes: each is started with all options, and one of them speaks for all."""

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fxdistill.cli.commands import app
from fxdistill.errors import DataError
from fxdistill.runtime.processes import launch
from tests import runs

pytestmark = pytest.mark.usefixtures("few_digits")

PLACE = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


def test_every_process_gets_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def launched(command: list[str], **options: int) -> int:
        started.extend([command, options])
        return 2

    monkeypatch.setattr(launch, "launch", launched)
    options = ["--device", "cpu", "--devices", "2", "--nodes", "3", "--save-every", "7", "--force"]
    done = CliRunner().invoke(app, ["run", str(runs.plan_file()), "-o", str(tmp_path / "run"), *options, "--resume"])
    assert done.exit_code == 2
    assert not done.output
    command = ["fxdistill", "run", str(runs.plan_file()), "-o", str(tmp_path / "run"), *options, "--resume"]
    assert started == [[sys.executable, "-m", *command], {"devices": 2, "nodes": 3}]


@pytest.mark.parametrize("speaks", [True, False])
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("an image is damaged", where="x.png"), 2, "error: an image is damaged\n  where: x.png\n"),
        (RuntimeError("[pair.cc:534] Connection closed by peer"), 1, "error: another process of the run has ended\n"),
        (KeyboardInterrupt(), 130, "interrupted before anything was trained"),
    ],
)
def test_one_speaks_and_all_end_with_its_exit_code(
    error: BaseException, code: int, said: str, speaks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("fxdistill.runtime.run.execute.execute", fails)
    monkeypatch.setattr(launch, "speaks", lambda _code: speaks)
    done = CliRunner().invoke(app, ["run", str(runs.plan_file()), "-o", str(tmp_path / "run")])
    assert done.exit_code == code
    assert done.stderr.startswith(said) if speaks else not done.stderr


def test_a_fault_of_ours_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise KeyError("InDistill: Connection closed by peer")  # words that say nothing in an error of another kind

    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("fxdistill.runtime.run.execute.execute", fails)
    done = CliRunner().invoke(app, ["run", str(runs.plan_file()), "-o", str(tmp_path / "run")])
    assert isinstance(done.exception, KeyError)
