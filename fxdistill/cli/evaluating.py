"""``fxdistill eval``: what a model, or an ONNX file, reaches on test images."""

import json

import typer
from rich.console import Console
from rich.text import Text

from fxdistill.cli import members, model_parameters, parameters, values
from fxdistill.cli.exits import reported, say


def evaluate(
    model: parameters.RunOrModel,
    data: parameters.Data = None,
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
    at: model_parameters.At = [],
    top: model_parameters.Top = [],
    per_class: model_parameters.PerClass = False,
    as_json: model_parameters.AsJson = False,
    allow_factory: parameters.Allow = [],
    trust_code: parameters.Trust = False,
) -> None:
    """Measure a model, or an ONNX file, on test images."""
    with reported():
        wanted = values.shape(input_shape)
        wishes = members.own_wishes(size=size, crop=crop, interpolation=interpolation, mean=mean, std=std)

        from fxdistill.report import evaluated
        from fxdistill.runtime.deployment import evaluating, finding

        found = finding.find(
            model, data=data, task=task, input_shape=wanted, preprocessing=wishes, factory=factory, args=factory_arg,
            allow=allow_factory, trust_code=trust_code, entry=output_entry, class_map=class_map,
            checkpoint_entry=entry, embedding=embedding,
        )  # fmt: skip
        made = evaluating.evaluated(found, where=model, at=at, top=top, per_class=per_class)
        say(made.remarks)
        if as_json:
            typer.echo(json.dumps(evaluated.as_json(made, found, model=model), indent=2))
            return
        out = Console(highlight=False)
        out.print(Text(f"reads {found.reads}"), soft_wrap=True)
        out.print(evaluated.view(made, found.task))
