"""Heads: a classifier becomes an embedding by leaving its last layer away.

    logits = W h(x) + b    →    h(x)

The layer is replaced by ``nn.Identity``, which is how people do it by hand, so that the model stays what it was: it
trains, is traced, saved and exported as before, and answers with the penultimate layer.
"""

import contextlib

import torch
from torch import Tensor, nn

from fxdistill.errors import ModelError

PENULTIMATE, OUTPUT = "penultimate", "output"
"""What a user may say instead of a layer: to look for it, and that there is none to leave away."""


def head_of(module: nn.Module, input_shape: tuple[int, ...]) -> str:
    """The path of the linear layer whose result is the model's answer; '' where there is none."""
    found: dict[int, str] = {}
    with contextlib.ExitStack() as stack, torch.no_grad():
        for path, part in module.named_modules():
            if type(part) is nn.Linear:
                handle = part.register_forward_hook(lambda _m, _i, value, path=path: found.__setitem__(id(value), path))
                stack.callback(handle.remove)
        device = next((parameter.device for parameter in module.parameters()), None)
        answer = module(torch.zeros(input_shape, device=device))
        return found.get(id(answer), "") if isinstance(answer, Tensor) else ""


def without(module: nn.Module, path: str, *, where: str) -> None:
    """Leave a layer away, in place: what it read is handed on.

    Raises:
        ModelError: There is no linear layer of this path.
    """
    parent, _, name = path.rpartition(".")
    try:
        part = module.get_submodule(path)
    except AttributeError:
        part = module
    if not path or not isinstance(part, nn.Linear):
        known = [name for name, one in module.named_modules() if isinstance(one, nn.Linear)]
        raise ModelError(
            f"'{path}' is no linear layer of the model, so that it cannot be left away for an embedding", where=where,
            hint=f"its last ones are {', '.join(known[-3:])}" if known else "it has none: --embedding output",
        )  # fmt: skip
    setattr(module.get_submodule(parent), name, nn.Identity())


def embedding(module: nn.Module, wish: str, *, input_shape: tuple[int, ...], where: str) -> str:
    """Make a model answer with its embedding, in place; returns the path of the layer that was left away, or ''.

    Args:
        module: The model, in eval mode.
        wish: ``penultimate``, ``output``, or the path of a linear layer.
        input_shape: Shape of one batch as the model reads it.
        where: What an error is about.

    Raises:
        ModelError: There is no such layer.
    """
    path = {OUTPUT: "", PENULTIMATE: ""}.get(wish, wish)
    if wish == PENULTIMATE:
        path = head_of(module, (1, *input_shape[1:]))
    if path:
        without(module, path, where=where)
    return path
