"""Which output: one rule that finds the prediction in what a model returns, for values and for graphs alike.

An output is a tensor, or a structure of them: a mapping, a dataclass, a (named) tuple, a list. An **entry** names a
place in it, ``logits``, ``1``, ``aux.0``; '' stands for the whole. Where nobody says which entry is the prediction, it
is the one called ``out`` or ``logits``, else the first. What a plan records is always spelled out.

In a file every tensor of an output has a **name**: the task's (``logits``, ``embedding`` …) where it is the whole, else
that of its place, ``boxes``, ``aux_0``, ``output_1``; the prediction may be given another one.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxdistill.errors import ModelError

_NAMES = ("out", "logits")
DEFAULT_NAME = "logits"
"""The name of an output that is one tensor, where no task says another one."""


def prediction(output: Any, entry: str = "") -> Tensor:
    """The prediction in a model's output.

    Args:
        output: What the model returned.
        entry: The entry that is the prediction, '' for the rule. A model that returns a bare tensor in this mode (and a
            structure in the other one) returns the prediction.

    Raises:
        ModelError: There is no such entry, or no tensor in it.
    """
    value = find(output, entry)
    if not isinstance(value, Tensor):
        raise ModelError(
            "the model's output holds no tensor", where=f"an output of type {type(output).__name__}",
            hint="return the prediction, or a mapping or a tuple that holds it",
        )  # fmt: skip
    return value


def find(output: Any, entry: str = "") -> Any:
    """The value at an entry, and from there on by the rule; of a graph's output, the node.

    Raises:
        ModelError: There is no such entry; lists those that there are.
    """
    value = output
    for name in entry.split(".") if entry and _children(output) is not None else ():
        children = _children(value)
        if children is None or name not in children:
            known = ", ".join(place for place, _ in entries(output)) or "none"
            raise ModelError(
                f"the model's output has no entry '{entry}'", where=f"entry {entry}", hint=f"its entries are: {known}"
            )
        value = children[name]
    while (children := _children(value)) is not None:
        if not children:
            return None
        value = children[next((name for name in _NAMES if name in children), next(iter(children)))]
    return value


def choose(output: Any, fits: Callable[[Tensor], bool] = lambda _value: True) -> str:
    """The entry that is the prediction: by the rule, or the first other one that fits where that one does not.

    Args:
        output: What the model returned.
        fits: Whether a tensor can be the prediction.
    """
    places = list(entries(output))
    default = find(output)
    by_rule = next((place for place, value in places if value is default), "")
    if not isinstance(default, Tensor) or fits(default):  # of a graph, whose values are nodes, the rule decides
        return by_rule
    return next((place for place, value in places if isinstance(value, Tensor) and fits(value)), by_rule)


def rivals(output: Any, chosen: str, fits: Callable[[Tensor], bool] = lambda _value: True) -> tuple[str, ...]:
    """The entries that would do as well as the chosen one, where only a number tells them apart from it.

    Args:
        output: What the model returned.
        chosen: The entry that the rule took.
        fits: Whether a tensor can be the prediction.
    """
    others = [
        place for place, value in entries(output) if place != chosen and isinstance(value, Tensor) and fits(value)
    ]
    return tuple(others) if all(place.isdecimal() for place in (chosen, *others)) else ()


def before_softmax(output: Any, chosen: str) -> str:
    """The entry that the chosen one is the softmax or the sigmoid of; the chosen one where there is none.

    Args:
        output: What the model returned, tensors.
        chosen: An entry of it.
    """
    value = prediction(output, chosen)
    if value.ndim < 2 or not value.is_floating_point() or not bool(((value >= 0) & (value <= 1)).all()):
        return chosen
    for place, other in entries(output):
        alike = isinstance(other, Tensor) and other.shape == value.shape and other.dtype == value.dtype
        if not alike or place == chosen:
            continue
        if any(torch.allclose(made, value, atol=1e-5) for made in (other.softmax(1), other.sigmoid())):
            return place
    return chosen


def entries(output: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All entries that are no structures themselves, with their values; '' for an output that is none."""
    children = _children(output)
    if children is None:
        yield prefix, output
        return
    for name, value in children.items():
        yield from entries(value, f"{prefix}.{name}" if prefix else name)


def is_guess(output: Any, entry: str = "") -> bool:
    """Whether which of several values is the prediction is told by nothing but their order."""
    places = [place for place, value in entries(output) if isinstance(value, Tensor)]
    return not entry and len(places) > 1 and not set(_NAMES) & {place.split(".")[0] for place in places}


def refuse_lists(output: Any, *, where: str) -> None:
    """Refuse an output that has an entry for each image, as those of detectors: their number says nothing of a model.

    Raises:
        ModelError: It is one.
    """
    if (
        isinstance(output, list | tuple)
        and output
        and all(isinstance(one, Mapping) or dataclasses.is_dataclass(one) for one in output)
    ):
        raise ModelError(
            "it answers with a list of results, one an image, as detectors do: that is none of the tasks",
            where=where, hint="give its backbone, whose layers can be learnt: --task features",
        )  # fmt: skip


def named(
    output: Any, entry: str = "", *, prediction_name: str = "", taken: Iterable[str] = (), alone: str = DEFAULT_NAME
) -> dict[str, Tensor]:
    """Every tensor of an output by a name that a file can have.

    Args:
        output: What the model returned.
        entry: Which entry is the prediction.
        prediction_name: What the prediction is called, which then comes first; '' to name and place it like any other.
        taken: Names that none may have.
        alone: What an output that is one tensor is called where the prediction has no name.

    Raises:
        ModelError: There is no such entry, or no tensor at all.
    """
    chosen = prediction(output, entry)
    if chosen is output:
        return {prediction_name or alone: chosen}
    found = {prediction_name: chosen} if prediction_name else {}
    for place, value in entries(output):
        if not isinstance(value, Tensor) or (prediction_name and value is chosen):
            continue
        name = in_file(place)
        while name in found or name in taken:
            name += "_"
        found[name] = value
    return found


def in_file(place: str) -> str:
    """The name in a file of an entry that is given no other."""
    name = re.sub(r"\W", "_", place)
    return f"output_{name}" if name[:1].isdecimal() else name


def _children(value: Any) -> Mapping[str, Any] | None:
    """The named parts of a structure; None where a value is none."""
    if isinstance(value, fx.Node):
        fields: tuple[str, ...] = getattr(value.target, "_fields", ())  # a named tuple that is built in the graph
        if value.op != "call_function" or not fields:
            return None
        return {**dict(zip(fields, value.args, strict=False)), **value.kwargs}
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return dict(zip(getattr(value, "_fields", map(str, range(len(value)))), value, strict=True))
    return None
