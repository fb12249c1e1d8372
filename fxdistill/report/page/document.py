"""The HTML file: what is told and drawn, put into the templates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fxdistill import files
from fxdistill.compiler.versions import versions
from fxdistill.errors import InputError
from fxdistill.plan.document import Plan
from fxdistill.plan.file import load
from fxdistill.plan.members import Hardened, Masked, Member
from fxdistill.plan.schema import ModelRef, Pair
from fxdistill.preprocessing import in_words
from fxdistill.report.layout import count, size
from fxdistill.report.levels_view import stage_words
from fxdistill.report.page import chart, words
from fxdistill.report.page.chart import Chart
from fxdistill.report.page.network import Drawing, drawings, widths
from fxdistill.report.page.told import Told, of_plan, of_run, role_of
from fxdistill.report.plan_view import factory_words, how_words, term_words

_FOLDER = Path(__file__).parent
_UNDRAWN = "Only the taps are drawn: the layers between are not known here."


@dataclass(frozen=True)
class Page:
    """A run or a plan, ready for the template."""

    told: Told
    prefix: str
    where: str
    seeds: str
    tradeoffs: tuple[Chart, ...]
    networks: tuple[Drawing, ...]
    squares: bool
    undrawn: str
    pairs: tuple[tuple[dict[str, Any], ...], ...]
    levels: dict[str, Any] | None
    levels_told: str
    courses: tuple[Chart, ...]
    bands: str
    stages: tuple[dict[str, str], ...]
    costed: bool
    facts: tuple[tuple[str, str], ...]


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


def write_plan(path: Path, output: Path) -> None:
    """Write what a plan does before anything trains.

    Raises:
        InputError: It is no plan, or the file cannot be written.
    """
    files.write_text(output, document([of_plan(load(path), str(path))]))


def document(told: Sequence[Told]) -> str:
    """The HTML of some runs, or of a plan."""
    pages = [_page(one, f"r{number}-" if len(told) > 1 else "") for number, one in enumerate(told, 1)]
    first = told[0]
    kind = "comparison of runs" if len(told) > 1 else "run" if first.ran else "plan"
    title = first.name if len(told) == 1 else f"{len(told)} runs, {first.task.primary} on test images"
    return _environment().get_template("page.jinja").render(
        pages=pages, kind=kind, title=title, summary=str(first.plan) if len(told) == 1 else "",
        contents=list(_contents(pages)), compared=None, version=versions().get("fxdistill", ""),
        style=Markup((_FOLDER / "style.css").read_text(encoding="utf-8")),  # noqa: S704  # our own
    )  # fmt: skip


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"count": count, "short": chart.short, "spread": words.spread}
    return made


def _contents(pages: Sequence[Page]) -> Iterator[tuple[str, str]]:
    if len(pages) > 1:
        yield from ((f"{page.prefix}run", page.told.name) for page in pages)
        return
    page = pages[0]
    there: dict[str, tuple[str, object]] = {
        "models": ("Results", page.told.models), "networks": ("Pairs", page.networks),
        "levels": ("Levels", page.levels), "courses": ("Training", page.courses), "plan": ("Plan", True),
    }  # fmt: skip
    yield from ((anchor, name) for anchor, (name, shown) in there.items() if shown)


def _page(told: Told, prefix: str) -> Page:
    plan, task = told.plan, told.task
    networks = drawings(plan, {}, (), {name: role_of(plan, name) for name in plan.members})
    teachers = [one for one in told.models if one.slot == "teacher"]
    costs = (chart.scatter(told.models, task, what) for what in ("macs", "parameters", "latency"))
    courses = [chart.metric_chart(told.metric, task, teachers)] if told.metric else []
    levels = _levels(plan)
    return Page(
        told, prefix, told.name, _seeds(told), tuple(one for one in costs if one is not None), networks,
        any(box.squares for drawing in networks for box in drawing.boxes),
        "" if all(one.whole for one in networks) else _UNDRAWN,
        tuple(tuple(_pairs(plan, one)) for one in networks), levels, _levels_told(plan) if levels else "",
        (*courses, *map(chart.loss_chart, told.losses)), _bands(plan), tuple(_stages(plan)), bool(plan.costed),
        tuple(_facts(told)),
    )  # fmt: skip


def _seeds(told: Told) -> str:
    over = f"mean and standard deviation over {len(told.plan.seeds)} seeds" if len(told.plan.seeds) > 1 else "one seed"
    timed = told.result["latency"][told.plan.export.member] if told.result else None
    return f"{over}; latency: one image, one thread, {timed['provider']}, median" if timed else over


def _bands(plan: Plan) -> str:
    many = len(plan.seeds)
    return (
        f"lines are means over {many} seeds, bands the range that these span" if many > 1 else "one seed, so no bands"
    )


def _pairs(plan: Plan, drawing: Drawing) -> Iterator[dict[str, Any]]:
    for pair in plan.pairs:
        if (pair.teacher.member, pair.student.member) == (drawing.teacher, drawing.student):
            yield {
                "name": pair.name, "teacher": pair.teacher.path, "student": pair.student.path, "score": pair.score,
                "teacher_shape": size(pair.teacher.shape[1:]), "student_shape": size(pair.student.shape[1:]),
                "widths": widths(plan, pair), "why": "; ".join(pair.why), "kept": _kept(plan, pair),
            }  # fmt: skip


def _kept(plan: Plan, pair: Pair) -> str:
    kept = plan.kept_for(pair.name)
    if kept is None or len(kept.channels) == kept.width:
        return ""
    shown = ", ".join(map(str, kept.channels[:32])) + (" …" if len(kept.channels) > 32 else "")
    return f"keeps {len(kept.channels)} of {kept.width} channels by {kept.criterion}: {shown}"


def _levels(plan: Plan) -> dict[str, Any] | None:
    """What the levels of a cascade keep of each layer, by the scores that training starts with."""
    found = {
        name: one for name, one in plan.members.items() if isinstance(one, Masked) and one.is_masked and one.layers
    }
    if not found:
        return None
    rows = [
        {
            "layer": layer.name, "channels": layer.channels,
            "cells": [
                {"share": round(one.layers[number].kept / layer.channels, 3), "text": str(one.layers[number].kept)}
                for one in found.values() if number < len(one.layers)
            ],
        }
        for number, layer in enumerate(next(iter(found.values())).layers)
    ]  # fmt: skip
    return {"names": list(found), "rows": rows}


def _levels_told(plan: Plan) -> str:
    cut = [name for name, one in plan.members.items() if isinstance(one, Hardened)]
    said = "by the scores that training starts with."
    return said + (f" {', '.join(cut)} is cut out when that is trained." if cut else "")


def _stages(plan: Plan) -> Iterator[dict[str, str]]:
    for arm in plan.all_arms:
        for stage in arm.stages:
            until = (
                f", until {stage.plateau.epochs} in a row fall by less than {stage.plateau.share:.2g}"
                if stage.plateau
                else ""
            )
            yield {
                "arm": arm.name, "stage": stage.name, "epochs": f"{'up to ' if stage.plateau else ''}{stage.epochs}",
                "losses": " + ".join(term_words(term) for term in stage.losses) + until,
                "how": how_words(stage) + stage_words(stage), "cost": f"{stage.cost:.1%}",
            }  # fmt: skip


def _facts(told: Told) -> Iterator[tuple[str, str]]:
    """The plan's numbers and what they hang on: members with hashes, data, seeds, versions."""
    plan, data = told.plan, told.plan.data
    yield "plan", f"method {plan.method}, task {plan.task}, sha256 {plan.sha256}"
    for name, member in plan.members.items():
        yield name, "; ".join(_member(member))
    yield "input", size(plan.input.shape)
    yield "data", "; ".join(_data(plan))
    yield (
        "batch",
        f"{data.batch_size} images at most"
        + (f"; augmentation {', '.join(data.augmentation)}" if data.augmentation else ""),
    )
    yield "seeds", ", ".join(map(str, plan.seeds))
    yield "precision", str((told.result or {}).get("precision", plan.precision))
    yield "planned with", _versions(plan.versions)
    if result := told.result:
        yield "run with", f"{_versions(result.get('versions'))}; on {result.get('device', '')}"
        opset, exporter = result.get("opset", plan.export.opset), result.get("exporter", "")
        yield "export", f"opset {opset}, {exporter}; tolerance {plan.export.tolerance:g}"


def _versions(found: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items()) if isinstance(found, dict) else ""


def _member(member: Member) -> Iterator[str]:
    if isinstance(member, ModelRef):
        yield member.path or factory_words(member) or "given from Python"
        yield from ([f"sha256 {member.sha256}"] if member.sha256 else [])
        yield f"{member.parameters:,} parameters, {member.macs:,} MACs"
        yield from ([f"reads {in_words(member.preprocessing)}"] if member.preprocessing is not None else [])
        return
    yield f"made of {member.of}"
    yield f"{member.parameters:,} parameters, {member.macs:,} MACs"
    yield from ([f"by {member.criterion}"] if not isinstance(member, Hardened) and member.criterion else [])


def _data(plan: Plan) -> Iterator[str]:
    data = plan.data
    yield data.spec or "none: a structural plan"
    yield from ([f"{data.train_size:,} training images"] if data.train_size else [])
    yield from ([f"{len(data.classes)} classes"] if data.classes else [])
    for name, part in (("test", data.test), ("validation", data.val)):
        if part is not None:
            aside = f"{part.share:.0%} set aside under seed {part.seed}"
            yield f"{name}: {aside if part.share else 'a split of its own'}"
