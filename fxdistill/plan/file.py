"""A plan's file: read, validated, every nonsense refused with the line or the field named."""

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fxdistill import checking, files
from fxdistill.errors import PlanError
from fxdistill.plan.document import VERSION, Plan
from fxdistill.plan.schema import Plugin
from fxdistill.registry import GROUPS, names

_TOLD = 5  # faults that are named at once


@checking.checked()
def load(path: str | Path) -> Plan:
    """Read and validate a plan.

    Raises:
        PlanError: Missing, not JSON, of a newer version, or not a valid plan; names the field.
    """
    try:
        text = files.read_text(Path(path))
    except (OSError, UnicodeDecodeError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else "it is not a text file"
        raise PlanError(
            f"the plan cannot be read: {reason}", where=str(path), hint="write one with `fxdistill plan`"
        ) from cause
    try:
        data = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_distinct_fields)
    except json.JSONDecodeError as cause:
        raise PlanError(
            f"the plan is not JSON: {cause.msg}", where=f"{path}, line {cause.lineno}, column {cause.colno}",
            hint="correct that line, or write the plan anew with `fxdistill plan`",
        ) from cause  # fmt: skip
    except (ValueError, RecursionError) as cause:
        raise _invalid_text(cause, str(path)) from cause
    return parse(data, where=str(path))


def _invalid_text(cause: Exception, where: str) -> PlanError:
    reason = "it is nested too deeply" if isinstance(cause, RecursionError) else str(cause)
    return PlanError(f"the plan is not valid: {reason}", where=where, hint="write the plan anew with `fxdistill plan`")


def check_writable(plan: Plan) -> None:
    """Check that a plan can be read again once it is written.

    Raises:
        PlanError: A name in it is no text: of a file, a class, a module.
    """
    if (why := _no_text(plan.model_dump(mode="json"))) is not None:
        raise PlanError(f"the plan would not be valid: {why}", where="the plan", hint="rename that")


def _no_text(data: object) -> str | None:
    """Why a plan's text is none: it is written again and shown, and JSON can escape what is no text."""
    for text in _texts(data):
        for character in () if text.isprintable() else text:
            kind = unicodedata.category(character)
            if kind == "Cs":
                return f"{text!r} holds half a character (a lone surrogate)"
            if kind == "Cc" and character not in "\n\t":
                return f"{text!r} holds {character!r}, which is no text but controls a terminal"
    return None


def _texts(data: object) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    for item in data if isinstance(data, list) else ():
        yield from _texts(item)
    for key, item in data.items() if isinstance(data, dict) else ():
        yield key
        yield from _texts(item)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is not a JSON number")


def _distinct_fields(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(entries)
    if len(fields) < len(entries):
        names = [name for name, _ in entries]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it holds the field '{twice}' twice")
    return fields


_CORRECT = "correct what is named, or write the plan anew with `fxdistill plan`"


def parse(data: object, *, where: str, hint: str = _CORRECT) -> Plan:
    """Validate a plan's data; ``hint`` says what to do where a field is wrong.

    Raises:
        PlanError: As for :func:`load`.
    """
    if not isinstance(data, dict):
        raise PlanError("the plan is not a JSON object", where=where, hint="write one with `fxdistill plan`")
    try:
        wrong = _no_text(data)
    except RecursionError as cause:
        raise _invalid_text(cause, where) from cause
    if wrong is not None:
        raise _invalid_text(ValueError(wrong), where)
    version = data.get("version")
    if type(version) is not int and version is not None:
        raise PlanError(
            f"the plan's version is {version!r}, not a whole number",
            where=f"{where}, version", hint="write the plan anew with `fxdistill plan`",
        )  # fmt: skip
    if version in (1, 2):
        raise PlanError(
            f"the plan has version {version}, whose form is no longer read", where=f"{where}, version",
            hint="write it anew with `fxdistill plan` and the same options; decisions can be pinned with --pair",
        )  # fmt: skip
    if version is not None and version > VERSION:
        raise PlanError(
            f"the plan has version {version}; this fxdistill reads versions up to {VERSION}",
            where=f"{where}, version", hint="update fxdistill, or write the plan anew",
        )  # fmt: skip
    _installed(data.get("plugins"), where)
    try:
        return Plan.model_validate(data)
    except ValidationError as cause:
        raise invalid(cause, where=where, hint=hint) from cause


def invalid(cause: ValidationError, *, where: str, hint: str) -> PlanError:
    """The error that says which fields of a plan are not valid, and why: the first few of them."""
    wrong: dict[str, str] = {}
    for error in cause.errors():
        wrong.setdefault(_field(error["loc"]), error["msg"].removeprefix("Value error, "))
    first, why = next(iter(wrong.items()))
    if len(wrong) > 1:
        told = [f"{field}: {message}" for field, message in wrong.items()][:_TOLD]
        more = [f"and {len(wrong) - _TOLD} more"] if len(wrong) > _TOLD else []
        why = f"{len(wrong)} fields are wrong: {'; '.join(told + more)}"
    return PlanError(f"the plan is not valid: {why}", where=f"{where}, {first}", hint=hint)


def _field(loc: tuple[int | str, ...]) -> str:
    if loc[:1] == ("members",):  # behind a member's name pydantic names its kind, which is no field
        loc = loc[:2] + loc[3:]
    return ".".join(map(str, loc)) or "the plan"


def _installed(plugins: object, where: str) -> None:
    """Refuse a plan that names what an installed distribution has to give, and none gives it; says which."""
    for plugin in plugins if isinstance(plugins, list) else ():
        try:
            needed = Plugin.model_validate(plugin)
        except ValidationError:  # said when the whole plan is read
            continue
        if needed.name not in names(GROUPS[needed.kind]):
            raise PlanError(
                f"the plan uses the {needed.kind} '{needed.name}', which is not installed", where=f"{where}, plugins",
                hint=f"pip install {needed.distribution} (the plan was written with version {needed.version})",
            )  # fmt: skip


def schema() -> dict[str, Any]:
    """The JSON Schema of a plan."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Plan.model_json_schema()}
