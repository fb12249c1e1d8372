"""``fxdistill compare``: two models, or ONNX files, on the same images."""

import json

import typer
from rich.console import Console

from fxdistill.cli import members, model_parameters, parameters, values
from fxdistill.cli.exits import reported, say

BOTH = ("a", "b")
"""What the two are called in options."""


def compare(
    first: model_parameters.First,
    second: model_parameters.Second,
    data: parameters.Data = None,
    class_map: parameters.ClassMap = None,
    task: parameters.OtherTask = None,
    input_shape: parameters.Input = "",
    size: parameters.Size = [],
    crop: parameters.Crop = [],
    interpolation: parameters.Interpolation = [],
    mean: parameters.Mean = [],
    std: parameters.Std = [],
    factory: parameters.Factories = [],
    factory_arg: parameters.Arguments = [],
    entry: parameters.Entries = [],
    embedding: parameters.Embeddings = [],
    output_entry: model_parameters.OutputEntries = [],
    images: model_parameters.Widest = 10,
    as_json: model_parameters.AsJson = False,
    allow_factory: parameters.Allow = [],
    trust_code: parameters.Trust = False,
) -> None:
    """Compare two models on test images: metric, agreement, classes, and where they differ most."""
    with reported():
        wanted, names = values.shape(input_shape), [first, second]
        wishes = members.wishes(BOTH, size=size, crop=crop, interpolation=interpolation, mean=mean, std=std)
        args = members.of_each(BOTH, factory_arg)
        said = {"factory": factory, "entry": entry, "output-entry": output_entry, "embedding": embedding}
        made_by, weights, answers, embeds = (
            members.one_of_each(BOTH, texts, f"--{option}") for option, texts in said.items()
        )

        from fxdistill.report import compared
        from fxdistill.runtime.deployment import comparing

        sides = [
            comparing.Side(
                model, wishes[one], made_by[one], tuple(args[one]), weights[one], answers[one], embeds[one]
            )
            for one, model in zip(BOTH, names, strict=True)
        ]  # fmt: skip
        if sides[0] == sides[1]:
            values.distinct(names)
        found = comparing.found_together(
            sides, data=data, task=task, input_shape=wanted, class_map=class_map, allow=allow_factory,
            trust_code=trust_code,
        )  # fmt: skip
        made = comparing.comparison(found, names, most=images)
        say(list(dict.fromkeys(remark for one in found for remark in one.remarks)))
        if as_json:
            typer.echo(json.dumps(compared.as_json(made, names, found), indent=2))
        else:
            Console(highlight=False).print(compared.view(made, names, found))
