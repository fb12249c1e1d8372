"""What Python hands to the public functions, where the command line's parser would have refused it."""

import os
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from fxdistill.errors import InputError


def path(value: object, where: str) -> Path:
    """A file's or a folder's place.

    Args:
        value: What was given.
        where: The argument.

    Raises:
        InputError: It is none.
    """
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"a {type(value).__name__} is no file", where=where, hint="give the name of a file")
    return Path(value)


def spec(value: object) -> str:
    """A data spec, which may be given as a path.

    Raises:
        InputError: It is none.
    """
    if not isinstance(value, str | os.PathLike):
        raise InputError(
            f"a {type(value).__name__} is no data spec", where="data", hint="give one, e.g. 'imagefolder:photos'"
        )
    return str(value)


def one_of(value: object, known: Sequence[object], where: str) -> None:
    """Refuse what is none of some values.

    Raises:
        InputError: It is none of them.
    """
    if not any(value is one or (isinstance(one, str) and value == one) for one in known):
        raise InputError(f"{value!r} is no {where}", where=where, hint=f"give {', '.join(map(repr, known))}")


def number(value: Any, least: float, where: str, *, whole: bool = True) -> None:
    """Refuse what is no number from some least one on.

    Raises:
        InputError: It is none.
    """
    kind = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not (kind and value >= least):  # so written, a NaN is refused
        what = "whole number" if whole else "number"
        raise InputError(f"{value!r} is no {what} from {least:g} on", where=where, hint="give one")
