"""A plan or a run again, as people read it."""

from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from fxdistill import checking
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load
from fxdistill.report.kept_view import kept_lines
from fxdistill.report.plan_view import plan_view
from fxdistill.report.result_view import result_view


def view(path: Path) -> RenderableType:
    """What there is to see of a plan's file or of a run directory.

    Raises:
        InputError: It is neither.
    """
    if not path.is_dir():
        return plan_view(load(path))
    plan, result, records = _run(path)
    incomplete = "this run is not complete: continue it with --resume"
    reached = result_view(plan, result) if result else Text(incomplete)
    return Group(plan_view(plan), Text(), reached, _moved(plan, result, records))


def moved(run: Path) -> RenderableType:
    """What the masks of a run kept while they moved; nothing of a run without masks."""
    return _moved(*_run(run))


def _moved(plan: Plan, result: dict[str, Any] | None, records: list[dict[str, Any]]) -> RenderableType:
    """The same under the seed whose student is exported; under the first one while that is not known."""
    return Group(*kept_lines(plan, records, seed=(result or {}).get("exported_seed", plan.seeds[0])))


def _run(path: Path) -> tuple[Plan, dict[str, Any] | None, list[dict[str, Any]]]:
    from fxdistill.runtime.run.directory import RunDir  # noqa: PLC0415  # slow to import, and a plan's file needs neither
    from fxdistill.runtime.run.inspection import inspect  # noqa: PLC0415

    plan, result, records, _ = inspect(RunDir.existing(path))
    return plan, result, records


@checking.checked()
def show(what: str | Path | Plan, *, width: int = 100) -> str:
    """A plan, a plan's file or a run directory as text, laid out for so many columns.

    Raises:
        InputError: It is none of them.
    """
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(plan_view(what) if isinstance(what, Plan) else view(Path(what)))
    return capture.get()
