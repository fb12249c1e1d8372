"""What came out, as people read it: of a run, of shrinking one model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from fxdistill.figures import figure
from fxdistill.measure.parity import Parity
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Hardened, Masked
from fxdistill.plan.training import CONTROL
from fxdistill.report import outcome
from fxdistill.report.layout import Line, Table, count, diagnostics_view, not_apart, points, spread
from fxdistill.tasks import TASKS, Task

if TYPE_CHECKING:
    from fxdistill.compiler.shrink_model import ShrunkResult

Row = tuple[str, ...]
_NOTHING = "-"
"""The value of a metric where the test images have no labels to measure it by."""


def shrunk_view(shrunk: "ShrunkResult") -> RenderableType:
    """What shrinking did: widths, sizes, the proof, and what stayed."""
    changed = {path: widths for path, widths in shrunk.widths.items() if widths[0] != widths[1]}
    longest = max(map(len, changed), default=0)
    layers = [
        Line(Text(f"{old} -> {new}", "bold"), Text(f"{path:<{longest}}  ")) for path, (old, new) in changed.items()
    ]
    return Group(*layers, Text(), *sizes_lines(shrunk), *diagnostics_view(shrunk.diagnostics))


def sizes_lines(shrunk: "ShrunkResult") -> tuple[Line, ...]:
    """What shrinking left of the size, and the proof."""
    before, after, proof = shrunk.before, shrunk.after, shrunk.proof
    pairs = {"parameters": (before.parameters, after.parameters), "MACs": (before.macs, after.macs)}
    sizes = ", ".join(f"{name} {count(a)} -> {count(b)} ({b / max(a, 1):.1%})" for name, (a, b) in pairs.items())
    compared = f"proof: equals the masked original at {proof.nodes} nodes, largest relative error {proof.error:.1e}"
    compared += " in double precision" if proof.precision == "float64" else ""
    compared += f"; channels by {shrunk.criterion}"
    lines = Line(Text(sizes, "bold"), indent=2), Line(Text(compared), indent=2)
    if (found := shrunk.confirmed) is None:
        return lines
    told = f"latency {figure(found.own_ms)} ms -> {figure(found.ms)} ms, measured in turn in {found.provider}, "
    told += f"one thread: {found.share:.3f} of its own, 95 % interval {found.low:.3f} to {found.high:.3f}"
    return *lines, Line(Text(told), indent=2)


def result_view(plan: Plan, result: dict[str, Any]) -> RenderableType:
    """The table that a run ends with, and the parity gate."""
    task = TASKS.get(plan.task)
    seeds, parity = len(plan.seeds), result["parity"]
    over = f"mean and standard deviation over {seeds} seeds" if seeds > 1 else "1 seed"
    provider = result["latency"][plan.export.member]["provider"]
    notes = [
        f"{over}; latency: batch 1, one thread, {provider}, median",
        f"parity on {parity['images']} images: {Parity(**parity)}",
        *(() if result["summary"] else ("the test images have no labels: nothing was measured on them",)),
        *((f"exported: {exported}",) if (exported := outcome.exported(plan, result)) else ()),
        *_taken(plan, result),
        *_unhelped(plan, result, task),
        *_no_quicker(plan, result),
    ]
    header = ("model", task.primary, "parameters", "MACs", "ONNX latency")
    return Group(
        Table(header, tuple(_rows(plan, result, task))),
        *(Line(Text(text), indent=2) for text in _differences(result, task)),
        *(Line(Text(note, "dim"), indent=2) for note in notes),
        *diagnostics_view(outcome.remarks(result)),
    )


def _rows(plan: Plan, result: dict[str, Any], task: Task) -> Iterator[Row]:
    """The members that teach as they are, then the arms, the control before the arm that it stands beside."""
    for name, found in result["members"].items():
        value = task.shown(found[task.primary]) if task.primary in found else _NOTHING
        yield _row(plan, result, name, name, value)
    for name, found in result.get("levels", {}).items():
        timed = result["latency"].get(name)
        value = task.shown(found[task.primary]) if task.primary in found else _NOTHING
        sizes = (count(int(found.get(key, 0))) for key in ("parameters", "macs"))
        yield f"{name}, cut out", value, *sizes, "-" if timed is None else f"{timed['median_ms']:.3f} ms"
    for arm in plan.arms:
        member = arm.trains[0]
        if plan.control is not None and plan.control.of == arm.name:
            yield _row(plan, result, f"{member}, no distillation", member, _spread(result, CONTROL, task))
        label = member if arm.name == member else f"{member}, {arm.name}"
        yield _row(plan, result, label, member, _spread(result, arm.name, task))


def _row(plan: Plan, result: dict[str, Any], label: str, member: str, value: str) -> Row:
    size, timed = outcome.size_of(plan, result, member), result["latency"].get(member)
    latency = _NOTHING if timed is None else f"{timed['median_ms']:.3f} ms"
    return label, value, *(map(count, size) if size is not None else (_NOTHING, _NOTHING)), latency


def _differences(result: dict[str, Any], task: Task) -> Iterator[str]:
    """Each arm beside the one that it is compared with."""
    for name, found in result.get("differences", {}).items():
        said = f"{name} - {found['beside']}: {points(found['mean'], task)}"
        if found["low"] is not None:
            low, high = (points(found[end], task, unit=False) for end in ("low", "high"))
            said += f", {low} to {high} in 95 %, over {found['seeds']} seeds in pairs"
            said += not_apart(found["low"], found["high"])
        elif found["seeds"] > 1:
            said += f", the same under {found['seeds']} seeds, which tells no interval"
        yield said


def _taken(plan: Plan, result: dict[str, Any]) -> Iterator[str]:
    """How long the stages were of arms in which some end on a plateau."""
    planned = {(arm.name, stage.name): stage.epochs for arm in plan.all_arms for stage in arm.stages}
    for arm in result["arms"]:
        took = arm.get("epochs", {})
        meant = {stage: planned.get((arm["name"], stage), count) for stage, count in took.items()}
        told = [
            f"{stage} {count}{f' (planned {meant[stage]})' if meant[stage] != count else ''}"
            for stage, count in took.items()
        ]
        if told:
            yield f"{arm['name']}, seed {arm.get('seed')}, epochs: {', '.join(told)}"


def _unhelped(plan: Plan, result: dict[str, Any], task: Task) -> Iterator[str]:
    """A word where the control arm is the better one, as far as the seeds tell."""
    found = result.get("differences", {}).get(plan.control.of) if plan.control is not None else None
    if found is None or not (found["mean"] < 0 if task.higher_is_better else found["mean"] > 0):
        return
    if found["low"] is None:
        few = "this one seed" if found["seeds"] == 1 else f"these {found['seeds']} seeds"
        yield f"the student alone is better under {few}, which may be chance: run with --seeds 5 to know"
    elif not not_apart(found["low"], found["high"]):
        yield "distillation did not help here: the student alone is better for as many epochs"


def _no_quicker(plan: Plan, result: dict[str, Any]) -> Iterator[str]:
    """A word where what is exported takes as long as a member that teaches, for less to compute."""
    own, times = plan.export.member, result["latency"]
    if isinstance(plan.members[own], Masked | Hardened):
        return
    for name in filter(times.__contains__, result["members"]):
        share = plan.members[name].macs and plan.members[own].macs / plan.members[name].macs
        if 0 < share < 1 and times[own]["median_ms"] >= times[name]["median_ms"]:
            told = f"{own} is no quicker than {name} here, with {share:.0%} of its MACs"
            yield f"{told}: fxdistill bench measures both in turn; fxdistill shrink --latency goes by time"


def _spread(result: dict[str, Any], arm: str, task: Task) -> str:
    found = result["summary"].get(arm)
    seeds = sum(one["name"] == arm and task.primary in one for one in result["arms"])
    return _NOTHING if found is None else spread(found["mean"], found["deviation"], task, seeds)
