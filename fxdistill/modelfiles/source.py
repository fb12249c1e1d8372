"""Where a model is to come from: a file, or a factory with its arguments, as the command line writes them."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxdistill import checking, files
from fxdistill.errors import InputError, ModelError
from fxdistill.modelfiles import registered
from fxdistill.modelfiles.registered import EXAMPLE

_FACTORY = re.compile(r"(?P<name>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*)(\?(?P<query>.*))?", re.DOTALL)


@dataclass(frozen=True)
class ModelSource:
    """Where a model is to come from.

    Attributes:
        path: The file; None for a factory alone.
        factory: ``module:function``; None where the file says or needs none.
        kwargs: Keyword arguments of the factory.
        trust_code: Whether a file that runs code when it is loaded may be loaded.
        allow: Modules and packages of the user's own whose factories may be called.
        option: The command line's option that names the factory, for hints.
        entry: The entry of a checkpoint that holds the weights; None to look for it.
    """

    path: Path | None
    factory: str | None
    kwargs: dict[str, Any] = field(default_factory=dict)
    trust_code: bool = False
    allow: tuple[str, ...] = ()
    option: str = ""
    entry: str | None = None


@checking.checked()
def parse_source(
    text: str | Path, *, factory: str | None = None, args: Sequence[str] = (), trust_code: bool = False,
    allow: Sequence[str] = (), option: str = "", entry: str | None = None,
) -> ModelSource:  # fmt: skip
    """Read a model argument of the command line.

    Args:
        text: A file, or a factory with arguments, ``torchvision.models:resnet18?num_classes=10&width=64``. It
            is a factory if it has that form and no file has that name.
        factory: The factory of a file that holds weights only; may carry arguments as well.
        args: Further arguments, ``key=value``. A value is JSON (a number, list, true …), else it is a string.
        trust_code: As in :class:`ModelSource`.
        allow: As in :class:`ModelSource`.
        option: As in :class:`ModelSource`.
        entry: As in :class:`ModelSource`.

    Raises:
        ModelError: A factory or an argument is malformed, is no finite number, or is given twice.
    """
    path: Path | None = Path(text)
    text = str(text)
    if _FACTORY.fullmatch(text) and not files.is_there(text):
        if factory is not None:
            raise ModelError(
                "two factories are given for one model", where=f"{text} and {factory}", hint="leave out one of them"
            )
        path, factory = None, text
    name: str | None = None
    kwargs: dict[str, Any] = {}
    if factory is not None:
        name, kwargs = _split(factory)
    for key, value in map(_argument, args):
        if key in kwargs:
            raise ModelError(f"the factory argument '{key}' is given twice", where=f"{factory}, {key}")
        kwargs[key] = value
    if entry is not None and path is None:
        raise ModelError(
            f"there is no file with an entry '{entry}'", where=text, hint="give a checkpoint, or leave the entry out"
        )
    return ModelSource(
        path=path, factory=name, kwargs=kwargs, trust_code=trust_code, allow=tuple(allow), option=option,
        entry=entry,
    )  # fmt: skip


def check_there(text: str) -> None:
    """Refuse a model argument that is no factory and names nothing that is there; nothing is imported to say so.

    Raises:
        ModelError: It is so.
    """
    if not _FACTORY.fullmatch(text) and not files.is_there(text):
        raise missing(text)


def missing(where: str) -> ModelError:
    """What to say of a file that is not there: it may be the bare name of a registered model."""
    named = [f"{module}:{where}" for module in ("torchvision.models", "timm") if _registers(module, where)]
    hint = f"for the model of that name give {' or '.join(named)}" if named else (
        "check the path; a factory is written MODULE:FUNCTION, such as torchvision.models:resnet18"
    )  # fmt: skip
    return ModelError("there is no such file", where=where, hint=hint)


def _registers(module: str, name: str) -> bool:
    if not name.isidentifier():
        return False
    try:
        return registered.find(module, name) is not None
    except ModelError:  # the library is not there
        return False


def module_and_function(factory: str, *, error: type[InputError] = ModelError) -> tuple[str, str]:
    """The two parts of a plain factory.

    Raises:
        ModelError: It is none, or carries arguments (``error``, if given).
    """
    match = _FACTORY.fullmatch(factory)
    if match is None or match["query"] is not None:
        raise error(f"'{factory}' is not a factory", where=factory, hint=f"write MODULE:FUNCTION, such as {EXAMPLE}")
    module, _, name = factory.partition(":")
    return module, name


def _split(text: str) -> tuple[str, dict[str, Any]]:
    match = _FACTORY.fullmatch(text)
    if match is None:
        raise ModelError(f"'{text}' is not a factory", where=text, hint=f"write MODULE:FUNCTION, such as {EXAMPLE}")
    kwargs: dict[str, Any] = {}
    for part in (match["query"] or "").split("&") if match["query"] else []:
        key, value = _argument(part)
        if key in kwargs:
            raise ModelError(f"the factory argument '{key}' is given twice", where=text)
        kwargs[key] = value
    return match["name"], kwargs


def _argument(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ModelError(
            f"'{text}' is not a factory argument", where=text, hint="write KEY=VALUE, such as num_classes=10"
        )
    try:
        return key, json.loads(value, parse_constant=_number, parse_float=_number)
    except (ValueError, RecursionError):  # also a whole number of thousands of digits
        return key, value


def _number(text: str) -> float:
    found = float(text)
    if not math.isfinite(found):
        raise ModelError(f"{text} is not a JSON number", where="a factory's argument", hint="give a finite number")
    return found
