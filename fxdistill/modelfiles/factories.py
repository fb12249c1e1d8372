"""Factories: ``module:function`` names that build a model (or a data set), and who may be called.

Registered models (:mod:`fxdistill.modelfiles.registered`) are called unasked, and only build. Everything else is the
code of somebody whom the user has to trust by name: ``--allow-factory my.module``.
"""

import functools
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from fxdistill.errors import DataError, InputError, ModelError
from fxdistill.modelfiles import registered
from fxdistill.modelfiles.registered import EXAMPLE, below
from fxdistill.modelfiles.source import module_and_function


def build(
    factory: str, kwargs: dict[str, Any], *, allow: Sequence[str] = (), seed: int = 0, most: int | None = None
) -> nn.Module:
    """Call a model factory under a seed; the global random state stays as it was.

    Args:
        factory: ``module:function``, of a registered model or of a module that is allowed.
        kwargs: Its keyword arguments.
        allow: Modules and packages of the user's own whose factories may be called.
        seed: Seed of the weights.
        most: Bytes of weights that it may have; None for what the machine has.

    Raises:
        ModelError: The factory may not be called, is not there, does not take these arguments, or builds too much.
    """
    module_name, name = module_and_function(factory)
    found = registered.find(module_name, name)
    if found is None and registered.claims(module_name) and not _allowed(module_name, allow):
        raise registered.unknown(module_name, name)
    function = found or resolve(factory, allow=allow)
    arguments = dict(kwargs)
    if found is not None or registered.holds(function):  # gathered by a module of the user's own
        arguments = registered.arguments(function, kwargs, where=factory)
    try:
        with torch.random.fork_rng(devices=[]), _at_most(_machine() if most is None else most, factory):
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
            hint=f"name a function that builds a model, such as {EXAMPLE}",
        )
    return module


@contextmanager
def _at_most(most: int, factory: str) -> Iterator[None]:
    """Stop what is built as it gets more weights than it may have, before they are drawn.

    Raises:
        ModelError: It does.
    """
    taken = 0

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal taken
        if parameter is None or is_lazy(parameter):
            return
        taken += parameter.numel() * parameter.element_size()
        if taken > most:
            raise ModelError(
                f"the factory builds more than {most / 1e9:,.1f} GB of weights", where=factory,
                hint="check its arguments, such as widths and depths",
            )  # fmt: skip

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _machine() -> int:
    """Bytes of the machine's memory; a bound that bounds nothing where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return sys.maxsize


def resolve(
    factory: str, *, allow: Sequence[str] = (), error: type[ModelError | DataError] = ModelError
) -> Callable[..., Any]:
    """The function of the user's own that a factory's name stands for; its module is imported only if it may be.

    What a module merely imports from elsewhere is not its own: it needs the permission of where it is defined, unless
    it is the builder of a registered model.

    Args:
        factory: ``module:function``.
        allow: Modules and packages whose factories may be called.
        error: What to raise.

    Raises:
        ModelError: The name is malformed, not allowed, or there is no such function (``error``, if given).
    """
    module_name, name = module_and_function(factory, error=error)
    if not _allowed(module_name, allow):
        known = "registered models of torchvision, timm and fxdistill.models are; " if error is ModelError else ""
        raise error(
            f"'{factory}' is not called unasked, because that would run the code of '{module_name}'",
            where=factory,
            hint=f"{known}if you trust that module, add --allow-factory {module_name}",
        )
    module = _import(module_name, factory, error=error)
    function = getattr(module, name, None)
    if not callable(function):
        public = [entry for entry, value in vars(module).items() if not entry.startswith("_") and callable(value)]
        raise error(
            f"the module '{module_name}' has no function '{name}'",
            where=factory,
            hint=registered.nearest(name, public, f"see what '{module_name}' offers"),
        )
    inner = _innermost(function)
    home = str(getattr(inner, "__module__", None) or type(inner).__module__)
    own = module_name.partition(".")[0]  # a package that is trusted may gather what it defines
    if not (below(home, own) or _allowed(home, allow) or registered.holds(inner)):
        raise error(
            f"'{module_name}' only imports '{name}' from '{home}', whose code is not called unasked",
            where=factory,
            hint=f"name what '{module_name}' itself defines; if you trust that module, add --allow-factory {home}",
        )
    return function  # type: ignore[no-any-return]


def _allowed(module: str, allow: Sequence[str]) -> bool:
    return any(below(module, entry.partition(":")[0]) for entry in allow)


def _innermost(function: Any) -> Any:
    """What a partial calls in the end."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


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


def _import(module: str, factory: str, *, error: type[ModelError | DataError]) -> Any:
    try:
        with working_directory_importable():
            importlib.invalidate_caches()
            return importlib.import_module(module)
    except ModuleNotFoundError as cause:
        raise error(
            f"there is no module '{cause.name or module}'", where=factory,
            hint="check the spelling, or run where the module lies",
        ) from cause  # fmt: skip
    except Exception as cause:
        raise error(
            f"the module '{module}' cannot be imported: {type(cause).__name__}: {cause}",
            where=factory,
            hint="correct the module so that `python -c 'import ...'` works",
        ) from cause


def _signature(function: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(...)"
