"""What an option says of each of several models: ``VALUE`` for all, ``MEMBER=VALUE`` for one."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from fxdistill.cli import values
from fxdistill.errors import InputError

if TYPE_CHECKING:
    from fxdistill.preprocessing import Wishes

Value = TypeVar("Value")


def by_member(
    members: Sequence[str], texts: Sequence[str], option: str, read: Callable[[str], Value]
) -> dict[str, Value]:  # fmt: skip
    """What an option says of each member: ``VALUE`` for all, ``MEMBER=VALUE`` for one.

    Args:
        members: The members' names.
        texts: What is said.
        option: The option.
        read: What a value stands for.

    Raises:
        InputError: A text names no member, or two say something else of the same.
    """
    values.once(option, (_parted(text, members) for text in texts))
    found: dict[str, Value] = {}
    for text in sorted(texts, key=lambda one: "=" in one):  # what is said of one holds against what is said of all
        member, equals, value = text.rpartition("=")
        if equals and member not in members:
            known = " or ".join(f"{one}=" for one in members) if len(members) > 1 else "no name"
            raise InputError(
                f"'{member}' is not the name of a model here", where=option, hint=f"write {known} before the value"
            )
        found |= dict.fromkeys((member,) if equals else members, read(value))
    return found


def of_each(members: Sequence[str], texts: Sequence[str]) -> dict[str, list[str]]:
    """What an option says of each member, whose values may hold a = of their own: ``VALUE``, or ``MEMBER=VALUE``."""
    found: dict[str, list[str]] = {member: [] for member in members}
    for head, value in sorted((_parted(text, members) for text in texts), key=lambda one: bool(one[0])):
        for member in (head,) if head else members:
            found[member].append(value)
    return found


def one_of_each(members: Sequence[str], texts: Sequence[str], option: str) -> dict[str, str | None]:
    """The same of an option that takes one value; None where nothing is said.

    Raises:
        InputError: Two are said of the same.
    """
    values.once(option, (_parted(text, members) for text in texts))
    return {member: said[-1] if said else None for member, said in of_each(members, texts).items()}


def _parted(text: str, members: Sequence[str]) -> tuple[str, str]:
    """The member that a text is about, '' for all of them, and what it says."""
    head, _, value = text.partition("=")
    return (head, value) if head in members else ("", text)


def wishes(
    members: Sequence[str], *, size: Sequence[str] = (), crop: Sequence[str] = (), interpolation: Sequence[str] = (),
    mean: Sequence[str] = (), std: Sequence[str] = (),
) -> "dict[str, Wishes]":  # fmt: skip
    """What the options say of each member's preprocessing: ``VALUE`` for all, ``MEMBER=VALUE`` for one.

    Raises:
        InputError: One is no such value, or names no member.
    """
    from fxdistill.preprocessing import Wishes

    given = {"size": size, "crop": crop, "interpolation": interpolation, "mean": mean, "std": std}
    found: dict[str, dict[str, Any]] = {member: {} for member in members}
    for name, texts in given.items():
        for member, value in by_member(members, texts, f"--{name}", functools.partial(_wish, name)).items():
            found[member][name] = value
    return {member: Wishes(**said) for member, said in found.items()}


def own_wishes(**texts: Sequence[str]) -> "Wishes":
    """The same where there is one model, which needs no name."""
    return wishes(("model",), **texts)["model"]


def _wish(name: str, text: str) -> Any:
    from fxdistill.preprocessing import Interpolation

    try:
        if name == "interpolation" and text in get_args(Interpolation):
            return text
        if name == "size" and all(int(part) > 0 for part in text.lower().split("x")):
            sides = [int(part) for part in text.lower().split("x")]
            height, width = sides * 2 if len(sides) == 1 else sides
            return height, width
        if name == "crop" and 0 < float(text) <= 1:
            return float(text)
        numbers = tuple(float(part) for part in text.split(",")) if name in ("mean", "std") else ()
        if numbers and all(math.isfinite(n) and (name == "mean" or n > 0) for n in numbers):
            return numbers
    except ValueError:
        pass
    forms = {
        "size": "224 or 224x192", "crop": "a share above 0 and up to 1, as 0.875",
        "interpolation": ", ".join(get_args(Interpolation)), "mean": "a number a channel, as 0.485,0.456,0.406",
        "std": "a number above 0 a channel, as 0.229,0.224,0.225",
    }  # fmt: skip
    raise InputError(f"'{text}' is no {name}", where=f"--{name}", hint=f"write {forms[name]}")
