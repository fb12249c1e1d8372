"""What people read: a plan, its remarks and a run's result, as rich renderables.

Everything is laid out in short lines rather than wide tables, so that it reads in a narrow terminal too.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fxdistill.diagnostics import Diagnostic
from fxdistill.plan import ModelRef, Pair, Plan, RunnerUp, Stage, Tap

if TYPE_CHECKING:
    from fxdistill.shrinking import ShrunkResult

_COLOURS = {"note": "dim", "warning": "yellow", "error": "red"}


def plan_view(plan: Plan) -> RenderableType:
    """A plan, whole: models, pairs with their evidence, stages with their cost, remarks."""
    parts: list[RenderableType] = [
        _model_line("teacher", plan.teacher),
        _model_line("student", plan.student),
        Text.assemble(
            ("input    ", "bold"),
            size(plan.input.shape),
            ("   data  ", "bold"),
            plan.data.spec or "none (structural plan)",
        ),
        Text(),
        Text.assemble(
            (f"pairs ({len(plan.pairs)})", "bold"),
            f", widths by {', '.join(sorted({p.align for p in plan.pairs})) or '-'}",
        ),
    ]
    for pair in plan.pairs:
        parts.extend(_pair_lines(plan, pair))
    parts.extend(
        [
            Text(),
            Text.assemble((f"stages ({plan.method})", "bold"), ", cost as a share of teacher and student in full"),
        ]
    )
    parts.extend(_stage_line(stage) for stage in plan.stages)
    if plan.auxiliary is not None:
        made = f", {count(plan.auxiliary.parameters)} parameters, {count(plan.auxiliary.macs)} MACs, trained first"
        parts.append(Text.assemble(("auxiliary teacher", "bold"), made))
        parts.extend(_stage_line(stage) for stage in plan.auxiliary.stages)
    if plan.control:
        parts.append(Text("control arm, without distillation", style="bold"))
        parts.extend(_stage_line(stage) for stage in plan.control)
    if plan.diagnostics:
        parts.extend([Text(), *diagnostics_view(plan.diagnostics)])
    return Group(*parts)


def _model_line(role: str, ref: ModelRef) -> Text:
    name = ref.path or ref.factory or "(given from Python)"
    return Text.assemble(
        (f"{role}  ", "bold"), name,
        (f"   {count(ref.parameters)} parameters, {count(ref.macs)} MACs, traced: {ref.rung}", "dim"),
    )  # fmt: skip


def _pair_lines(plan: Plan, pair: Pair) -> Iterator[RenderableType]:
    kept = plan.kept_for(pair.name)
    widths = f"projects {pair.student.width} to {pair.teacher.width} channels"
    if kept:
        widths = f"keeps {len(kept.channels)} of {kept.width} channels"
    elif pair.align == "shrink":
        widths = f"{pair.teacher.width} channels in the auxiliary teacher"
    yield Text.assemble("  ", (pair.name, "bold cyan"), f"  score {pair.score:.2f}  {widths}")
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column()
    lines.add_row("teacher", _tap(pair.teacher))
    lines.add_row("student", _tap(pair.student))
    lines.add_row(Text("why", "dim"), Text("; ".join(pair.why), "dim"))
    lines.add_row(Text("runner-up", "dim"), Text(_runner_up(pair.runner_up), "dim"))
    if kept and len(kept.channels) < kept.width:
        shown = ", ".join(map(str, kept.channels[:10])) + (" …" if len(kept.channels) > 10 else "")
        coupled = f"; coupled: {_some(kept.coupled)}" if len(kept.coupled) > 1 else ""
        lines.add_row(Text("kept", "dim"), Text(f"{shown} (by {kept.criterion}{coupled})", "dim"))
    yield Padding(lines, (0, 0, 0, 4), expand=False)


def _tap(tap: Tap) -> Text:
    return Text.assemble((tap.path, "bold"), f"  {size(tap.shape[1:])}")


def _runner_up(found: RunnerUp | None) -> str:
    return f"{found.teacher} ({found.score:.2f})" if found else "none"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _stage_line(stage: Stage) -> Text:
    losses = " + ".join(f"{term.weight:g} {term.name}" if term.weight != 1 else term.name for term in stage.losses)
    epochs = f"{stage.epochs} epoch{'s' if stage.epochs > 1 else ''}"
    return Text.assemble(
        "  ", (stage.name, "bold cyan"), f"  {epochs} of {losses}",
        (f"  {stage.optimizer.name} {stage.optimizer.lr:g}, {stage.schedule}, {stage.cost:.1%} of the cost", "dim"),
    )  # fmt: skip


def diagnostics_view(remarks: Iterable[Diagnostic]) -> list[Text]:
    """One or two lines a remark."""
    lines = []
    for remark in remarks:
        colour = _COLOURS[remark.severity]
        hint = f" ({remark.hint})" if remark.hint else ""
        lines.append(
            Text.assemble(
                (f"{remark.severity} ", f"bold {colour}"),
                (f"{remark.code} ", colour),
                f"{remark.where}: {remark.why}{hint}",
            )
        )
    return lines


def shrunk_view(shrunk: "ShrunkResult") -> RenderableType:
    """What shrinking did: widths, sizes, the proof, and what stayed."""
    changed = {path: widths for path, widths in shrunk.widths.items() if widths[0] != widths[1]}
    table = Table.grid(padding=(0, 2))
    for path, (old, new) in changed.items():
        table.add_row(path, Text(f"{old} -> {new}", style="bold"))
    before, after, proof = shrunk.before, shrunk.after, shrunk.proof
    sizes = (
        f"parameters {count(before.parameters)} -> {count(after.parameters)}, MACs {count(before.macs)} -> "
        f"{count(after.macs)}"
    )
    return Group(
        table,
        Text(),
        Text(sizes, style="bold"),
        Text(f"proof: equals the masked original at {proof.nodes} nodes, largest relative error {proof.error:.1e}"),
        *diagnostics_view(shrunk.diagnostics),
    )


def result_view(plan: Plan, result: dict[str, Any]) -> RenderableType:
    """The table that a run ends with, and the parity gate."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model")
    for name in ("accuracy", "parameters", "MACs", "ONNX latency"):
        table.add_column(name, justify="right")
    latency = result["latency"]
    table.add_row(
        "teacher",
        f"{result['teacher']['accuracy']:.2%}",
        count(plan.teacher.parameters),
        count(plan.teacher.macs),
        _ms(latency["teacher"]),
    )
    if plan.auxiliary is not None and "auxiliary" in result["summary"]:
        table.add_row(
            "auxiliary teacher",
            _accuracy(result, "auxiliary"),
            count(plan.auxiliary.parameters),
            count(plan.auxiliary.macs),
            _ms(latency["auxiliary"]),
        )
    labels = {"control": "student, no distillation", "distilled": "student, distilled"}
    for name, label in labels.items():
        if name in result["summary"]:
            table.add_row(
                label,
                _accuracy(result, name),
                count(plan.student.parameters),
                count(plan.student.macs),
                _ms(latency["student"]),
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
    reached = result["summary"]
    if "control" in reached and reached["distilled"]["mean"] < reached["control"]["mean"]:
        notes.append("distillation did not help here: the student alone is better for as many epochs")
    return Group(table, *(Text(note, style="dim") for note in notes))


def _accuracy(result: dict[str, Any], arm: str) -> str:
    found = result["summary"][arm]
    spread = f" ± {found['deviation'] * 100:.2f}" if found["deviation"] else ""
    return f"{found['mean']:.2%}{spread}"


def _ms(latency: dict[str, Any]) -> str:
    return f"{latency['median_ms']:.3f} ms"


def size(shape: Iterable[int]) -> str:
    """``1x3x32x32``."""
    return "x".join(map(str, shape))


def count(value: float) -> str:
    """A number to three digits with k, M or G."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return str(int(value))
