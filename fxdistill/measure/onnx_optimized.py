"""An ONNX file with a simpler graph that computes the same: after its gate, behind the same gate once more.

    constants computed, what nobody reads removed, the same computed once         onnxscript.optimizer.optimize
    BatchNorm into the convolution before it, padding, hard-swish, … as one       onnxscript.rewriter.rewrite

It is onnxscript's optimiser, of the ONNX project: torch's exporter needs it already, so that nothing more is installed.
Rewriting rounds, and rewriters err: the file stays as it was unless the new one passes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnxscript import optimizer, rewriter
from torch import Tensor, nn

from fxdistill.errors import FxdistillError, ModelError
from fxdistill.files import put, writing
from fxdistill.ir.running import quiet
from fxdistill.measure.gate import gate, measure, reason
from fxdistill.measure.onnx_file import draft_of, strip, weights_beside
from fxdistill.measure.parity import Parity
from fxdistill.tasks import Task


@dataclass(frozen=True)
class Optimized:
    """What became of a file.

    Attributes:
        nodes: Operators before and after; the same where it stays as it was.
        parity: What the gate found of the new file; None where there is none.
        why: Why the file stays as it was; '' where it does not.
    """

    nodes: tuple[int, int]
    parity: Parity | None
    why: str = ""


def optimize_checked(
    module: nn.Module, path: Path, images: Iterable[Tensor], *, task: Task, tolerance: float = 1e-4, entry: str = "",
    prediction_name: str | None = None,
) -> Optimized:  # fmt: skip
    """Simplify the graph of a file in its place, if the new one passes the gate; else the file stays.

    Args:
        module: What the file is of.
        path: The file, exported of it.
        images: Batches of images to compare on.
        task: What agreement means, see :func:`fxdistill.measure.gate.measure`.
        tolerance: See :mod:`fxdistill.measure.gate`.
        entry: As in :func:`fxdistill.measure.gate.measure`.
        prediction_name: Likewise.

    Raises:
        ModelError: There is no such file.
        StorageError: The disk is full.
    """
    before = onnx.load_model(path, load_external_data=False)
    count = len(before.graph.node)
    if weights_beside(path).exists():
        return Optimized((count, count), None, "its weights lie beside it, for they pass 2 GiB")
    with draft_of(path) as draft:
        try:
            made = rewritten(before)
            onnx.save_model(made, draft)
            onnx.checker.check_model(draft, full_check=True)
            found = measure(module, draft, images, task=task, entry=entry, prediction_name=prediction_name)
            gate(found, tolerance)
        except FxdistillError as cause:
            return Optimized((count, count), None, cause.what)
        except Exception as cause:  # noqa: BLE001  # the checker's errors have no common base
            return Optimized((count, count), None, reason(cause))
        with writing(path):
            put(draft, path)
    return Optimized((count, len(made.graph.node)), found)


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with a simpler graph, and what it says of itself.

    Raises:
        ModelError: The optimiser fails.
    """
    try:
        with quiet():
            made = optimizer.optimize(rewriter.rewrite(optimizer.optimize(model)))
    except Exception as cause:  # it raises whatever its parts raise
        raise ModelError(f"the optimiser fails: {reason(cause)}") from cause
    strip(made.graph)
    said = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(made, dict(sorted(said.items())))
    return made
