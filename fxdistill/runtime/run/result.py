"""What a run ends with: the exported member, its gate, latencies, and the result as data.

What is exported is the member that the plan names, under the seed that it names: the first one, whatever the others
reach, or the one that is best on the validation images.
"""

import json
import statistics
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from fxdistill.compiler.versions import versions
from fxdistill.data.batches import batches
from fxdistill.diagnostics import Diagnostic
from fxdistill.errors import ModelError
from fxdistill.files import write_text
from fxdistill.ir.views import seen
from fxdistill.measure import latency, onnx_file
from fxdistill.measure.differences import paired
from fxdistill.measure.onnx_model import described
from fxdistill.measure.parity import Parity
from fxdistill.plan.document import Plan
from fxdistill.plan.members import Masked
from fxdistill.plan.training import CONTROL
from fxdistill.runtime.run import details
from fxdistill.runtime.run.execution import Execution
from fxdistill.runtime.run.family import export_levels, exported
from fxdistill.runtime.run.kept import exported_seed


def finish(run: Execution, *, measured: Mapping[str, dict[str, float]]) -> dict[str, Any]:
    """Export, compare, measure, and write ``result.json``, which makes the run complete.

    Args:
        run: The execution, everything trained.
        measured: The metrics of the members that were not trained.

    Raises:
        ParityError: The exported member is not the trained one; there is no ONNX file then.
    """
    run.observer.on_phase("export")
    rundir, export = run.rundir, run.plan.export
    module = exported(run)
    written, parity = _onnx(run, export.member, module)
    levels = export_levels(run, lambda name, module: _onnx(run, name, module)[1]) if export.levels else {}
    run.observer.on_phase("latency")
    finished = run.checkpoint.finished
    result = {
        "plan": run.plan.sha256, "metric": run.task.primary, "members": dict(measured), "arms": finished,
        "summary": summary(finished, run.task.primary),
        "differences": differences(run.plan, finished, run.task.primary),
        "exported_seed": exported_seed(run.plan, run.task, finished), "parity": asdict(parity),
        "exporter": written.exporter, "outputs": written.outputs, "opset": written.opset,
        "latency": _latencies(run, levels), **({"levels": levels} if levels else {}),
        "layout": run.layout.why,
        "device": str(run.fabric.device), **run.checkpoint.how, **run.asides,
        "versions": versions(),
    }  # fmt: skip
    run.observer.on_phase("details for the report")
    details.write(run, module, seed=result["exported_seed"])  # before the run is complete, and nobody goes on with it
    write_text(rundir.result_path, json.dumps(result, indent=2) + "\n")
    rundir.checkpoint_path.unlink(missing_ok=True)
    return result


def _onnx(run: Execution, name: str, module: nn.Module) -> tuple[onnx_file.Exported, Parity]:
    """Write a member as ONNX, if the file answers as the member does to the test images."""
    export, path = run.plan.export, run.rundir.onnx_path(name)
    path.unlink(missing_ok=True)
    view, test = run.plan.view_of(name), batches(run.dataset.test, run.plan.data.batch_size)
    return onnx_file.export_checked(
        module.cpu(), path, (seen(batch["images"], view) for batch in test), task=run.task, opset=export.opset,
        input_shape=run.plan.shape_of(name), tolerance=export.tolerance, metadata=provenance(run.plan, name),
        entry=run.plan.entry_of(name), only=export.outputs,
    )  # fmt: skip


def _latencies(run: Execution, levels: Collection[str]) -> dict[str, Any]:
    """Latency of every member in ONNX Runtime, measured side by side, batch 1; of masked ones that were cut out alone.

    Of the other members it is wanted for comparison only: one that cannot be exported is said, and left out.
    """
    masked = {name for name, member in run.plan.members.items() if isinstance(member, Masked) and name not in levels}
    modules = {name: module for name, module in run.modules.items() if name not in masked}  # they are as slow as whole
    single = {name: (1, *run.plan.shape_of(name)[1:]) for name in modules}
    paths = {name: run.rundir.onnx_path(name) for name in (run.plan.export.member, *levels)}  # written by now
    with tempfile.TemporaryDirectory() as folder:
        for name, module in modules.items():
            path = Path(folder) / f"{name}.onnx"
            if name in paths:
                continue
            try:
                onnx_file.export_onnx(
                    module.cpu(), path, input_shape=single[name], opset=run.plan.export.opset,
                    only=(onnx_file.OUTPUT,), entry=run.plan.entry_of(name),
                )  # fmt: skip
            except ModelError as cause:
                run.observer.on_diagnostic(
                    Diagnostic(
                        code="no-latency", severity="warning", where=name,
                        why=f"it has no latency, because it cannot be exported to ONNX: {cause.what}",
                    )
                )  # fmt: skip
            else:
                paths[name] = path
        found = latency.interleaved_latency(paths, single)
    return {name: asdict(one) for name, one in found.items()}


def summary(arms: list[dict[str, Any]], metric: str) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of a metric of each arm that has it, over the seeds (deviation 0 for one seed)."""
    by_name: dict[str, list[float]] = {}
    for arm in (arm for arm in arms if metric in arm):
        by_name.setdefault(arm["name"], []).append(arm[metric])
    return {
        name: {
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        }
        for name, values in by_name.items()
    }


def differences(plan: Plan, arms: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """For each arm beside another one, the control arm or the plan's first arm, how far it is from that."""
    values: dict[str, dict[int, float]] = {}
    for arm in (arm for arm in arms if metric in arm):
        values.setdefault(arm["name"], {})[arm["seed"]] = arm[metric]
    several = [arm.name for arm in plan.arms if plan.export.member in arm.trains and not arm.once]
    beside = dict.fromkeys(several[1:], several[0]) if several else {}
    if plan.control is not None:
        beside[plan.control.of] = CONTROL
    found = {
        name: paired(values[name], values[other], beside=other) for name, other in beside.items()
        if name in values and other in values
    }  # fmt: skip
    return {name: asdict(one) for name, one in found.items() if one is not None}


def provenance(plan: Plan, member: str) -> dict[str, str]:
    """What an ONNX file says of where it comes from: texts and JSON, by name."""
    said = described(task=plan.task, preprocessing=plan.preprocessing_of(member), classes=plan.data.classes)
    return {"fxdistill.plan_sha256": plan.sha256, **said}
