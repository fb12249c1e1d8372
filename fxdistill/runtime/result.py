"""What a run ends with: the exported student, its gate, latencies, and the result as data.

What is exported is the distilled student of the first seed, whatever the others reach.
"""

import json
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fxdistill.compiler import pipeline
from fxdistill.data import batches
from fxdistill.files import write_text
from fxdistill.measure import evaluate, onnx_file
from fxdistill.plan.schema import Plan
from fxdistill.runtime import checkpoint
from fxdistill.runtime.arms import Execution


def finish(run: Execution, *, teacher_accuracy: float) -> dict[str, Any]:
    """Export, compare, measure, and write ``result.json``, which makes the run complete.

    Raises:
        ParityError: The exported student is not the trained one; there is no ``student.onnx`` then.
    """
    run.observer.on_phase("export")
    rundir, shape = run.rundir, tuple(run.plan.input.shape)
    student = run.student.cpu()
    student.load_state_dict(checkpoint.state_dict(rundir.student_path))
    rundir.onnx_path.unlink(missing_ok=True)
    test = run.dataset
    images = batches.batches(test.test, run.plan.data.batch_size, mean=test.mean, std=test.std)
    written, parity = onnx_file.export_checked(
        student, rundir.onnx_path, images, input_shape=shape, opset=run.plan.export.opset,
        tolerance=run.plan.export.tolerance, metadata=provenance(run.plan),
    )  # fmt: skip
    run.observer.on_phase("latency")
    finished = run.checkpoint.finished
    result = {
        "plan": run.plan.sha256, "teacher": {"accuracy": teacher_accuracy}, "arms": finished,
        "summary": summary(finished), "parity": asdict(parity), "exporter": written.exporter, "opset": written.opset,
        "latency": _latencies(run, shape), "device": str(run.fabric.device), "versions": pipeline.versions(),
    }  # fmt: skip
    write_text(rundir.result_path, json.dumps(result, indent=2) + "\n")
    rundir.checkpoint_path.unlink(missing_ok=True)
    return result


def _latencies(run: Execution, shape: tuple[int, ...]) -> dict[str, Any]:
    """Latency of teacher, auxiliary teacher and student in ONNX Runtime, measured side by side, batch 1."""
    single = (1, *shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "teacher.onnx"
        onnx_file.export_onnx(run.teacher.cpu(), teacher, input_shape=single, opset=run.plan.export.opset)
        paths = {"teacher": teacher, "student": run.rundir.onnx_path}
        if run.auxiliary is not None:
            paths["auxiliary"] = Path(folder) / "auxiliary.onnx"
            module = run.auxiliary.cpu()
            onnx_file.export_onnx(module, paths["auxiliary"], input_shape=single, opset=run.plan.export.opset)
        found = evaluate.interleaved_latency(paths, single)
    return {name: asdict(latency) for name, latency in found.items()}


def summary(arms: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of the accuracy of each arm over the seeds (deviation 0 for one seed)."""
    by_name: dict[str, list[float]] = {}
    for arm in arms:
        by_name.setdefault(arm["name"], []).append(arm["accuracy"])
    return {
        name: {
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        }
        for name, values in by_name.items()
    }


def provenance(plan: Plan) -> dict[str, str]:
    """What an ONNX file says of where it comes from: texts and JSON, by name."""
    normalization = {"mean": plan.data.mean, "std": plan.data.std, "scale": "pixels in 0 to 1"}
    return {
        "fxdistill.plan_sha256": plan.sha256,
        "fxdistill.versions": json.dumps(pipeline.versions()),
        "fxdistill.normalization": json.dumps(normalization),
        "fxdistill.classes": json.dumps(plan.data.classes),
    }
