"""What a model reaches image by image, so that the metric of any weighting of the images follows.

    means       m(w) = Σ w_i s_i / Σ w_i                      accuracy; MAE; mean AP, of the images that are looked up
    ratios      m(w) = mean over c of Σ w_i a_ic / Σ w_i b_ic                     mean IoU
    rankings    m(w) = mean over k of AP(k), each image counted w_i times         mean AP of several classes an image

With all weights 1 it is the task's primary metric; with how often a sample with replacement took each image, that of
the sample. Of classes that nothing tells of under the weights, the value is not a number, and no mean counts it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tally(ABC):
    """What a model reaches on N images, in the order of the split; those without a label are left out."""

    @property
    @abstractmethod
    def images(self) -> int:
        """N."""

    @abstractmethod
    def metric(self, weights: Tensor) -> Tensor:
        """The primary metric under each of R weightings (R, N) of the images: (R,), double."""

    @abstractmethod
    def by_class(self, classes: int) -> tuple[Tensor, Tensor]:
        """What each class reaches, (classes,), double; and of how many images, or pixels, that are of the class."""


@dataclass(frozen=True)
class Means(Tally):
    """A score an image.

    Attributes:
        scores: (N,).
        labels: (N,), class numbers; any where the task has no classes.
    """

    scores: Tensor
    labels: Tensor

    @property
    def images(self) -> int:
        """N."""
        return len(self.scores)

    def metric(self, weights: Tensor) -> Tensor:
        """The weighted mean."""
        weights = weights.double()
        return weights @ self.scores.double() / weights.sum(1)

    def by_class(self, classes: int) -> tuple[Tensor, Tensor]:
        """The mean over the images of a class."""
        counts = self.labels.bincount(minlength=classes)
        return self.labels.bincount(self.scores.double(), minlength=classes) / counts, counts


@dataclass(frozen=True)
class Ratios(Tally):
    """Counts an image and class.

    Attributes:
        over: (N, C).
        under: (N, C).
        sizes: (N, C), how much of an image is of a class.
    """

    over: Tensor
    under: Tensor
    sizes: Tensor

    @property
    def images(self) -> int:
        """N."""
        return len(self.over)

    def metric(self, weights: Tensor) -> Tensor:
        """The mean over classes of the ratio of the sums."""
        weights = weights.double()
        return (weights @ self.over.double() / (weights @ self.under.double())).nanmean(1)

    def by_class(self, classes: int) -> tuple[Tensor, Tensor]:
        """The ratios of the sums."""
        return self.over.sum(0).double() / self.under.sum(0), self.sizes.sum(0)


@dataclass(frozen=True)
class Rankings(Tally):
    """A score for every image and class.

    Attributes:
        scores: (N, K).
        known: (N, K): 1 and 0, -1 where it is not known.
    """

    scores: Tensor
    known: Tensor

    @property
    def images(self) -> int:
        """N."""
        return len(self.scores)

    def metric(self, weights: Tensor) -> Tensor:
        """The mean over classes of their average precisions."""
        weights = weights.double()
        return torch.stack([self._precision(k, weights) for k in range(self.scores.shape[1])]).nanmean(0)

    def by_class(self, classes: int) -> tuple[Tensor, Tensor]:
        """The average precisions."""
        every = torch.ones(1, self.images, dtype=torch.double)
        return torch.cat([self._precision(k, every) for k in range(classes)]), (self.known == 1).sum(0)

    def _precision(self, k: int, weights: Tensor) -> Tensor:
        """The average precision of a class under each weighting; images of one score are one rank."""
        there = (self.known[:, k] >= 0).nonzero().squeeze(1)
        if not len(there):
            return torch.full((len(weights),), torch.nan, dtype=torch.double)
        order = there[self.scores[there, k].argsort(descending=True, stable=True)]
        ranked = self.scores[order, k]
        ends = torch.cat([(ranked[1:] != ranked[:-1]).nonzero().squeeze(1), torch.tensor([len(ranked) - 1])])
        shown = weights[:, order]
        taken, found = (one.cumsum(1)[:, ends] for one in (shown, shown * (self.known[order, k] == 1)))
        gained = found.diff(dim=1, prepend=torch.zeros(len(weights), 1, dtype=torch.double))
        return (gained * found / taken.clamp_min(1e-12)).sum(1) / found[:, -1]
