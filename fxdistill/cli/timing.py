"""``fxdistill bench``: how long models take, side by side."""

import dataclasses
import json

import typer
from rich.console import Console

from fxdistill.cli import model_parameters, parameters, values
from fxdistill.cli.exits import reported, say
from fxdistill.errors import InputError


def bench(
    models: model_parameters.Models,
    input_shape: parameters.Input = "",
    batch: model_parameters.Batches = [1],
    repeats: model_parameters.TimedRuns = 50,
    threads: model_parameters.Threads = 1,
    provider: model_parameters.Provider = "CPU",
    torch: model_parameters.InTorch = False,
    as_json: model_parameters.AsJson = False,
    allow_factory: parameters.Allow = [],
    trust_code: parameters.Trust = False,
) -> None:
    """Measure latency and throughput of models side by side, in ONNX Runtime."""
    with reported():
        wanted = values.shape(input_shape)
        values.distinct(models)
        if wanted is not None and all(map(values.is_run, models)):
            raise InputError(
                "a run already says what its models read", where="--input", hint="leave it out, or give a file"
            )

        from fxdistill.report.timing_view import timing_view
        from fxdistill.runtime.deployment import timing

        found = {
            model: timing.to_time(model, where=model, input_shape=wanted, allow=allow_factory, trust_code=trust_code)
            for model in models
        }
        say([remark for one in found.values() for remark in one.remarks])
        made = timing.timed(found, batches=batch, repeats=repeats, threads=threads, provider=provider, eager=torch)
        if as_json:
            told = [{**dataclasses.asdict(one), "images_per_second": one.images_per_second} for one in made]
            typer.echo(json.dumps(told, indent=2))
        else:
            Console(highlight=False).print(timing_view(made, threads=threads, repeats=repeats))
