"""Factories: ``module:function`` names that build a model (or a data set), and who may be called.

A factory's name comes out of a file or a plan, so calling it is calling what a stranger wrote down. Only
factories from torchvision, timm and fxdistill itself are called; the user's own modules must be allowed by
name. Nothing is ever downloaded: arguments that would fetch weights are None, or refused if given.
"""

import difflib
import functools
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxdistill.errors import DataError, InputError, ModelError

TRUSTED = ("fxdistill.models", "fxdistill.compiler.shrink_model", "torchvision.models", "timm")
_FACTORY = re.compile(r"(?P<name>[A-Za-z_][\w.]*:[A-Za-z_]\w*)(\?(?P<query>.*))?", re.DOTALL)
_WEIGHTS = ("weights", "weights_backbone", "pretrained", "pretrained_backbone", "checkpoint_path")
_HINT = "torchvision.models:resnet18?num_classes=10"


@dataclass(frozen=True)
class ModelSource:
    """Where a model is to come from.

    Attributes:
        path: The file; None for a factory alone.
        factory: ``module:function``; None where the file says or needs none.
        kwargs: Keyword arguments of the factory.
        trust_pickle: Whether a file that runs code when it is loaded may be loaded.
        allow: Modules and packages beside the trusted ones whose factories may be called.
        option: The command line's option that names the factory, for hints.
    """

    path: Path | None
    factory: str | None
    kwargs: dict[str, Any] = field(default_factory=dict)
    trust_pickle: bool = False
    allow: tuple[str, ...] = ()
    option: str = ""


def parse_source(
    text: str,
    *,
    factory: str | None = None,
    args: Sequence[str] = (),
    trust_pickle: bool = False,
    allow: Sequence[str] = (),
    option: str = "",
) -> ModelSource:
    """Read a model argument of the command line.

    Args:
        text: A file, or a factory with arguments, ``torchvision.models:resnet18?num_classes=10&width=64``. It
            is a factory if it has that form and no file has that name.
        factory: The factory of a file that holds weights only; may carry arguments as well.
        args: Further arguments, ``key=value``. A value is JSON (a number, list, true …), else it is a string.
        trust_pickle: As in :class:`ModelSource`.
        allow: As in :class:`ModelSource`.
        option: As in :class:`ModelSource`.

    Raises:
        ModelError: A factory or an argument is malformed, or given twice.
    """
    path: Path | None = Path(text)
    if _FACTORY.fullmatch(text) and not Path(text).exists():
        if factory is not None:
            raise ModelError(
                "two factories are given for one model",
                where=f"{text} and {factory}",
                hint="leave out one of them",
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
    return ModelSource(
        path=path, factory=name, kwargs=kwargs, trust_pickle=trust_pickle, allow=tuple(allow), option=option
    )


def build(factory: str, kwargs: dict[str, Any], *, allow: Sequence[str] = (), seed: int = 0) -> nn.Module:
    """Call a model factory under a seed; the global random state stays as it was.

    Raises:
        ModelError: The factory may not be called, is not there, or does not take these arguments.
    """
    function = resolve(factory, allow=allow)
    arguments = _without_downloads(factory, function, kwargs)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = function(**arguments)
    except InputError:
        raise
    except Exception as cause:
        raise ModelError(
            f"the factory failed: {type(cause).__name__}: {cause}",
            where=f"{factory}, arguments {json.dumps(kwargs, default=repr)}",
            hint=f"it is called as {factory.partition(':')[2]}{_signature(function)}",
        ) from cause
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"the factory returned {type(module).__name__}, not a torch.nn.Module",
            where=factory,
            hint=f"name a function that builds a model, such as {_HINT}",
        )
    return module


