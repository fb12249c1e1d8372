"""What is called unasked: registered models by their names, and nothing else of the packages that hold them.

    torchvision.models[.MODULE]:NAME     NAME is in ``torchvision.models.list_models()``, and of that module
    timm:NAME, timm.models[.MODULE]:NAME  ``timm.is_model(NAME)``, and of that module
    timm[.models]:create_model           with a ``model_name`` of which the same holds
    transformers:CLASS                   an image classifier or a backbone; the arguments are those of its configuration
    fxdistill.models:NAME                ``convnet``, ``preact_resnet18``, ``resnet``, ``vgg``

A factory's name comes out of a file or a plan, so calling it is calling what a stranger wrote down; beside its models
timm also holds functions that unpickle, fetch, import and write what they are told. Whatever is not a registered model
has to be allowed by name.

Arguments are held to what a model's architecture is told in: numbers, plain words (``gelu``, ``avg``), and lists and
mappings of these. So none of them can be a path, an address or an import path. Those that would fetch weights are None
or False, or refused.
"""

import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fxdistill.errors import ModelError
from fxdistill.registry import suggestion

EXAMPLE = "torchvision.models:resnet18?num_classes=10"
"""A factory with an argument, for hints."""
_OURS = ("convnet", "preact_resnet18", "resnet", "vgg")
_TRANSFORMERS = "transformers"
_DEEPEST, _FEW = 8, 12
_WORD = re.compile(r"[\w-]{0,64}")
_TIMM_MODEL = re.compile(r"\w+(\.[\w.-]+)?")
_LOADS = re.compile(
    r"pretrained\w*|weights(_\w+)?|checkpoint(_\w+)?|cache_dir|pruned|custom_load|state_dict|source|file|url|hf_hub_\w+"
    r"|use_pretrained\w*|use_timm\w*|_?name_or_path|auto_map|trust_remote_code|\w*attn_implementation\w*"
)
"""Arguments of the builders, and entries of their configurations, that say where weights come from."""


def claims(module: str) -> bool:
    """Whether the factories of a module are registered models, going by its name; nothing is imported."""
    return (
        module in {"fxdistill.models", "timm", _TRANSFORMERS}
        or below(module, "torchvision.models")
        or below(module, "timm.models")
    )


def below(module: str, package: str) -> bool:
    """Whether a module is a package or lies in it."""
    return module == package or module.startswith(package + ".")


def find(module: str, name: str) -> Callable[..., Any] | None:
    """The registered builder of a name; None where there is none in that module.

    Raises:
        ModelError: The library that the module belongs to is not installed.
    """
    if module == "fxdistill.models":
        return getattr(_library(module), name) if name in _OURS else None
    if below(module, "torchvision.models"):
        return _of_torchvision(module, name)
    if module == _TRANSFORMERS:
        return _transformers_builders().get(name)
    return _of_timm(module, name) if claims(module) else None


def holds(function: Callable[..., Any]) -> bool:
    """Whether a function, wherever it was found, is the builder of a registered model."""
    module, name = getattr(function, "__module__", None), getattr(function, "__name__", None)
    return isinstance(module, str) and isinstance(name, str) and find(module, name) is function


def unknown(module: str, name: str) -> ModelError:
    """Why a factory in such a module is not called."""
    where, otherwise = f"{module}:{name}", f"name the function itself that builds a model, such as {EXAMPLE}"
    known = list(_names(module))
    if not known:
        return ModelError(f"there is no module '{module}' that registers models", where=where, hint=otherwise)
    hint = suggestion(name, known, "known are") if len(known) < _FEW else nearest(name, known, otherwise)
    return ModelError(
        f"'{module}' registers no model '{name}', and nothing else of it is called", where=where, hint=hint
    )


def nearest(wrong: str, known: Iterable[str], otherwise: str) -> str:
    """A hint for a wrong name out of many: the names that are near it, or something else to do."""
    near = difflib.get_close_matches(wrong, known, n=5, cutoff=0.5)
    return suggestion(wrong, near, "near it are") if near else otherwise


