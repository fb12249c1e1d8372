"""Bundles: one file that holds a model, weights and architecture, as a sealed container; nothing in it can run.

    {"factory": "module:function" or None, "kwargs": {…}, "graph": {…} or None, "state": {name: tensor},
     "input_shape": [N, C, H, W] or None, "preprocessing": {…} or None, "metadata": {…}}

The architecture is what ``factory(**kwargs)`` builds, or the graph, written down operation by operation
(:mod:`fxdistill.modelfiles.graphs`): of shrunken models, of exported ones, of classes of the user's own. A model that
neither can say is kept as its weights alone.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from fxdistill import checking, container
from fxdistill.errors import ModelError
from fxdistill.ir.running import load_whole_state, whole_state
from fxdistill.modelfiles import graphs, presets
from fxdistill.modelfiles.factories import build
from fxdistill.modelfiles.source import parse_source
from fxdistill.preprocessing import Preprocessing, Source

KIND = "model"
_SPARE, _SMALL = 3, 1 << 26
"""A factory may register more weights than it has in the end, this many times and so many bytes: it replaces some."""
_LONGEST, _LARGEST = 1 << 16, 1 << 30
"""Sizes of an input batch: of a side, and the numbers in it."""
PREPROCESSING = "preprocessing"
RANDOM_WEIGHTS = "random_weights"
"""The metadata that says so, of a file made from random weights."""


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds, checked.

    Attributes:
        factory: ``module:function`` that builds the model; None for a graph, or for weights alone.
        kwargs: Its keyword arguments.
        graph: The architecture as data; None where a factory builds it.
        state: The weights, and buffers that a state dict leaves out.
        input_shape: Shape of one input batch, where known.
        preprocessing: What the model does to an image before it looks at it, where known.
        metadata: What was saved with the model.
    """

    factory: str | None
    kwargs: dict[str, Any]
    graph: Mapping[str, Any] | None
    state: Mapping[str, Tensor]
    input_shape: tuple[int, ...] | None
    preprocessing: Preprocessing | None
    metadata: dict[str, Any]

    def module(self, *, allow: Sequence[str], where: str) -> nn.Module | None:
        """The model, in eval mode; None for weights alone.

        Raises:
            ModelError: The factory may not be called, the weights are not its, or the graph cannot be made.
        """
        if self.factory is not None:
            held = sum(value.nbytes for value in self.state.values() if isinstance(value, Tensor))
            module = build(self.factory, self.kwargs, allow=allow, most=_SPARE * held + _SMALL)
        elif self.graph is not None:
            module = graphs.from_data(self.graph, where=where)
        else:
            return None
        try:
            return self._with_weights(module, where).eval()
        except ModelError:
            raise
        except Exception as cause:  # layers of a graph that are not what their classes are
            raise ModelError(
                f"the weights in the file cannot be loaded: {cause or type(cause).__name__}", where=where,
                hint="write the file again",
            ) from cause  # fmt: skip

    def _with_weights(self, module: nn.Module, where: str) -> nn.Module:
        own = whole_state(module)
        if self.factory is None:  # a constant that the graph computes with is in the graph alone
            known = self.state.keys() | dict(module.named_parameters(remove_duplicate=False)).keys()
            own = {name: value for name, value in own.items() if name in known}
        odd = sorted(
            name for name in own.keys() | self.state.keys()
            if getattr(own.get(name), "shape", None) != getattr(self.state.get(name), "shape", None)
            or (name in own) != (name in self.state)
        )  # fmt: skip
        if odd:
            raise ModelError(
                f"{len(odd)} weights in the file are not those of {self.factory or 'its graph'} ({', '.join(odd[:3])})",
                where=where, hint="it builds something else than it did: save the model anew",
            )  # fmt: skip
        load_whole_state(module, self.state)
        return module


