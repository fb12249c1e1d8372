"""The command line: parse, delegate, exit code.

Exit codes: 0 done, and for what goes wrong those of :mod:`fxdistill.exits`. What is heavy is imported by the command
that needs it, so that ``--help`` and mistakes answer at once.
"""

import functools
import json
import shlex
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from fxdistill import arguments, options
from fxdistill.errors import InputError
from fxdistill.exits import Commands, err, reported

app = typer.Typer(
    cls=Commands, help="Pair a teacher with a student, plan the pruning, distil, export.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
out = Console(highlight=False)


@app.command()
def plan(
    teacher: options.Model,
    student: options.Model,
    output: options.PlanOutput = Path("plan.json"),
    data: options.PlanData = None,
    input_shape: options.Input = "",
    method: options.HowTaught = options.Method.indistill,
    pair: options.Pairs = [],
    forbid: options.Forbidden = [],
    align: options.Widths = options.Align.slice,
    keep: options.KeepElsewhere = None,
    criterion: options.Criterion = "l1",
    epochs: options.Epochs = 60,
    batch_size: options.BatchSize = 128,
    lr: options.LearningRate = 1e-3,
    seed: options.Seed = 0,
    repeats: options.Repeats = 1,
    control: options.Control = True,
    precision: options.TrainingPrecision = options.Precision["32-true"],
    teacher_factory: options.TeacherFactory = None,
    teacher_arg: options.TeacherArgument = [],
    student_factory: options.StudentFactory = None,
    student_arg: options.StudentArgument = [],
    allow_factory: options.Allow = [],
    trust_pickle: options.Trust = False,
) -> None:
    """Pair the layers, choose the channels, write a plan to review."""
    with reported():
        wanted = arguments.shape(input_shape)
        if keep is not None and align is not options.Align.shrink:
            raise InputError("--keep is about an auxiliary teacher", where="--keep", hint="add --align shrink")
        pins, forbidden = arguments.pairs(pair, "--pair"), arguments.pairs(forbid, "--forbid")
        arguments.writable(output)
        load = functools.partial(arguments.model, seed=seed, allow=allow_factory, trust_pickle=trust_pickle)
        models = (
            load(teacher, teacher_factory, teacher_arg, option="--teacher-factory"),
            load(student, student_factory, student_arg, option="--student-factory"),
        )
        from fxdistill import pipeline, planning, report  # after the models: mistakes are answered sooner

        data_plan, shape = planning.data(data, output, wanted, models, batch_size=batch_size, allow=allow_factory)
        decisions = pipeline.Options(
            input_shape=shape, method=method.value, align=align.value, pins=pins, forbid=forbidden,
            keep=keep, criterion=criterion, epochs=epochs, lr=lr, seed=seed, repeats=repeats, control=control,
            data=data_plan, precision=precision.value,
        )  # fmt: skip
        made, passes = planning.write(output, models, decisions)
        out.print(report.plan_view(made))
        out.print(Text(f"\nwrote {output} ({passes.timing()})"), soft_wrap=True)


@app.command()
def run(
    plan_file: options.PlanFile,
    output: options.RunOutput = Path("run"),
    device: options.Where = options.Device.auto,
    precision: options.OtherPrecision = None,
    resume: options.Resume = False,
    compile_programs: options.Compile = False,
    save_every: options.SaveEvery = 30.0,
    allow_factory: options.Allow = [],
    trust_pickle: options.Trust = False,
) -> None:
    """Train as a plan says, evaluate, export, check the exported student."""
    again = ["fxdistill", "run", str(plan_file), "-o", str(output)]
    again += [] if device is options.Device.auto else ["--device", device.value]
    again += [] if precision is None else ["--precision", precision.value]
    again += ["--compile"] if compile_programs else []
    again += [part for module in allow_factory for part in ("--allow-factory", module)]
    again += ["--trust-pickle"] if trust_pickle else []
    with reported(interrupted=lambda: _interrupted(output, again)):
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


def _interrupted(output: Path, command: list[str]) -> str:
    if (output / "plan.json").exists():
        return f"interrupted; continue with: {shlex.join([*command, '--resume'])}"
    return f"interrupted before anything was trained; start again with: {shlex.join(command)}"


@app.command()
def show(path: options.PlanOrRun) -> None:
    """Print a plan, or a run's plan and result."""
    with reported():
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
    model: options.RunOrModel,
    output: options.OnnxOutput = Path("student.onnx"),
    data: options.GateData = None,
    input_shape: options.Input = "",
    factory: options.Factory = None,
    arg: options.Argument = [],
    opset: options.Opset = 18,
    tolerance: options.Tolerance = 1e-4,
    allow_factory: options.Allow = [],
    trust_pickle: options.Trust = False,
) -> None:
    """Write a model as ONNX with a dynamic batch, and compare the file with the model."""
    with reported():
        wanted = arguments.shape(input_shape)
        arguments.writable(output)

        from fxdistill import deploy

        found = deploy.find(model, factory=factory, args=arg, data=data, allow=allow_factory, trust_pickle=trust_pickle)
        shape = arguments.first_shape(wanted, found.image_shape)
        parity = deploy.export_checked(found, output, input_shape=shape, opset=opset, tolerance=tolerance)
        kind = "test images" if found.dataset else "images of noise (give --data for real ones)"
        agreement = f"largest error {parity.max_abs_error:.1e}, top-1 agreement {parity.top1_agreement:.2%}"
        out.print(Text(f"wrote {output}: {agreement} on {parity.images} {kind}"), soft_wrap=True)


