"""What the command line says of how large a model may be, or how slow: shares, numbers with a unit, parts and steps."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fxdistill.errors import InputError

_FACTORS = {"K": 10**3, "M": 10**6, "G": 10**9}


def number(text: str, option: str, form: str) -> float:
    """A number, from ``0.5``, ``52M``, ``1.5G`` or digits alone; with a unit a whole one.

    Raises:
        InputError: It is no such text.
    """
    factor = _FACTORS.get(text[-1:].upper(), 1)
    try:
        found = float(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"'{text}' is no number", where=option, hint=f"write {option} {form}")
    return float(round(found)) if factor > 1 else found


def budget(text: str | None, option: str) -> float | None:
    """What a model may cost, from a share of its own or a number; None where nothing is said.

    Raises:
        InputError: It is no such text.
    """
    if text is None:
        return None
    found = number(text, option, "0.5 or 900M")
    if found <= 0 or (found >= 1 and found != int(found)):
        raise InputError(
            f"'{text}' is no budget", where=option,
            hint="give a share of the model's own above 0 and below 1, as 0.5, or a whole number, as 900M",
        )  # fmt: skip
    return found


_SECONDS = {"ms": 1.0, "us": 1e-3, "s": 1e3}


def latency(text: str | None, on: str | None, table: Path | None = None) -> dict[str, Any]:
    """What a model may take, from a share of its own time or ``3ms``, as arguments; none where nothing is said.

    Raises:
        InputError: It is no such text, or something is said of a time that is not asked for.
    """
    if text is None:
        for option in (option for option, value in (("--on", on), ("--latency-table", table)) if value is not None):
            raise InputError("no latency is asked for", where=option, hint="add --latency 0.6, or leave it out")
        return {}
    unit = next((unit for unit in _SECONDS if text.lower().endswith(unit)), "")
    found = number(text[: len(text) - len(unit)], "--latency", "0.6 or 3ms") * _SECONDS.get(unit, 1.0)
    return {"latency": f"{found:.6g}ms" if unit else text, "on": on or "cpu"}


def scopes(texts: Sequence[str]) -> dict[str, float]:
    """Parts of a model with the share that they keep, from ``PATH=SHARE`` each.

    Raises:
        InputError: One is no such text, or two are about the same part.
    """
    found: dict[str, float] = {}
    for text in texts:
        path, equals, share = text.rpartition("=")
        if not (path and equals):
            raise InputError(f"'{text}' is not a part with its share", where="--scope", hint="write it as layer4=0.3")
        if path in found:
            raise InputError(f"two shares are given for '{path}'", where="--scope", hint="give one of them")
        found[path] = number(share, "--scope", "layer4=0.3")
    return found


def between(steps: int, of_steps: Mapping[str, object]) -> None:
    """Check that options about steps come with steps.

    Args:
        steps: How many there are.
        of_steps: What is said of the training between them, by option; None where nothing is.

    Raises:
        InputError: There is one alone.
    """
    for option in (name for name, value in of_steps.items() if value is not None and steps == 1):
        raise InputError("with one step there is no training in between", where=f"--{option}", hint="add --steps 5")
