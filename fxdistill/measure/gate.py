"""The gate that says whether an ONNX file is the model that was trained.

The gate compares real images. With p PyTorch's and o ONNX Runtime's predictions it demands

    max |p - o| ≤ t    and    what the task calls agreement, except for ties to within t

with t = tolerance · max(0.01, |p|), as float32 knows a value to a share of its size: |p| is the largest entry of all
predictions. In classification the second is p[argmax p] - p[argmax o] ≤ t for every prediction: top-1 agrees, except
where PyTorch's own two best logits tie. It is the stricter one: errors within t may flip choices that lie up to twice t
apart. That predictions agree says nothing where all are the same, or numbers that are nearly zero: this is said.

Each output beside the prediction is compared by its own largest entry; where none of several outputs is known to be the
prediction, all are compared so.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

from fxdistill.errors import DataError, ParityError
from fxdistill.ir import outputs
from fxdistill.ir.running import copied
from fxdistill.measure.agreeing import Agreeing
from fxdistill.measure.latency import open_session, run
from fxdistill.measure.model import evaluating
from fxdistill.measure.parity import TOLERANCE, Parity, scale
from fxdistill.tasks import Said, Task

_FAINT = TOLERANCE * scale(0.0)
"""What is no larger could be anything: with the usual tolerance so much may differ."""
INPUT = "input"
"""The name of a file's input."""


def measure(
    module: nn.Module, path: Path, images: Iterable[Tensor], *, task: Task, entry: str = "",
    prediction_name: str | None = None,
) -> Parity:  # fmt: skip
    """Compare an ONNX file with the module that it came from, both in float32 on the CPU.

    A copy of the module is compared, so that an accelerator's reduced precision is not taken for an error of
    the file.

    Args:
        module: The module; its mode and device do not matter and do not change.
        path: The ONNX file.
        images: Batches of images (N, ...).
        task: What agreement means.
        entry: Which entry of a structured output is the prediction.
        prediction_name: What the prediction is called in the file; None for the task's name of it, '' where it has the
            name of its place. Where in that case nothing but their order tells which of several outputs it is, none is.

    Raises:
        ModelError: The file cannot be loaded or run.
        DataError: There are no images.
    """
    original, session = reference(module), open_session(path)
    found, name_of = _Found(task), task.output_name if prediction_name is None else prediction_name
    with evaluating(original):
        for image in images:
            # first ONNX Runtime: a module may write into its input
            given = image.cpu() if image.dtype == torch.uint8 else image.cpu().float()
            theirs = answers(session, given, where=str(path))
            output = original(given)
            ours = outputs.named(output, entry, prediction_name=name_of, taken=(INPUT,), alone=task.output_name)
            chosen = None if not name_of and outputs.is_guess(output, entry) else outputs.prediction(output, entry)
            for name, value in theirs.items():
                found.take(name, ours[name], value, is_prediction=ours[name] is chosen)
            found.images += len(image)
    if not found.images:
        raise DataError("there are no images to compare the exported model on", where=str(path))
    return found.parity()


class _Found:
    """What was found so far, batch after batch."""

    def __init__(self, task: Task) -> None:
        self.task, self.said, self.agreeing = task, Said(task), Agreeing(task)
        self.worst, self.largest, self.images = 0.0, 0.0, 0
        self.others: dict[str, float] = {}

    def take(self, name: str, ours: Tensor, theirs: Tensor, *, is_prediction: bool) -> None:
        """Take in an output of a batch."""
        # np.maximum, unlike max, keeps a NaN, which the gate must see
        error = (ours.double() - theirs.double()).abs().max().item() if ours.numel() else 0.0
        largest = float(ours.double().abs().max()) if ours.numel() else 0.0
        if not is_prediction:
            self.others[name] = float(np.maximum(self.others.get(name, 0.0), error / scale(largest)))
            return
        self.largest = float(np.maximum(self.largest, largest))
        self.worst = float(np.maximum(self.worst, error))
        self.agreeing.add(ours, theirs)
        self.said.add(ours)

    def parity(self) -> Parity:
        """All of it."""
        agreed = self.agreeing.found()
        faint = agreed.share is None and not self.others and self.largest <= _FAINT
        vacuous = self.said.collapsed() or ("all predictions are zero, or nearly" if faint else "")
        return Parity(
            self.worst, agreed.share, self.images, agreed.widest, self.task.agreement_name, vacuous,
            self.others, self.largest,
        )  # fmt: skip


def gate(measured: Parity, tolerance: float = TOLERANCE) -> None:
    """Let a file pass, or not. The conditions are in the module docstring.

    Raises:
        ParityError: The file is not the model.
    """
    size = scale(measured.largest)
    allowed = f"allowed is {tolerance * size:.3g}, values are up to {measured.largest:.3g}"
    if not measured.max_abs_error / size <= tolerance:  # so written, a NaN fails
        what = f"the predictions differ by up to {measured.max_abs_error:.3g}; {allowed}"
    elif not measured.widest_flip / size <= tolerance:
        what = (
            f"it agrees on {measured.agreement or 0:.4%} only, and not for ties: a prediction flipped "
            f"over a gap of {measured.widest_flip:.3g}; {allowed}"
        )
    elif wrong := [name for name, error in measured.others.items() if not error <= tolerance]:
        what = (
            f"the output '{wrong[0]}' differs by up to {measured.others[wrong[0]]:.3g} of its largest value; allowed "
            f"is {tolerance:.3g}"
        )
    else:
        return
    raise ParityError(
        f"the ONNX model is not the trained one: {what}",
        where=f"{measured.images} images compared",
        hint="export the weights that were evaluated; if it was those, the exporter errs: try another opset, or "
        "a larger tolerance",
    )


def reference(module: nn.Module) -> nn.Module:
    """A copy in float32 on the CPU, in eval mode, without gradients."""
    return copied(module).to("cpu", torch.float32).eval().requires_grad_(requires_grad=False)


def answers(session: InferenceSession, image: Tensor, *, where: str) -> dict[str, Tensor]:
    """What an ONNX file answers to a batch, by the names of its outputs.

    Raises:
        ModelError: It does not run on it.
    """
    found = run(session, image.numpy(), where=where)
    names = [output.name for output in session.get_outputs()]
    return {name: torch.from_numpy(np.asarray(value)) for name, value in zip(names, found, strict=True)}


def reason(cause: BaseException) -> str:
    """The innermost cause in one line: exporters wrap it in pages of advice."""
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{type(cause).__name__}: {(str(cause).strip() or 'no message').splitlines()[0]}"
