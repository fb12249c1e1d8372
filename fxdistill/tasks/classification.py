"""Classification: one class an image. Top-1 accuracy counts; chance is one in so many classes."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from fxdistill.tasks import Agreement, Task

_TOP = 5


class Classification(Task):
    """Logits (B, classes), labels (B,)."""

    summary = "one class an image"
    supervised = "cross-entropy"
    primary = "accuracy"

    def wrong_targets(self, targets: Tensor, image_shape: Sequence[int], classes: int) -> str:
        """One class index an image."""
        del image_shape
        if targets.ndim != 1 or targets.is_floating_point():
            return f"labels are {targets.dtype} of shape {tuple(targets.shape)}; give one whole number an image"
        lowest, highest = int(targets.min()), int(targets.max())
        if lowest < 0:
            return f"the label {lowest} is negative; number the classes from 0"
        return f"the label {highest} has no name; there are {classes} classes" if classes and highest >= classes else ""

    def wrong_output(self, output: Tensor, image_shape: Sequence[int], classes: int) -> str:
        """As many logits as classes."""
        del image_shape
        if output.ndim != 2:
            return f"the model answers with a tensor of shape {tuple(output.shape)}, not with logits (images, classes)"
        if classes and output.shape[1] != classes:
            return f"the model answers with {output.shape[1]} classes, the data has {classes} classes"
        return ""

    def metrics(self, classes: int) -> Mapping[str, Metric]:
        """Top-1 accuracy, and top-5 where that says something."""
        tops = {"accuracy": 1} | ({"top-5": _TOP} if classes > 2 * _TOP else {})
        return {name: MulticlassAccuracy(num_classes=classes, average="micro", top_k=k) for name, k in tops.items()}

    def chance(self, classes: int) -> float | None:
        """One in so many classes."""
        return 1 / classes if classes else None

    def agreement(self, ours: Tensor, theirs: Tensor) -> Agreement:
        """Equal top-1 predictions, along dimension 1."""
        own, other = ours.argmax(1), theirs.argmax(1)
        same = own == other
        gaps = ours.amax(1) - ours.gather(1, other.unsqueeze(1)).squeeze(1)
        return Agreement(int(same.sum()), same.numel(), float(gaps.masked_fill(same, 0).max()))


TASK = Classification()
