"""The command line: parse, delegate, exit code.

Exit codes: 0 done, and for what goes wrong those of :mod:`fxdistill.cli.exits`. What is heavy is imported by the
command that needs it, so that ``--help`` and mistakes answer at once.
"""

import functools
import json
import shlex
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from fxdistill.cli import parameters, values
from fxdistill.cli.exits import Commands, err, reported
from fxdistill.errors import InputError

app = typer.Typer(
    cls=Commands, help="Pair a teacher with a student, plan the pruning, distil, export.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
out = Console(highlight=False)


@app.command()
def plan(
    teacher: parameters.Model,
    student: parameters.Model,
    output: parameters.PlanOutput = Path("plan.json"),
    data: parameters.PlanData = None,
    input_shape: parameters.Input = "",
    method: parameters.HowTaught = parameters.Method.indistill,
    pair: parameters.Pairs = [],
    forbid: parameters.Forbidden = [],
    align: parameters.Widths = parameters.Align.slice,
    keep: parameters.KeepElsewhere = None,
    criterion: parameters.Criterion = "l1",
    epochs: parameters.Epochs = 60,
    batch_size: parameters.BatchSize = 128,
    lr: parameters.LearningRate = 1e-3,
    seed: parameters.Seed = 0,
    repeats: parameters.Repeats = 1,
    control: parameters.Control = True,
    precision: parameters.TrainingPrecision = parameters.Precision["32-true"],
    teacher_factory: parameters.TeacherFactory = None,
    teacher_arg: parameters.TeacherArgument = [],
    student_factory: parameters.StudentFactory = None,
    student_arg: parameters.StudentArgument = [],
    allow_factory: parameters.Allow = [],
    trust_pickle: parameters.Trust = False,
) -> None:
    """Pair the layers, choose the channels, write a plan to review."""
    with reported():
        wanted = values.shape(input_shape)
        if keep is not None and align is not parameters.Align.shrink:
            raise InputError("--keep is about an auxiliary teacher", where="--keep", hint="add --align shrink")
        pins, forbidden = values.pairs(pair, "--pair"), values.pairs(forbid, "--forbid")
        values.writable(output)
        load = functools.partial(values.model, seed=seed, allow=allow_factory, trust_pickle=trust_pickle)
        models = (
            load(teacher, teacher_factory, teacher_arg, option="--teacher-factory"),
            load(student, student_factory, student_arg, option="--student-factory"),
        )
        from fxdistill.cli import planning  # after the models: mistakes are answered sooner
        from fxdistill.compiler import pipeline  # after the models: mistakes are answered sooner
        from fxdistill.report import terminal  # after the models: mistakes are answered sooner

        data_plan, shape = planning.data(data, output, wanted, models, batch_size=batch_size, allow=allow_factory)
        decisions = pipeline.Options(
            input_shape=shape, method=method.value, align=align.value, pins=pins, forbid=forbidden,
            keep=keep, criterion=criterion, epochs=epochs, lr=lr, seed=seed, repeats=repeats, control=control,
            data=data_plan, precision=precision.value,
        )  # fmt: skip
        made, passes = planning.write(output, models, decisions)
        out.print(terminal.plan_view(made))
        out.print(Text(f"\nwrote {output} ({passes.timing()})"), soft_wrap=True)


@app.command()
def run(
    plan_file: parameters.PlanFile,
    output: parameters.RunOutput = Path("run"),
    device: parameters.Where = parameters.Device.auto,
    precision: parameters.OtherPrecision = None,
    resume: parameters.Resume = False,
    compile_programs: parameters.Compile = False,
    save_every: parameters.SaveEvery = 30.0,
    allow_factory: parameters.Allow = [],
    trust_pickle: parameters.Trust = False,
) -> None:
    """Train as a plan says, evaluate, export, check the exported student."""
    again = ["fxdistill", "run", str(plan_file), "-o", str(output)]
    again += [] if device is parameters.Device.auto else ["--device", device.value]
    again += [] if precision is None else ["--precision", precision.value]
    again += ["--compile"] if compile_programs else []
    again += [part for module in allow_factory for part in ("--allow-factory", module)]
    again += ["--trust-pickle"] if trust_pickle else []
    with reported(interrupted=lambda: _interrupted(output, again)):
        from fxdistill.plan.file import load

        planned = load(plan_file)  # a mistake here is answered before anything heavy is imported
        from fxdistill.report import progress, terminal
        from fxdistill.runtime import execute

        settings = execute.Settings(
            device=device.value, precision=precision.value if precision else None, resume=resume,
            compile=compile_programs, allow=tuple(allow_factory), trust_pickle=trust_pickle, save_seconds=save_every,
        )  # fmt: skip
        with progress.RunView(out if out.is_terminal else err) as view:
            result = execute.execute(plan_file, output, settings, view)
        out.print(terminal.result_view(planned, result))
        out.print(Text(f"student: {output / 'student.pt'}  {output / 'student.onnx'}"), soft_wrap=True)


def _interrupted(output: Path, command: list[str]) -> str:
    if (output / "plan.json").exists():
        return f"interrupted; continue with: {shlex.join([*command, '--resume'])}"
    return f"interrupted before anything was trained; start again with: {shlex.join(command)}"


@app.command()
def show(path: parameters.PlanOrRun) -> None:
    """Print a plan, or a run's plan and result."""
    with reported():
        from fxdistill.plan.file import load
        from fxdistill.report import terminal
        from fxdistill.runtime.directory import RunDir

        if not path.is_dir():
            out.print(terminal.plan_view(load(path)))
            return
        rundir = RunDir.existing(path)
        plan, result = rundir.plan(), rundir.result()
        out.print(terminal.plan_view(plan))
        out.print()
        out.print(
            terminal.result_view(plan, result) if result else "this run is not complete: continue it with --resume"
        )


@app.command()
def export(
    model: parameters.RunOrModel,
    output: parameters.OnnxOutput = Path("student.onnx"),
    data: parameters.GateData = None,
    input_shape: parameters.Input = "",
    factory: parameters.Factory = None,
    arg: parameters.Argument = [],
    opset: parameters.Opset = 18,
    tolerance: parameters.Tolerance = 1e-4,
    allow_factory: parameters.Allow = [],
    trust_pickle: parameters.Trust = False,
) -> None:
    """Write a model as ONNX with a dynamic batch, and compare the file with the model."""
    with reported():
        wanted = values.shape(input_shape)
        values.writable(output)

        from fxdistill.runtime import deploy

        found = deploy.find(model, factory=factory, args=arg, data=data, allow=allow_factory, trust_pickle=trust_pickle)
        shape = values.first_shape(wanted, found.image_shape)
        parity = deploy.export_checked(found, output, input_shape=shape, opset=opset, tolerance=tolerance)
        kind = "test images" if found.dataset else "images of noise (give --data for real ones)"
        agreement = f"largest error {parity.max_abs_error:.1e}, top-1 agreement {parity.top1_agreement:.2%}"
        out.print(Text(f"wrote {output}: {agreement} on {parity.images} {kind}"), soft_wrap=True)


@app.command()
def shrink(
    model: parameters.Model,
    keep: parameters.Keep,
    output: parameters.SmallerOutput = Path("aux.pt"),
    by: parameters.By = "l1",
    round_to: parameters.RoundTo = 1,
    protect: parameters.Protect = [],
    only: parameters.Only = [],
    data: parameters.TaylorData = None,
    input_shape: parameters.Input = "",
    factory: parameters.Factory = None,
    arg: parameters.Argument = [],
    seed: parameters.RandomSeed = 0,
    allow_factory: parameters.Allow = [],
    trust_pickle: parameters.Trust = False,
) -> None:
    """Make a model physically smaller, and prove that it is the masked original."""
    with reported():
        wanted = values.shape(input_shape)
        values.writable(output)
        found = values.model(
            model, factory, arg, option="--factory", seed=seed, allow=allow_factory, trust_pickle=trust_pickle
        )

        from fxdistill.compiler import shrink_model
        from fxdistill.data import batches as data_module
        from fxdistill.ir import contract
        from fxdistill.modelfiles import bundle
        from fxdistill.report import terminal

        passes = contract.PassManager()
        dataset = None if data is None else data_module.load(data, input_shape=wanted, allow=allow_factory)
        image = (1, *dataset.image_shape) if dataset is not None else None
        made = shrink_model.shrink_model(
            found.module, input_shape=values.first_shape(wanted, found.input_shape, image), keep=keep, criterion=by,
            round_to=round_to, protect=protect, only=only, seed=seed,
            batch=None if dataset is None else data_module.first_batch(dataset), passes=passes,
        )  # fmt: skip
        trusted = not allow_factory  # only such a factory can be replayed when the file is read
        bundle.save_shrunken(
            made, output, factory=found.factory if trusted else None, kwargs=found.kwargs, before=found.recipe,
            random_weights=found.random_weights,
        )  # fmt: skip
        out.print(terminal.shrunk_view(made))
        if found.random_weights:
            out.print()
            out.print(terminal.Line(Text("these are random weights: as a teacher the file cannot be run", "yellow")))
        out.print(Text(f"\nwrote {output} ({passes.timing()})"), soft_wrap=True)


@app.command("eval")
def evaluate_model(
    model: parameters.RunOrModel,
    data: parameters.Data = None,
    factory: parameters.Factory = None,
    arg: parameters.Argument = [],
    allow_factory: parameters.Allow = [],
    trust_pickle: parameters.Trust = False,
) -> None:
    """Measure a model's accuracy on test images."""
    with reported():
        from fxdistill.runtime import deploy

        found = deploy.find(model, factory=factory, args=arg, data=data, allow=allow_factory, trust_pickle=trust_pickle)
        if found.dataset is None:
            raise InputError("there is no data to evaluate on", where=model, hint="give --data, e.g. --data digits")
        out.print(f"accuracy {deploy.accuracy(found):.2%} on {len(found.dataset.test)} test images")


@app.command()
def demo(output: parameters.DemoOutput = Path("demo"), repeats: parameters.Repeats = 3) -> None:
    """The main job on bundled data: train a teacher, plan, run, compare."""
    with reported():
        from fxdistill.cli import demo as job

        job.run(output, repeats=repeats, say=lambda line: out.print(Text(line), soft_wrap=True))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a plan."""
    from fxdistill.plan.file import schema as plan_schema

    typer.echo(json.dumps(plan_schema(), indent=2))


def main() -> None:
    """The entry point of the ``fxdistill`` command."""
    app()
