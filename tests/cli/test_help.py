"""What the command line says of itself: versions, and completion in three shells."""

import importlib.metadata
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from fxdistill.cli.commands import app
from fxdistill.criteria import CRITERIA
from fxdistill.methods import METHODS


def test_the_version_is_that_of_the_installation_and_needs_no_command() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.output.startswith(f"fxdistill {importlib.metadata.version('fxdistill')} (torch ")
    assert len(done.output.splitlines()) == 1


def completed(**state: str) -> str:
    code = "from fxdistill.cli.commands import app; app(prog_name='fxdistill')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **state}
    )
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell: str) -> None:
    said = completed(_FXDISTILL_COMPLETE=f"source_{shell}")
    assert "fxdistill" in said
    assert f"complete_{shell}" in said


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("fxdistill shr", {"shrink"}),
        ("fxdistill shrink --mac", {"--macs"}),
        ("fxdistill shrink --by ", set(CRITERIA.names())),
        ("fxdistill plan --method indis", {name for name in METHODS.names() if name.startswith("indis")}),
        ("fxdistill plan --align s", {"slice", "shrink"}),
    ],
)
def test_commands_options_and_names_are_completed(words: str, found: set[str]) -> None:
    said = completed(_FXDISTILL_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
    assert set(said.split()) == found
