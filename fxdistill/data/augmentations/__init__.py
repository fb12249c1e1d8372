"""Augmentations, one file each: what a batch of images goes through in training, drawn from a generator of its own.

An augmentation is **drawn** once a batch and then applied, to the images and, where a task's targets are maps and the
augmentation moves pixels, to the targets in the same way:

    change = AUGMENTATION.draw(shape, generator, arguments)
    images, targets = change(images), change(targets, fill=no label)

In a plan it is written as its name, with its one argument behind a colon where it takes one: ``flip``, ``crop:4``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from fxdistill.errors import DataError
from fxdistill.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fxdistill.arguments import Arguments

_WHERE = "data.augmentation"


class Change(Protocol):
    """What was drawn for a batch."""

    def __call__(self, values: "Tensor", fill: float = 0) -> "Tensor":
        """The changed values.

        Args:
            values: (N, …, H, W), on any device.
            fill: What comes in from outside an image: black, or what says that there is no label.

        Returns:
            The same shape and type.
        """


@dataclass(frozen=True)
class Augmentation:
    """An augmentation.

    Attributes:
        draw: From the shape (N, C, H, W) of the images, a generator on the CPU and the arguments: a :class:`Change`.
            Each image has a draw of its own. Raises a DataError where it does not go with images of that size.
        moves_pixels: Whether it moves pixels without changing their values, so that maps of targets move along.
        arguments: What it takes, one field; None for nothing.
    """

    draw: "Callable[[Sequence[int], torch.Generator, Any], Change]"
    moves_pixels: bool = False
    arguments: "type[Arguments] | None" = None

    def named(self, text: str) -> "Named":
        """With its argument, as a plan writes both: ``crop:4``.

        Raises:
            DataError: The argument is wrong, or there is one too many.
        """
        name, colon, argument = text.partition(":")
        if self.arguments is None:
            if colon:
                raise DataError(f"the augmentation '{name}' takes no argument", where=_WHERE, hint=f"write {name}")
            return Named(self, None)
        field = next(iter(self.arguments.model_fields))
        try:
            return Named(self, self.arguments.model_validate_strings({field: argument} if colon else {}))
        except ValidationError as cause:
            what = "; ".join(error["msg"] for error in cause.errors())
            raise DataError(
                f"the augmentation '{text}' is wrong, {field}: {what}", where=_WHERE,
                hint=f"write {name}:{field.upper()}",
            ) from cause  # fmt: skip


@dataclass(frozen=True)
class Named:
    """An augmentation with its argument, as a plan names it."""

    augmentation: Augmentation
    arguments: "Arguments | None"

    def draw(self, shape: Sequence[int], generator: "torch.Generator") -> Change:
        """What is drawn for a batch of images of this shape."""
        return self.augmentation.draw(shape, generator, self.arguments)


AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation", __name__, "AUGMENTATION", Augmentation)


def check(names: Sequence[str]) -> None:
    """Check that each name is one of an augmentation, with an argument that it takes.

    Raises:
        DataError: An augmentation is unknown, or its argument is wrong.
    """
    named(names)


def named(names: Sequence[str]) -> tuple[Named, ...]:
    """The augmentations that a plan names: ``flip``, ``crop:4``.

    Raises:
        DataError: As for :func:`check`.
    """
    return tuple(AUGMENTATIONS.get(name.partition(":")[0], where=_WHERE, error=DataError).named(name) for name in names)
