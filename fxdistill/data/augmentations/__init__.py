"""Augmentations, one file each: what the images of a batch go through in training.

What happens to an image is **a function of (seed, view, image)** and of nothing else: neither of the step nor of its
neighbours in the batch, except for what mixes the two. An augmentation is drawn for a batch, with numbers of its own
for each image, and then applied, to the images and, where a task's targets are maps and the augmentation moves pixels,
to the targets in the same way:

    change = AUGMENTATION.draw(shape, draws, arguments)
    images, targets = change(images), change(targets, fill=no label)

In a plan it is written as its name, with its arguments behind colons where it takes some: ``flip``, ``crop:4``,
``rand-augment:2:9``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from fxdistill.errors import DataError
from fxdistill.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from fxdistill.arguments import Arguments
    from fxdistill.data.augmentations._draws import Draws

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
        draw: From the shape (N, C, H, W) of the images, the :class:`~fxdistill.data.augmentations._draws.Draws` of each
            and the arguments: a :class:`Change`. Raises a DataError where it does not go with images of that shape.
        moves_pixels: Whether it moves pixels, so that maps of targets move along: it takes (N, H, W) as well.
        warps: Whether it moves pixels in a way that maps cannot follow.
        mixes: Whether it mixes images of the batch, and class labels alike, which become rows (N, classes) of shares.
        arguments: What it takes, its fields in the order in which they are written; None for nothing.
    """

    draw: "Callable[[Sequence[int], Draws, Any], Change]"
    moves_pixels: bool = False
    warps: bool = False
    mixes: bool = False
    arguments: "type[Arguments] | None" = None

    def named(self, text: str) -> "Named":
        """With its argument, as a plan writes both: ``crop:4``.

        Raises:
            DataError: The argument is wrong, or there is one too many.
        """
        name, *given = text.split(":")
        fields = tuple(self.arguments.model_fields) if self.arguments is not None else ()
        form = ":".join([name, *map(str.upper, fields)])
        if len(given) > len(fields):
            takes = f"{len(fields)} argument{'s' * (len(fields) > 1)}" if fields else "no argument"
            raise DataError(f"the augmentation '{name}' takes {takes}", where=_WHERE, hint=f"write {form}")
        if self.arguments is None:
            return Named(name, self, None)
        try:
            return Named(name, self, self.arguments.model_validate_strings(dict(zip(fields, given, strict=False))))
        except ValidationError as cause:
            what = "; ".join(f"{error['loc'][0]}: {error['msg']}" for error in cause.errors())
            raise DataError(
                f"the augmentation '{text}' is wrong, {what}", where=_WHERE, hint=f"write {form}"
            ) from cause  # fmt: skip


@dataclass(frozen=True)
class Named:
    """An augmentation with its argument, as a plan names it."""

    name: str
    augmentation: Augmentation
    arguments: "Arguments | None"

    def draw(self, shape: Sequence[int], draws: "Draws") -> Change:
        """What is drawn for a batch of images of this shape."""
        return self.augmentation.draw(shape, draws, self.arguments)


AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation", __name__, "AUGMENTATION", Augmentation)


def named(names: Sequence[str]) -> tuple[Named, ...]:
    """The augmentations that a plan names: ``flip``, ``crop:4``.

    Raises:
        DataError: An augmentation is unknown, or its argument is wrong.
    """
    return tuple(AUGMENTATIONS.get(name.partition(":")[0], where=_WHERE, error=DataError).named(name) for name in names)
