"""Classification: one class an image. Top-1 accuracy counts; chance is one in so many classes.

An image whose label is -100 takes no part in cross-entropy and metrics; losses that read no labels read it as any.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from fxdistill.errors import InputError
from fxdistill.tasks import NO_LABEL, Agreement, Task
from fxdistill.tasks._classes import same_choices, wrong_logits, wrong_numbers
from fxdistill.tasks._tallies import Means

if TYPE_CHECKING:
    from torchmetrics import Metric

_TOP = 5


class Classification(Task):
    """Logits (B, classes), labels (B,), -100 where an image has none.

    Args:
        tops: Among how many first answers the class may be, beside the first one; () for what is usual.
    """

    def __init__(self, tops: Sequence[int] = ()) -> None:
        self.tops = tuple(tops)

    summary = "one class an image"
    supervised = "cross-entropy"
    primary = "accuracy"
    of_class = "accuracy"
    agreement_name = "top-1 agreement"
    collapsed = "one class for every image"

    def wrong_targets(self, targets: Tensor, image_shape: Sequence[int], classes: int) -> str:
        """One class number an image."""
        return wrong_numbers(targets, classes)

    def wrong_output(
        self, output: Tensor, image_shape: Sequence[int], classes: int, target_shape: Sequence[int] | None = None
    ) -> str:
        """As many logits as classes."""
        return wrong_logits(output, classes)

    def metrics(self, classes: int) -> "Mapping[str, Metric]":
        """Top-1 accuracy, and top-5 where that says something; or what was asked for."""
        from torchmetrics.classification import MulticlassAccuracy  # noqa: PLC0415  # slow, and a plan needs none

        others = self.tops or ((_TOP,) if classes > 2 * _TOP else ())
        tops = {"accuracy": 1} | {f"top-{top}": top for top in others}
        return {  # the labels were checked with the data; checked again, each batch would wait for the device
            name: MulticlassAccuracy(
                num_classes=classes, average="micro", top_k=top, ignore_index=NO_LABEL, validate_args=False
            )
            for name, top in tops.items()
        }

    def with_top(self, tops: Sequence[int], classes: int) -> "Classification":
        """With the share of images whose class is among the first so many answers."""
        for top in tops:
            if not 1 < top < classes:
                hint = "leave it out" if classes < 3 else "take 2" + (f" to {classes - 1}" if classes > 3 else "")
                raise InputError(
                    f"with {classes} classes, top-{top} says nothing" if top > 1 else "top-1 is the accuracy itself",
                    where=f"--top {top}", hint=hint,
                )  # fmt: skip
        return type(self)(tops)

    def kept(self, output: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, ...]:
        """Whether each image is right, and its class."""
        return output.argmax(1) == targets, targets

    def tally(self, kept: Sequence[Tensor], train: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> Means:
        """The share that is right."""
        return Means(*kept)

    def distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Half the summed difference of the probabilities: how much of one would have to move to make the other."""
        return (ours.float().softmax(1) - theirs.float().softmax(1)).abs().sum(1) / 2

    def chance(self, classes: int, targets: Tensor) -> float | None:
        """One in so many classes."""
        return 1 / classes if classes else None

    def says(self, output: Tensor) -> Tensor:
        """The class, (N,)."""
        return output.argmax(1)

    def agreement(self, ours: Tensor, theirs: Tensor) -> Agreement:
        """Equal top-1 predictions."""
        return same_choices(ours, theirs)


TASK = Classification()