def resolve(
    factory: str,
    *,
    allow: Sequence[str] = (),
    trusted: Sequence[str] = TRUSTED,
    error: type[ModelError | DataError] = ModelError,
) -> Callable[..., Any]:
    """The function that a factory's name stands for; its module is imported only if it may be.

    What a module merely imports from elsewhere is not its own: it needs the permission of where it is defined.

    Raises:
        ModelError: The name is malformed, not allowed, or there is no such function (``error``, if given).
    """
    match = _FACTORY.fullmatch(factory)
    if match is None or match["query"] is not None:
        raise error(f"'{factory}' is not a factory", where=factory, hint=f"write MODULE:FUNCTION, such as {_HINT}")
    module_name, _, name = factory.partition(":")
    allowed = [entry.partition(":")[0] for entry in allow]
    if not any(_below(module_name, package) for package in (*trusted, *allowed)):
        known = f"factories of {', '.join(trusted)} are; " if trusted else ""
        raise error(
            f"'{factory}' is not called unasked, because that would run the code of '{module_name}'",
            where=factory,
            hint=f"{known}if you trust that module, add --allow-factory {module_name}",
        )
    user = not any(_below(module_name, package) for package in trusted)
    module = _import(module_name, factory, user=user, error=error)
    function = getattr(module, name, None)
    if not callable(function):
        near = difflib.get_close_matches(name, [n for n in vars(module) if not n.startswith("_")], n=3)
        raise error(
            f"the module '{module_name}' has no function '{name}'",
            where=factory,
            hint=f"did you mean {', '.join(near)}?" if near else f"see what '{module_name}' offers",
        )
    home = _home(function)
    own = (module_name.partition(".")[0],) if user else ()  # a package that is trusted may gather what it defines
    if not any(_below(home, package) for package in (*own, *TRUSTED, *allowed)):
        raise error(
            f"'{module_name}' only imports '{name}' from '{home}', whose code is not called unasked",
            where=factory,
            hint=f"name what '{module_name}' itself defines; if you trust that module, add --allow-factory {home}",
        )
    return function  # type: ignore[no-any-return]


def _home(function: Any) -> str:
    """The module that a callable is defined in: what a partial calls, the class of a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__module__", None) or type(function).__module__)


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """Let modules beside the user be imported, as ``python -m`` would, and only for as long as it takes."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _import(module: str, factory: str, *, user: bool, error: type[ModelError | DataError]) -> Any:
    try:
        if not user:
            return importlib.import_module(module)
        with working_directory_importable():
            importlib.invalidate_caches()
            return importlib.import_module(module)
    except ModuleNotFoundError as cause:
        absent = cause.name or module
        what = f"there is no module '{absent}'"
        hint = "check the spelling, or run where the module lies" if user else f"check it, or `pip install {absent}`"
        raise error(what, where=factory, hint=hint) from cause
    except Exception as cause:
        raise error(
            f"the module '{module}' cannot be imported: {type(cause).__name__}: {cause}",
            where=factory,
            hint="correct the module so that `python -c 'import ...'` works",
        ) from cause


def _without_downloads(factory: str, function: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    module, _, name = factory.partition(":")
    if not any(_below(module, package) for package in TRUSTED):
        return dict(kwargs)
    remote = str(kwargs.get("model_name", "")).partition(":")[1]
    given = [key for key in _WEIGHTS if kwargs.get(key)]
    if given or remote or name == "get_model":
        what = given[0] if given else "model_name" if remote else "get_model"
        raise ModelError(
            f"'{what}' may load weights from elsewhere; fxdistill downloads nothing",
            where=factory,
            hint="save the weights to a file yourself and give that file together with the factory"
            if what != "get_model" else "name the function itself, such as torchvision.models:resnet18",
        )  # fmt: skip
    accepted = inspect.signature(function).parameters
    arguments = {key: None for key in ("weights", "weights_backbone") if key in accepted} | kwargs
    if module.startswith("torchvision") and name in ("googlenet", "inception_v3"):
        arguments.setdefault("init_weights", True)  # what the default is today, without the warning about it
    return arguments


def _split(text: str) -> tuple[str, dict[str, Any]]:
    match = _FACTORY.fullmatch(text)
    if match is None:
        raise ModelError(f"'{text}' is not a factory", where=text, hint=f"write MODULE:FUNCTION, such as {_HINT}")
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
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _below(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def _signature(function: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(...)"
