"""Views at work: a batch of pixels as a model takes it, as tensors or as nodes of a program."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from fxdistill.preprocessing import View

T = TypeVar("T")


def steps(view: View, images: T, call: Callable[..., T], constant: Callable[[str, tuple[float, ...]], T]) -> T:
    """A view as operations: on tensors, or on the nodes of a graph.

    Args:
        view: The view.
        images: What is looked at.
        call: Calls a function with arguments.
        constant: A tensor (C, 1, 1) of numbers, by name.
    """
    if view.size is not None:
        images = call(resized, images, *view.size)
    if view.reverse:
        images = call(torch.flip, images, [1])
    if view.range != 1:
        images = call(torch.mul, images, view.range)
    if view.mean:
        images = call(torch.sub, images, constant("mean", view.mean))
        images = call(torch.div, images, constant("std", view.std))
    return images


def seen(images: Tensor, view: View) -> Tensor:
    """Pixels (N, C, H, W) in 0 … 1 as the model takes them."""

    def constant(_name: str, values: Sequence[float]) -> Tensor:
        return column(values).to(images.device)

    found: Tensor = steps(view, images, lambda function, *rest: function(*rest), constant)
    return found


def column(values: Sequence[float]) -> Tensor:
    """Numbers, one a channel, (C, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Images of another size: bilinear, with antialiasing where they shrink."""
    return functional.interpolate(images, (height, width), mode="bilinear", antialias=True, align_corners=False)
