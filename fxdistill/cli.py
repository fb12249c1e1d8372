"""The command line: parse, delegate, exit code.

Exit codes: 0 done, 1 the work failed (a pass, training, the parity gate), 2 the input is wrong, 130 interrupted.
What is heavy is imported by the command that needs it, so that ``--help`` and mistakes answer at once.
"""

import errno
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from fxdistill import arguments
from fxdistill.errors import FxdistillError, InputError

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
Device = StrEnum("Device", {"auto": "auto", "cpu": "cpu", "cuda": "cuda"})
Method = StrEnum("Method", {"indistill": "indistill", "kd": "kd"})
Align = StrEnum("Align", {"slice": "slice", "shrink": "shrink", "project": "project"})
Precision = StrEnum("Precision", {"32-true": "32-true", "bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed"})

_PLACE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG,
}  # fmt: skip


@contextmanager
def _reported(*, interrupted: str = "interrupted") -> Iterator[None]:
    """Turn an error into one message and its exit code; what is left is a fault of ours and keeps its traceback."""
    try:
        yield
    except FxdistillError as error:
        raise _failed(str(error), error.exit_code) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: no complaint at exit either
        raise typer.Exit(1) from None
    except OSError as error:
        if error.errno not in _PLACE_ERRORS:
            raise
        known = InputError(
            f"cannot write or read: {error.strerror}", where=str(error.filename or "the file system"),
            hint="choose another place, or free some space",
        )  # fmt: skip
        raise _failed(str(known), known.exit_code) from None
    except KeyboardInterrupt:
        err.print(Text(interrupted), soft_wrap=True)
        raise typer.Exit(130) from None


def _failed(message: str, code: int) -> typer.Exit:
    err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    return typer.Exit(code)


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
        Align,
        typer.Option(
            help="slice: prune the teacher's taps; shrink: make a smaller teacher first; project: a learned encoder."
        ),
    ] = Align.slice,
    keep: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="With --align shrink: share of channels to keep where no tap decides."),
    ] = None,
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
        wanted = arguments.shape(input_shape)
        if keep is not None and align is not Align.shrink:
            raise InputError("--keep is about an auxiliary teacher", where="--keep", hint="add --align shrink")
        pins, forbidden = arguments.pairs(pair, "--pair"), arguments.pairs(forbid, "--forbid")
        arguments.writable(output)

        old, new = (
            arguments.model(text, factory, args, seed=seed, allow=allow_factory, trust_pickle=trust_pickle)
            for text, factory, args in (
                (teacher, teacher_factory, teacher_arg),
                (student, student_factory, student_arg),
            )
        )
        from fxdistill import pipeline, preflight, report  # after the models: mistakes are answered sooner
        from fxdistill.files import write_text
        from fxdistill.passbase import PassManager
        from fxdistill.plan import DataPlan

        data_plan, dataset = DataPlan(spec=None, batch_size=batch_size), None
        if data is not None:
            known = wanted or old.input_shape or new.input_shape
            data_plan, dataset = arguments.data(
                data, plan=output, input_shape=known, batch_size=batch_size, allow=allow_factory
            )
        image = (1, *dataset.image_shape) if dataset else None
        shape = arguments.first_shape(wanted, image, old.input_shape, new.input_shape)
        if dataset is not None:
            for loaded in (old, new):
                preflight.classes_fit(loaded.module, dataset, input_shape=shape, spec=str(data))
        options = pipeline.Options(
            input_shape=shape, method=method.value, align=align.value, pins=pins, forbid=forbidden,
            keep=keep, criterion=criterion, epochs=epochs, lr=lr, seed=seed, repeats=repeats, control=control,
            data=data_plan, precision=precision.value,
        )  # fmt: skip
        passes = PassManager()
        made = pipeline.compile(
            old.module, new.module, options, passes=passes,
            teacher_ref=arguments.reference(old, output), student_ref=arguments.reference(new, output),
        )  # fmt: skip
        made = made.model_copy(update={"diagnostics": [*arguments.remarks(old, new), *made.diagnostics]})
        write_text(output, made.to_json())
        out.print(report.plan_view(made))
        seconds = sum(record.seconds for record in passes.records)
        out.print(Text(f"\nwrote {output} ({seconds:.1f} s in {len(passes.records)} passes)"), soft_wrap=True)


