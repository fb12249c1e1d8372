"""``fxdistill report`` and ``fxdistill show``: runs and plans for people, as one HTML file or in the terminal."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from fxdistill import files
from fxdistill.cli import parameters, values
from fxdistill.cli.exits import err, reported

_out = Console(highlight=False)
_NAME = "report.html"

Runs = Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="Run directories; several are compared.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help=f"The file to write; of one run {_NAME} in it, else {_NAME} here.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write it as one HTML file instead, graphs included.")]


def report(runs: Runs, output: Output = None) -> None:
    """Write a run, or several beside each other, as one HTML file that opens from disk."""
    with reported():
        values.distinct([str(run) for run in runs])
        if output is not None:
            files.writable(output, *runs)

        from fxdistill.report.page.document import write_report

        target = output or (runs[0] / _NAME if len(runs) == 1 else Path(_NAME))
        write_report(runs, target)
        _out.print(Text(f"wrote {target}"), soft_wrap=True)


def show(
    path: parameters.PlanOrRun,
    html: Html = None,
    allow_factory: parameters.Allow = [],
    trust_code: parameters.Trust = False,
) -> None:
    """Print a plan, or a run's plan and result."""
    with reported():
        if html is None:
            from fxdistill.report.show import view

            _out.print(view(path))
            return
        files.writable(html, path)

        from fxdistill.report.page import document

        if path.is_dir():
            document.write_report([path], html)
        else:
            document.write_plan(path, html, allow=allow_factory, trust_code=trust_code)
        _out.print(Text(f"wrote {html}"), soft_wrap=True)


def of_ended(run: Path) -> Text:
    """Write the report of a run that has just ended; what the last screen says of it. It can be made again any time."""
    from fxdistill.errors import FxdistillError
    from fxdistill.report.page.document import write_report

    target = run / _NAME
    try:
        write_report([run], target)
    except FxdistillError as error:  # the run is complete, whatever becomes of its report
        err.print(Text(f"no report was written: {error.what}"), soft_wrap=True)
        return Text(f"report: fxdistill report {shlex.quote(str(run))}")
    return Text(f"report: {target}")
