"""An ONNX file in less precision, from Python: what ``fxdistill export --int8`` and ``--fp16`` write beside one."""

from collections.abc import Sequence
from pathlib import Path

from fxdistill import checking
from fxdistill.errors import InputError
from fxdistill.files import is_folder
from fxdistill.measure.onnx_reduced import Calibration, Precision
from fxdistill.preprocessing import NOTHING, Preprocessing, Wishes
from fxdistill.runtime.deployment import exports, reducing
from fxdistill.runtime.deployment.finding import find
from fxdistill.runtime.deployment.reducing import Reduced, Reducing
from fxdistill.runtime.run.directory import RunDir


@checking.checked()
def quantize(
    model: str | Path, precision: Precision = "int8", *, data: str | Path | None = None, task: str | None = None,
    preprocessing: Preprocessing | Wishes = NOTHING, class_map: str | Path | None = None,
    calibrate: str | Path | None = None, calibration: Calibration = "minmax", calibration_images: int = 512,
    tolerance_accuracy: float = 1.0, tolerance_agreement: float = 5.0, allow: Sequence[str] = (),
) -> Reduced:  # fmt: skip
    """Write an ONNX file in less precision beside it, if what it then answers passes the gate of :class:`Reducing`.

    Args:
        model: An ONNX file, or a run directory, whose ``student.onnx`` it is.
        precision: ``int8``, static, with a scale for each channel; or ``fp16``.
        data: A data spec, whose test images measure what is lost; None for that of the run.
        task: The task's name; None for what the file or the run says.
        preprocessing: What is to be other than the file says of what is done to an image before.
        class_map: A file with the model's classes, for data that has some of them.
        calibrate: A data spec, whose training images INT8 is calibrated on; None for ``data``.
        calibration: How the ranges of INT8 follow from them.
        calibration_images: How many of them.
        tolerance_accuracy: Points of the primary metric that it may lose.
        tolerance_agreement: Points of agreement with the float file that it may lose.
        allow: Modules whose factories may be called.

    Returns:
        The new file, ``NAME-int8.onnx``, what both reach, their latency and size.

    Raises:
        InputError: There is no such file, or nothing to measure what is lost on.
        ModelError: The file cannot be reduced.
        ParityError: It would lose too much; nothing was written.
    """
    checking.number(calibration_images, 1, "calibration_images")
    for name, points in (("tolerance_accuracy", tolerance_accuracy), ("tolerance_agreement", tolerance_agreement)):
        checking.number(points, 0, name, whole=False)
    held = RunDir.existing(Path(model)) if is_folder(model) else None
    file = Path(model) if held is None else held.onnx_path(held.plan().export.member)
    if file.suffix.lower() != ".onnx" or not file.is_file():
        raise InputError("there is no such ONNX file", where=str(file), hint="write it: fxdistill.export")
    found = find(model, data=data, task=task, preprocessing=preprocessing, class_map=class_map, allow=allow)
    how = Reducing(calibration, calibration_images, tolerance_accuracy, tolerance_agreement)
    calibrate = None if calibrate is None else str(calibrate)
    images = reducing.ready(found, file, [precision], how, calibrate=calibrate, allow=allow)
    made = reducing.reduced(found, file, precision, how, images=images)
    if held is not None and not any((data, class_map)) and preprocessing == NOTHING:  # measured as the run measures
        exports.note(held, made)
    return made
