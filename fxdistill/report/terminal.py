"""What people read: a plan, its remarks and a run's result, as rich renderables.

Everything is laid out in short lines rather than wide tables, so that it reads in a narrow terminal too.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from fxdistill.diagnostics import Diagnostic
from fxdistill.plan.schema import Auxiliary, ModelRef, Pair, Plan, RunnerUp, Stage, Tap

if TYPE_CHECKING:
    from fxdistill.compiler.shrink_model import ShrunkResult

_LEAST_COLUMNS = 16  # for a text behind its head
_COLOURS = {"note": "dim", "warning": "yellow", "error": "red"}


@dataclass(frozen=True)
class Line:
    """A text behind a head. Where it wraps, what follows is indented, and no line ends in spaces.

    Attributes:
        text: What wraps.
        head: What stands before its first line.
        indent: Columns before each further line; None for the width of the head.
    """

    text: Text
    head: Text = field(default_factory=Text)
    indent: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lines that fit."""
        head, text = self.head, self.text
        indent = head.cell_len if self.indent is None else self.indent
        if options.max_width - head.cell_len < _LEAST_COLUMNS:  # so narrow that the head wraps as well
            head, text, indent = Text(), head + text, 4
        lines = text.wrap(console, max(1, options.max_width - max(head.cell_len, indent)))
        for number, line in enumerate(lines):
            line.rstrip()
            yield Text.assemble(" " * indent if number else head, line, no_wrap=True, overflow="ignore")


@dataclass(frozen=True)
class Table:
    """Rows under a header, the first column a name; where they are too wide, a paragraph a row."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lines that fit."""
        first, *others = (max(map(len, column)) for column in zip(self.header, *self.rows, strict=True))
        if first + sum(others) + 2 * len(others) > options.max_width:
            for name, *values in self.rows:
                cells = (f"{label} {value}" for label, value in zip(self.header[1:], values, strict=True))
                yield Line(Text(f"{name}: {', '.join(cells)}"), indent=2)
            return
        for number, (name, *values) in enumerate((self.header, *self.rows)):
            cells = (f"  {value:>{width}}" for value, width in zip(values, others, strict=True))
            yield Text(f"{name:<{first}}{''.join(cells)}", "" if number else "bold", no_wrap=True)


def plan_view(plan: Plan) -> RenderableType:
    """A plan, whole: models, pairs with their evidence, stages with their cost, remarks."""
    data = plan.data.spec or "none (structural plan)"
    parts: list[RenderableType] = [
        _model_line("teacher", plan.teacher),
        _model_line("student", plan.student),
        Line(Text.assemble(size(plan.input.shape), ("   data  ", "bold"), data), Text("input    ", "bold")),
        Text(),
        _title(f"pairs ({len(plan.pairs)})", f"widths by {', '.join(sorted({p.align for p in plan.pairs})) or '-'}"),
    ]
    for pair in plan.pairs:
        parts.extend(_pair_lines(plan, pair))
    parts.append(Text())
    if plan.auxiliary is not None:
        parts.extend([*_auxiliary_lines(plan.auxiliary), Text()])
    parts.append(_title(f"stages ({plan.method})", "cost as a share of teacher and student in full"))
    parts.extend(_stage_line(stage) for stage in plan.stages)
    if plan.control:
        parts.append(_title("control arm", "without distillation"))
        parts.extend(_stage_line(stage) for stage in plan.control)
    if plan.diagnostics:
        parts.extend([Text(), *diagnostics_view(plan.diagnostics)])
    return Group(*parts)


def _title(name: str, rest: str) -> Line:
    return Line(Text.assemble((name, "bold"), f", {rest}"), indent=2)


def _model_line(role: str, ref: ModelRef) -> Line:
    name = ref.path or _factory(ref) or "(given from Python)"
    sizes = f"   {count(ref.parameters)} parameters, {count(ref.macs)} MACs, traced: {ref.rung}"
    return Line(Text.assemble(name, (sizes, "dim")), Text(f"{role}  ", "bold"))


