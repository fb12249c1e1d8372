"""What people see: a plan, the progress of a run and its result, as rich renderables.

Everything is laid out in short lines rather than wide tables, so that it reads in a narrow terminal too.
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fxdistill.diagnostics import Diagnostic
from fxdistill.execute import Arm, Observer
from fxdistill.plan import ModelRef, Pair, Plan, RunnerUp, Stage, Tap
from fxdistill.train import Progress as TrainProgress

_COLOURS = {"note": "dim", "warning": "yellow", "error": "red"}


def plan_view(plan: Plan, *, base: Path | None = None) -> RenderableType:
    """A plan, whole: models, pairs with their evidence, stages with their cost, remarks."""
    del base
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


def _pair_lines(plan: Plan, pair: Pair) -> Iterator[Text]:
    kept = plan.kept_for(pair.name)
    widths = (
        f"keeps {len(kept.channels)} of {kept.width} channels"
        if kept
        else f"projects {pair.student.width} to {pair.teacher.width} channels"
    )
    yield Text.assemble("  ", (pair.name, "bold cyan"), f"  score {pair.score:.2f}  {widths}")
    yield _tap_line("teacher", pair.teacher)
    yield _tap_line("student", pair.student)
    yield Text(f"    why        {'; '.join(pair.why)}", style="dim")
    yield Text(f"    runner-up  {_runner_up(pair.runner_up)}", style="dim")
    if kept and len(kept.channels) < kept.width:
        shown = ", ".join(map(str, kept.channels[:10])) + (" …" if len(kept.channels) > 10 else "")
        coupled = f"; coupled: {_some(kept.coupled)}" if len(kept.coupled) > 1 else ""
        yield Text(f"    kept       {shown} (by {kept.criterion}{coupled})", style="dim")


def _tap_line(role: str, tap: Tap) -> Text:
    return Text.assemble(f"    {role}    ", (tap.path, "bold"), f"  {size(tap.shape[1:])}")


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
    parity = result["parity"]
    seeds = len(plan.seeds)
    return Group(
        table,
        Text(f"{'mean and standard deviation over ' if seeds > 1 else ''}{seeds} seed{'s' if seeds > 1 else ''}; latency: batch 1, "
             f"one thread, {latency['student']['provider']}, median", style="dim"),
        Text(f"parity on {parity['images']} images: largest error {parity['max_abs_error']:.1e}, top-1 agreement {parity['top1_agreement']:.2%}", style="dim"),
    )  # fmt: skip


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


class RunView(Observer):
    """The live view of a run: one bar over all epochs, one line of what is happening."""

    def __init__(self, console: Console) -> None:
        super().__init__(self._begin, self._remark, self._progress, self._phase)
        self.console = console
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self._line = Text()
        self._live = Live(Group(self._bar, self._line), console=console, refresh_per_second=8, transient=True)
        self._task = self._bar.add_task("training", total=None)
        self._done: dict[Arm, int] = {}
        self._epochs: dict[str, list[int]] = {}
        self._order: list[Arm] = []
        self._printed = 0.0

    def __enter__(self) -> "RunView":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _begin(self, plan: Plan, arms: list[Arm]) -> None:
        self._epochs = {
            "distilled": [s.epochs for s in plan.stages],
            "control": [s.epochs for s in plan.control],
        }
        self._order = arms
        total = sum(sum(self._epochs[arm.name]) for arm in arms)
        self._bar.update(self._task, total=total)

    def _remark(self, remark: Diagnostic) -> None:
        for line in diagnostics_view([remark]):
            self.console.print(line)

    def _phase(self, phase: str) -> None:
        self._bar.update(self._task, description=phase)
        self._line = Text()
        self._refresh()

    def _progress(self, arm: Arm, progress: TrainProgress, accuracy: float | None) -> None:
        at = progress.position
        before = sum(sum(self._epochs[one.name]) for one in self._order[: self._order.index(arm)])
        done = before + sum(self._epochs[arm.name][: at.stage]) + at.epoch + at.step / max(1, progress.steps)
        self._bar.update(self._task, completed=done, description=f"{arm.name}, seed {arm.seed}")
        losses = "  ".join(f"{key} {value:.4g}" for key, value in progress.losses.items())
        epoch = min(at.epoch + 1, progress.stage.epochs) if at.step else at.epoch
        self._line = Text(
            f"{progress.stage.name}, epoch {epoch} of {progress.stage.epochs}  {losses}  {progress.images_per_second:,.0f} images/s"
        )
        self._refresh()
        if at.step == 0 and at.epoch == progress.stage.epochs:
            reached = f"  accuracy {accuracy:.2%}" if accuracy is not None else ""
            self.console.print(
                f"{arm.name}, seed {arm.seed}: [bold cyan]{progress.stage.name}[/]  {losses}{reached}",
                highlight=False,
            )

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._printed > 0.1:
            self._printed = now
            self._live.update(Group(self._bar, self._line))
