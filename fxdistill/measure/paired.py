"""How far two models are apart on the same images: what an image is like for both of them cancels.

With b images that the second model alone has right, c that the first alone has, of n:

    b' = (b + 1) / (n + 2),  c' = (c + 1) / (n + 2)
    b' - c'  ±  z(97.5 %) sqrt((b' + c' - (b' - c')^2) / (n + 2))      Bonett and Price (2012): holds for few images too
    p = P(|X - (b + c) / 2| is as large),  X ~ Binomial(b + c, 1 / 2)                           McNemar's test, exact

Other metrics are no shares of images that are right, and most are no means of images at all (mean IoU, mean AP): 1,000
samples of the images with replacement, both models' metrics on each, 2.5th to 97.5th percentile of their differences.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

import torch
from torch import Tensor

from fxdistill.tasks._tallies import Means, Tally

_Z = NormalDist().inv_cdf(0.975)
_SAMPLES, _VALUES = 1000, 1 << 22
ADJUSTED = "adjusted Wald interval of paired shares (Bonett and Price)"
BOOTSTRAP = f"{_SAMPLES:,} paired bootstrap samples of the images"


@dataclass(frozen=True)
class Paired:
    """The second model minus the first.

    Attributes:
        values: The primary metric of both.
        low: Lower end of the 95 % interval of the difference; None for a single image.
        high: Upper end.
        interval: How the interval was made.
        p: Of McNemar's exact test; None where the metric is no share of images that are right.
        alone: How many images the first one alone has right, and the second one alone; None likewise.
    """

    values: tuple[float, float]
    low: float | None
    high: float | None
    interval: str
    p: float | None = None
    alone: tuple[int, int] | None = None

    @property
    def value(self) -> float:
        """The difference."""
        return self.values[1] - self.values[0]


def paired(first: Tally, second: Tally, *, seed: int = 0) -> Paired:
    """How far two models are apart, by what they reach on the same images in the same order.

    Args:
        first: What the first one reaches.
        second: What the second one reaches.
        seed: Seed of the samples.
    """
    every = torch.ones(1, first.images)
    values = float(first.metric(every)), float(second.metric(every))
    if isinstance(first, Means) and isinstance(second, Means) and first.scores.dtype == torch.bool:
        return _of_shares(first.scores, second.scores, values)
    if first.images < 2:
        return Paired(values, None, None, BOOTSTRAP)
    chance, rows = torch.Generator().manual_seed(seed), max(1, min(_SAMPLES, _VALUES // first.images))
    differences = []
    for start, end in pairwise([*range(0, _SAMPLES, rows), _SAMPLES]):
        weights = _samples(end - start, first.images, chance)
        differences.append(second.metric(weights) - first.metric(weights))
    ends = torch.cat(differences).nanquantile(torch.tensor([0.025, 0.975], dtype=torch.double))
    return Paired(values, float(ends[0]), float(ends[1]), BOOTSTRAP)


def _samples(count: int, images: int, chance: torch.Generator) -> Tensor:
    """How often each of some samples with replacement takes each image: (count, images)."""
    drawn = torch.randint(images, (count, images), generator=chance)
    return torch.zeros(count, images).scatter_add_(1, drawn, torch.ones(count, images))


def _of_shares(first: Tensor, second: Tensor, values: tuple[float, float]) -> Paired:
    from scipy.stats import binomtest  # noqa: PLC0415  # slow to import

    alone, images = (int((first & ~second).sum()), int((second & ~first).sum())), len(first)
    lost, gained = ((count + 1) / (images + 2) for count in alone)
    half = _Z * math.sqrt((gained + lost - (gained - lost) ** 2) / (images + 2))
    low, high = max(-1.0, gained - lost - half), min(1.0, gained - lost + half)
    p = float(binomtest(alone[0], sum(alone)).pvalue) if sum(alone) else 1.0
    return Paired(values, low, high, ADJUSTED, p, alone)
