"""The gate that says whether an ONNX file is the model that was trained.

The gate compares real images. With p PyTorch's and o ONNX Runtime's predictions it demands

    max |p - o| ≤ tolerance    and    what the task calls agreement, except for ties to within the tolerance.

In classification the second is p[argmax p] - p[argmax o] ≤ tolerance for every prediction: top-1 agrees, except where
PyTorch's own two best logits tie. It is the stricter one: errors within the tolerance may flip choices that lie up to
twice the tolerance apart.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

from fxdistill.errors import DataError, ModelError, ParityError
from fxdistill.ir.outputs import prediction
from fxdistill.measure.latency import open_session
from fxdistill.measure.model import evaluating
from fxdistill.tasks import Task


@dataclass(frozen=True)
class Parity:
    """How an ONNX file's predictions differ from the module's.

    Attributes:
        max_abs_error: Largest absolute difference of two entries.
        agreement: Share of predictions that say the same, 0 to 1: in classification, of equal top-1 predictions.
        images: How many were compared.
        widest_flip: Over the predictions that differ, PyTorch's largest gap between its own choice and ONNX
            Runtime's, in units of the output; 0 where all agree.
        agreement_name: What the task calls the agreement.
    """

    max_abs_error: float
    agreement: float
    images: int
    widest_flip: float = 0.0
    agreement_name: str = "agreement"


def measure(module: nn.Module, path: Path, images: Iterable[Tensor], *, task: Task, entry: str = "") -> Parity:
    """Compare an ONNX file with the module that it came from, both in float32 on the CPU.

    A copy of the module is compared, so that an accelerator's reduced precision is not taken for an error of
    the file.

    Args:
        module: The module; its mode and device do not matter and do not change.
        path: The ONNX file.
        images: Batches of images (N, ...).
        task: What agreement means.
        entry: Which entry of a structured output is the prediction.

    Raises:
        ModelError: The file cannot be loaded or run.
        DataError: There are no images.
    """
    original, session = reference(module), open_session(path)
    worst, widest, agreeing, predictions, count = 0.0, 0.0, 0, 0, 0
    with evaluating(original):
        for image in images:
            # first ONNX Runtime: a module may write into its input
            theirs = logits(session, image.cpu().float(), where=str(path))
            ours = prediction(original(image.cpu().float()), entry)
            found = task.agreement(ours, theirs)
            # np.maximum, unlike max, keeps a NaN, which the gate must see
            worst = float(np.maximum(worst, (ours - theirs).abs().max().item()))
            widest = float(np.maximum(widest, found.widest))
            agreeing, predictions, count = agreeing + found.agreeing, predictions + found.total, count + len(image)
    if not count:
        raise DataError("there are no images to compare the exported model on", where=str(path))
    return Parity(worst, agreeing / predictions, count, widest, task.agreement_name)


def gate(measured: Parity, tolerance: float = 1e-4) -> None:
    """Let a file pass, or not. The conditions are in the module docstring.

    Raises:
        ParityError: The file is not the model.
    """
    if not measured.max_abs_error <= tolerance:  # so written, a NaN fails
        what = f"the predictions differ by up to {measured.max_abs_error:.3g}; allowed is {tolerance:.3g}"
    elif not measured.widest_flip <= tolerance:
        what = (
            f"it agrees on {measured.agreement:.4%} only, and not for ties: a prediction flipped "
            f"over a gap of {measured.widest_flip:.3g}; allowed is {tolerance:.3g}"
        )
    else:
        return
    raise ParityError(
        f"the ONNX model is not the trained one: {what}",
        where=f"{measured.images} images compared",
        hint="export the weights that were evaluated; if it was those, the exporter errs: try another opset",
    )


def reference(module: nn.Module) -> nn.Module:
    """A copy in float32 on the CPU, in eval mode, without gradients."""
    return copy.deepcopy(module).to("cpu", torch.float32).eval().requires_grad_(requires_grad=False)


def logits(session: InferenceSession, image: Tensor, *, where: str) -> Tensor:
    """What an ONNX file answers to a batch.

    Raises:
        ModelError: It does not run on it.
    """
    try:
        output = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
    except Exception as cause:  # ONNX Runtime's errors share no base class
        raise ModelError(
            f"its file does not run on an input of shape {tuple(image.shape)}: {reason(cause)}", where=where
        ) from cause
    return torch.from_numpy(np.asarray(output))


def reason(cause: BaseException) -> str:
    """The innermost cause in one line: exporters wrap it in pages of advice."""
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{type(cause).__name__}: {(str(cause).strip() or 'no message').splitlines()[0]}"
