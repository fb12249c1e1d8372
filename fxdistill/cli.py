"""The command line: parse, delegate, exit code.

Exit codes: 0 done, 1 the work failed (a pass, training, the parity gate), 2 the input is wrong, 130 interrupted. What is heavy
is imported by the command that needs it, so that ``--help`` and mistakes answer at once.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from fxdistill.errors import FxdistillError, InputError

if TYPE_CHECKING:
    from fxdistill.checkpoint import LoadedModel
    from fxdistill.plan import DataPlan, ModelRef

app = typer.Typer(
    help="Pair a teacher with a student, plan the pruning, distil, export.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
out, err = Console(highlight=False), Console(stderr=True, highlight=False)

_MODEL = "A .pt file, or a factory such as torchvision.models:resnet18?num_classes=10."
_DATA = "digits, cifar10:ROOT, cifar100:ROOT, fashion-mnist:ROOT, imagefolder:DIR, npz:FILE or my.module:factory."
Allow = Annotated[
    list[str],
    typer.Option("--allow-factory", help="A module of your own whose factories may be called; repeatable."),
]
Trust = Annotated[bool, typer.Option("--trust-pickle", help="Unpickle model files: they can run any code.")]
Input = Annotated[
    str,
    typer.Option("--input", help="Shape of one batch, e.g. 1x3x224x224. Default: from the data, the file, else that."),
]
Device = StrEnum("Device", ["auto", "cpu", "cuda"])
Method = StrEnum("Method", ["indistill", "kd"])
Align = StrEnum("Align", ["slice", "project"])
Precision = StrEnum("Precision", {name: name for name in ("32-true", "bf16-mixed", "16-mixed")})


@contextmanager
def _reported() -> Iterator[None]:
    """Turn an error into one message and its exit code."""
    try:
        yield
    except FxdistillError as error:
        err.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        err.print("interrupted")
        raise typer.Exit(130) from None


@app.command()
def plan(
    teacher: Annotated[str, typer.Argument(help=_MODEL)],
    student: Annotated[str, typer.Argument(help=_MODEL)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the plan.")] = Path("plan.json"),
    data: Annotated[
        str | None, typer.Option(help=f"{_DATA} Without it the plan is structural: reviewable, not runnable.")
    ] = None,
    input_shape: Input = "",
    method: Annotated[Method, typer.Option(help="indistill: warm-up layer by layer, then kd.")] = Method.indistill,
    pair: Annotated[list[str], typer.Option(help="T=S: this pair must be; node or module paths; repeatable.")] = [],
    forbid: Annotated[list[str], typer.Option(help="T=S: this pair must not be; repeatable.")] = [],
    align: Annotated[
        Align, typer.Option(help="slice: prune the teacher's taps; project: a learned encoder.")
    ] = Align.slice,
    criterion: Annotated[str, typer.Option(help="Importance of a channel: l1 or l2 norm of its filters.")] = "l1",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the main stage.")] = 60,
    batch_size: Annotated[int, typer.Option(min=2, help="Images a training step.")] = 128,
    lr: Annotated[float, typer.Option(min=1e-9, help="Learning rate of Adam.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Everything random comes from it.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="How many seeds to run.")] = 1,
    control: Annotated[bool, typer.Option(help="Also train the student for as long without distillation.")] = True,
    precision: Annotated[Precision, typer.Option(help="Training precision.")] = Precision["32-true"],
    teacher_factory: Annotated[
        str | None, typer.Option(help="Factory for a teacher file that is a state dict.")
    ] = None,
    teacher_arg: Annotated[list[str], typer.Option(help="KEY=VALUE for that factory; repeatable.")] = [],
    student_factory: Annotated[
        str | None, typer.Option(help="Factory for a student file that is a state dict.")
    ] = None,
    student_arg: Annotated[list[str], typer.Option(help="KEY=VALUE for that factory; repeatable.")] = [],
    allow_factory: Allow = [],
    trust_pickle: Trust = False,
) -> None:
    """Pair the layers, choose the channels, write a plan to review."""
    with _reported():
        from fxdistill import pipeline, report
        from fxdistill.passbase import PassManager
        from fxdistill.plan import DataPlan, write_text

        _writable(output)
        models = [
            _load(teacher, teacher_factory, teacher_arg, seed=seed, allow=allow_factory, trust=trust_pickle),
            _load(student, student_factory, student_arg, seed=seed, allow=allow_factory, trust=trust_pickle),
        ]
        data_plan, image = _data(data, input_shape, batch_size, allow_factory)
        options = pipeline.Options(
            input_shape=_input_shape(input_shape, image, models), method=method.value, align=align.value,  # type: ignore[arg-type]
            pins=_pairs(pair, "--pair"), forbid=_pairs(forbid, "--forbid"), criterion=criterion, epochs=epochs, lr=lr, seed=seed,
            repeats=repeats, control=control, data=data_plan or DataPlan(spec=None, batch_size=batch_size),
            precision=precision.value,  # type: ignore[arg-type]
        )  # fmt: skip
        passes = PassManager()
        made = pipeline.compile(
            models[0].module, models[1].module, options, passes=passes,
            teacher_ref=_reference(models[0], output), student_ref=_reference(models[1], output),
        )  # fmt: skip
        made = made.model_copy(update={"diagnostics": [*_remarks(models), *made.diagnostics]})
        write_text(output, made.to_json())
        out.print(report.plan_view(made))
        seconds = sum(record.seconds for record in passes.records)
        out.print(Text(f"\nwrote {output} ({seconds:.1f} s in {len(passes.records)} passes)"))


@app.command()
def run(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan written by `fxdistill plan`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The run directory.")] = Path("run"),
    device: Annotated[Device, typer.Option(help="Where to train.")] = Device.auto,
    precision: Annotated[Precision | None, typer.Option(help="Instead of the plan's training precision.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that the directory holds.")] = False,
    compile_programs: Annotated[bool, typer.Option("--compile", help="Train through torch.compile.")] = False,
    allow_factory: Allow = [],
    trust_pickle: Trust = False,
) -> None:
    """Train as a plan says, evaluate, export, check the exported student."""
    with _reported():
        from fxdistill import execute, report
        from fxdistill.plan import load

        settings = execute.Settings(
            device=device.value, precision=precision.value if precision else None, resume=resume,  # type: ignore[arg-type]
            compile=compile_programs, allow=tuple(allow_factory), trust_pickle=trust_pickle,
        )  # fmt: skip
        try:
            with report.RunView(err if not out.is_terminal else out) as view:
                result = execute.execute(plan_file, output, settings, view)
        except KeyboardInterrupt:
            err.print(f"interrupted; continue with: fxdistill run {plan_file} -o {output} --resume")
            raise typer.Exit(130) from None
        out.print(report.result_view(load(plan_file), result))
        out.print(Text(f"student: {output / 'student.pt'}  {output / 'student.onnx'}"), soft_wrap=True)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(metavar="PLAN|RUN_DIR", help="A plan, or a run directory.")],
) -> None:
    """Print a plan, or a run's plan and result."""
    with _reported():
        from fxdistill import report
        from fxdistill.plan import load
        from fxdistill.resume import RunDir

        if not path.is_dir():
            out.print(report.plan_view(load(path)))
            return
        rundir = RunDir.existing(path)
        out.print(report.plan_view(rundir.plan()))
        result = rundir.result()
        out.print()
        out.print(
            report.result_view(rundir.plan(), result)
            if result
            else "this run is not complete: continue it with --resume"
        )


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="RUN_DIR|MODEL", help=f"A run directory. {_MODEL}")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file.")] = Path("student.onnx"),
    data: Annotated[str | None, typer.Option(help=f"{_DATA} For the parity gate; without it, noise.")] = None,
    input_shape: Input = "",
    factory: Annotated[str | None, typer.Option(help="Factory for a file that is a state dict.")] = None,
    arg: Annotated[list[str], typer.Option(help="KEY=VALUE for that factory; repeatable.")] = [],
    opset: Annotated[int, typer.Option(min=16, help="Version of ONNX's operators.")] = 18,
    tolerance: Annotated[float, typer.Option(min=0, help="Largest absolute error of a logit.")] = 1e-4,
    allow_factory: Allow = [],
    trust_pickle: Trust = False,
) -> None:
    """Write a model as ONNX with a dynamic batch, and compare the file with the model."""
    with _reported():
        from fxdistill import deploy

        _writable(output)
        found = deploy.find(model, factory=factory, args=arg, data=data, allow=allow_factory, trust_pickle=trust_pickle)
        shape = _input_shape(input_shape, found.image_shape, [])
        parity = deploy.export_checked(found, output, input_shape=shape, opset=opset, tolerance=tolerance)
        kind = (
            f"{parity.images} test images"
            if found.dataset
            else f"{parity.images} images of noise (give --data for real ones)"
        )
        out.print(
            f"wrote {output}: largest error {parity.max_abs_error:.1e}, top-1 agreement {parity.top1_agreement:.2%} on {kind}"
        )