@checking.checked()
def save(
    model: nn.Module, path: str | Path, *, factory: str | None = None, kwargs: dict[str, Any] | None = None,
    input_shape: Sequence[int] | None = None, preprocessing: Preprocessing | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a bundle: the same model and arguments give the same bytes.

    Args:
        model: The model, which is kept with all its weights.
        path: The file to write, whole or not at all.
        factory: ``module:function`` that builds the architecture; None to write that down as a graph, in eval mode.
        kwargs: The factory's keyword arguments, JSON values.
        input_shape: Shape of one input batch; without a factory it is needed.
        preprocessing: What the model does to an image before it looks at it; None for what timm's model carries for
            images of that size.
        metadata: Anything else, by name, that is JSON.

    Raises:
        ModelError: The factory is no factory, the arguments or metadata are not JSON, the shape is none of a batch, or
            the model cannot be written down as a graph.
        PlanError: The file cannot be written there.
        StorageError: The disk is full.
    """
    if factory is not None and parse_source(factory).factory != factory:
        raise ModelError(f"'{factory}' is not a plain factory", where="factory", hint="write MODULE:FUNCTION")
    graph = None if factory is not None else _graph(model, input_shape, where=str(path))
    preprocessing = presets.carried(model, input_shape) if preprocessing is None else preprocessing
    _write(
        model, Path(path), factory=factory, kwargs=kwargs or {}, graph=graph, input_shape=input_shape,
        preprocessing=preprocessing, metadata=metadata or {},
    )  # fmt: skip


def save_trained(
    model: nn.Module, path: Path, *, factory: str | None, kwargs: dict[str, Any], input_shape: Sequence[int],
    preprocessing: Preprocessing | None = None, metadata: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    """Write a model that a run has trained, whatever it is; the arguments are those of :func:`save`.

    Returns:
        Why the file holds weights alone; '' where it holds the model.

    Raises:
        PlanError: The file cannot be written there.
        StorageError: The disk is full.
    """
    why, graph = "", None
    if factory is None:
        try:
            graph = _graph(model, input_shape, where=path.name)
        except ModelError as cause:
            why = cause.what
    _write(
        model, path, factory=factory, kwargs=kwargs, graph=graph, input_shape=input_shape,
        preprocessing=preprocessing, metadata=metadata or {},
    )  # fmt: skip
    return why


def _graph(model: nn.Module, input_shape: Sequence[int] | None, *, where: str) -> dict[str, Any]:
    if input_shape is None:
        raise ModelError(
            "a model without a factory is written down as a graph, and for that an image's shape is needed",
            where=where, hint="give input_shape, e.g. (1, 3, 224, 224)",
        )  # fmt: skip
    return graphs.of_model(model, input_shape=tuple(input_shape), where=where)


def _write(
    model: nn.Module, path: Path, *, factory: str | None, kwargs: dict[str, Any], graph: dict[str, Any] | None,
    input_shape: Sequence[int] | None, preprocessing: Preprocessing | None, metadata: dict[str, Any],
) -> None:  # fmt: skip
    try:
        shape = None if input_shape is None else list(input_shape)
        plain = _json({"kwargs": kwargs, "metadata": metadata, "input_shape": shape})
    except (TypeError, ValueError) as cause:
        raise ModelError(
            f"the bundle's arguments or metadata are not JSON: {cause}", where=str(path), hint="use plain values"
        ) from cause
    if wrong := _wrong(plain):
        raise ModelError(
            f"what is to be saved beside the model cannot be read again: {', '.join(wrong)}", where=str(path),
            hint="input_shape is the shape of one batch in whole numbers, kwargs and metadata are mappings",
        )  # fmt: skip
    said = None if preprocessing is None else preprocessing.model_dump(mode="json")
    content = {"factory": factory, **plain, PREPROCESSING: said, "graph": graph, "state": whole_state(model)}
    container.write(path, KIND, content)


def read(path: Path) -> Bundle:
    """What a bundle's file holds, checked.

    Raises:
        ModelError: The file is damaged, or a part is missing or wrong.
    """
    where = str(path)
    _, content = container.read(path, kinds=(KIND,))
    factory, graph, shape = (content.get(name) for name in ("factory", "graph", "input_shape"))
    kwargs, metadata, state = (content.get(name) for name in ("kwargs", "metadata", "state"))
    right = {
        "factory": factory is None or isinstance(factory, str), "graph": graph is None or isinstance(graph, dict),
        "state": _is_state(state),
    }  # fmt: skip
    if wrong := [*(name for name in right if not right[name]), *_wrong(content)]:
        raise ModelError(
            f"the bundle lacks a part, or has a wrong one: {', '.join(wrong)}",
            where=where, hint="write it with fxdistill.save",
        )  # fmt: skip
    seen = preprocessing_in(content, where=where)
    return Bundle(factory, kwargs or {}, graph, state or {}, tuple(shape) if shape else None, seen, metadata or {})


def state_of(path: Path) -> Mapping[str, Tensor]:
    """The weights in a bundle, buffers that a state dict leaves out among them.

    Raises:
        ModelError: As for :func:`read`.
    """
    return read(path).state


def preprocessing_in(content: Mapping[str, Any], *, where: str) -> Preprocessing | None:
    """The preprocessing that a file says, None where it says none; in words it came from the file, or from timm.

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
    who = presets.TIMM if found.source.normalisation == presets.TIMM else "the file"
    return found.changed(source=Source(geometry="the file", normalisation=who if found.mean else ""))


def _wrong(content: Mapping[str, Any]) -> list[str]:
    """Which of a bundle's plain parts are none."""
    wrong = [name for name in ("kwargs", "metadata") if not _is_plain(content.get(name))]
    return wrong if _is_shape(content.get("input_shape")) else [*wrong, "input_shape"]


def _json(value: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    return plain


def _is_plain(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return isinstance(value, dict)


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, Tensor) or "_extra_state" in k for k, v in value.items())


def _is_shape(value: object) -> bool:
    if not isinstance(value, list):
        return value is None
    whole = len(value) > 0 and all(type(n) is int and 0 < n <= _LONGEST for n in value)
    return whole and math.prod(value) <= _LARGEST