def _factory(ref: ModelRef) -> str | None:
    """The factory as the command line takes it."""
    values = (v if isinstance(v, str) else json.dumps(v, separators=(",", ":")) for v in ref.kwargs.values())
    given = "&".join(f"{key}={value}" for key, value in zip(ref.kwargs, values, strict=True))
    return f"{ref.factory}?{given}" if ref.factory and given else ref.factory


def _pair_lines(plan: Plan, pair: Pair) -> Iterator[Line]:
    kept = plan.kept_for(pair.name)
    before = plan.auxiliary.taps.get(pair.name) if plan.auxiliary is not None else None
    widths = f"projects {pair.student.width} to {pair.teacher.width} channels"
    if kept:
        widths = f"keeps {len(kept.channels)} of {kept.width} channels"
    elif pair.align == "shrink":
        of = f" of {before}" if before else ""
        widths = f"{pair.teacher.width}{of} channels in the auxiliary teacher"
    yield Line(Text.assemble((pair.name, "bold cyan"), f"  score {pair.score:.2f}  {widths}"), Text("  "), 4)
    yield _row("teacher", _tap(pair.teacher, before))
    yield _row("student", _tap(pair.student))
    yield _row("why", Text("; ".join(pair.why), "dim"))
    yield _row("runner-up", Text(_runner_up(pair.runner_up), "dim"))
    if kept and len(kept.channels) < kept.width:
        shown = ", ".join(map(str, kept.channels[:10])) + (" …" if len(kept.channels) > 10 else "")
        coupled = f"; coupled: {_some(kept.coupled)}" if len(kept.coupled) > 1 else ""
        yield _row("kept", Text(f"{shown} (by {kept.criterion}{coupled})", "dim"))


def _row(name: str, text: Text) -> Line:
    return Line(text, Text(f"    {name:<9}  ", "" if name in {"teacher", "student"} else "dim"))


def _tap(tap: Tap, before: int | None = None) -> Text:
    """A tap and its shape; of one in the auxiliary teacher, also that in the teacher."""
    shape = size(tap.shape[1:])
    if before is not None:
        whole = [before if dim == tap.channel_dim else extent for dim, extent in enumerate(tap.shape)]
        shape = f"{size(whole[1:])}, in the auxiliary teacher {shape}"
    return Text.assemble((tap.path, "bold"), f"  {shape}")


def _runner_up(found: RunnerUp | None) -> str:
    return f"{found.teacher} ({found.score:.2f})" if found else "none"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _auxiliary_lines(auxiliary: Auxiliary) -> Iterator[Line]:
    """Its size, what its layers keep of their channels, its stages."""
    sizes = f"{count(auxiliary.parameters)} parameters, {count(auxiliary.macs)} MACs, trained first"
    yield _title("auxiliary teacher", sizes)
    layers: dict[str, list[str]] = {}
    for name, indices in auxiliary.kept.items():
        of = f" of {auxiliary.widths[name]}" if name in auxiliary.widths else ""
        layers.setdefault(f"{len(indices)}{of}", []).append(name.removesuffix(".weight"))
    for kept, names in layers.items():
        yield Line(Text(", ".join(names), "dim"), Text(f"  keeps {kept} channels in "), 4)
    for stage in auxiliary.stages:
        yield _stage_line(stage)


def _stage_line(stage: Stage) -> Line:
    losses = " + ".join(f"{term.weight:g} {term.name}" if term.weight != 1 else term.name for term in stage.losses)
    epochs = f"{stage.epochs} epoch{'s' if stage.epochs > 1 else ''}"
    details = f"  {stage.optimizer.name} {stage.optimizer.lr:g}, {stage.schedule}, {stage.cost:.1%} of the cost"
    text = Text.assemble((stage.name, "bold cyan"), f"  {epochs} of {losses}", (details, "dim"))
    return Line(text, Text("  "), 4)


