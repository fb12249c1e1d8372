"""A command is told as it was given: every option of every command, whole and in a form that a shell reads back."""

import shlex
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.main import get_command

from fxdistill.cli import again
from fxdistill.cli.commands import app

_PROGRAM: Any = get_command(app)


def context_of(name: str, words: list[str]) -> typer.Context:
    context: typer.Context = _PROGRAM.commands[name].make_context(name, [*words])
    return context


def given(parameter: Any, kind: Any) -> list[str]:
    """An option of a command, with a value that is not its default; of one that may be repeated two."""
    name = parameter.opts[0]
    kinds = (*get_args(kind), kind)
    if bool in kinds:
        return [parameter.secondary_opts[0] if parameter.default is True else name]
    choices = [get_args(one)[-1] for one in kinds if get_origin(one) is Literal]
    number = ["7"] * (int in kinds) + ["0.123456789"] * (float in kinds)
    value = [*choices, *number, "it's; $HOME"][0]
    return [name, value, name, value] if parameter.multiple else [name, value]


@pytest.mark.parametrize("name", ["run", "compress", "shrink", "plan"])
def test_every_option_comes_back(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for named in ("a b.pt", "it's; $HOME"):  # models have to be there
        Path(named).touch()
    arguments = [one for one in _PROGRAM.commands[name].params if one.param_type_name == "argument"]
    options = [one for one in _PROGRAM.commands[name].params if one not in arguments and one.name != "help"]
    kinds = get_type_hints(_PROGRAM.commands[name].callback)
    words = [word for one in options for word in given(one, kinds[one.name])]
    context = context_of(name, [*("a b.pt" for _ in arguments), *words])
    told = shlex.split(again.whole(context))
    assert told[: 2 + len(arguments)] == ["fxdistill", name, *("a b.pt" for _ in arguments)]
    assert context_of(name, told[2:]).params == context.params
    assert len(told[2:]) == len(arguments) + len(words)
    left_out = options[0]
    assert not {*left_out.opts} & {*again.options(context, without={left_out.name})}


def test_what_was_not_given_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.pt").touch()
    told = again.whole(context_of("compress", ["m.pt", "--data", "digits", "--seed", "0"]))
    assert told == "fxdistill compress m.pt --data digits --seed 0"
    assert again.options(context_of("run", ["plan.json", "--save-every", "30"])) == ["--save-every", "30"]
