"""The blocks of a page, run in order in one folder as a reader would, and what the page shows held against what comes.

    ```bash                    fxdistill …, python FILE, pip install PATH: each line a command, in this process
    ```python                  run; all of a page share their names
    ```{code-block} python     with ``:caption: FILE``: written to that file (any language)
    ```text                    what the block before printed
    ```none                    shown, and no more

A caption that starts with "not run here" marks what needs another machine: its commands are parsed by the real parser,
and its Python is compiled. In what a page shows, … stands for anything within a line, and on a line of its own for any
lines; a number with decimals was measured, and may be a fifth away, because other processors and versions of torch give
other digits. All else is compared to the letter, but for the width of gaps. A caption "exits with N" of a text says
that the command does.
"""

import contextlib
import importlib
import io
import re
import runpy
import shlex
import subprocess
import sys
import unittest.mock
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from fxdistill import registry
from fxdistill.cli.commands import app

NOT_RUN, EXITS = "not run here", "exits with "
_FENCE = re.compile(r"^(?P<fence>`{3,})(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
_OPTION = re.compile(r"^:(\w+): (.*)\n", re.MULTILINE)
_NUMBER = re.compile(r"\d+\.\d+(?:e-?\d+)?")
_ANY_NUMBER = r"(-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?)"
_APART = 0.2


class PageError(AssertionError):
    """A page says what is not so."""


@dataclass(frozen=True)
class Block:
    """A block of a page: its language, its text, its caption, and where it stands."""

    language: str
    text: str
    caption: str
    where: str

    @property
    def runs(self) -> bool:
        """Whether it is run, and not only looked at."""
        return not self.caption.startswith(NOT_RUN)


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page; directives that hold no code are left out."""
    source = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(source):
        info, body = found["info"].strip(), found["body"]
        where = f"{page.name}:{source.count(chr(10), 0, found.start()) + 1}"
        if info.startswith("{code-block}"):
            head = re.match(r"(?::\w+: .*\n)*\n?", body)
            options = dict(_OPTION.findall(head[0])) if head else {}
            body = body[head.end() :] if head else body
            yield Block(info.removeprefix("{code-block}").strip(), body, options.get("caption", ""), where)
        elif not info.startswith("{"):
            yield Block(info, body, "", where)


class Reader:
    """Somebody who does what pages say, in the folder where the process is."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.said, self.code = "", 0

    def read(self, page: Path) -> None:
        """Do all of a page.

        Raises:
            PageError: Something that it says is not so.
        """
        self.names = {"__name__": "page"}
        found = list(blocks(page))
        for block, after in zip(found, [*found, None][1:], strict=True):
            if block.language not in ("bash", "python", "text", "none", "json", "toml"):
                raise PageError(f"{block.where}: no block is of the language '{block.language}'")
            expected = int(after.caption.removeprefix(EXITS)) if after and after.caption.startswith(EXITS) else 0
            self._do(block, expected)

    def _do(self, block: Block, expected: int) -> None:
        if block.language == "text":
            if wrong := difference(block.text, self.said):
                raise PageError(f"{block.where}: {wrong}\n--- what came ---\n{self.said}")
        elif block.language == "bash":
            self.said = "".join(self._command(line, block, expected) for line in lines(block.text))
        elif block.language == "python" and not block.caption:
            self.said = self._python(compile(block.text, block.where, "exec"))
        elif not block.runs:
            compile(block.text, block.where, "exec")
        elif block.language != "none" and block.caption:
            Path(block.caption).parent.mkdir(parents=True, exist_ok=True)
            Path(block.caption).write_text(block.text, encoding="utf-8")

    def _command(self, line: str, block: Block, expected: int) -> str:
        program, *arguments = shlex.split(line)
        if not block.runs:
            parse(line, block.where)
            return ""
        if program == "python":
            return self._script(arguments)
        if program == "pip":
            return _installed(arguments)
        if program != "fxdistill":
            raise PageError(f"{block.where}: '{line}' cannot be run here; is it fxdistill, python or pip install?")
        done = CliRunner().invoke(app, arguments)
        if done.exit_code != expected:
            raise PageError(f"{block.where}: {line}: exits with {done.exit_code}\n{done.output}\n{done.exception!r}")
        return done.output

    def _python(self, code: Any) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out, here():
            exec(code, self.names)
        return out.getvalue()

    def _script(self, arguments: list[str]) -> str:
        before = sys.argv
        sys.argv = arguments
        try:
            with contextlib.redirect_stdout(io.StringIO()) as out, here():
                runpy.run_path(arguments[0], run_name="__main__")
        finally:
            sys.argv = before
        return out.getvalue()


@contextlib.contextmanager
def here() -> Iterator[None]:
    """With modules of the folder, as ``python FILE`` and a prompt have them."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.remove(str(Path.cwd()))


def lines(text: str) -> list[str]:
    """The commands of a block: continued lines are one, comments are none."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def parse(line: str, where: str) -> None:
    """Hand a command line to the real parser, and go no further: the models that it names need not be there.

    Raises:
        PageError: The parser refuses it.
    """
    words = shlex.split(line)
    if "fxdistill" not in words:
        return
    program = get_command(app)
    context = program.make_context("fxdistill", [], resilient_parsing=True)
    name, *arguments = words[words.index("fxdistill") + 1 :]
    command = program.get_command(context, name)  # type: ignore[attr-defined]  # a group
    if command is None:
        raise PageError(f"{where}: there is no command '{name}'")
    try:
        with unittest.mock.patch("fxdistill.modelfiles.source.check_there"):
            command.make_context(name, arguments, parent=context)
    except Exception as refused:
        raise PageError(f"{where}: {line}: {getattr(refused, 'message', refused)}") from refused


def _installed(arguments: list[str]) -> str:
    """``pip install PATH``, into a folder beside, so that this environment stays as it is."""
    site = Path.cwd() / "site"
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps", "--no-build-isolation",
               "--disable-pip-version-check", "--target", str(site)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    sys.path.append(str(site))
    importlib.invalidate_caches()
    registry._entry_points.cache_clear()
    return ""


def difference(shown: str, said: str) -> str:
    """What of a text that a page shows is not what was said; '' where it is the same."""
    wanted, given = _tidy(shown), _tidy(said)
    parts = [r"(?:[^\n]*\n)*?" if line == "…" else f"{_line(line)}\n" for line in wanted]
    found = re.fullmatch("".join(parts), "".join(f"{line}\n" for line in given))
    if found is None:
        missing = next((line for line in wanted if line != "…" and not _somewhere(line, given)), "")
        return f"this line did not come: {missing}" if missing else "its lines did not come so"
    figures = [number for line in wanted for number in _NUMBER.findall(line)]
    for figure, measured in zip(figures, found.groups(), strict=True):
        a, b = float(figure), float(measured.replace(",", ""))
        if abs(a - b) > _APART * max(abs(a), abs(b)):
            return f"it shows {figure}, and {measured} came"
    return ""


def _tidy(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.strip("\n").splitlines()]


def _line(line: str) -> str:
    anything = (_ANY_NUMBER.join(map(re.escape, _NUMBER.split(part))) for part in line.split("…"))
    return "[^\n]*".join(anything)


def _somewhere(line: str, given: list[str]) -> bool:
    return any(re.fullmatch(_line(line), one) for one in given)
