"""``fxdistill compare``: two models, or ONNX files, on the same images."""

import json

import typer
from rich.console import Console

from fxdistill.cli import parameters, values
from fxdistill.cli.exits import reported, say


def compare(
    first: parameters.First,
    second: parameters.Second,
    data: parameters.Data = None,
    class_map: parameters.ClassMap = None,
    task: parameters.OtherTask = None,
    input_shape: parameters.Input = "",
    images: parameters.Widest = 10,
    as_json: parameters.AsJson = False,
    allow_factory: parameters.Allow = [],
    trust_code: parameters.Trust = False,
) -> None:
    """Compare two models on test images: metric, agreement, classes, and where they differ most."""
    with reported():
        names = [first, second]
        wanted = values.shape(input_shape)
        values.distinct(names)

        from fxdistill.report import compared
        from fxdistill.runtime import comparing

        found = comparing.found_together(
            names, data=data, task=task, input_shape=wanted, class_map=class_map, allow=allow_factory,
            trust_code=trust_code,
        )  # fmt: skip
        made = comparing.comparison(found, names, most=images)
        say(list(dict.fromkeys(remark for one in found for remark in one.remarks)))
        if as_json:
            typer.echo(json.dumps(compared.as_json(made, names, found), indent=2))
        else:
            Console(highlight=False).print(compared.view(made, names, found))
