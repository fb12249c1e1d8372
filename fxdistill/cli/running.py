"""What a run says on the command line while and after it goes on."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.text import Text

from fxdistill.cli.exits import err
from fxdistill.cli.reporting import of_ended

if TYPE_CHECKING:
    from fxdistill.runtime.execution import Settings


def carried_out(plan_file: Path, output: Path, settings: "Settings", out: Console) -> None:
    """Run a plan, and say what came out."""
    from fxdistill.plan.file import load
    from fxdistill.report import progress
    from fxdistill.report.profile_view import profile_view
    from fxdistill.report.result_view import result_view
    from fxdistill.report.show import moved
    from fxdistill.runtime import execute

    with progress.RunView(out if out.is_terminal else err) as view:
        result = execute.execute(plan_file, output, settings, view)
    planned = load(output / "plan.json")  # an extension has changed it
    out.print(Group(result_view(planned, result), moved(output)))
    if view.times:
        out.print(profile_view(view.times, str(output / "profile")))
    member = planned.export.member
    out.print(Text(f"{member}: {output / f'{member}.pt'}  {output / f'{member}.onnx'}"), soft_wrap=True)
    out.print(of_ended(output), soft_wrap=True)
