"""Several classes an image, or none: every class is a yes or no of its own. Mean average precision counts.

AP(k) = sum over the ranks n of the images by their score for k of (recall(n) - recall(n - 1)) precision(n)
mAP   = mean of AP(k) over the classes that some image of the test split has
F1    = 2 TP / (2 TP + FP + FN) at probability 0.5, mean over the same classes
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_f1_score

from fxdistill.tasks import NO_LABEL, Agreement, Task, no_images, no_labels
from fxdistill.tasks._classes import wrong_logits
from fxdistill.tasks._tallies import Rankings

_UNKNOWN, _YES = -1, 0.5


class Multilabel(Task):
    """Logits (B, K), labels (B, K) of 0 and 1; not a number where it is not known."""

    summary = "several classes an image"
    supervised = "binary-cross-entropy"
    imitation = "binary-kd"
    primary = "mAP"
    of_class = "AP"
    agreement_name = "agreement of classes"
    collapsed = "the same classes for every image"
    no_label = math.nan

    def typed(self, targets: Tensor) -> Tensor:
        """Float32, with -1 and -100 (not known, in many data sets) as not a number."""
        known = targets.float()
        return known.masked_fill((known == _UNKNOWN) | (known == NO_LABEL), math.nan)

    def count_classes(self, targets: Tensor) -> int:
        """The number of columns."""
        return targets.shape[1] if targets.ndim == 2 else 0

    def wrong_targets(self, targets: Tensor, image_shape: Sequence[int], classes: int) -> str:
        """A row of 0 and 1 an image, or of shares between; some are known."""
        if targets.ndim != 2:
            return f"labels have the shape {tuple(targets.shape)}; give a row of 0 and 1 an image, (images, classes)"
        if targets.shape[1] != classes:
            return f"labels have {targets.shape[1]} columns, there are {classes} classes"
        known = targets[~targets.isnan()]
        if not bool(((known >= 0) & (known <= 1)).all()):
            return f"labels lie in {float(known.min()):g} … {float(known.max()):g}; give 0 and 1, or shares between"
        return "" if bool((known >= _YES).any()) else "no image has any class, so that there is nothing to find"

    def wrong_output(
        self, output: Tensor, image_shape: Sequence[int], classes: int, target_shape: Sequence[int] | None = None
    ) -> str:
        """As many logits as classes."""
        return wrong_logits(output, classes)

    def metrics(self, classes: int) -> Mapping[str, Metric]:
        """None that can be updated batch by batch: which classes count is known at the end, see :meth:`evaluate`."""
        return {}

    def evaluate(
        self, predict: Callable[[str], Iterable[tuple[Tensor, Tensor]]], classes: int, device: torch.device | str
    ) -> dict[str, float]:
        """Mean average precision and F1 over the classes that some image has; a share is a yes from a half on.

        Images are ranked by logits: probabilities near 1 are one number in float32.
        """
        pairs = [(output.float(), targets) for output, targets in predict("test")]
        if not pairs:
            raise no_images("test")
        scores, targets = (torch.cat(parts).to(device) for parts in zip(*pairs, strict=True))
        known = _known(targets)
        present = (known == 1).any(0).nonzero().flatten().tolist()
        if not present:
            raise no_labels("test")
        precisions, _ = Rankings(scores[:, present].cpu(), known[:, present].cpu()).by_class(len(present))
        f1 = [float(binary_f1_score(scores[:, k].sigmoid(), known[:, k], ignore_index=_UNKNOWN)) for k in present]
        return {"mAP": float(precisions.mean()), "F1": statistics.fmean(f1)}

    def kept(self, output: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, ...]:
        """The logits, and what is known of them."""
        return output.float(), _known(targets)

    def tally(self, kept: Sequence[Tensor], train: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> Rankings:
        """The images ranked for every class."""
        return Rankings(*kept)

    def distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """The mean difference of the probabilities."""
        return (ours.float().sigmoid() - theirs.float().sigmoid()).abs().mean(1)

    def chance(self, classes: int, targets: Tensor) -> float | None:
        """The average precision of scores by chance: the share of images that have a class; mean over the classes."""
        known, has = ~targets.isnan(), targets >= _YES
        shares = has.sum(0) / known.sum(0)
        return float(shares[has.any(0)].mean()) if bool(has.any()) else None

    def says(self, output: Tensor) -> Tensor:
        """The decisions, (N, K)."""
        return (output > 0).long()

    def agreement(self, ours: Tensor, theirs: Tensor) -> Agreement:
        """Equal decisions, class by class; a gap is how far the reference is from deciding otherwise."""
        same = (ours > 0) == (theirs > 0)
        return Agreement(int(same.sum()), same.numel(), float(torch.where(same, 0, ours.abs()).max()))


def _known(targets: Tensor) -> Tensor:
    """1 and 0, and -1 where it is not known; a share is a yes from a half on."""
    return torch.where(targets.isnan(), _UNKNOWN, (targets >= _YES).long())


TASK = Multilabel()
