"""The pages that are made out of the code while the documentation is built: nothing of them is committed.

A page that holds ``<!-- generated: NAME -->`` gets there what the function of that name below says, as Markdown. What a
remark means is the table of its page; what it says, and what to do, the sources.
"""

import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import typer
from typer.main import get_command

import fxdistill
from docs import drawings, remarks
from docs.docstrings import markdown, words
from fxdistill.cli.commands import app
from fxdistill.cli.groups import divided
from fxdistill.criteria import CRITERIA
from fxdistill.losses import LOSSES
from fxdistill.methods import METHODS, RATE
from fxdistill.registry import Registry

_WIDE = 84


def fill(_app: Any, _page: str, source: list[str]) -> None:
    """Fill the places of a page: Sphinx's hook."""
    source[0] = filled(source[0])


def filled(page: str) -> str:
    """A page's text with what is generated in its places."""
    return re.sub("<!-- generated: (.+?) -->", lambda place: PARTS[place[1]](), page)


def cli() -> str:
    """Every command with its arguments and options, as the parser has them."""
    program: Any = get_command(app)
    context = program.make_context("fxdistill", [], resilient_parsing=True)
    return "\n\n".join(_command(program.get_command(context, name), name) for name in program.list_commands(context))


def _command(command: Any, name: str) -> str:
    context = typer.Context(command, info_name=f"fxdistill {name}")
    command.get_help(context)  # fills in the names that can be given
    made = [f"## {name}", words(" ".join(command.help.split())), f"```none\n{_usage(command, context)}\n```"]
    shown = [one for one in command.params if one.get_help_record(context) and "--help" not in one.opts]
    options = [one for one in shown if one.param_type_name == "option"]
    for heading, found in [("", [one for one in shown if one not in options]), *divided(options)]:
        made += [f"**{heading}**"] if heading not in ("", "Options") else []
        for record in (one.get_help_record(context) for one in found):
            made.append(f"`{record[0]}`\n: {_escaped(record[1]) or '…'}")
    return "\n\n".join(made)


def _usage(command: Any, context: Any) -> str:
    return f"fxdistill {context.info_name.split()[-1]} {' '.join(command.collect_usage_pieces(context))}"


def methods() -> str:
    """Every method: what it does, where it is from, and what its file says."""
    return _entries(
        METHODS, lambda method: [method.summary, f"Learning rate unless one is given: {method.lr or RATE:g}."]
    )


def losses() -> str:
    """Every loss: what it reads, its arguments, its formula."""
    return _entries(LOSSES, lambda loss: [loss.summary, _reads(loss)])


def criteria() -> str:
    """Every criterion: what it measures, and whether it needs data."""
    return _entries(
        CRITERIA, lambda one: [one.summary, "Needs `--data`." if one.needs_batch else "Reads weights alone."]
    )


def _reads(loss: Any) -> str:
    arguments = loss.arguments().model_dump(mode="json") if loss.arguments is not None else {}
    given = ", ".join(f"`{name}={value}`" for name, value in arguments.items())
    reads = f"Reads {', '.join(f'`{port}`' for port in loss.reads)}."
    return f"{reads} Arguments, `--arg LOSS.NAME=VALUE`: {given}." if given else reads


def _entries(registry: Registry[Any], said: Callable[[Any], list[str]]) -> str:
    made = []
    for name in registry.names():
        if registry.origin(name) is not None:  # of an installed plug-in
            continue
        entry = registry.get(name)
        module = importlib.import_module(f"{registry.package}.{name.replace('-', '_')}")
        source = f" *{entry.source}*" if getattr(entry, "source", "") else ""
        head, *more = said(entry)
        first = f"{words(head[:1].upper() + head[1:])}.{source}" if head else source
        made.append("\n\n".join([f"## {name}", first, *filter(None, more), markdown(module.__doc__ or "")]))
    return "\n\n".join(made)


def diagnostics() -> str:
    """Every code: what is said then, and what can be done, by the sources; what it means is the table above."""
    meaning = meanings()
    made = []
    for code, places in groupby(remarks.remarks(), key=lambda remark: remark.code):
        made += [f"## {code}", f"{meaning[code][:1].upper()}{meaning[code][1:]}."]
        made += [_said(place) for place in places]
    return "\n\n".join(made)


def _said(place: remarks.Remark) -> str:
    why = "what is said depends on the case" if set(place.why) <= set("… :") else _escaped(place.why)
    hint = "" if set(place.hint) <= set("…") else f"  \n  To do: {_escaped(place.hint)}"
    return f"- **{place.severity}**: {why}{hint}"


def meanings() -> dict[str, str]:
    """What each code means: the table of the page of remarks."""
    page = (remarks.ROOT / "docs" / "reference" / "diagnostics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", page, re.MULTILINE)
    return {code: meaning for codes, meaning in rows for code in re.findall("`(.+?)`", codes)}


def python() -> str:
    """Every public name, with its signature and what its docstring says."""
    return "\n\n".join(part for name in fxdistill.__all__ for part in _public(name))


def _public(name: str) -> Iterator[str]:
    thing = getattr(fxdistill, name)
    yield f"## {name}"
    if inspect.isclass(thing):
        yield f"```none\nclass fxdistill.{name}\n```"
    else:
        call = textwrap.fill(f"fxdistill.{name}{_signature(thing)}", _WIDE, subsequent_indent="    ")
        yield f"```none\n{call}\n```"
    yield markdown(thing.__doc__ or "")
    members = vars(thing).items() if inspect.isclass(thing) else ()
    for member, value in members:
        public = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if member.startswith("_") or not inspect.isfunction(public) or public.__doc__ is None:
            continue
        call = "" if isinstance(value, property) else _signature(public)
        summary = inspect.cleandoc(public.__doc__).partition("\n\n")[0]
        yield f"`{name}.{member}{call}`\n: {words(' '.join(summary.split()))}"


def _signature(function: Any) -> str:
    """What a call takes, and the usual values."""
    taken = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values() if parameter.name != "self"
    ]  # fmt: skip
    return re.sub(r"<function .*? at 0x\w+>", "…", str(inspect.Signature(taken)))


def _escaped(text: str | None) -> str:
    """Text of the sources in Markdown: what would be markup there stays as it is, options are code."""
    plain = re.sub(r"([\\`*_<>\[\]{}$|])", r"\\\1", " ".join((text or "").split()))
    return re.sub(r"(?<![\w-])--[a-z][a-z0-9-]*", r"`\g<0>`", plain)


PARTS: dict[str, Callable[[], str]] = {
    "cli": cli, "methods": methods, "losses": losses, "criteria": criteria, "diagnostics": diagnostics,
    "python": python, "drawing of indistill": drawings.indistill, "drawing of cascade": drawings.cascade,
}  # fmt: skip
