"""``fxdistill export``: a model as an ONNX file, and the same in less precision, each behind a gate of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from fxdistill import files
from fxdistill.cli import again, members, model_parameters, parameters, values
from fxdistill.cli.exits import failed, reported, say
from fxdistill.errors import FxdistillError, InputError

if TYPE_CHECKING:
    from fxdistill.measure.onnx_file import Exported
    from fxdistill.measure.parity import Parity
    from fxdistill.runtime.deployment.finding import Found
    from fxdistill.runtime.run.directory import RunDir

out = Console(highlight=False)


def export(
    context: typer.Context,
    model: parameters.RunOrModel,
    output: model_parameters.OnnxOutput = Path("student.onnx"),
    data: parameters.GateData = None,
    class_map: parameters.ClassMap = None,
    task: parameters.OtherTask = None,
    input_shape: parameters.Input = "",
    size: parameters.Size = [],
    crop: parameters.Crop = [],
    interpolation: parameters.Interpolation = [],
    mean: parameters.Mean = [],
    std: parameters.Std = [],
    factory: parameters.Factory = None,
    factory_arg: parameters.Argument = [],
    entry: parameters.Entry = None,
    embedding: parameters.Embedding = None,
    output_entry: model_parameters.OutputEntry = None,
    only_output: model_parameters.OnlyOutput = [],
    embed_preprocessing: model_parameters.Embed = False,
    opset: model_parameters.Opset = 18,
    tolerance: model_parameters.Tolerance = 1e-4,
    optimize: model_parameters.Optimize = False,
    int8: model_parameters.Int8 = False,
    fp16: model_parameters.Fp16 = False,
    calibrate: model_parameters.Calibrate = None,
    calibration: model_parameters.CalibrationWay = None,
    calibration_images: model_parameters.CalibrationImages = None,
    tolerance_accuracy: model_parameters.ToleranceAccuracy = None,
    tolerance_agreement: model_parameters.ToleranceAgreement = None,
    allow_factory: parameters.Allow = [],
    trust_code: parameters.Trust = False,
) -> None:
    """Write a model as ONNX with a dynamic batch, and compare the file with the model."""
    with reported():
        precisions = values.precisions(
            int8=int8, fp16=fp16, of_losses={
                "tolerance-accuracy": tolerance_accuracy, "tolerance-agreement": tolerance_agreement,
            },
            of_int8={"calibrate": calibrate, "calibration": calibration, "calibration-images": calibration_images},
        )  # fmt: skip
        wanted = values.shape(input_shape)
        wishes = members.own_wishes(size=size, crop=crop, interpolation=interpolation, mean=mean, std=std)
        is_there = bool(precisions) and Path(model).suffix.lower() == ".onnx"
        if is_there:
            _stays(context)
            output = Path(model)
        else:
            files.writable(output, model)
            files.check_onnx_name(output)
        values.about_data(data, {"class-map": class_map and not values.is_run(model)})  # of a run it is said elsewhere

        from fxdistill.preprocessing import NOTHING
        from fxdistill.runtime.deployment import deploy, finding

        found = finding.find(
            model, data=data, task=task, input_shape=wanted, preprocessing=wishes, factory=factory, args=factory_arg,
            allow=allow_factory, trust_code=trust_code, entry=output_entry, class_map=class_map,
            checkpoint_entry=entry, embedding=embedding,
        )  # fmt: skip
        if precisions:
            from fxdistill.runtime.deployment import exports, reducing

            how = reducing.Reducing(**values.said(
                calibration=calibration, images=calibration_images,
                tolerance=tolerance_accuracy, disagreement=tolerance_agreement,
            ))  # fmt: skip
            images = reducing.ready(found, output, precisions, how, calibrate=calibrate, allow=allow_factory)
            as_run = not any((data, class_map, wanted)) and wishes == NOTHING  # measured as the run measures
            noted = _noting(Path(model)) if as_run and values.is_run(model) else None
        if is_there:
            say(found.remarks)
            out.print(Text(f"reads {found.reads}"), soft_wrap=True)
        else:
            with _refused(output):
                written, parity = deploy.exported(
                    found, output, opset=opset, tolerance=tolerance, only=only_output, embed=embed_preprocessing
                )
            say((*found.remarks, *deploy.unsaid(found, where=model)))
            out.print(Text(f"reads {found.reads}"), soft_wrap=True)
            _tell(found, written, parity)
        if optimize:
            _optimized(found, output, tolerance=tolerance, embed=embed_preprocessing)
        failures = []
        for precision in precisions:  # one that fails takes no other with it
            try:
                with _refused(reducing.beside(output, precision)):
                    made = reducing.reduced(found, output, precision, how, images=images)
            except FxdistillError as error:
                failures.append(failed(str(error), error.exit_code))
            else:
                out.print(Text(f"wrote {reducing.described(made, found.task)}"), soft_wrap=True)
                if noted is not None:
                    exports.note(noted, made)
        if failures:
            raise min(failures, key=lambda one: one.exit_code)


_OF_FLOAT = ("output", "only_output", "embed_preprocessing", "opset", "tolerance", "optimize")
"""What is said of a float file that is to be written."""


def _stays(context: typer.Context) -> None:
    """Refuse what is said of a float file that is to be written, where one that is there is reduced."""
    others = [one.name for one in context.command.params if one.name is not None and one.name not in _OF_FLOAT]
    if given := again.options(context, without=others):
        raise InputError(
            "an ONNX file stays as it is; files in less precision are written beside it", where=given[0],
            hint="leave it out",
        )  # fmt: skip


def _tell(found: "Found", written: "Exported", parity: "Parity") -> None:
    """What the float file is, and how far from the model."""
    from fxdistill.measure.model import other_precisions

    kind = "images of noise (give --data for real ones)" if found.dataset is None else "test images"
    out.print(Text(f"wrote {written.path}: {parity} on {parity.images} {kind}"), soft_wrap=True)
    if others := other_precisions(found.module):
        out.print(Text(f"in float32, the model's weights are {others}"), soft_wrap=True)
    left_out = f"; left out: {', '.join(written.left_out)}" if written.left_out else ""
    out.print(Text(f"outputs {', '.join(written.outputs)}{left_out}"), soft_wrap=True)


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Say of a file that was not written that one of its name is there, which stays."""
    try:
        yield
    except FxdistillError as error:
        if path.is_file():
            error.hint = "; ".join(filter(None, (error.hint, f"the {path.name} that is there is an earlier one")))
        raise


def _noting(path: Path) -> "RunDir":
    """The run in which it is noted what files reach; what is damaged there is said before anything is written."""
    from fxdistill.runtime.deployment import exports
    from fxdistill.runtime.run.directory import RunDir

    run = RunDir.existing(path)
    exports.read(run, run.plan())
    return run


def _optimized(found: "Found", output: Path, *, tolerance: float, embed: bool) -> None:
    """Simplify the file's graph, and say what became of it."""
    from fxdistill.runtime.deployment import deploy

    made = deploy.optimized(found, output, tolerance=tolerance, embed=embed)
    before, after = made.nodes
    told = (
        f"not optimised, and as it was: {made.why}"
        if made.why
        else f"optimised: {before} -> {after} operators, {made.parity}"
    )
    out.print(Text(f"{output} {told}"), soft_wrap=True)
