"""What a channel says that those chosen before it do not: an interpolative decomposition of what a layer hands on.

With the covariance C of the channels x of a value, over images and positions, Cholesky's factor with pivoting

    P C Pᵀ = L Lᵀ,    importance of the n-th pivot = L[n, n]² / trace C

takes the channel of the largest variance first, and then always the one of which the most is left when it is explained
by those before, linearly: L[n, n]² is what is left. Of channels that say the same one is important, the others are not.
Chee et al., NeurIPS 2022, https://arxiv.org/abs/2108.00065, choose channels by a QR decomposition of x with pivoting,
which takes the same ones. So few observations as a pooled value has, one an image, explain each other: where there are
fewer than channels, the value before is looked at.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fxdistill.criteria import Criterion
from fxdistill.criteria._handed import handed_on
from fxdistill.ir.channels import Channels

_OBSERVED = 2048


@dataclass
class _Moments:
    """Of C channels: how many observations, and the sums of them and of their products, less a shift; float64."""

    classes: Tensor
    shift: Tensor
    count: int = 0
    sums: Tensor | float = 0.0
    products: Tensor | float = 0.0

    def add(self, rows: Tensor) -> None:
        """Take (C, observations) in."""
        shifted = rows.double() - self.shift
        self.count += rows.shape[1]
        self.sums = self.sums + shifted.sum(1)
        self.products = self.products + shifted @ shifted.T

    @property
    def covariance(self) -> Tensor:
        """(C, C)."""
        mean = torch.as_tensor(self.sums) / self.count
        return torch.as_tensor(self.products) / self.count - torch.outer(mean, mean)


def interpolative(channels: Channels) -> Tensor:
    """On a batch."""
    scores, found = channels.zeros(), dict[str, _Moments]()

    def look(path: str, value: Tensor, classes: Tensor) -> None:
        if channels.asked is not None and channels.asked.isdisjoint(classes.tolist()):
            return
        rows, own = _by_class(_some(value).cpu(), classes)
        if len(own):
            start = _Moments(own, rows.double().mean(1, keepdim=True))
            found.setdefault(path, start).add(rows)

    handed_on(channels, "interpolative", look, apart=True)
    for moments in found.values():
        scores.index_add_(0, moments.classes, left(moments.covariance))
    return scores


def _some(value: Tensor) -> Tensor:
    """Up to 2,048 observations of a few images, evenly spaced: enough to tell channels apart."""
    count = value.shape[1]
    if count <= _OBSERVED:
        return value
    return value[:, torch.linspace(0, count - 1, _OBSERVED, device=value.device).round().long()]


def _by_class(value: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Each class once: where a layer reads several positions of each, as behind ``flatten``, these are observations."""
    order = classes.argsort(stable=True)
    own, sizes = classes[order].unique_consecutive(return_counts=True)
    if int(sizes.min()) == int(sizes.max()):
        rows = value[order].view(len(own), int(sizes[0]), -1).flatten(1)
    else:
        place = torch.repeat_interleave(torch.arange(len(own)), sizes)
        rows = value.new_zeros(len(own), value.shape[1]).index_add_(0, place, value[order]) / sizes[:, None]
    return rows[own > 0], own[own > 0]  # class 0 is of none


def left(covariance: Tensor) -> Tensor:
    """What is left of each channel, as a share of all variance, when it is explained by those taken before it; (C,)."""
    from scipy.linalg import lapack  # noqa: PLC0415  # slow to import

    found, whole = torch.zeros(len(covariance), dtype=torch.float64), float(covariance.trace())
    if whole > 0:
        factor, pivots, rank, _ = lapack.dpstrf(covariance.numpy(), lower=1)
        order = torch.from_numpy(pivots[:rank].astype("int64") - 1)
        found[order] = torch.from_numpy(factor.diagonal()[:rank].copy()).square()
    return found / max(whole, torch.finfo(torch.float64).tiny)


CRITERION = Criterion(score=interpolative, summary="what those kept before it do not say", needs_batch=True)