@app.command("eval")
def evaluate_model(
    model: Annotated[str, typer.Argument(metavar="RUN_DIR|MODEL", help=f"A run directory. {_MODEL}")],
    data: Annotated[str | None, typer.Option(help=_DATA)] = None,
    factory: Annotated[str | None, typer.Option(help="Factory for a file that is a state dict.")] = None,
    arg: Annotated[list[str], typer.Option(help="KEY=VALUE for that factory; repeatable.")] = [],
    allow_factory: Allow = [],
    trust_pickle: Trust = False,
) -> None:
    """Measure a model's accuracy on test images."""
    with _reported():
        from fxdistill import deploy

        found = deploy.find(model, factory=factory, args=arg, data=data, allow=allow_factory, trust_pickle=trust_pickle)
        if found.dataset is None:
            raise InputError("there is no data to evaluate on", where=model, hint="give --data, e.g. --data digits")
        out.print(f"accuracy {deploy.accuracy(found):.2%} on {len(found.dataset.test)} test images")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--out", "-o", help="Where to work.")] = Path("demo"),
    repeats: Annotated[int, typer.Option(min=1, help="How many seeds to run.")] = 3,
) -> None:
    """The main job on bundled data: train a teacher, plan, run, compare."""
    with _reported():
        from fxdistill import demo as job

        job.run(output, repeats=repeats, say=lambda line: out.print(Text(line), soft_wrap=True))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a plan."""
    from fxdistill.plan import schema as plan_schema

    typer.echo(json.dumps(plan_schema(), indent=2))


def _load(
    text: str, factory: str | None, args: Sequence[str], *, seed: int, allow: Sequence[str], trust: bool
) -> "LoadedModel":
    from fxdistill import checkpoint

    source = checkpoint.parse_source(text, factory=factory, args=args, trust_pickle=trust, allow=allow)
    return checkpoint.load(source, seed=seed)


def _reference(model: "LoadedModel", output: Path) -> "ModelRef":
    import os

    from fxdistill.plan import ModelRef

    path = (
        None if model.path is None else Path(os.path.relpath(model.path.resolve(), output.resolve().parent)).as_posix()
    )
    return ModelRef(
        path=path,
        sha256=model.sha256,
        factory=model.factory,
        kwargs=model.kwargs,
        entry=model.entry,
        trusted=model.trusted,
    )


def _remarks(models: Sequence["LoadedModel"]) -> list[Any]:
    from fxdistill.diagnostics import Diagnostic

    remarks = [remark for model in models for remark in model.diagnostics]
    if models[0].random_weights:
        remarks.append(
            Diagnostic(
                code="random-teacher",
                severity="warning",
                where="teacher",
                why="the teacher has random weights: this plan can be reviewed, not run",
                hint="give a file that holds a trained teacher",
            )  # fmt: skip
        )
    return remarks


def _data(
    spec: str | None, input_shape: str, batch_size: int, allow: Sequence[str]
) -> "tuple[DataPlan | None, tuple[int, ...] | None]":
    """The data's part of a plan and the shape of one of its batches of one."""
    if spec is None:
        return None, None
    from fxdistill import data

    wanted = _parse_shape(input_shape) if input_shape else None
    dataset = data.load(spec, input_shape=wanted, allow=allow)
    if wanted is not None:
        data.check_input(dataset, wanted)
    return data.defaults(spec, dataset=dataset, batch_size=batch_size), (1, *dataset.image_shape)


def _input_shape(text: str, image: tuple[int, ...] | None, models: Sequence["LoadedModel"]) -> tuple[int, ...]:
    if text:
        return _parse_shape(text)
    known = [image, *(model.input_shape for model in models)]
    return next((tuple(shape) for shape in known if shape), (1, 3, 224, 224))


def _parse_shape(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if len(parts) != 4 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"'{text}' is not a batch shape", where="--input", hint="write it as 1x3x224x224")
    return tuple(int(part) for part in parts)


def _pairs(texts: Sequence[str], option: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in texts:
        teacher, equals, student = text.partition("=")
        if not (teacher and equals and student):
            raise InputError(f"'{text}' is not a pair", where=option, hint=f"write it as {option} layer1=features.3")
        pairs.append((teacher, student))
    return tuple(pairs)


def _writable(path: Path) -> None:
    if path.is_dir() or not path.resolve().parent.is_dir():
        what = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise InputError(f"the output {what}", where=str(path), hint="give the name of a file with -o")


def main() -> None:
    """The entry point of the ``fxdistill`` command."""
    app()
