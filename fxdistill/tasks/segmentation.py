"""Semantic segmentation: one class a pixel. Mean intersection over union counts.

IoU(c) = |predicted c and labelled c| / |predicted c or labelled c|        over all labelled pixels of the test split
mean IoU = mean over the classes that are predicted or labelled anywhere
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from fxdistill.tasks import NO_LABEL, Agreement, Task
from fxdistill.tasks._classes import same_choices, wrong_logits, wrong_range
from fxdistill.tasks._tallies import Ratios


class Segmentation(Task):
    """Logits (B, classes, H, W), labels (B, H, W); -100 where there is no label."""

    summary = "one class a pixel"
    supervised = "cross-entropy"
    agreement_name = "agreement of pixels"
    primary = "mean-IoU"
    of_class = "IoU"
    class_counts = "pixels"
    collapsed = "one class for every pixel"
    moves_targets = True

    def wrong_targets(self, targets: Tensor, image_shape: Sequence[int], classes: int) -> str:
        """One class number a pixel, or -100."""
        if targets.shape[1:] != tuple(image_shape[1:]) or targets.is_floating_point():
            return (
                f"labels are {targets.dtype} of shape {tuple(targets.shape)}; give one whole number a pixel, "
                f"({len(targets)}, {', '.join(map(str, image_shape[1:]))})"
            )
        wrong = wrong_range(targets, classes)
        return f"{wrong}; {NO_LABEL} says that a pixel has no label" if wrong else ""

    def wrong_output(
        self, output: Tensor, image_shape: Sequence[int], classes: int, target_shape: Sequence[int] | None = None
    ) -> str:
        """As many logits as classes, for every pixel."""
        return wrong_logits(output, classes, image_shape[1:])

    def metrics(self, classes: int) -> Mapping[str, Metric]:
        """Mean intersection over union, and the share of pixels that are right."""
        return {
            "mean-IoU": MulticlassJaccardIndex(num_classes=classes, ignore_index=NO_LABEL, validate_args=False),
            "pixel-accuracy": MulticlassAccuracy(
                num_classes=classes, average="micro", ignore_index=NO_LABEL, validate_args=False
            ),
        }

    def kept(self, output: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, ...]:
        """Of each image and class the pixels of intersection, union and label."""
        chosen, known = output.argmax(1).flatten(1), (targets != NO_LABEL).flatten(1)
        targets = targets.flatten(1)

        def pixels(numbers: Tensor, where: Tensor) -> Tensor:
            rows = torch.arange(len(numbers), device=numbers.device).unsqueeze(1).expand_as(numbers)
            places = (rows * classes + numbers)[where]
            return places.bincount(minlength=len(numbers) * classes).reshape(len(numbers), classes)

        both, labels, said = pixels(chosen, known & (chosen == targets)), pixels(targets, known), pixels(chosen, known)
        return both, labels + said - both, labels

    def tally(self, kept: Sequence[Tensor], train: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> Ratios:
        """Intersection over union."""
        return Ratios(*kept)

    def distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """The share of pixels that are given other classes."""
        return (ours.argmax(1) != theirs.argmax(1)).float().flatten(1).mean(1)

    def chance(self, classes: int, targets: Tensor) -> float | None:
        """The most frequent class for every pixel: its share of them as its own IoU, and 0 for all others."""
        pixels = torch.zeros(classes, dtype=torch.int64)
        for labels in targets.cpu():
            pixels += labels[labels != NO_LABEL].bincount(minlength=classes)
        return float(pixels.max() / pixels.sum() / (pixels > 0).sum()) if bool(pixels.any()) else None

    def says(self, output: Tensor) -> Tensor:
        """The classes, of all pixels of all images in one row."""
        return output.argmax(1).flatten()

    def agreement(self, ours: Tensor, theirs: Tensor) -> Agreement:
        """Equal classes, pixel by pixel."""
        return same_choices(ours, theirs)


TASK = Segmentation()