@app.command()
def shrink(
    model: options.Model,
    keep: options.Keep,
    output: options.SmallerOutput = Path("aux.pt"),
    by: options.By = "l1",
    round_to: options.RoundTo = 1,
    protect: options.Protect = [],
    only: options.Only = [],
    data: options.TaylorData = None,
    input_shape: options.Input = "",
    factory: options.Factory = None,
    arg: options.Argument = [],
    seed: options.RandomSeed = 0,
    allow_factory: options.Allow = [],
    trust_pickle: options.Trust = False,
) -> None:
    """Make a model physically smaller, and prove that it is the masked original."""
    with reported():
        wanted = arguments.shape(input_shape)
        arguments.writable(output)
        found = arguments.model(
            model, factory, arg, option="--factory", seed=seed, allow=allow_factory, trust_pickle=trust_pickle
        )

        from fxdistill import data as data_module
        from fxdistill import passbase, report, shrinking

        passes = passbase.PassManager()
        dataset = None if data is None else data_module.load(data, input_shape=wanted, allow=allow_factory)
        image = (1, *dataset.image_shape) if dataset is not None else None
        made = shrinking.shrink_model(
            found.module, input_shape=arguments.first_shape(wanted, found.input_shape, image), keep=keep, criterion=by,
            round_to=round_to, protect=protect, only=only, seed=seed,
            batch=None if dataset is None else data_module.first_batch(dataset), passes=passes,
        )  # fmt: skip
        trusted = not allow_factory  # only such a factory can be replayed when the file is read
        made.save(
            output, factory=found.factory if trusted else None, kwargs=found.kwargs, random_weights=found.random_weights
        )
        out.print(report.shrunk_view(made))
        if found.random_weights:
            out.print()
            out.print(report.Line(Text("these are random weights: as a teacher the file cannot be run", "yellow")))
        out.print(Text(f"\nwrote {output} ({passes.timing()})"), soft_wrap=True)


@app.command("eval")
def evaluate_model(
    model: options.RunOrModel,
    data: options.Data = None,
    factory: options.Factory = None,
    arg: options.Argument = [],
    allow_factory: options.Allow = [],
    trust_pickle: options.Trust = False,
) -> None:
    """Measure a model's accuracy on test images."""
    with reported():
        from fxdistill import deploy

        found = deploy.find(model, factory=factory, args=arg, data=data, allow=allow_factory, trust_pickle=trust_pickle)
        if found.dataset is None:
            raise InputError("there is no data to evaluate on", where=model, hint="give --data, e.g. --data digits")
        out.print(f"accuracy {deploy.accuracy(found):.2%} on {len(found.dataset.test)} test images")


@app.command()
def demo(output: options.DemoOutput = Path("demo"), repeats: options.Repeats = 3) -> None:
    """The main job on bundled data: train a teacher, plan, run, compare."""
    with reported():
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
