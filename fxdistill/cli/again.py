"""A command as it was given: to say how to go on with it, and to start other processes by it."""

import shlex
from collections.abc import Collection, Iterator
from typing import Any

import typer


def options(context: typer.Context, *, without: Collection[str] = ()) -> list[str]:
    """The options that were given, as they are written, in the order in which help lists them.

    Args:
        context: Of the command.
        without: Names of parameters to leave out.
    """
    return [
        word for parameter in context.command.params
        if parameter.param_type_name == "option" and parameter.name not in without
        for word in _written(parameter, context)
    ]  # fmt: skip


def whole(context: typer.Context) -> str:
    """The command as a line for a shell."""
    words = [
        str(context.params[parameter.name]) for parameter in context.command.params
        if parameter.param_type_name == "argument" and parameter.name is not None
    ]  # fmt: skip
    return shlex.join(["fxdistill", str(context.info_name), *words, *options(context)])


def given(context: typer.Context, name: str) -> bool:
    """Whether an option was given, be it with its usual value."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _written(parameter: Any, context: typer.Context) -> Iterator[str]:
    if not given(context, parameter.name):
        return
    value = context.params.get(parameter.name)
    if isinstance(value, bool):
        yield (parameter.opts if value else parameter.secondary_opts)[0]
        return
    name = min(parameter.opts, key=len)
    for one in value if isinstance(value, list | tuple) else [value]:
        yield from (name, str(one).removesuffix(".0") if isinstance(one, float) else str(one))