def arguments(builder: Callable[..., Any], kwargs: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The arguments to call a registered builder with, so that it only builds.

    Args:
        builder: What :func:`find` found.
        kwargs: What was asked for.
        where: The factory, for the message.

    Raises:
        ModelError: An argument would have it read or fetch something, or could.
    """
    given: dict[str, Any] = {}
    for key, value in kwargs.items():
        if key == "model_name":
            _check_model_name(value, where)
        else:
            _check(key, value, where)
        if not _LOADS.fullmatch(key):
            given[key] = value
    accepted = inspect.signature(builder).parameters
    nothing = {"weights": None, "weights_backbone": None, "pretrained": False}  # the backbones' default downloads
    given |= {key: value for key, value in nothing.items() if key in accepted}
    if builder.__module__.startswith("torchvision.") and builder.__name__ in {"googlenet", "inception_v3"}:
        given.setdefault("init_weights", True)  # what the default is today, without the warning about it
    return given


def _of_torchvision(module: str, name: str) -> Callable[..., Any] | None:
    builders = _torchvision_builders()
    # registered as 'quantized_resnet18', defined and known as torchvision.models.quantization.resnet18
    named = [builders[name]] if name in builders else []
    named += [builder for builder in builders.values() if builder.__name__ == name]
    return next((builder for builder in named if below(builder.__module__, module)), None)


def _torchvision_builders() -> dict[str, Callable[..., Any]]:
    library = _library("torchvision.models")
    return {name: library.get_model_builder(name) for name in library.list_models()}


def _of_timm(module: str, name: str) -> Callable[..., Any] | None:
    library = _library("timm.models")
    create: Callable[..., Any] = library.create_model
    if name == create.__name__ and module in {"timm", "timm.models", create.__module__}:
        return create
    if not library.is_model(name):
        return None
    family = _family(module)
    if family and not library.is_model_in_modules(name, {family}):
        return None
    builder: Callable[..., Any] = library.model_entrypoint(name)
    return builder if below(builder.__module__, "timm.models") else None  # others register theirs there as well


@functools.cache
def _transformers_builders() -> dict[str, Callable[..., Any]]:
    """For each image classifier and backbone what builds it, on random weights, from its configuration's arguments.

    Left out are those that wrap models of other libraries, by names that would have them fetched.
    """
    library, auto = _library(_TRANSFORMERS), _library(f"{_TRANSFORMERS}.models.auto.modeling_auto")
    mappings = (auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, auto.MODEL_FOR_BACKBONE_MAPPING_NAMES)
    entries = [entry for mapping in mappings for entry in mapping.values()]
    names = {name for entry in entries for name in ((entry,) if isinstance(entry, str) else entry)}

    def builder(name: str) -> Callable[..., Any]:
        def build(**configuration: Any) -> Any:
            kind = getattr(library, name)
            return kind(kind.config_class(**configuration))

        build.__module__, build.__name__, build.__qualname__ = _TRANSFORMERS, name, name
        return build

    return {name: builder(name) for name in sorted(names) if not name.startswith("Timm") and hasattr(library, name)}


def _family(module: str) -> str:
    """What timm calls the module of a model: ``resnet`` of ``timm.models.resnet``; '' for all of timm."""
    return module.removeprefix("timm").removeprefix(".models").removeprefix(".")


def _names(module: str) -> Iterable[str]:
    if module == "fxdistill.models":
        return _OURS
    if below(module, "torchvision.models"):
        return (name for name, builder in _torchvision_builders().items() if below(builder.__module__, module))
    if module == _TRANSFORMERS:
        return _transformers_builders()
    library = _library("timm.models")
    family = _family(module)
    known: list[str] = library.list_models() if not family else []
    if family in library.list_modules():
        known = library.list_models(module=family)
    return known


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as cause:
        absent = cause.name or name
        raise ModelError(f"there is no module '{absent}'", where=name, hint=f"`pip install {absent}`") from cause
    except Exception as cause:
        raise ModelError(
            f"'{name}' cannot be imported: {type(cause).__name__}: {cause}", where=name,
            hint="it has to be the version that belongs to the installed torch",
        ) from cause  # fmt: skip


def _check_model_name(value: object, where: str) -> None:
    """The name that timm's ``create_model`` is given: ``resnet18``, or with a tag ``resnet18.a1_in1k``."""
    if not isinstance(value, str) or ":" in value or "/" in value or "\\" in value:
        raise _refused("model_name", where, "name a model of timm, such as model_name=resnet18")
    name = value.partition(".")[0]
    if not _TIMM_MODEL.fullmatch(value) or find("timm", name) in (None, find("timm", "create_model")):
        hint = nearest(name, _names("timm"), "see timm.list_models()")
        raise ModelError(f"timm has no model '{value}'", where=f"{where}, model_name", hint=hint)


def _check(key: str, value: object, where: str, depth: int = 0) -> None:
    if depth > _DEEPEST:
        raise ModelError(
            f"the argument '{key}' is nested in more than {_DEEPEST} others", where=where, hint="give plain values"
        )
    if _LOADS.fullmatch(key):
        if value is not None and value is not False:
            hint = "save the weights to a file yourself and give that file together with the factory"
            raise _refused(key, where, hint)
    elif isinstance(value, Mapping):
        for inner, content in value.items():
            _check(str(inner), content, where, depth + 1)
    elif isinstance(value, list | tuple):
        for content in value:
            _check(key, content, where, depth + 1)
    elif isinstance(value, str) and not _WORD.fullmatch(value):
        raise ModelError(
            f"the argument '{key}' is {value!r}, which could name a file, an address or code",
            where=where, hint="registered models take numbers and plain words, such as act_layer=gelu",
        )  # fmt: skip
    elif not isinstance(value, str | int | float | None):
        raise ModelError(
            f"the argument '{key}' is of the type {type(value).__name__}", where=where,
            hint="give registered models numbers, plain words, and lists and mappings of them",
        )  # fmt: skip


def _refused(key: str, where: str, hint: str) -> ModelError:
    return ModelError(f"'{key}' may load weights from elsewhere; fxdistill downloads nothing", where=where, hint=hint)
