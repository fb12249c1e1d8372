"""What nobody says is the same on the command line, in its help and in Python."""

import inspect
import re
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
import typer

import fxdistill
from fxdistill.cli import compressing, evaluating, exporting, shrinking
from fxdistill.cli.commands import run
from fxdistill.runtime.deployment.reducing import Reducing
from fxdistill.runtime.run.execution import Settings
from fxdistill.runtime.smaller.teaching import Teaching

NAMES = {
    "save_every": "save_seconds", "calibration_images": "images", "tolerance_accuracy": "tolerance",
    "tolerance_agreement": "disagreement",
}  # fmt: skip
"""Options that have other names in Python."""
UNSAID: tuple[Any, ...] = (None, "", [], inspect.Parameter.empty)


def text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def of_command(command: Callable[..., Any]) -> dict[str, str]:
    """The defaults of a command's options, of which some are in the help alone."""
    hints, found = get_type_hints(command, include_extras=True), {}
    for name, parameter in inspect.signature(command).parameters.items():
        if hints[name] is typer.Context:
            continue
        told = re.search(r"Default: (\S+)\.$", hints[name].__metadata__[0].help)
        if parameter.default not in UNSAID:
            found[name] = text(parameter.default)
        elif told:
            found[name] = told[1]
    return found


@pytest.mark.parametrize(
    ("command", "functions", "least", "apart"),
    [
        (compressing.compress, (Settings, Teaching, fxdistill.compress), ("epochs", "lr", "save_every"), ()),
        (shrinking.shrink, (fxdistill.shrink,), ("lr", "recover", "on", "steps"), ()),
        (evaluating.evaluate, (fxdistill.evaluate,), ("trust_code",), ()),
        (exporting.export, (fxdistill.export,), ("opset", "tolerance"), ("tolerance_accuracy",)),
        (exporting.export, (Reducing,), ("calibration", *list(NAMES)[1:]), ("tolerance",)),
        (run, (fxdistill.run, Settings), ("save_every", "evaluate_every", "channels_last"), ("cache_size",)),
    ],
)
def test_defaults_are_the_same_everywhere(
    command: Callable[..., Any], functions: tuple[Callable[..., Any], ...], least: tuple[str, ...],
    apart: tuple[str, ...],
) -> None:  # fmt: skip
    own = {name: one.default for each in functions for name, one in inspect.signature(each).parameters.items()}
    told = {name: said for name, said in of_command(command).items() if name not in apart}
    both = {name: said for name, said in told.items() if NAMES.get(name, name) in own}
    assert set(least) <= set(both)
    assert both == {name: text(own[NAMES.get(name, name)]) for name in both}


def test_what_is_left_of_a_model_is_taught_as_its_task_has_it() -> None:
    told = {task: Teaching("digits", task=task).method for task in ("classification", "retrieval", "features")}
    assert told == {"classification": "kd", "retrieval": "pkt", "features": "features"}
    assert Teaching("digits", task="retrieval", method="rkd").method == "rkd"
