"""Retrieval: an embedding an image, of which images of one class are to be near each other.

Nothing but the teacher is needed to train. To measure, the training split is ranked for every image of the test split
by cosine similarity; mean average precision counts.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # its name everywhere
from torch import Tensor
from torchmetrics import Metric

from fxdistill import checking
from fxdistill.tasks import Agreement, Task, labelled, no_images, no_labels
from fxdistill.tasks._classes import wrong_numbers
from fxdistill.tasks._ranking import Measure, average_precisions, rank
from fxdistill.tasks._tallies import Means

_MOST_SIMILARITIES = 1 << 22
"""At once."""
_MEASURES: Mapping[str, Measure] = {"": "cosine", "-L2": "l2"}


class Retrieval(Task):
    """Embeddings (B, D), labels (B,), which only the metrics read; an image whose label is -100 is left out there.

    Args:
        at: At which ranks precision is measured beside 100.
    """

    def __init__(self, at: Sequence[int] = ()) -> None:
        self.at = tuple(at)

    summary = "an embedding, and one class an image to measure it by"
    supervised = None
    imitation = None
    primary = "mAP"
    of_class = "mAP"
    embeds = True
    relates = True
    default_main = "pkt"
    ranks_train = True
    agreement_name = "agreement of nearest neighbours"
    output_name = "embedding"
    collapsed = "the same embedding for every image"

    def wrong_targets(self, targets: Tensor, image_shape: Sequence[int], classes: int) -> str:
        """One class number an image."""
        return wrong_numbers(targets, classes)

    def wrong_output(
        self, output: Tensor, image_shape: Sequence[int], classes: int, target_shape: Sequence[int] | None = None
    ) -> str:
        """One vector an image, of any length."""
        if output.ndim != 2 or not output.shape[1]:
            return f"the model answers with a tensor of shape {tuple(output.shape)}, not with embeddings (images, D)"
        return ""

    def metrics(self, classes: int) -> Mapping[str, Metric]:
        """None that one split gives: all are ranks of one split for the other, see :meth:`evaluate`."""
        return {}

    def evaluate(
        self, predict: Callable[[str], Iterable[tuple[Tensor, Tensor]]], classes: int, device: torch.device | str
    ) -> dict[str, float]:
        """Mean average precision, its 11-point form, the precision of the first ones: by cosine, and by distance."""
        database, queries = (_gathered(predict(split), split, device) for split in ("train", "test"))
        by = {suffix: rank(*database, *queries, metric=metric, at=self.at) for suffix, metric in _MEASURES.items()}
        scores = {"mAP": "mean_ap", "mAP-11": "mean_ap_11", "top-100": "top_100"}
        found = {f"{name}{suffix}": getattr(one, key) for suffix, one in by.items() for name, key in scores.items()}
        precision = {suffix: zip(self.at, one.precision, strict=True) for suffix, one in by.items()}
        return found | {f"precision@{k}{suffix}": value for suffix, pairs in precision.items() for k, value in pairs}

    def precise_at(self, ranks: Sequence[int]) -> "Retrieval":
        """With the share of the query's class among so many nearest neighbours."""
        for place in ranks:
            checking.number(place, 1, "at")
        return type(self)(ranks)

    def kept(self, output: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, ...]:
        """The embeddings, and their classes."""
        return output, targets

    def tally(self, kept: Sequence[Tensor], train: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> Means:
        """The average precision of each image, the training split ranked for it by cosine."""
        queries, labels = kept
        return Means(average_precisions(*_gathered(train(), "train", queries.device), queries, labels), labels)

    def distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """The mean difference of its cosine similarities to the others: embeddings may have two widths."""
        sums = [(own - other).abs().sum(1) for own, other in _similarities(ours, theirs, itself=0.0)]
        return torch.cat(sums) / max(1, len(ours) - 1)

    def chance(self, classes: int, targets: Tensor) -> float | None:
        """One in so many classes: the share of each where they are of one size."""
        return 1 / classes if classes else None

    def says(self, output: Tensor) -> Tensor:
        """The direction, which is all that a ranking reads."""
        return F.normalize(output.float())

    def agreement(self, ours: Tensor, theirs: Tensor) -> Agreement:
        """Equal nearest neighbours among these images; gaps are differences of cosine similarity."""
        if len(ours) < 2:
            return Agreement(len(ours), len(ours))
        agreeing, widest = 0, 0.0
        for own, other in _similarities(ours, theirs, itself=-torch.inf):  # none is its own neighbour
            chosen = other.argmax(1)
            same = own.argmax(1) == chosen
            gaps = own.amax(1) - own.gather(1, chosen.unsqueeze(1)).squeeze(1)
            agreeing += int(same.sum())
            widest = float(np.maximum(widest, torch.where(same, 0, gaps).max().item()))
        return Agreement(agreeing, len(ours), widest)


def _similarities(*features: Tensor, itself: float) -> Iterator[tuple[Tensor, ...]]:
    """Cosine similarities of some images to all of them (b, B), by each of some features, with ``itself`` to itself."""
    units = [F.normalize(one.float()) for one in features]
    images = len(units[0])
    for start in range(0, images, rows := max(1, _MOST_SIMILARITIES // max(1, images))):
        found = [unit[start : start + rows] @ unit.t() for unit in units]
        for one in found:
            one.diagonal(start).fill_(itself)
        yield tuple(found)


def _gathered(
    batches: Iterable[tuple[Tensor, Tensor]], split: str, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    pairs = [(features.to(device), labels.to(device)) for features, labels in batches]
    if not pairs:
        raise no_images(split)
    features, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    known = labelled(labels)
    if not bool(known.any()):
        raise no_labels(split)
    return features[known], labels[known]


TASK = Retrieval()
