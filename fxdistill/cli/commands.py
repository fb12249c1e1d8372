"""The command line: parse, delegate, exit code.

Exit codes: 0 done, and for what goes wrong those of :mod:`fxdistill.cli.exits`. What is heavy is imported by the
command that needs it, so that ``--help`` and mistakes answer at once.
"""

import functools
import gc
import io
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from fxdistill import files
from fxdistill.cli import (
    again,
    comparing,
    compressing,
    evaluating,
    exporting,
    lists,
    members,
    parameters,
    reporting,
    shrinking,
    teaching,
    timing,
    together,
    values,
)  # fmt: skip
from fxdistill.cli.exits import Commands, reported
from fxdistill.cli.help import Command
from fxdistill.errors import InputError

app = typer.Typer(
    cls=Commands, no_args_is_help=True,
    pretty_exceptions_enable=False, rich_markup_mode=None,
    epilog="Completion for another shell: _FXDISTILL_COMPLETE=source_zsh fxdistill prints it (source_bash, …_fish).",
)  # fmt: skip
out = Console(highlight=False)


@app.callback()
def _program(version: parameters.Version = False) -> None:
    """Pair a teacher with a student, plan the pruning, distil, export."""


@app.command(cls=Command)
def plan(
    teacher: parameters.Model,
    student: parameters.Student = None,
    output: parameters.PlanOutput = Path("plan.json"),
    data: parameters.PlanData = None,
    class_map: parameters.ClassMap = None,
    val: parameters.Validation = 0.0,
    measure: parameters.Measure = True,
    force: parameters.ForcePlan = False,
    input_shape: parameters.Input = "",
    size: parameters.Size = [],
    crop: parameters.Crop = [],
    interpolation: parameters.Interpolation = [],
    mean: parameters.Mean = [],
    std: parameters.Std = [],
    embedding: parameters.Embeddings = [],
    method: parameters.HowTaught = "indistill",
    task: parameters.TaskName = "classification",
    pair: parameters.Pairs = [],
    forbid: parameters.Forbidden = [],
    align: parameters.Widths = "slice",
    keep: parameters.KeepElsewhere = None,
    assistants: parameters.Assistants = None,
    levels: parameters.Levels = "",
    spacing: parameters.Spaced = None,
    budget: parameters.BudgetOf = "",
    nested: parameters.Nested = False,
    threshold: parameters.MaskedBy = None,
    round_to: parameters.MaskedRoundTo = None,
    centred: parameters.Centred = False,
    mask_first: parameters.MaskFirst = None,
    hints: parameters.Hints = 0.0,
    hints_alone: parameters.HintsAlone = 0.0,
    export_levels: parameters.WhichLevels = "student",
    via: parameters.Via = None,
    via_epochs: parameters.ViaEpochs = None,
    via_factory: parameters.ViaFactory = None,
    via_arg: parameters.ViaArgument = [],
    criterion: parameters.Criterion = None,
    epochs: parameters.Epochs = 60,
    batch_size: parameters.BatchSize = 128,
    lr: parameters.LearningRate = None,
    warm_up_share: parameters.WarmUpShare = None,
    keep_earlier: parameters.KeepEarlier = None,
    plateau: parameters.OnPlateau = None,
    probe: parameters.Probed = None,
    optimizer: parameters.Optimizer = None,
    weight_decay: parameters.WeightDecay = None,
    momentum: parameters.Momentum = None,
    warm_up: parameters.WarmUp = None,
    clip: parameters.Clip = None,
    ema: parameters.Ema = None,
    label_smoothing: parameters.Smoothing = None,
    augment: parameters.Augment = None,
    weight: parameters.LossWeights = [],
    arg: parameters.LossArguments = [],
    set_: parameters.Set = [],
    seed: parameters.Seed = 0,
    repeats: parameters.Repeats = 1,
    control: parameters.ControlWherePossible = None,
    recalibrate_bn: parameters.Recalibrate = "auto",
    precision: parameters.TrainingPrecision = "32-true",
    teacher_factory: parameters.TeacherFactory = None,
    teacher_arg: parameters.TeacherArgument = [],
    student_factory: parameters.StudentFactory = None,
    student_arg: parameters.StudentArgument = [],
    teacher_entry: parameters.TeacherEntry = None,
    student_entry: parameters.StudentEntry = None,
    teacher_output: parameters.TeacherOutput = None,
    student_output: parameters.StudentOutput = None,
    print_after: parameters.PrintAfter = [],
    dry: parameters.Dry = False,
    allow_factory: parameters.Allow = [],
    trust_code: parameters.Trust = False,
) -> None:
    """Pair the layers, choose the channels, write a plan to review."""
    with reported(), _seldom_collected():
        wanted = values.shape(input_shape)
        given = {
            "teacher": values.Named(teacher, teacher_factory, teacher_arg, teacher_entry, "--teacher-factory"),
            "auxiliary": values.Named(None if via == "auto" else via, via_factory, via_arg, option="--via-factory"),
            "student": values.Named(student, student_factory, student_arg, student_entry, "--student-factory"),
        }
        names = tuple(name for name, one in given.items() if one.text is not None)
        wishes = members.wishes(names, size=size, crop=crop, interpolation=interpolation, mean=mean, std=std)
        values.names(method=method, task=task, criterion=criterion, passes=print_after)
        cascade = teaching.cascade(
            method, keep=keep, levels=levels, budget=budget, assistants=assistants, nested=nested, hints=hints,
            hints_alone=hints_alone, export_all=export_levels == "all",
            spacing=spacing, student=student, centred=centred, threshold=threshold, round_to=round_to,
            mask_first=mask_first,
            others={
                "pair": pair, "forbid": forbid, "align": align != "slice",
                "student-factory": student_factory, "student-arg": student_arg, "student-entry": student_entry,
                "student-output": student_output, "probe": probe,
            },
        )  # fmt: skip
        teaching.check_assistant(
            via, {"epochs": via_epochs, "factory": via_factory, "args": via_arg}, is_cascade=cascade is not None
        )
        if keep is not None and align != "shrink" and cascade is None:
            raise InputError("--keep is about an auxiliary teacher", where="--keep", hint="add --align shrink")
        values.about_data(data, {"val": val, "class-map": class_map, "augment": augment})
        pins, forbidden = values.pairs(pair, "--pair"), values.pairs(forbid, "--forbid")
        recalibrate = values.recalibration(recalibrate_bn)
        curriculum = teaching.curriculum(warm_up_share, keep_earlier, plateau, probe)
        if not dry:
            files.writable(output, teacher, student, via, class_map)
        elif data is None:
            raise InputError("there are no images to take a step on", where="--dry", hint="give --data")
        models = {
            name: values.model(given[name], seed=seed, allow=allow_factory, trust_code=trust_code) for name in names
        }
        from fxdistill.cli import recipe  # after the models: mistakes are answered sooner
        from fxdistill.report.plan_view import plan_view
        from fxdistill.runtime.planning import planner

        edit = functools.partial(
            recipe.changed, name=optimizer, weight_decay=weight_decay, momentum=momentum,
            warm_up=warm_up, clip=clip, ema=ema, smoothing=label_smoothing, settings=set_, weights=weight,
            arguments=arg,
        )  # fmt: skip
        made = planner.planned(
            output, models, data=data, input_shape=wanted, wishes=wishes, measure=measure, force=force,
            batch_size=batch_size, allow=allow_factory, val=val, class_map=class_map, augment=augment,
            embedding=members.by_member(names, embedding, "--embedding", str),
            entries={"teacher": teacher_output, "student": student_output}, after=_after(print_after), edit=edit,
            method=method, task=task, align=align, pins=pins, forbid=forbidden, criterion=criterion,
            keep=keep if cascade is None else None, epochs=epochs, seed=seed, repeats=repeats, lr=lr, control=control,
            cascade=cascade, curriculum=curriculum, via="auto" if via == "auto" else None, via_epochs=via_epochs,
            precision=precision, recalibrate=recalibrate,
        )  # fmt: skip
        if not dry:
            files.write_text(output, made.plan.to_json())
        out.print(plan_view(made.plan))
        if made.reached:
            out.print(Text(f"\nthe teacher reaches {made.reached}"), soft_wrap=True)
        if dry:
            from fxdistill.report.estimate_view import estimate_view
            from fxdistill.runtime.run import estimating

            found = estimating.estimated(made.plan, made.modules, output.resolve().parent, allow=allow_factory)
            out.print(Text(), estimate_view(found), Text("\nnothing was written"), sep="\n")
            return
        out.print(Text(f"\nwrote {output} ({made.passes.timing()})"), soft_wrap=True)


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Look for garbage less often: nothing is garbage of all that is imported, and each search reads all of it."""
    before = gc.get_threshold()
    gc.set_threshold(10_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _after(steps: Sequence[str]) -> Callable[[str, Callable[[], str]], None]:
    """Prints what a step made, for those that the user names."""

    def after(step: str, text: Callable[[], str]) -> None:
        if step in steps:
            out.print(Text(f"after {step}\n{text()}\n"), soft_wrap=True)

    return after


@app.command(cls=Command)
def run(
    context: typer.Context,
    plan_file: parameters.PlanFile,
    output: parameters.RunOutput = None,
    device: parameters.Where = "auto",
    devices: parameters.Devices = None,
    nodes: parameters.Nodes = 1,
    jobs: parameters.Jobs = 1,
    trials: parameters.Trials = None,
    precision: parameters.OtherPrecision = None,
    resume: parameters.Resume = False,
    more_epochs: parameters.MoreEpochs = 0,
    arms: parameters.Arms = "",
    seeds: parameters.SeedCount = None,
    compile_programs: parameters.Compile = "off",
    cuda_graphs: parameters.CudaGraphs = "auto",
    channels_last: parameters.ChannelsLast = "auto",
    cache: parameters.Cache = "auto",
    cache_size: parameters.CacheSize = "4G",
    cache_half: parameters.CacheHalf = False,
    profile: parameters.Profile = False,
    save_every: parameters.SaveEvery = parameters.SAVE_EVERY,
    evaluate_every: parameters.EvaluateEvery = 1,
    force: parameters.Force = False,
    allow_factory: parameters.Allow = [],
    trust_code: parameters.Trust = False,
) -> None:
    """Train as a plan says, evaluate, export, check the exported student."""
    with reported():
        plan_file, output = values.run_directory(plan_file, output)
        kept, room = values.cache(cache), values.byte_count(cache_size, "--cache-size")
        of_cache = (name for name in ("cache_size", "cache_half") if again.given(context, name))
        values.about_cache(kept, [name.replace("_", "-") for name in of_cache])
    held = output / "plan.json"
    before = held.read_bytes() if more_epochs and held.is_file() else b""
    told_apart = {"output", "resume", "more_epochs", "trials"}
    of_all = {"devices", "nodes", "jobs", "profile", "arms", "seeds", "cache_size"}
    words = again.options(context, without=told_apart | of_all)
    command = ["fxdistill", "run", *([str(output)] if more_epochs else [str(plan_file), "-o", str(output)])]
    command += again.options(context, without=told_apart)
    more = ["--more-epochs", str(more_epochs)] if more_epochs else []
    with reported(interrupted=lambda: _interrupted(held, before, command, more)):
        from fxdistill.plan.file import load

        load(plan_file)  # a mistake here is answered before anything heavy is imported
        divided = jobs > 1 or (resume and (output / "jobs").is_dir())
        if divided:
            values.go_without_jobs({"devices": devices, "nodes": nodes > 1, "profile": profile, "more-epochs": more})
        if together.starts(devices, nodes):
            raise typer.Exit(together.start([*command, *(["--resume"] if resume else more)], devices or 1, nodes))
        from fxdistill.cli import running
        from fxdistill.runtime.run import execute, execution

        settings = execution.Settings(
            device=device, precision=precision, resume=resume,
            compile=values.choosing(compile_programs), allow=tuple(allow_factory), trust_code=trust_code,
            save_seconds=save_every, channels_last=values.choosing(channels_last),
            evaluate_every=evaluate_every, seeds=seeds, cache=kept, cache_size=room,
            arms=tuple(name.strip() for name in arms.split(",")) if arms else (),
            more_epochs=more_epochs, cache_half=cache_half,
            force=force, profile=profile, devices=devices, trials=trials,
            cuda_graphs=cuda_graphs,
        )  # fmt: skip
        if not together.is_first():
            execute.execute(plan_file, output, settings)
            return
        running.carried_out(plan_file, output, settings, out, jobs=jobs if divided else 0, words=words)


def _interrupted(held: Path, before: bytes, command: list[str], more: list[str]) -> str:
    if held.exists() and held.read_bytes() != before:
        return f"interrupted; continue with: {shlex.join([*command, '--resume'])}"
    return f"interrupted before anything was trained; start again with: {shlex.join([*command, *more])}"


@app.command(cls=Command)
def demo(output: parameters.DemoOutput = Path("demo"), repeats: parameters.Repeats = 3) -> None:
    """The main job on bundled data: train a teacher, plan, run, compare."""
    with reported():
        from fxdistill.cli import demo as job

        job.run(output, repeats=repeats, say=lambda line: out.print(Text(line), soft_wrap=True))


app.command("eval", cls=Command)(evaluating.evaluate)
for _command in (
    exporting.export, shrinking.shrink, compressing.compress, comparing.compare, timing.bench, reporting.report,
    reporting.show, lists.methods, lists.losses,
):  # fmt: skip
    app.command(cls=Command)(_command)


@app.command(cls=Command)
def schema() -> None:
    """Print the JSON Schema of a plan."""
    from fxdistill.plan.file import schema as plan_schema

    typer.echo(json.dumps(plan_schema(), indent=2))


def main() -> None:
    """The entry point of the ``fxdistill`` command; what an output's encoding lacks is spelled out there."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
