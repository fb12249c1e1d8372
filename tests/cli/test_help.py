"""What the command line says of itself: versions, and completion in three shells."""

import importlib.metadata
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from fxdistill.cli.commands import app
from fxdistill.cli.groups import GROUPS
from fxdistill.criteria import CRITERIA
from fxdistill.methods import METHODS


def test_the_version_is_that_of_the_installation_and_needs_no_command() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.output.startswith(f"fxdistill {importlib.metadata.version('fxdistill')} (torch ")
    assert len(done.output.splitlines()) == 1


def test_options_that_belong_together_stand_together_and_each_stands_once() -> None:
    program: Any = get_command(app)
    context = program.make_context("fxdistill", [], resilient_parsing=True)
    commands = {name: program.get_command(context, name) for name in program.list_commands(context)}
    known = {one.opts[0].lstrip("-") for command in commands.values() for one in command.params}
    for group in GROUPS:
        assert group.names <= known, group.heading
        assert group.beside in {"", *known}
    for name, command in commands.items():
        said = CliRunner().invoke(app, [name, "--help"]).output
        options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
        shown = [next(spelled for spelled in one.opts if spelled.startswith("--")) for one in options]
        listed = re.findall(r"^  (?:-\w, )?(--[\w-]+)", said, re.MULTILINE)
        assert sorted(listed) == sorted([*shown, "--help"]), name
        headings = re.findall(r"^(\w.*):$", said, re.MULTILINE)
        assert len(headings) == len(set(headings))
        assert ("Model files" in headings) == (len(command.params) > 16 and "--allow-factory" in listed), name


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


@pytest.mark.parametrize("option", ["--show-completion", "--install-completion"])
def test_a_shell_that_is_named_is_refused_with_the_way_to_its_script(option: str) -> None:
    done = CliRunner().invoke(app, [option, "zsh"])
    assert (done.exit_code, "_FXDISTILL_COMPLETE=source_zsh fxdistill" in done.stderr) == (2, True), done.output


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("fxdistill shr", {"shrink"}),
        ("fxdistill shrink --mac", {"--macs"}),
        ("fxdistill shrink --by ", set(CRITERIA.names())),
        ("fxdistill plan --method indis", {name for name in METHODS.names() if name.startswith("indis")}),
        ("fxdistill plan --method indistill+cas", {"indistill+cascade"}),
        ("fxdistill run plan.json --arms kd,indistill+dk", {"kd,indistill+dkd"}),
        ("fxdistill plan --align s", {"slice", "shrink"}),
    ],
)
def test_commands_options_and_names_are_completed(words: str, found: set[str]) -> None:
    said = completed(_FXDISTILL_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
    assert set(said.split()) == found
