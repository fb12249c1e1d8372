"""Bundles: one file that holds a model's weights and says what builds it, without code and without paths of ours.

    {"format": "fxdistill-bundle", "version": 2, "kind": KIND, "factory": …, "kwargs": {…}, "recipe": {…},
     "input_shape": [N, C, H, W] or None, "preprocessing": {…} or None, "metadata": {…}, "state_dict": {…}}

    factory      factory(**kwargs) is the architecture; no recipe
    shrunken     the recipe, followed on factory(**kwargs), gives the architecture

Version 1 had no kinds: of a shrunken model it named a function of ours that followed the recipe in its arguments.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError
from torch import nn

from fxdistill import files
from fxdistill.compiler.shrink_model import ShrunkResult, replay
from fxdistill.errors import InputError, ModelError, PassError
from fxdistill.modelfiles import kinds, pt2, recipe, statedict
from fxdistill.modelfiles.factories import build
from fxdistill.modelfiles.recipe import Recipe
from fxdistill.modelfiles.source import parse_source
from fxdistill.preprocessing import Preprocessing, Source
from fxdistill.registry import suggestion

Kind = Literal["factory", "shrunken"]

FORMAT, VERSION = "fxdistill-bundle", 2
PREPROCESSING = "preprocessing"
RANDOM_WEIGHTS = "random_weights"
"""The metadata that says so, of a file made from random weights."""
_REPLAYED_IN_VERSION_1 = ("fxdistill.shrinking:rebuild", "fxdistill.compiler.shrink_model:rebuild")


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds, checked.

    Attributes:
        factory: ``module:function`` that builds the model, or the one that it was shrunken from.
        kwargs: Its keyword arguments.
        recipe: What makes the model out of that; None where the factory's is the model itself.
        input_shape: Shape of one input batch, where known.
        preprocessing: What the model does to an image before it looks at it, where known.
        metadata: What was saved with the model.
        state: The weights.
        named: Factory and arguments as the file has them: not those above in an old file of a shrunken model.
    """

    factory: str
    kwargs: dict[str, Any]
    recipe: Recipe | None
    input_shape: tuple[int, ...] | None
    preprocessing: Preprocessing | None
    metadata: dict[str, Any]
    state: Mapping[str, Any]
    named: tuple[str, dict[str, Any]]


