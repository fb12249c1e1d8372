"""Exported files in less precision: made, calibrated on training images, and let pass by what they answer.

A file in INT8 or FP16 does not compute what the float one does, so that its gate is another one. On the test images, in
ONNX Runtime, both:

    by the task's primary metric      float - reduced       <= tolerance in points
    by what the task calls agreement  1 - agreement         <= tolerance in points

where a point is a hundredth, of the float file's value where the metric is no share. Images without labels tell the
second one alone. What does not pass is not written.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fxdistill import files
from fxdistill.data.batches import batches
from fxdistill.data.dataset import Dataset, Images
from fxdistill.data.load import load
from fxdistill.errors import InputError, ModelError, ParityError
from fxdistill.figures import figure
from fxdistill.ir.outputs import in_file, prediction
from fxdistill.ir.views import seen
from fxdistill.measure import onnx_reduced
from fxdistill.measure.agreeing import Agreeing
from fxdistill.measure.latency import Latency, interleaved_latency
from fxdistill.measure.model import metrics
from fxdistill.measure.onnx_model import OnnxModel, as_pixels
from fxdistill.measure.onnx_reduced import Calibration, Precision
from fxdistill.preprocessing import View
from fxdistill.runtime.deployment.finding import Found
from fxdistill.tasks import Task

_BATCH = 32
_POINT = 0.01
_ROUNDING = 1e-4  # points: a metric may be known in float32, and 1 - 0.95 is more than 0.05


@dataclass(frozen=True)
class Reducing:
    """How a file is reduced, and what it may lose.

    Attributes:
        calibration: How the ranges of INT8 follow from the calibration images.
        images: How many of those there are.
        tolerance: Points of the primary metric that it may lose.
        disagreement: Points of agreement that it may lose.
    """

    calibration: Calibration = "minmax"
    images: int = 512
    tolerance: float = 1.0
    disagreement: float = 5.0


@dataclass(frozen=True)
class Reduced:
    """A file in less precision.

    Attributes:
        path: The file.
        precision: Its precision.
        metric: The primary metric's name; '' where the test images have no labels.
        value: What it reaches on the test images; not a number without labels.
        of_float: What the float file reaches.
        agreement: Share of its answers that are the float file's; None where answers are numbers.
        images: Test images.
        latency: Of one image, or as many as the files take at once, one thread, by ``float`` and the precision.
        bytes: Of the files, by the same names.
    """

    path: Path
    precision: Precision
    metric: str
    value: float
    of_float: float
    agreement: float | None
    images: int
    latency: dict[str, Latency]
    bytes: dict[str, int]


def beside(path: Path, precision: Precision) -> Path:
    """Where the file in less precision lies: ``student.onnx`` has ``student-int8.onnx``."""
    return path.with_name(f"{path.stem}-{precision}{path.suffix}")


def ready(
    found: Found, path: Path, precisions: Sequence[Precision], how: Reducing, *, calibrate: str | None = None,
    allow: Sequence[str] = (),
) -> Images | None:  # fmt: skip
    """What INT8 is calibrated on, so that what is missing is known before anything is written; None without INT8.

    Args:
        found: The model, with its data.
        path: The float file, which need not be there yet.
        precisions: Those of the files to write.
        how: How they are reduced.
        calibrate: A data spec, whose training images are taken; None for those of the model's own data.
        allow: Modules whose factories may be called.

    Returns:
        Training images, evenly spaced: never those that it is measured on.

    Raises:
        InputError: There are no test images, no training images to calibrate on, or a folder has a file's name.
        DataError: The data to calibrate on is not there, damaged, or of another kind.
    """
    own = _data(found, precisions[0])
    for precision in precisions:
        files.check_onnx_name(target := beside(path, precision))
        if target.is_dir():
            raise InputError("the output is a folder", where=str(target), hint="give another name with -o")
    if "int8" not in precisions:
        return None
    if calibrate is None and own.is_one:
        raise InputError(
            "the data is one split, whose images measure what is lost", where="--int8",
            hint="name data to calibrate on: --calibrate SPEC",
        )  # fmt: skip
    reading = found.preprocessing.reading(found.input_shape[1])
    data = own if calibrate is None else load(calibrate, task=found.task, reading=reading, allow=allow)
    if data.image_shape[0] != own.image_shape[0]:
        raise InputError(
            f"its images have {data.image_shape[0]} channels, the model's {own.image_shape[0]}",
            where="--calibrate", hint="name data like the model's",
        )  # fmt: skip
    count = min(len(data.train), how.images)
    return data.train.at(torch.linspace(0, len(data.train) - 1, count).round().long())


def _data(found: Found, precision: Precision) -> Dataset:
    if found.dataset is None:
        raise InputError(
            "what a file in less precision loses is measured on test images, and there are none",
            where=f"--{precision}", hint="give --data",
        )  # fmt: skip
    if not (found.task.agreement_name or found.dataset.has_labels("test")):
        raise InputError(
            "what a file in less precision loses of numbers is measured by labels, and no test image has one",
            where=f"--{precision}", hint="give --data whose test images have labels",
        )  # fmt: skip
    return found.dataset


def reduced(found: Found, path: Path, precision: Precision, how: Reducing, *, images: Images | None = None) -> Reduced:
    """Write an exported file in less precision beside it, if it passes its gate.

    Args:
        found: The model, with its data.
        path: The float file.
        precision: That of the new file.
        how: How it is reduced, and what it may lose.
        images: What INT8 is calibrated on, see :func:`ready`.

    Raises:
        InputError: There is nothing to measure it on, or to calibrate INT8 on.
        ModelError: The file cannot be reduced.
        ParityError: It loses too much; nothing was written.
    """
    images = images if images is not None else ready(found, path, [precision], how)
    target = beside(path, precision)
    if path.with_name(f"{path.name}.data").exists():
        raise ModelError("its weights lie beside it, for they pass 2 GiB", where=str(path), hint="keep the float file")
    onnx_reduced.check_float(path)
    file = OnnxModel(path)
    given, size = _given(found, file), file.batch or _BATCH
    with files.writing(target), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{target.name}.") as folder:
        draft = Path(folder) / target.name
        if images is None or precision == "fp16":
            onnx_reduced.fp16(path, draft)
        else:
            if file.batch is not None and file.batch > len(images):
                raise InputError(
                    f"it takes {file.batch} images at once, and there are {len(images)} to calibrate on",
                    where=str(path), hint="name more of them: --calibrate SPEC, --calibration-images N",
                )  # fmt: skip
            count = len(images) // size if file.batch else -(-len(images) // size)
            onnx_reduced.int8(path, draft, given(images, size), count=count, calibration=how.calibration)
        made = _measured(found, _data(found, precision), {"float": path, precision: draft}, target, precision)
        if what := loses(made, how, found.task):
            hint = "keep the float file, or allow more" if precision == "fp16" else (
                "calibrate otherwise (--calibration, --calibration-images), or allow more"
            )  # fmt: skip
            raise ParityError(f"in {precision} the file loses too much: {what}", where=str(target), hint=hint)
        files.put(draft, target)
    return made


def described(made: Reduced, task: Task) -> str:
    """A file in less precision, beside the float one, in a line."""
    said = [f"{made.metric} {task.shown(made.value)} (float {task.shown(made.of_float)})"] if made.metric else []
    said += [] if made.agreement is None else [f"{task.agreement_name} {made.agreement:.2%}"]
    said[-1] += f" on {made.images:,} test images"
    own, other = (made.latency[name].median_ms for name in (made.precision, "float"))
    said.append(f"{figure(own)} ms (float {figure(other)})")
    size, whole = (made.bytes[name] / 1e6 for name in (made.precision, "float"))
    said.append(f"{figure(size)} MB (float {figure(whole)})")
    return f"{made.path}: {', '.join(said)}"


def _given(found: Found, file: OnnxModel) -> Callable[[Images, int], Iterator[Tensor]]:
    """How images of data are given to a file, so many at once."""

    def batched(images: Images, size: int) -> Iterator[Tensor]:
        view: View = found.preprocessing.view(images.image_shape[1:])
        for batch in batches(images, size):
            shown = batch["images"]
            yield as_pixels(shown, view) if file.description.embedded else seen(shown, view).float()

    return batched


def _measured(
    found: Found, dataset: Dataset, paths: dict[str, Path], target: Path, precision: Precision
) -> Reduced:  # fmt: skip
    """What both files say of the test images, and how fast."""
    models = {name: OnnxModel(path).eval() for name, path in paths.items()}
    several = len(models["float"].outputs) > 1
    entry = (found.prediction_name or in_file(found.entry)) if several else ""
    view = View(found.view.size) if models["float"].description.embedded else found.view
    agreeing = Agreeing(found.task)
    for batch in batches(dataset.test, _BATCH):
        ours, theirs = (prediction(model(seen(batch["images"], view)), entry) for model in models.values())
        agreeing.add(ours, theirs)
    values, metric = dict.fromkeys(paths, float("nan")), ""
    if dataset.has_labels("test") and not (found.task.ranks_train and dataset.is_one):
        metric = found.task.primary
        values = {
            name: metrics(model, dataset, found.task, view=view, entry=entry)[metric] for name, model in models.items()
        }
    (first,) = _given(found, models["float"])(dataset.test.at(torch.tensor([0])), 1)
    latency = interleaved_latency(paths, dict.fromkeys(paths, (models["float"].batch or 1, *first.shape[1:])))
    return Reduced(
        target, precision, metric, values[precision], values["float"], agreeing.found().share,
        agreeing.images, latency, {name: path.stat().st_size for name, path in paths.items()},
    )  # fmt: skip


def loses(made: Reduced, how: Reducing, task: Task) -> str:
    """What a file loses that is too much; '' where it passes.

    Args:
        made: The file.
        how: What it may lose.
        task: What its predictions are.
    """
    lost = (made.of_float - made.value) * (1 if task.higher_is_better else -1)
    points = lost / _POINT / (1 if task.is_share else abs(made.of_float) or 1)
    if made.metric and not points <= how.tolerance + _ROUNDING:
        off = f"{figure(points)} {'points' if task.is_share else '%'} from the float file's {task.shown(made.of_float)}"
        what = f"{made.metric} {task.shown(made.value)} is {off}"
        return f"{what}; allowed are {how.tolerance:g} (--tolerance-accuracy)"
    if made.agreement is not None and not (1 - made.agreement) / _POINT <= how.disagreement + _ROUNDING:
        what = f"it answers as the float file for {made.agreement:.2%} of {made.images:,} test images; it may differ"
        return f"{what} for {how.disagreement:g} % (--tolerance-agreement)"
    return ""
