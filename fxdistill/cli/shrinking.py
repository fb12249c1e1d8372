"""``fxdistill shrink``: a model made physically smaller, in one step or in several with training between them."""

import functools
from pathlib import Path
from time import monotonic

import typer
from rich.console import Console
from rich.text import Text

from fxdistill import files
from fxdistill.cli import again, budgets, model_parameters, parameters, values
from fxdistill.cli.exits import err, reported


def shrink(
    context: typer.Context,
    model: parameters.Model,
    keep: model_parameters.Keep = None,
    macs: model_parameters.Macs = None,
    params: model_parameters.Params = None,
    latency: model_parameters.Latency = None,
    on: model_parameters.On = None,
    latency_table: model_parameters.LatencyTable = None,
    ranking: model_parameters.HowRanked = None,
    floor: model_parameters.Floor = None,
    scope: model_parameters.Scopes = [],
    output: model_parameters.SmallerOutput = Path("smaller.pt"),
    by: model_parameters.By = None,
    round_to: model_parameters.RoundTo = None,
    protect: model_parameters.Protect = [],
    only: model_parameters.Only = [],
    steps: model_parameters.StepCount = 1,
    recover: model_parameters.BetweenSteps = None,
    lr: model_parameters.BetweenRate = None,
    device: parameters.Where = "auto",
    data: parameters.TaylorData = None,
    class_map: parameters.ClassMap = None,
    task: parameters.TaskName = "classification",
    input_shape: parameters.Input = "",
    factory: parameters.Factory = None,
    factory_arg: parameters.Argument = [],
    entry: parameters.Entry = None,
    seed: model_parameters.RandomSeed = 0,
    allow_factory: parameters.Allow = [],
    trust_code: parameters.Trust = False,
) -> None:
    """Make a model physically smaller, and prove that it is the masked original."""
    with reported(
        interrupted=lambda: "interrupted" if steps == 1 else f"interrupted; continue with: {again.whole(context)}"
    ):
        wanted = values.shape(input_shape)
        values.known_importance(by)
        files.writable(output, model, class_map, latency_table)
        values.about_data(data, {"class-map": class_map})
        most = budgets.budget(macs, "--macs"), budgets.budget(params, "--params")
        time, scopes = budgets.latency(latency, on, latency_table), budgets.scopes(scope)
        of_steps = {"recover": recover, "lr": lr, "device": None if device == "auto" else device}
        budgets.between(steps, of_steps)

        from fxdistill.cli import running
        from fxdistill.ir import contract
        from fxdistill.report.result_view import shrunk_view
        from fxdistill.runtime.run import execution
        from fxdistill.runtime.smaller import shrinking

        passes, out, start = contract.PassManager(), Console(highlight=False), monotonic()
        if latency is not None:
            err.print("timing layers and candidates in ONNX Runtime …")
        settings = execution.Settings(device=device, allow=tuple(allow_factory), trust_code=trust_code)
        made = shrinking.shrink(
            model, output, keep=keep, macs=most[0], params=most[1], **time, latency_table=latency_table,
            ranking=ranking, floor=floor, scopes=scopes, by=by,
            round_to=round_to, protect=protect, only=only, data=data, task=task,
            class_map=class_map, input_shape=wanted, factory=factory, args=factory_arg, seed=seed,
            allow=allow_factory, trust_code=trust_code, passes=passes, checkpoint_entry=entry,
            steps=steps, recover=recover or 1, **values.said(lr=lr),
            say=running.step_said(out), settings=settings,
            run=functools.partial(running.step_run, settings=settings, out=out),
        )  # fmt: skip
        out.print(shrunk_view(made))
        out.print(Text(f"\nwrote {output} in {monotonic() - start:.1f} s ({passes.timing()})"), soft_wrap=True)