def diagnostics_view(remarks: Iterable[Diagnostic]) -> list[Line]:
    """One or two lines a remark."""
    lines = []
    for remark in remarks:
        colour = _COLOURS[remark.severity]
        hint = f" ({remark.hint})" if remark.hint else ""
        said = f"{remark.where}: {remark.why}{hint}"
        text = Text.assemble((f"{remark.severity} ", f"bold {colour}"), (f"{remark.code} ", colour), said)
        lines.append(Line(text, indent=2))
    return lines


def shrunk_view(shrunk: "ShrunkResult") -> RenderableType:
    """What shrinking did: widths, sizes, the proof, and what stayed."""
    changed = {path: widths for path, widths in shrunk.widths.items() if widths[0] != widths[1]}
    longest = max(map(len, changed), default=0)
    layers = [
        Line(Text(f"{old} -> {new}", "bold"), Text(f"{path:<{longest}}  ")) for path, (old, new) in changed.items()
    ]
    before, after, proof = shrunk.before, shrunk.after, shrunk.proof
    sizes = (
        f"parameters {count(before.parameters)} -> {count(after.parameters)}, MACs {count(before.macs)} -> "
        f"{count(after.macs)}"
    )
    compared = f"proof: equals the masked original at {proof.nodes} nodes, largest relative error {proof.error:.1e}"
    compared += " in double precision" if proof.precision == "float64" else ""
    return Group(
        *layers,
        Text(),
        Line(Text(sizes, "bold"), indent=2),
        Line(Text(compared), indent=2),
        *diagnostics_view(shrunk.diagnostics),
    )


def result_view(plan: Plan, result: dict[str, Any]) -> RenderableType:
    """The table that a run ends with, and the parity gate."""
    latency, reached = result["latency"], result["summary"]
    models: list[tuple[str, str, ModelRef | Auxiliary, str]] = [
        ("teacher", f"{result['teacher']['accuracy']:.2%}", plan.teacher, "teacher")
    ]
    if plan.auxiliary is not None and "auxiliary" in reached:
        models.append(("auxiliary teacher", _accuracy(result, "auxiliary"), plan.auxiliary, "auxiliary"))
    for name, label in (("control", "student, no distillation"), ("distilled", "student, distilled")):
        if name in reached:
            models.append((label, _accuracy(result, name), plan.student, "student"))
    rows = tuple(
        (label, accuracy, count(sizes.parameters), count(sizes.macs), f"{latency[timed]['median_ms']:.3f} ms")
        for label, accuracy, sizes, timed in models
    )
    parity, seeds = result["parity"], len(plan.seeds)
    over = f"mean and standard deviation over {seeds} seeds" if seeds > 1 else "1 seed"
    notes = [
        f"{over}; latency: batch 1, one thread, {latency['student']['provider']}, median",
        (
            f"parity on {parity['images']} images: largest error {parity['max_abs_error']:.1e}, "
            f"top-1 agreement {parity['top1_agreement']:.2%}"
        ),
    ]
    if "control" in reached and reached["distilled"]["mean"] < reached["control"]["mean"]:
        notes.append("distillation did not help here: the student alone is better for as many epochs")
    table = Table(("model", "accuracy", "parameters", "MACs", "ONNX latency"), rows)
    return Group(table, *(Line(Text(note, "dim"), indent=2) for note in notes))


def _accuracy(result: dict[str, Any], arm: str) -> str:
    found = result["summary"][arm]
    spread = f" ± {found['deviation'] * 100:.2f}" if found["deviation"] else ""
    return f"{found['mean']:.2%}{spread}"


def size(shape: Iterable[int]) -> str:
    """``1x3x32x32``."""
    return "x".join(map(str, shape))


def count(value: float) -> str:
    """A number to three digits with k, M or G."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return str(int(value))
