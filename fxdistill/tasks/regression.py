"""Regression: numbers. The mean absolute error counts, in units of the targets.

MAE = mean |prediction - target|
R2  = 1 - sum (prediction - target)^2 / sum (target - mean target)^2        mean over the numbers of an image
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.regression import MeanAbsoluteError, R2Score

from fxdistill.tasks import Agreement, Task
from fxdistill.tasks._tallies import Means


class Regression(Task):
    """Predictions (B,) or (B, K), targets likewise; (B, 1) goes with (B,)."""

    summary = "a number an image, or several"
    supervised = "l1"
    imitation = "squared-error"
    agreement_name = ""
    output_name = "prediction"
    primary = "MAE"
    higher_is_better = False
    is_share = False
    collapsed = "the same numbers for every image"
    has_classes = False
    no_label = math.nan

    def wrong_targets(self, targets: Tensor, image_shape: Sequence[int], classes: int) -> str:
        """Finite numbers, (N,) or (N, K), of two images at least."""
        if targets.ndim not in (1, 2) or not targets.is_floating_point():
            return f"labels are {targets.dtype} of shape {tuple(targets.shape)}; give numbers, (images,) or (images, K)"
        if len(targets) < 2:
            return "there is one image; give two at least, for their spread is measured"
        return "" if bool(torch.isfinite(targets).all()) else "labels are infinite or not a number"

    def wrong_output(
        self, output: Tensor, image_shape: Sequence[int], classes: int, target_shape: Sequence[int] | None = None
    ) -> str:
        """As many numbers an image as targets."""
        if output.ndim not in (1, 2):
            return f"the model answers with a tensor of shape {tuple(output.shape)}, not with (images, numbers)"
        found = 1 if output.ndim == 1 else output.shape[1]
        if target_shape is not None and found != (wanted := target_shape[0] if target_shape else 1):
            return f"the model answers with {found} numbers an image, the data has {wanted}"
        return ""

    def metrics(self, classes: int) -> Mapping[str, Metric]:
        """Mean absolute error, and the share of the targets' variance that is explained."""
        return {"MAE": MeanAbsoluteError(), "R2": R2Score()}

    def evaluate(
        self, predict: Callable[[str], Iterable[tuple[Tensor, Tensor]]], classes: int, device: torch.device | str
    ) -> dict[str, float]:
        """All metrics, of targets in the predictions' shape."""

        def shaped(split: str) -> Iterable[tuple[Tensor, Tensor]]:
            return ((output, targets.reshape(output.shape)) for output, targets in predict(split))

        return super().evaluate(shaped, classes, device)

    def kept(self, output: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, ...]:
        """The mean absolute error of each image; no class."""
        errors = (output - targets.reshape(output.shape)).abs().reshape(len(output), -1).mean(1)
        return errors, torch.zeros(len(output), dtype=torch.int64)

    def tally(self, kept: Sequence[Tensor], train: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> Means:
        """The mean absolute error."""
        return Means(*kept)

    def distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """The mean absolute difference, in units of the targets."""
        return (ours.float() - theirs.float().reshape(ours.shape)).abs().reshape(len(ours), -1).mean(1)

    def near_chance(self, found: Mapping[str, float], classes: int, targets: Tensor) -> str:
        """No better than the mean of the targets, which explains nothing of their variance."""
        return "" if found["R2"] > 0 else f"R2 {found['R2']:.3g}, no better than the mean of the targets"

    def agreement(self, ours: Tensor, theirs: Tensor) -> Agreement:
        """Of none: there is no choice in which two models differ, and the gate bounds the error itself."""
        return Agreement(0, 0)


TASK = Regression()
