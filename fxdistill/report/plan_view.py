"""A plan as people read it."""

import json
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from fxdistill.plan.document import Plan, edited
from fxdistill.plan.members import Masked
from fxdistill.plan.schema import ModelRef, Pair, RunnerUp, Shrunken, Tap
from fxdistill.plan.training import Arm, LossTerm, Optimizer, Plateau, Stage
from fxdistill.preprocessing import in_words
from fxdistill.report.layout import Line, count, diagnostics_view, size
from fxdistill.report.levels_view import levels_lines, stage_words
from fxdistill.tasks import TASKS

_ASIDE = {"why", "runner-up", "kept"}


def plan_view(plan: Plan) -> RenderableType:
    """A plan, whole: members, pairs with their evidence, arms and stages with their cost, remarks."""
    data = plan.data.spec or "none (structural plan)"
    given = {name: ref for name, ref in plan.members.items() if isinstance(ref, ModelRef)}
    longest, embeds = max(len("input"), *map(len, given)), TASKS.get(plan.task).embeds
    task = Text.assemble(size(plan.input.shape), ("   task  ", "bold"), plan.task, ("   data  ", "bold"), data)
    parts: list[RenderableType] = [
        *(line for name, ref in given.items() for line in _model_lines(name, ref, longest, embeds=embeds)),
        Line(task, Text(f"{'input':<{longest}}  ", "bold")),
        Text(),
    ]
    if plan.pairs or not any(isinstance(member, Masked) for member in plan.members.values()):
        widths = ", ".join(sorted({pair.align for pair in plan.pairs})) or "-"
        idle = ", ".join(plan.idle) if len(plan.idle) < len(plan.pairs) else "them"
        none = f"; no stage compares {idle}" if plan.idle else ""
        parts.append(_title(f"pairs ({len(plan.pairs)})", f"widths by {widths}{none}"))
    for pair in plan.pairs:
        parts.extend(_pair_lines(plan, pair))
    for name, member in plan.members.items():
        if isinstance(member, Shrunken):
            parts.extend([Text(), *_shrunken_lines(name, member)])
    parts.extend(levels_lines(plan))
    parts.append(Text())
    counted = bool(plan.costed)
    parts.append(_title(f"arms ({plan.method})", "cost as a share of the given members in full" if counted else ""))
    for arm in plan.all_arms:
        parts.append(_arm_line(plan, arm))
        parts.extend(_stage_line(stage, counted=counted) for stage in arm.stages)
    remarks = [*plan.diagnostics, *edited(plan)]
    if remarks:
        parts.extend([Text(), *diagnostics_view(remarks)])
    return Group(*parts)


def _arm_line(plan: Plan, arm: Arm) -> Line:
    others = [name for name in arm.members if name not in arm.trains]
    taught = f" from {', '.join(others)}" if others else ", without a teacher"
    seeds = "once" if arm.once or len(plan.seeds) == 1 else f"under {len(plan.seeds)} seeds"
    return Line(Text.assemble((arm.name, "bold"), f"  trains {', '.join(arm.trains)}{taught}, {seeds}"), Text("  "), 4)


def _title(name: str, rest: str) -> Line:
    return Line(Text.assemble((name, "bold"), f", {rest}" if rest else ""), indent=2)


def _model_lines(role: str, ref: ModelRef, width: int, *, embeds: bool) -> Iterator[Line]:
    """A given model: where it comes from, its size, and how it reads images."""
    yield _model_line(f"{role:<{width}}", ref, embeds=embeds)
    if ref.preprocessing is not None:
        yield Line(Text(f"reads {in_words(ref.preprocessing)}", "dim"), Text(" " * (width + 2)))


def _model_line(role: str, ref: ModelRef, *, embeds: bool) -> Line:
    name = ref.path or factory_words(ref) or "(given from Python)"
    sizes = f"   {count(ref.parameters)} parameters, {count(ref.macs)} MACs, traced: {ref.rung}"
    sizes += f", predicts with its output '{ref.output}'" if ref.output else ""
    without = f"answers with what '{ref.head}' would read" if ref.head else "its output is the embedding"
    sizes += f", {without}" if embeds else ""
    return Line(Text.assemble(name, (sizes, "dim")), Text(f"{role}  ", "bold"))


def factory_words(ref: ModelRef) -> str | None:
    """The factory as the command line takes it."""
    values = (v if isinstance(v, str) else json.dumps(v, separators=(",", ":")) for v in ref.kwargs.values())
    given = "&".join(f"{key}={value}" for key, value in zip(ref.kwargs, values, strict=True))
    return f"{ref.factory}?{given}" if ref.factory and given else ref.factory


