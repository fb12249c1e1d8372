"""The parts of a page about one run, or one plan: what the templates read, nothing that they would have to compute."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fxdistill.plan.document import Plan
from fxdistill.plan.members import Hardened, Masked, Member
from fxdistill.plan.schema import ModelRef, Pair
from fxdistill.preprocessing import in_words
from fxdistill.report.layout import size
from fxdistill.report.levels_view import stage_words
from fxdistill.report.page import chart, levels
from fxdistill.report.page.chart import Chart
from fxdistill.report.page.levels import Levels
from fxdistill.report.page.measured import Measured, measured
from fxdistill.report.page.network import Drawing, drawings, teaching, widths
from fxdistill.report.page.told import Told, role_of
from fxdistill.report.plan_view import factory_words, how_words, losses_words, plateau_words

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
    cascade: Levels | None
    courses: tuple[Chart, ...]
    bands: str
    stages: tuple[dict[str, str], ...]
    costed: bool
    facts: tuple[tuple[str, str], ...]
    measured: Measured
    chain: tuple[tuple[str, str, str, str, str], ...]


def page_of(told: Told, prefix: str = "") -> Page:
    """The page of a run or a plan; ``prefix`` stands before its anchors."""
    plan, task = told.plan, told.task
    networks = drawings(
        plan, told.outline.layers, told.outline.runs, {name: role_of(plan, name) for name in plan.members}
    )  # fmt: skip
    teachers = [one for one in told.models if one.slot == "teacher"]
    costs = (chart.scatter(told.models, task, what) for what in ("macs", "parameters", "latency"))
    courses = [chart.metric_chart(told.metric, task, teachers)] if told.metric else []
    rates = [chart.rate_chart(told.rates)] if told.rates else []
    kept = levels.table(told)
    return Page(
        told, prefix, shlex.quote(told.name), _seeds(told), tuple(one for one in costs if one is not None), networks,
        any(box.squares for drawing in networks for box in drawing.boxes),
        _undrawn(told) if any(not one.whole for one in networks) else "",
        tuple(tuple(_pairs(plan, one)) for one in networks), kept, levels.told_of(told) if kept else "",
        levels.drawing(told),
        (*courses, *map(chart.loss_chart, told.losses), *rates), _bands(told), tuple(_stages(plan)), bool(plan.costed),
        tuple(_facts(told)), measured(told), tuple(_chain(told, networks)),
    )  # fmt: skip


def _undrawn(told: Told) -> str:
    return f"{_UNDRAWN} ({told.outline.missing})" if told.outline.missing else _UNDRAWN


def _seeds(told: Told) -> str:
    over = f"mean and standard deviation over {len(told.plan.seeds)} seeds" if len(told.plan.seeds) > 1 else "one seed"
    timed = told.result["latency"][told.plan.export.member] if told.result else None
    told_of = [f"latency: one image, one thread, {timed['provider']}, median"] if timed else []
    told_of += [
        f"the {one.precision} file was timed beside the float file, at {one.latency_of_float:.3f} ms then"
        for one in told.files
    ]
    return "; ".join([over, *told_of])


def _bands(told: Told) -> str:
    wanted = len(told.plan.seeds)
    many = max((point.seeds for one in told.losses for line in one.series for point in line.points), default=1)
    if many == 1:
        return "one seed, so no bands" if wanted == 1 else f"one of {wanted} seeds so far, so no bands"
    of = f"up to {many} of {wanted}" if told.result is None else str(many)
    return f"lines are means over {of} seeds, bands the range that these span"


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


def _chain(told: Told, drawn: tuple[Drawing, ...]) -> Iterator[tuple[str, str, str, str, str]]:
    """Who teaches whom of those that are not drawn, the first teacher first: names, colours, and by which losses."""
    shown = {(one.teacher, one.student) for one in drawn}
    left = {names: losses for names, losses in teaching(told.plan).items() if names not in shown}
    while left:
        taught = {student for _, student in left}
        names = next((names for names in left if names[0] not in taught), next(iter(left)))
        slots = (role_of(told.plan, name) for name in names)
        yield names[0], next(slots), names[1], next(slots), " + ".join(left.pop(names))


def _stages(plan: Plan) -> Iterator[dict[str, str]]:
    for arm in plan.all_arms:
        for stage in arm.stages:
            until = f", {plateau_words(stage.plateau)}" if stage.plateau else ""
            yield {
                "arm": arm.name, "stage": stage.name, "epochs": f"{'up to ' if stage.plateau else ''}{stage.epochs}",
                "losses": losses_words(stage) + until,
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
    if told.details is not None and told.details.fingerprint:
        yield "fingerprint", told.details.fingerprint
    yield "batch", f"{data.batch_size} images at most; augmentation {', '.join(data.augmentation) or 'none'}"
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
    moves = isinstance(member, Hardened) or (isinstance(member, Masked) and member.is_masked)
    sizes = f"{member.parameters:,} parameters, {member.macs:,} MACs"
    yield f"{sizes} as scores are at the start" if moves else sizes
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
