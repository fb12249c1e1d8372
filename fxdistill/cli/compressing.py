"""``fxdistill compress``: a model made smaller, distilled from itself and exported, in one command."""

import functools
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from fxdistill.cli import again, budgets, members, model_parameters, parameters, values
from fxdistill.cli.exits import reported, say


def compress(
    context: typer.Context,
    model: parameters.Model,
    data: parameters.TrainData,
    output: model_parameters.CompressOutput = Path("compressed"),
    keep: model_parameters.Keep = None,
    macs: model_parameters.Macs = None,
    params: model_parameters.Params = None,
    latency: model_parameters.Latency = None,
    on: model_parameters.On = None,
    latency_table: model_parameters.LatencyTable = None,
    ranking: model_parameters.HowRanked = None,
    floor: model_parameters.Floor = None,
    scope: model_parameters.Scopes = [],
    by: model_parameters.By = None,
    round_to: model_parameters.RoundTo = None,
    protect: model_parameters.Protect = [],
    only: model_parameters.Only = [],
    steps: model_parameters.StepCount = 1,
    recover: model_parameters.BetweenSteps = None,
    class_map: parameters.ClassMap = None,
    val: parameters.Validation = 0.0,
    input_shape: parameters.Input = "",
    size: parameters.Size = [],
    crop: parameters.Crop = [],
    interpolation: parameters.Interpolation = [],
    mean: parameters.Mean = [],
    std: parameters.Std = [],
    method: parameters.HowTaughtAfter = None,
    task: parameters.TaskName = "classification",
    epochs: parameters.Epochs = 30,
    batch_size: parameters.BatchSize = 128,
    lr: model_parameters.RecoveringRate = 3e-3,
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
    control: parameters.Control = False,
    recalibrate_bn: parameters.Recalibrate = "auto",
    precision: parameters.TrainingPrecision = "32-true",
    device: parameters.Where = "auto",
    save_every: parameters.SaveEvery = parameters.SAVE_EVERY,
    force: parameters.Force = False,
    factory: parameters.Factory = None,
    factory_arg: parameters.Argument = [],
    entry: parameters.Entry = None,
    teacher_output: parameters.TeacherOutput = None,
    allow_factory: parameters.Allow = [],
    trust_code: parameters.Trust = False,
) -> None:
    """Shrink a model, distil it from the original, export it: by a plan that can be changed and run again."""
    with reported(interrupted=lambda: f"interrupted; continue with: {again.whole(context)}"):
        wanted = values.shape(input_shape)
        values.names(method=method or "kd", task=task, criterion=None, passes=())
        values.known_importance(by)
        wishes = members.own_wishes(size=size, crop=crop, interpolation=interpolation, mean=mean, std=std)
        most, scopes = (budgets.budget(macs, "--macs"), budgets.budget(params, "--params")), budgets.scopes(scope)
        time = budgets.latency(latency, on, latency_table)
        budgets.between(steps, {"recover": recover})
        recalibrate = values.recalibration(recalibrate_bn)
        named = values.Named(model, factory, factory_arg, entry)
        found = values.model(named, seed=seed, allow=allow_factory, trust_code=trust_code)

        from fxdistill.cli import recipe, running
        from fxdistill.plan.file import load as load_plan
        from fxdistill.report.result_view import shrunk_view
        from fxdistill.runtime.run import execution
        from fxdistill.runtime.smaller import compress as job
        from fxdistill.runtime.smaller import shrunken, stepping, taught
        from fxdistill.runtime.smaller.teaching import Teaching

        wish = shrunken.wished(
            keep=keep, macs=most[0], params=most[1], **time, ranking=ranking,
            floor=floor, scopes=scopes, by=by, round_to=round_to, protect=protect, only=only, seed=seed,
        )  # fmt: skip
        edit = functools.partial(
            recipe.changed, name=optimizer, weight_decay=weight_decay, momentum=momentum,
            warm_up=warm_up, clip=clip, ema=ema, smoothing=label_smoothing, settings=set_, weights=weight,
            arguments=arg,
        )  # fmt: skip
        teaching = Teaching(
            data, method=method or "", task=task, epochs=epochs, lr=lr, batch_size=batch_size, val=val, augment=augment,
            class_map=class_map, seed=seed, repeats=repeats, control=control, precision=precision,
            recalibrate=recalibrate, input_shape=wanted, wishes=wishes, entry=teacher_output, edit=edit,
            allow=tuple(allow_factory),
        )  # fmt: skip
        settings = execution.Settings(
            device=device, allow=tuple(allow_factory), trust_code=trust_code, save_seconds=save_every, force=force
        )
        out = Console(highlight=False)
        said, run = running.step_said(out), functools.partial(running.step_run, settings=settings, out=out)
        shrunk = job.prepare(
            found, output, wish, teaching, settings=settings, run=run, table=latency_table, say=said,
            steps=None if steps == 1 else stepping.Steps.of(steps, recover or 1, teaching),
        )  # fmt: skip
        if shrunk is not None:
            out.print(shrunk_view(shrunk))
        smaller, plan = output / taught.SMALLER, output / taught.PLAN
        out.print(Text(f"\n{smaller}  {plan}: {teaching.method}, {epochs} epoch{'s' * (epochs > 1)}\n"), soft_wrap=True)
        say(load_plan(plan).diagnostics)
        running.carried_out(plan, output / taught.RUN, taught.settings_for(output, settings), out)