def _pair_lines(plan: Plan, pair: Pair) -> Iterator[Line]:
    kept = plan.kept_for(pair.name)
    member = plan.members[pair.teacher.member]
    before = member.taps.get(pair.name) if isinstance(member, Shrunken) else None
    widths = f"projects {pair.student.width} to {pair.teacher.width} channels"
    if kept:
        widths = f"keeps {len(kept.channels)} of {kept.width} channels"
    elif pair.align == "shrink":
        of = f" of {before}" if before else ""
        widths = f"{pair.teacher.width}{of} channels in the {pair.teacher.member}"
    elif pair.align == "kept":
        widths = f"what is left of {pair.teacher.width} channels"
    hard = "" if pair.difficulty is None else f"  difficulty {pair.difficulty:.2f}"
    yield Line(Text.assemble((pair.name, "bold cyan"), f"  score {pair.score:.2f}  {widths}{hard}"), Text("  "), 4)
    yield _row(pair.teacher.member, _tap(pair.teacher, before))
    yield _row(pair.student.member, _tap(pair.student))
    yield _row("why", Text("; ".join(pair.why), "dim"))
    yield _row("runner-up", Text(_runner_up(pair.runner_up), "dim"))
    if kept and len(kept.channels) < kept.width:
        shown = ", ".join(map(str, kept.channels[:10])) + (" …" if len(kept.channels) > 10 else "")
        coupled = f"; coupled: {_some(kept.coupled)}" if len(kept.coupled) > 1 else ""
        yield _row("kept", Text(f"{shown} (by {kept.criterion}{coupled})", "dim"))


def _row(name: str, text: Text) -> Line:
    return Line(text, Text(f"    {name:<9}  ", "dim" if name in _ASIDE else ""))


def _tap(tap: Tap, before: int | None = None) -> Text:
    """A tap and its shape; of one in a shrunken member, also that in the original."""
    shape = size(tap.shape[1:])
    if before is not None:
        whole = [before if dim == tap.channel_dim else extent for dim, extent in enumerate(tap.shape)]
        shape = f"{size(whole[1:])}, in the {tap.member} {shape}"
    return Text.assemble((tap.path, "bold"), f"  {shape}")


def _runner_up(found: RunnerUp | None) -> str:
    return f"{found.teacher} ({found.score:.2f})" if found else "none"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shrunken_lines(name: str, member: Shrunken) -> Iterator[Line]:
    """Its size, and what its layers keep of their channels."""
    sizes = f"made of the {member.of}: {count(member.parameters)} parameters, {count(member.macs)} MACs"
    yield _title(name, sizes)
    layers: dict[str, list[str]] = {}
    for weight, indices in member.kept.items():
        of = f" of {member.widths[weight]}" if weight in member.widths else ""
        layers.setdefault(f"{len(indices)}{of}", []).append(weight.removesuffix(".weight"))
    for kept, names in layers.items():
        yield Line(Text(", ".join(names), "dim"), Text(f"  keeps {kept} channels in "), 4)


def how_words(stage: Stage) -> str:
    """The optimiser, its schedule, and every number that is not as usual; label smoothing too."""
    spec = stage.optimizer
    usual = Optimizer(name=spec.name, lr=spec.lr)
    aside = {"name", "lr", *(() if stage.schedule == "step" else ("decay", "decay_every"))}
    told = [name for name in type(spec).model_fields if name not in aside]
    told = [name for name in told if getattr(spec, name) != getattr(usual, name) or name.startswith("decay")]
    values = {name.replace("_", " "): getattr(spec, name) for name in told}
    shown = [name if value is True else f"{name} {value:g}" for name, value in values.items()]
    smoothed = [term.args["label_smoothing"] for term in stage.losses if term.args.get("label_smoothing")]
    shown += [f"label smoothing {value:g}" for value in smoothed]
    return ", ".join([f"{spec.name} {spec.lr:g}", stage.schedule, *shown])


def losses_words(stage: Stage) -> str:
    """A stage's losses; with whose they are where several members learn."""
    several = len({term.student for term in stage.losses}) > 1
    return " + ".join(
        _term_words(term) + (f" of {term.student}" if several and not term.pair else "") for term in stage.losses
    )


def _term_words(term: LossTerm) -> str:
    """A loss with its weight, and with what it compares where that is not the raw values."""
    weight = f"{term.weight:g} " if term.weight != 1 else ""
    fades = f"· {term.decay:g}^epoch " if term.decay != 1 else ""
    return f"{weight}{fades}{term.name}{'' if term.compare == 'raw' else f' of {term.compare} taps'}"


def plateau_words(plateau: Plateau) -> str:
    """When a stage ends before its epochs are over."""
    plural = "s" if plateau.epochs > 1 else ""
    return f"until the loss has not fallen by {100 * plateau.share:g} % in {plateau.epochs} epoch{plural}"


def _stage_line(stage: Stage, *, counted: bool) -> Line:
    epochs = f"{stage.epochs} epoch{'s' if stage.epochs > 1 else ''}"
    if (plateau := stage.plateau) is not None:
        epochs = f"up to {epochs}, {plateau_words(plateau)},"
    details = f"  {how_words(stage)}{stage_words(stage)}{f', {stage.cost:.1%} of the cost' if counted else ''}"
    text = Text.assemble((stage.name, "bold cyan"), f"  {epochs} of {losses_words(stage)}", (details, "dim"))
    return Line(text, Text("    "), 6)