@app.command()
def run(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan written by `fxdistill plan`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The run directory.")] = Path("run"),
    device: Annotated[Device, typer.Option(help="Where to train.")] = Device.auto,
    precision: Annotated[Precision | None, typer.Option(help="Instead of the plan's training precision.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that the directory holds.")] = False,
    compile_programs: Annotated[bool, typer.Option("--compile", help="Train through torch.compile.")] = False,
    save_every: Annotated[float, typer.Option(min=0, help="Seconds between checkpoints.")] = 30.0,
    allow_factory: Allow = [],
    trust_pickle: Trust = False,
) -> None:
    """Train as a plan says, evaluate, export, check the exported student."""
    again = ["fxdistill", "run", str(plan_file), "-o", str(output)]
    again += [] if device is Device.auto else ["--device", device.value]
    again += [] if precision is None else ["--precision", precision.value]
    again += ["--compile"] if compile_programs else []
    again += [part for module in allow_factory for part in ("--allow-factory", module)]
    again += ["--trust-pickle"] if trust_pickle else []
    with _reported(interrupted=f"interrupted; continue with: {shlex.join([*again, '--resume'])}"):
        from fxdistill.planfile import load

        planned = load(plan_file)  # a mistake here is answered before anything heavy is imported
        from fxdistill import execute, progress, report

        settings = execute.Settings(
            device=device.value, precision=precision.value if precision else None, resume=resume,
            compile=compile_programs, allow=tuple(allow_factory), trust_pickle=trust_pickle, save_seconds=save_every,
        )  # fmt: skip
        with progress.RunView(out if out.is_terminal else err) as view:
            result = execute.execute(plan_file, output, settings, view)
        out.print(report.result_view(planned, result))
        out.print(Text(f"student: {output / 'student.pt'}  {output / 'student.onnx'}"), soft_wrap=True)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(metavar="PLAN|RUN_DIR", help="A plan, or a run directory.")],
) -> None:
    """Print a plan, or a run's plan and result."""
    with _reported():
        from fxdistill import report
        from fxdistill.planfile import load
        from fxdistill.rundir import RunDir

        if not path.is_dir():
            out.print(report.plan_view(load(path)))
            return
        rundir = RunDir.existing(path)
        plan, result = rundir.plan(), rundir.result()
        out.print(report.plan_view(plan))
        out.print()
        out.print(report.result_view(plan, result) if result else "this run is not complete: continue it with --resume")


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
        wanted = arguments.shape(input_shape)
        arguments.writable(output)

        from fxdistill import deploy

        found = deploy.find(model, factory=factory, args=arg, data=data, allow=allow_factory, trust_pickle=trust_pickle)
        shape = arguments.first_shape(wanted, found.image_shape)
        parity = deploy.export_checked(found, output, input_shape=shape, opset=opset, tolerance=tolerance)
        kind = (
            f"{parity.images} test images"
            if found.dataset
            else f"{parity.images} images of noise (give --data for real ones)"
        )
        agreement = f"largest error {parity.max_abs_error:.1e}, top-1 agreement {parity.top1_agreement:.2%}"
        out.print(Text(f"wrote {output}: {agreement} on {kind}"), soft_wrap=True)


@app.command()
def shrink(
    model: Annotated[str, typer.Argument(help=_MODEL)],
    keep: Annotated[float, typer.Option(help="Share of the channels to keep, between 0 and 1.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The smaller model: a bundle.")] = Path("aux.pt"),
    by: Annotated[str, typer.Option(help="Importance of a channel: l1, l2, fpgm, taylor, bn or random.")] = "l1",
    round_to: Annotated[int, typer.Option(min=1, help="Widths become multiples of this, e.g. 8.")] = 1,
    protect: Annotated[list[str], typer.Option(help="Module or node whose channels stay; repeatable.")] = [],
    only: Annotated[list[str], typer.Option(help="Module to prune, and no other; repeatable.")] = [],
    data: Annotated[str | None, typer.Option(help=f"For --by taylor. {_DATA}")] = None,
    input_shape: Input = "",
    factory: Annotated[str | None, typer.Option(help="Factory for a file that is a state dict.")] = None,
    arg: Annotated[list[str], typer.Option(help="KEY=VALUE for that factory; repeatable.")] = [],
    seed: Annotated[int, typer.Option(min=0, help="For --by random.")] = 0,
    allow_factory: Allow = [],
    trust_pickle: Trust = False,
) -> None:
    """Make a model physically smaller, and prove that it is the masked original."""
    with _reported():
        wanted = arguments.shape(input_shape)
        arguments.writable(output)
        found = arguments.model(model, factory, arg, seed=seed, allow=allow_factory, trust_pickle=trust_pickle)

        from fxdistill import data as data_module
        from fxdistill import report, shrinking

        dataset = None if data is None else data_module.load(data, input_shape=wanted, allow=allow_factory)
        image = (1, *dataset.image_shape) if dataset is not None else None
        made = shrinking.shrink_model(
            found.module, input_shape=arguments.first_shape(wanted, found.input_shape, image), keep=keep, criterion=by,
            round_to=round_to, protect=protect, only=only, seed=seed,
            batch=None if dataset is None else data_module.first_batch(dataset),
        )  # fmt: skip
        trusted = not allow_factory  # only such a factory can be replayed when the file is read
        made.save(output, factory=found.factory if trusted else None, kwargs=found.kwargs)
        out.print(report.shrunk_view(made))
        if found.random_weights:
            out.print(Text("\nthe model was named by a factory alone: these are random weights", style="yellow"))
        out.print(Text(f"\nwrote {output}"), soft_wrap=True)


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
    from fxdistill.planfile import schema as plan_schema

    typer.echo(json.dumps(plan_schema(), indent=2))


def main() -> None:
    """The entry point of the ``fxdistill`` command."""
    app()