def save(
    model: nn.Module, path: str | Path, *, factory: str, kwargs: dict[str, Any] | None = None,
    input_shape: Sequence[int] | None = None, preprocessing: Preprocessing | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a bundle: the same model and arguments give the same bytes.

    Args:
        model: The model whose state dict is kept.
        path: The file to write, whole or not at all.
        factory: ``module:function`` that builds the architecture.
        kwargs: Its keyword arguments, JSON values.
        input_shape: Shape of one input batch.
        preprocessing: What the model does to an image before it looks at it.
        metadata: Anything else that is JSON.

    Raises:
        ModelError: The factory is no factory, or the arguments or metadata are not JSON.
        PlanError: The file cannot be written there.
        StorageError: The disk is full.
    """
    _write(
        model, Path(path), kind="factory", factory=factory, kwargs=kwargs or {}, made=None, input_shape=input_shape,
        preprocessing=preprocessing, metadata=metadata or {},
    )  # fmt: skip


def save_shrunken(
    result: ShrunkResult, path: str | Path, *, factory: str | None, kwargs: dict[str, Any] | None = None,
    before: Recipe | None = None, random_weights: bool = False, preprocessing: Preprocessing | None = None,
) -> None:  # fmt: skip
    """Write a shrunken model so that it can be given as a teacher or a student.

    Args:
        result: What came out of shrinking.
        path: The file to write, whole or not at all.
        factory: The original's factory, for a bundle; None for a ``torch.export`` program.
        kwargs: The original's keyword arguments.
        before: The original's recipe, where it was a shrunken model itself.
        random_weights: Whether the original's weights were random, which the file then says.
        preprocessing: What the model does to an image before it looks at it, where known.

    Raises:
        ModelError: The model has no factory and cannot be exported.
        PlanError: The file cannot be written there.
        StorageError: The disk is full.
    """
    metadata = {RANDOM_WEIGHTS: True} if random_weights else {}
    if factory is None:
        said = {PREPROCESSING: preprocessing.model_dump(mode="json")} if preprocessing is not None else {}
        pt2.save(result.module, Path(path), input_shape=result.input_shape, metadata=metadata | said)
        return
    made = Recipe(
        input_shape=list(result.input_shape), rung=result.rung, barriers=list(result.barriers), kept=result.kept,
        before=before,
    )  # fmt: skip
    _write(
        result.module, Path(path), kind="shrunken", factory=factory, kwargs=kwargs or {}, made=made,
        input_shape=result.input_shape, preprocessing=preprocessing, metadata=metadata,
    )  # fmt: skip


def _write(
    model: nn.Module, path: Path, *, kind: Kind, factory: str, kwargs: dict[str, Any], made: Recipe | None,
    input_shape: Sequence[int] | None, preprocessing: Preprocessing | None, metadata: dict[str, Any],
) -> None:  # fmt: skip
    if parse_source(factory).factory != factory:
        raise ModelError(f"'{factory}' is not a plain factory", where="factory", hint="write MODULE:FUNCTION")
    try:
        plain = _json({"kwargs": kwargs, "metadata": metadata, "input_shape": input_shape and list(input_shape)})
    except (TypeError, ValueError) as cause:
        raise ModelError(
            f"the bundle's arguments or metadata are not JSON: {cause}", where=str(path), hint="use plain values"
        ) from cause
    content = {"format": FORMAT, "version": VERSION, "kind": kind, "factory": factory, **plain}
    if preprocessing is not None:
        content[PREPROCESSING] = preprocessing.model_dump(mode="json")
    if made is not None:
        content["recipe"] = made.plain()
    files.write_bytes(path, kinds.to_bytes(content | {"state_dict": statedict.portable(model)}))


def is_bundle(content: object) -> bool:
    """Whether this is what a bundle's file holds."""
    return isinstance(content, Mapping) and content.get("format") == FORMAT


def read(content: Mapping[str, Any], *, where: str) -> Bundle:
    """What a bundle's file holds, checked.

    Raises:
        ModelError: It is of another version or kind, or a part is missing or wrong.
    """
    version = content.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ModelError(
            f"the bundle has version {version}; this fxdistill reads versions up to {VERSION}", where=where,
            hint="update fxdistill",
        )  # fmt: skip
    factory, shape = content.get("factory"), content.get("input_shape")
    state: Any = content.get("state_dict")
    kwargs, metadata = _mapping(content.get("kwargs")), _mapping(content.get("metadata"))
    right = {
        "factory": isinstance(factory, str), "kwargs": kwargs is not None, "metadata": metadata is not None,
        "state_dict": statedict.is_state_dict(state), "input_shape": _is_shape(shape),
    }  # fmt: skip
    if kwargs is None or metadata is None or not all(right.values()):
        raise ModelError(
            f"the bundle lacks a part, or has a wrong one: {', '.join(name for name in right if not right[name])}",
            where=where, hint="write it with fxdistill.save",
        )  # fmt: skip
    named = (str(factory), kwargs)
    seen = preprocessing_in(content, where=where)
    factory, kwargs, made = _origin(content, *named, where=where)
    return Bundle(factory, kwargs, made, tuple(shape) if shape else None, seen, metadata, state, named)


def _origin(
    content: Mapping[str, Any], factory: str, kwargs: dict[str, Any], *, where: str
) -> tuple[str, dict[str, Any], Recipe | None]:
    """The factory, its arguments and the recipe, by the bundle's kind."""
    if content["version"] == 1:
        return _origin_in_version_1(factory, kwargs, where=where)
    kind = content.get("kind")
    if kind not in get_args(Kind):
        raise ModelError(
            f"the bundle is of the kind '{kind}', which this fxdistill does not know", where=f"{where}, kind",
            hint=suggestion(str(kind), get_args(Kind), "known are"),
        )  # fmt: skip
    return factory, kwargs, recipe.read(content.get("recipe"), where=where) if kind == "shrunken" else None


def _origin_in_version_1(
    factory: str, kwargs: dict[str, Any], *, where: str
) -> tuple[str, dict[str, Any], Recipe | None]:
    """A model that was shrunk again names itself as its own factory, with the arguments before: unwound here."""
    layers: list[dict[str, Any]] = []
    while factory in _REPLAYED_IN_VERSION_1:
        inner, arguments = kwargs.get("factory"), kwargs.get("kwargs")
        if not isinstance(inner, str) or not isinstance(arguments, dict):
            raise ModelError(
                "the bundle of a shrunken model lacks its original", where=where, hint="shrink the model again"
            )
        layers.append({key: value for key, value in kwargs.items() if key not in {"factory", "kwargs"}})
        factory, kwargs = inner, arguments
    made: dict[str, Any] | None = None
    for layer in reversed(layers):
        made = layer if made is None else {**layer, "before": made}
    return factory, kwargs, recipe.read(made, where=where) if made is not None else None


def architecture(bundle: Bundle, *, allow: Sequence[str], where: str) -> nn.Module:
    """The model of a bundle, on fresh weights.

    Raises:
        ModelError: The factory may not be called, or the recipe is not one of its model.
    """
    module = build(bundle.factory, bundle.kwargs, allow=allow)
    if bundle.recipe is None:
        return module

    for step in bundle.recipe.steps():
        try:
            module = replay(
                module.eval(), input_shape=tuple(step.input_shape), rung=step.rung, barriers=step.barriers,
                kept=step.kept,
            )  # fmt: skip
        except (InputError, PassError) as cause:
            raise ModelError(
                f"the bundle's recipe is not one for '{bundle.factory}': {cause.what}",
                where=f"{where}{f', {cause.where}' if cause.where else ''}", hint="shrink the model again",
            ) from cause  # fmt: skip
    return module


def preprocessing_in(content: Mapping[str, Any], *, where: str) -> Preprocessing | None:
    """The preprocessing that a file says, None where it says none; in words it came from the file.

    Raises:
        ModelError: It is none.
    """
    if content.get(PREPROCESSING) is None:
        return None
    try:
        found = Preprocessing.model_validate(content[PREPROCESSING])
    except ValidationError as cause:
        first = cause.errors()[0]
        raise ModelError(
            f"the file's preprocessing is not valid: {first['msg']}",
            where=f"{where}, {'.'.join(map(str, (PREPROCESSING, *first['loc'])))}", hint="save the model anew",
        ) from cause  # fmt: skip
    return found.changed(source=Source(geometry="the file", normalisation="the file" if found.mean else ""))


def _mapping(value: object) -> dict[str, Any] | None:
    """A mapping of plain values as one of our own; None where it is something else."""
    if not isinstance(value, Mapping):
        return None
    try:
        plain: dict[str, Any] = _json(dict(value))
    except (TypeError, ValueError, RecursionError):
        return None
    return plain


def _json(value: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    return plain


def _is_shape(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(type(n) is int and n > 0 for n in value))
