"""Augmentations, one file each: what a batch of images goes through in training, drawn from a generator of its own.

An augmentation is **drawn** once a batch and then applied, to the images and, where a task's targets are maps and the
augmentation moves pixels, to the targets in the same way:

    change = AUGMENTATION.draw(shape, generator, arguments)
    images, targets = change(images), change(targets)

In a plan it is written as its name, with its one argument behind a colon where it takes one: ``flip``, ``crop:4``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxdistill.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fxdistill.arguments import Arguments


@dataclass(frozen=True)
class Augmentation:
    """An augmentation.

    Attributes:
        draw: From the shape (N, C, H, W) of the images, a generator on the CPU and the arguments: a function from
            values (N, …, H, W) to values of the same shape and type, on any device. Each image has a draw of its own.
        moves_pixels: Whether it moves pixels without changing their values, so that maps of targets move along.
        arguments: What it takes, one field; None for nothing.
    """

    draw: "Callable[[Sequence[int], torch.Generator, Any], Callable[[Tensor], Tensor]]"
    moves_pixels: bool = False
    arguments: "type[Arguments] | None" = None


AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation", __name__, "AUGMENTATION")
