"""Heads: a classifier becomes an embedding by leaving its last layer away.

    logits = W h(x) + b    →    h(x)

The layer is replaced by ``nn.Identity``, which is how people do it by hand, so that the model stays what it was: it
trains, is traced, saved and exported as before, and answers with the penultimate layer.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxdistill.errors import InputError, ModelError

PENULTIMATE, OUTPUT = "penultimate", "output"
"""What a user may say instead of a layer: to look for it, and that there is none to leave away."""


def head_of(module: nn.Module, input_shape: tuple[int, ...]) -> str:
    """The path of the linear layer whose result is the model's answer, as it is; '' where there is none, or no answer.

    Whether a model takes an input is said by what traces it, or fits it to the data.
    """
    found: list[tuple[Tensor, int, str]] = []  # held, so that each is told from all others

    def note(value: Tensor, path: str) -> None:
        found.append((value, value._version, path))  # noqa: SLF001  # what overwrites it counts it up

    with contextlib.ExitStack() as stack:
        for path, part in module.named_modules():
            if isinstance(part, nn.Linear):
                handle = part.register_forward_hook(lambda _m, _i, value, path=path: note(value, path))
                stack.callback(handle.remove)
        answer, _ = _answer(module, input_shape)
    same = (path for value, version, path in found if value is answer and value._version == version)  # noqa: SLF001
    return next(same, "")


def _answer(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[Any, str]:
    """What a model answers to an input of a shape, or why it does not."""
    device = next((parameter.device for parameter in module.parameters()), None)
    try:
        with torch.no_grad():
            return module(torch.zeros(input_shape, device=device)), ""
    except Exception as cause:  # noqa: BLE001  # of the model's own code
        return None, str(cause)


def without(module: nn.Module, path: str, *, where: str) -> None:
    """Remove a layer, in place: its input is passed on.

    Raises:
        ModelError: There is no linear layer of this path.
    """
    linear = [name for name, part in module.named_modules() if name and isinstance(part, nn.Linear)]
    if path not in linear:
        raise ModelError(
            f"'{path}' is no linear layer of the model, so that it cannot be left away for an embedding", where=where,
            hint=f"its last ones are {', '.join(linear[-3:])}" if linear else "it has none: --embedding output",
        )  # fmt: skip
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, nn.Identity())


def usual(metadata: Mapping[str, Any], task: str) -> str:
    """What is done where nobody says: what a run for the task has made is an embedding already."""
    return OUTPUT if metadata.get("task") == task else PENULTIMATE


def about_another_task(task: str) -> InputError:
    """The error where an embedding is asked for in a task that does not use one."""
    return InputError(
        f"in the task '{task}' a model answers as it does, and with no embedding", where="--embedding",
        hint="leave it out, or give --task retrieval",
    )  # fmt: skip


def embedding(module: nn.Module, wish: str, *, input_shape: tuple[int, ...], where: str) -> str:
    """Make a model answer with its embedding, in place; returns the path of the layer that was removed, or ''.

    Args:
        module: The model, in eval mode.
        wish: ``penultimate``, ``output``, or the path of a linear layer.
        input_shape: Shape of one batch as the model reads it.
        where: What an error is about.

    Raises:
        ModelError: There is no such layer, or it is not the last one: what follows it does not take what it would read.
    """
    if wish == OUTPUT:
        return ""
    shape = (1, *input_shape[1:])
    if wish == PENULTIMATE:
        if path := head_of(module, shape):
            without(module, path, where=where)
        return path
    _, before = _answer(module, shape)
    without(module, wish, where=where)
    _, after = _answer(module, shape)
    if after and not before:
        raise ModelError(
            f"the model does not run without '{wish}': {after}", where=where,
            hint="name the last layer, which gives the logits: what that would read is the embedding",
        )  # fmt: skip
    return wish
