"""How the command line ends when something goes wrong: one message of one shape, and the exit code.

Exit codes: 1 the work failed (a pass, training, the parity gate), 2 the input is wrong, 130 interrupted; asked to end
by SIGTERM 143, by SIGHUP 129, with the same words and files as after Ctrl-C. A message says what, where and what to do,
also where the words come from the parser of the command line.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from fxdistill import files
from fxdistill.cli import together
from fxdistill.cli.help import usage_error
from fxdistill.errors import FxdistillError, InputError
from fxdistill.runtime.processes import stopping

if TYPE_CHECKING:
    from fxdistill.diagnostics import Diagnostic

err = Console(stderr=True, highlight=False)

_OURS_TO_EXPLAIN = (files.PLACE_ERRORS | files.STORAGE_ERRORS) - {errno.ENOENT, errno.EEXIST, errno.EINVAL}
"""What the file system may refuse anywhere; a missing file that nobody looked for before is a fault of ours."""
_OTHERS = [number for number in stopping.SIGNALS if number != signal.SIGINT]
"""Signals that are made what Ctrl-C is."""
_HEADS = ("where", "to do")
"""What stands before the further lines of a message, see :mod:`fxdistill.errors`."""
_COMPLETION = ("--install-completion", "--show-completion")


class Commands(TyperGroup):
    """The commands: their help in whole sentences, and the parser's complaints in our shape."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command, with a summary that is wrapped and not cut."""
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            found.short_help = found.help
        return found

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse what stands before the command."""
        with _parsed():
            return super().make_context(*args, **kwargs)

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Refuse a shell's name: completion is for the shell that it is called in, whatever is named."""
        if len(args) > 1 and args[0] in _COMPLETION:
            raise InputError(
                f"{args[0]} takes no argument: it is for the shell that it is called in", where=f"fxdistill {args[1]}",
                hint=f"call it there, or print what {args[1]} reads: _FXDISTILL_COMPLETE=source_{args[1]} fxdistill",
            )  # fmt: skip
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Parse what stands after the command, and call it."""
        with _parsed():
            return super().invoke(ctx)


@contextmanager
def _parsed() -> Iterator[None]:
    try:
        yield
    except usage_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # no mistake
            raise
        command = error.ctx.command_path if error.ctx is not None else "fxdistill"
        what = error.format_message().rstrip(".").replace("Value error, ", "", 1)  # of pydantic, by which typer reads
        known = InputError(what[:1].lower() + what[1:], where=command, hint=f"see `{command} --help`")
        raise failed(str(known), known.exit_code) from None
    except FxdistillError as error:  # of what a parameter stands for
        raise failed(str(error), error.exit_code) from None


class _Asked(KeyboardInterrupt):
    """A signal asks to end, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def _ask(number: int, _frame: object) -> None:
    raise _Asked(number)


@contextmanager
def reported(*, interrupted: Callable[[], str] = lambda: "interrupted") -> Iterator[None]:
    """Turn an error into one message and its exit code; what is left is a fault of ours and keeps its traceback."""
    try:
        with stopping.handled(_ask, _OTHERS):
            yield
    except FxdistillError as error:
        raise failed(str(error), error.exit_code) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: no complaint at exit either
        raise typer.Exit(1) from None
    except OSError as error:
        if error.errno not in _OURS_TO_EXPLAIN:
            raise
        where = str(error.filename or "the file system")
        known = files.failure(error, where=where, what="cannot write or read", error=InputError)
        raise failed(str(known), known.exit_code) from None
    except KeyboardInterrupt as asked:
        code = getattr(asked, "exit_code", 130)
        if together.speaks(code):
            err.print(Text(interrupted()), soft_wrap=True)
        raise typer.Exit(code) from None
    except Exception as error:
        if not (told := together.ended(error) or _without_worker(error)):
            raise
        raise failed(told, 1) from None


def _without_worker(error: Exception) -> str:
    """What an error says that comes of a process having ended that reads images; '' for any other error.

    Torch raises it wherever the program is when that happens.
    """
    first = next(iter(str(error).splitlines()), "")
    if not (isinstance(error, RuntimeError) and first.startswith("DataLoader worker")):
        return ""
    hint = "look whether memory, or shared memory (/dev/shm), is full; a run continues from there with --resume"
    return str(FxdistillError(f"a process that reads images has ended: {first}", where="the data", hint=hint))


def say(remarks: "Sequence[Diagnostic]") -> None:
    """Remarks, before what was asked for."""
    from fxdistill.report.layout import diagnostics_view

    for line in diagnostics_view(remarks):
        err.print(line)


def failed(message: str, code: int) -> typer.Exit:
    """What ends the program with a code, after the message was said."""
    if together.speaks(code):
        _print(message)
    return typer.Exit(code)


def _print(message: str) -> None:
    """A message, whose lines keep their indent where a terminal is narrow; whole ones for a file or another program."""
    if not err.is_terminal:
        err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
        return
    from fxdistill.report.layout import Line

    what, *more = message.splitlines() or [""]
    err.print(Line(Text(what), Text("error: ", "bold red")))
    for line in more:
        head, colon, text = line.partition(": ")
        known = colon and head.strip() in _HEADS
        err.print(Line(Text(text), Text(head + colon)) if known else Line(Text(line), indent=2))
