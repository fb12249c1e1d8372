"""The HTML file: what is told and drawn, put into the templates."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fxdistill import files
from fxdistill.compiler.versions import versions
from fxdistill.errors import InputError
from fxdistill.figures import figure
from fxdistill.plan.file import load
from fxdistill.report.layout import count, spread
from fxdistill.report.page import chart
from fxdistill.report.page.compared import compared
from fxdistill.report.page.parts import Page, page_of
from fxdistill.report.page.told import Told, of_plan, of_run
from fxdistill.runtime.planning.outline import planned_outline
from fxdistill.runtime.run.directory import origin_of

_FOLDER = Path(__file__).parent
_STYLES = ("drawing.css", "style.css")


def write_report(runs: Sequence[Path], output: Path) -> None:
    """Write the report of a run, or of several beside each other.

    Raises:
        InputError: One of them is no run, or is damaged; they measure different things; or the file cannot be written.
    """
    told = [of_run(path, str(path)) for path in runs]
    if len({(one.plan.task, one.task.primary) for one in told}) > 1:
        first, other = told[0], next(one for one in told if one.plan.task != told[0].plan.task)
        raise InputError(
            f"it is about {other.plan.task}, and {first.name} about {first.plan.task}: their metrics are no scale "
            "for each other", where=other.name, hint="compare runs of one task",
        )  # fmt: skip
    files.write_text(output, document(told))


def write_plan(path: Path, output: Path, *, allow: Sequence[str] = (), trust_code: bool = False) -> None:
    """Write what a plan does before anything trains; layers are drawn of the members whose files can be read.

    Args:
        path: The plan.
        output: The file to write.
        allow: Modules whose factories may be called.
        trust_code: Whether a file that the plan says to unpickle may be.

    Raises:
        InputError: It is no plan, or the file cannot be written.
    """
    plan = load(path)
    drawn = planned_outline(plan, origin_of(path).parent, allow=allow, trust_code=trust_code)
    files.write_text(output, document([of_plan(plan, str(path), drawn)]))


def document(told: Sequence[Told]) -> str:
    """The HTML of some runs, or of a plan."""
    pages = [page_of(one, f"r{number}-" if len(told) > 1 else "") for number, one in enumerate(told, 1)]
    first = told[0]
    kind = "comparison of runs" if len(told) > 1 else "run" if first.ran else "plan"
    title = first.name if len(told) == 1 else f"{len(told)} runs, {first.task.primary} on test images"
    return _environment().get_template("page.jinja").render(
        pages=pages, kind=kind, title=title, summary=str(first.plan) if len(told) == 1 else "",
        contents=list(_contents(pages)), task=first.task,
        compared=compared(told) if len(told) > 1 else None, version=versions().get("fxdistill", ""),
        style=Markup("".join((_FOLDER / name).read_text(encoding="utf-8") for name in _STYLES)),  # noqa: S704  # ours
    )  # fmt: skip


def networks(told: Told) -> tuple[str, ...]:
    """The drawings of a run or a plan: networks, then a cascade's levels, for a page that has ``drawing.css``."""
    drawn: Any = _environment().get_template("charts.jinja").module
    page = page_of(told)
    found = [drawn.network(one, f"{told.name}-{number}") for number, one in enumerate(page.networks)]
    return (*map(str, found), *([str(drawn.cascade(page.cascade, f"{told.name}-levels"))] if page.cascade else []))


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"count": count, "figure": figure, "short": chart.short, "spread": spread}
    return made


def _contents(pages: Sequence[Page]) -> Iterator[tuple[str, str]]:
    if len(pages) > 1:
        yield from ((f"{page.prefix}run", page.told.name) for page in pages)
        return
    page = pages[0]
    there: dict[str, tuple[str, object]] = {
        "models": ("Results", page.told.models), "networks": ("Pairs", page.networks or page.chain),
        "levels": ("Levels", page.levels), "courses": ("Training", page.courses),
        "measured": ("Beside each other", page.measured.similarity or page.measured.beside), "plan": ("Plan", True),
    }  # fmt: skip
    yield from ((anchor, name) for anchor, (name, shown) in there.items() if shown)
