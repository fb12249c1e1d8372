"""What a run says on the command line while and after it goes on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.text import Text

from fxdistill.cli.exits import err
from fxdistill.cli.reporting import of_ended

if TYPE_CHECKING:
    from fxdistill.compiler.shrink_model import ShrunkResult
    from fxdistill.runtime.run.execution import Settings


def carried_out(
    plan_file: Path, output: Path, settings: "Settings", out: Console, *, jobs: int = 0, words: Sequence[str] = ()
) -> None:
    """Run a plan, and say what came out.

    Args:
        plan_file: The plan.
        output: The run directory.
        settings: The user's decisions.
        out: Where to say it.
        jobs: How many seeds at once, in a process each; 0 for all of them in this one.
        words: The options of ``fxdistill run`` that say the same as the settings.
    """
    from fxdistill.plan.file import load
    from fxdistill.report import progress
    from fxdistill.report.profile_view import profile_view
    from fxdistill.report.result_view import result_view
    from fxdistill.report.show import moved
    from fxdistill.runtime.run import execute
    from fxdistill.runtime.run.jobs import seeds_at_once

    with progress.RunView(out if out.is_terminal else err, begins=settings.trials is None) as view:
        if jobs:
            result = seeds_at_once(plan_file, output, settings, view, jobs=jobs, words=words, say=view.say)
        else:
            result = execute.execute(plan_file, output, settings, view)
    if settings.trials is not None:  # it goes on from there
        return
    planned = load(output / "plan.json")  # an extension has changed it
    out.print(Group(result_view(planned, result), moved(output)))
    if view.times:
        out.print(profile_view(view.times, str(output / "profile")))
    member = planned.export.member
    out.print(Text(f"{member}: {output / f'{member}.pt'}  {output / f'{member}.onnx'}"), soft_wrap=True)
    out.print(of_ended(output), soft_wrap=True)


def step_said(out: Console) -> "Callable[[int, ShrunkResult], None]":
    """Says what a step on the way to a budget did."""

    def say(number: int, made: "ShrunkResult") -> None:
        from fxdistill.report.result_view import sizes_lines

        out.print(Group(Text(f"step {number}"), *sizes_lines(made)))

    return say


def step_run(folder: Path, settings: "Settings", out: Console) -> None:
    """Run the plan of a step, and say what it reached."""
    from fxdistill.plan.file import load
    from fxdistill.report import progress
    from fxdistill.report.layout import Line
    from fxdistill.runtime.smaller import taught
    from fxdistill.tasks import TASKS

    with progress.RunView(out if out.is_terminal else err) as view:
        result = taught.carry_out(folder, settings, view)
    task = TASKS.get(load(folder / taught.PLAN).task)
    for reached in result["summary"].values():
        told = f"trained: {task.primary} {task.shown(reached['mean'])}, in {folder / taught.RUN}"
        out.print(Line(Text(told), indent=2))
