"""Numbers of a plan by their paths: ``main.optimizer.weight_decay=5e-4``, as ``fxdistill plan --set`` takes them.

A path goes down the plan's fields. Of a list an entry is named as it is: an arm, a stage, a loss by its name, others by
their place; of several losses of one name in a stage, as a cascade's levels have, each by its number: ``kd#2``. The
stages of the exported arm need no arm in front of them, ``control`` is the control arm. What can be set are decisions;
what the compiler found out (members, pairs, kept channels) is made anew by ``plan``. A value is JSON, or else a text,
and the whole plan is validated with it.
"""

import json
from collections.abc import Sequence
from typing import Any, NoReturn

from fxdistill.errors import InputError
from fxdistill.plan.document import Plan
from fxdistill.plan.file import parse
from fxdistill.registry import suggestion

_WHERE = "--set"
_FOUND = (
    "version", "method", "task", "members", "input", "arms", "pairs", "kept", "costed", "plugins", "diagnostics",
    "versions",
)  # fmt: skip
"""What a plan holds beside decisions."""


def changed(plan: Plan, settings: Sequence[str]) -> Plan:
    """The plan with other values, ``PATH=VALUE`` each, in order.

    Raises:
        InputError: A path leads nowhere, or not to a value; says what is there.
        PlanError: The plan is not valid with a value.
    """
    data = plan.model_dump(mode="json")
    for text in settings:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise InputError(f"'{text}' gives no value", where=_WHERE, hint="write PATH=VALUE: main.optimizer.lr=1e-3")
        holder, key = _place(data, plan.export.arm, path.strip())
        holder[key] = value_of(value.strip(), _WHERE)
    return parse(data, where=_WHERE, hint="give another value; lists are JSON: 'data.augmentation=[\"flip\"]'")


def value_of(text: str, where: str) -> Any:
    """JSON, or else the text itself.

    Raises:
        InputError: It is what JSON does not have: NaN, an infinity.
    """

    def refuse(name: str) -> NoReturn:
        raise InputError(f"{name} is not a JSON number", where=where, hint="give a finite number")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):  # also a whole number of thousands of digits
        return text


def _place(data: dict[str, Any], exported: str, path: str) -> tuple[Any, Any]:
    """What holds the value of a path, and its key or index there."""
    known, rest, gone = _top(data, exported), path, ""
    while True:
        key = max((one for one in known if rest == one or rest.startswith(f"{one}.")), key=len, default=None)
        if key is None:
            part = rest if "." not in rest else rest.partition(".")[0]
            raise InputError(
                f"{gone or 'the plan'} has no '{part}' to set", where=f"{_WHERE} {path}",
                hint=suggestion(part, tuple(known), "there is"),
            )  # fmt: skip
        holder, place = known[key]
        value, gone, rest = holder[place], f"{gone}.{key}".removeprefix("."), rest[len(key) + 1 :]
        known = _inside(value)
        if not rest and not known:
            return holder, place
        if not rest:
            raise InputError(
                f"{gone} is not one value but holds several", where=f"{_WHERE} {path}",
                hint=f"name one of {', '.join(known)}",
            )  # fmt: skip
        if not known:
            raise InputError(f"{gone} is a value and holds no others", where=f"{_WHERE} {path}", hint=f"set {gone}")


def _top(data: dict[str, Any], exported: str) -> dict[str, tuple[Any, Any]]:
    """What a path may begin with: stages of the exported arm, arms, the fields of the plan."""
    fields = {key: (data, key) for key in data if key not in _FOUND and (key != "control" or data[key])}
    arms = _inside(data["arms"])
    stages = [stage for arm in data["arms"] if arm["name"] == exported for stage in arm["stages"]]
    return {**fields, **arms, **_inside(stages)}


def _inside(value: Any) -> dict[str, tuple[Any, Any]]:
    """What there is in a value, by name: where it is held, and under which key or index."""
    if isinstance(value, dict):
        own = {key: (value, key) for key in value if key != "name" or "lr" in value}
        return {**own, **_inside(value["stages"])} if "stages" in value else own
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        return {name: (value, place) for place, name in enumerate(_names(value))}
    return {}


def _names(entries: list[dict[str, Any]]) -> list[str]:
    names = [_name(entry, place) for place, entry in enumerate(entries)]
    return [
        f"{name}#{names[: place + 1].count(name)}" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]


def _name(entry: dict[str, Any], place: int) -> str:
    if "loss" in entry:
        return f"{entry['loss']}[{entry['pair']}]" if entry.get("pair") is not None else str(entry["loss"])
    return str(entry.get("name", place))
