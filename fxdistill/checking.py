"""What Python hands to the public functions, where the command line's parser would have refused it.

Arguments are held against their annotations before a function begins, so that a mistake is told where it was made. A
list is as good as a tuple, an int as a float; numpy's numbers are not as good as Python's: plans do not hold them.
Ranges, which annotations do not say, functions look at.
"""

import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from fxdistill.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")
_LONGEST = 60
"""Characters of a value that are told."""
_ANYTHING = (Any, inspect.Parameter.empty)


def checked(*apart: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Makes a function refuse arguments of other types than it says, with an ``InputError``, before it begins.

    Args:
        apart: Arguments that the function itself refuses, because there is more to say.
    """

    def decorated(function: Callable[P, T]) -> Callable[P, T]:
        parameters = inspect.signature(function).parameters
        kinds = {name: one.annotation for name, one in parameters.items() if one.kind is not one.VAR_KEYWORD}

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            given = [*zip(kinds, args, strict=False), *kwargs.items()]
            _check({name: value for name, value in given if name not in apart}, kinds)
            return function(*args, **kwargs)

        return call

    return decorated


def fields(value: Any) -> None:
    """Check the fields of a dataclass.

    Raises:
        InputError: One of them is of another type than it says.
    """
    parameters = inspect.signature(type(value)).parameters
    kinds = {name: one.annotation for name, one in parameters.items()}
    _check({name: getattr(value, name) for name in kinds}, kinds)


def keywords(given: Mapping[str, Any], *takers: Callable[..., object]) -> None:
    """Check keyword arguments that a function hands on to others.

    Args:
        given: They.
        takers: The others, functions or classes.

    Raises:
        InputError: None of them takes one, or it is of another type.
    """
    kinds = {name: one.annotation for taker in takers for name, one in inspect.signature(taker).parameters.items()}
    if strange := next((name for name in given if name not in kinds), None):
        close = get_close_matches(strange, kinds, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "its help says which there are"
        raise InputError(f"there is no argument '{strange}'", where=strange, hint=hint)
    _check(given, kinds)


def _check(given: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in kinds and not _fits(value, kinds[name]):
            told = repr(value)
            told = told if len(told) <= _LONGEST and "\n" not in told else f"a {type(value).__name__}"
            raise InputError(f"{told} is no {name}", where=name, hint=f"give {_told(kinds[name])}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is what an annotation says, as far as can be told."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inside)
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind in (None, Path):
        return isinstance(value, NoneType if kind is None else os.PathLike)
    known = origin or kind
    if not isinstance(known, type) or known in _ANYTHING or getattr(known, "_is_protocol", False):
        return True
    if not isinstance(value, Sequence if known is tuple else known):
        return False
    return not inside or _fit(value, known, inside)


def _fit(values: Any, known: type, inside: tuple[Any, ...]) -> bool:
    """Whether what a container holds is what the annotation says."""
    if issubclass(known, Mapping):
        return all(_fits(key, inside[0]) and _fits(value, inside[1]) for key, value in values.items())
    if not issubclass(known, Sequence):
        return True
    if isinstance(values, str | bytes):  # its letters are no entries
        return False
    several = known is not tuple or Ellipsis in inside
    kinds: Iterable[Any] = inside[:1] * len(values) if several else inside
    return len(values) == len(list(kinds)) and all(map(_fits, values, kinds))


def _told(kind: Any) -> str:
    """An annotation as one writes it, choices without more words."""
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(map(_told, get_args(kind)))
    if get_origin(kind) is Literal:
        return " | ".join(map(repr, get_args(kind)))
    text = "None" if kind is NoneType else kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    return re.sub(r"\b(\w+\.)+(?=\w)", "", text)


def number(value: Any, least: float, where: str, *, whole: bool = True, most: float = math.inf) -> None:
    """Refuse what is no number from some least one on, up to some most one.

    Raises:
        InputError: It is none.
    """
    kind = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not (kind and least <= value <= most):  # so written, a NaN is refused
        what = "whole number" if whole else "number"
        until = "on" if math.isinf(most) else f"to {most:,}"
        raise InputError(f"{value!r} is no {what} from {least:g} {until}", where=where, hint="give one")
