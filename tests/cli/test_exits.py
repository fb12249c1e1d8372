"""How a command ends when the file system refuses something that nobody foresaw."""

import errno
import gc
import os
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from fxdistill.cli import commands, exits, values
from fxdistill.cli.commands import app
from fxdistill.cli.exits import reported
from fxdistill.errors import InputError, StorageError


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EFBIG, 1), (errno.EIO, 1),
        (errno.EACCES, 2), (errno.EPERM, 2), (errno.EROFS, 2), (errno.ENOTDIR, 2), (errno.EISDIR, 2),
        (errno.ENAMETOOLONG, 2),
    ],
)  # fmt: skip
def test_a_full_disk_is_a_failure_and_a_wrong_place_is_wrong_input(
    code: int, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, reported():
        raise OSError(code, os.strerror(code), "some/file")
    assert caught.value.exit_code == status
    said = capsys.readouterr().err
    assert said.startswith(f"error: cannot write or read: {os.strerror(code)}\n  where: some/file\n  to do: ")
    assert ("space" in said.partition("to do")[2]) == (status == 1)


def test_what_an_output_cannot_encode_is_spelled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "said").open("w", encoding="ascii") as said, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", said)
        patched.setattr(commands, "app", lambda: commands.out.print("1, 2 … caf\udce9"))
        commands.main()
    assert (tmp_path / "said").read_text() == "1, 2 \\u2026 caf\\udce9\n"


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "missing"), OSError("without a number")])
def test_what_is_a_fault_of_ours_keeps_its_traceback(error: OSError) -> None:
    with pytest.raises(OSError, match=str(error.args[-1])), reported():
        raise error


def test_our_errors_have_the_exit_codes_of_their_kinds() -> None:
    for error, status in ((StorageError("full"), 1), (InputError("wrong"), 2)):
        with pytest.raises(typer.Exit) as caught, reported():
            raise error
        assert caught.value.exit_code == status


LONG = InputError(
    "the model answers with 1000 classes, the data has 10 classes, and nothing says which of them are which",
    where="/a/rather/long/path/to/a/model/file/that/somebody/has/trained/student.pt, output 'logits'",
    hint="choose a model for these classes, or say which of the model's classes the data has: --class-map FILE",
)


@pytest.mark.parametrize("width", [40, 60])
def test_a_message_keeps_its_indent_in_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exits, "err", Console(stderr=True, width=width, force_terminal=True, color_system=None))
    with pytest.raises(typer.Exit), reported():
        raise LONG
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= width
    heads = {"error: ": 7, "  where: ": 9, "  to do: ": 9}
    indent, seen = 0, []
    for line in lines:
        head = next((head for head in heads if line.startswith(head)), "")
        seen += [head] if head else []
        indent = heads[head] if head else indent
        assert head or (line[:indent].isspace() and not line[indent].isspace()), line
    assert seen == list(heads)
    assert len(lines) >= 6
    said = "".join(line[9 if not line.startswith("error") else 7 :].strip() for line in lines)
    assert "somebody/has/trained/student.pt" in said


def test_a_message_in_a_pipe_has_whole_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exits, "err", Console(stderr=True, width=40))
    with pytest.raises(typer.Exit), reported():
        raise LONG
    assert capsys.readouterr().err == f"error: {LONG}\n"


@pytest.mark.parametrize(("wrong", "right"), [("evla", "eval"), ("compar", "compare"), ("shrnk", "shrink")])
def test_a_command_that_is_mistyped_is_guessed(wrong: str, right: str) -> None:
    done = CliRunner().invoke(app, [wrong])
    assert done.exit_code == 2
    assert f"Did you mean '{right}'" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("bench", "torchvision.models:resnet18", "--repeats"), "option '--repeats' requires an argument"),
        (
            ("shrink", "torchvision.models:resnet18", "--ranking", "x"),
            "invalid value for '--ranking': 'x' is not one of 'global', 'isomorphic'",
        ),
    ],
)
def test_what_the_parser_refuses_is_said_of_its_command(words: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert f"{words[0]} --help`" in done.stderr


def test_a_plan_looks_for_garbage_less_often_and_leaves_that_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, before = list[int](), gc.get_threshold()

    def refused(text: str) -> None:
        seen.append(gc.get_threshold()[0])
        raise InputError(text)

    monkeypatch.setattr(values, "shape", refused)
    assert CliRunner().invoke(app, ["plan", "torchvision.models:alexnet"]).exit_code == 2
    assert seen[0] > before[0]
    assert gc.get_threshold() == before
