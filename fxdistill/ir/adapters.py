"""Adapters: what brings the two taps of a pair to one shape and one scale; and calls of what has no name.

The scale decides what is learnt: the filters that are kept for their large norm have the largest activations, so that
the squared difference of raw values is spent on a few of them. With mean m and variance v of a channel over the batch
and its positions,

    standardized    (x - m) / sqrt(v + eps)         of both taps: every channel counts alike
    running         the same, the teacher's m and v measured once over training images, so that they are fixed
    normalized      x / rms(x of one image)         of both taps: every image counts alike
    released        gamma (x - m) / sqrt(v + eps)   in place of the teacher's last BatchNorm; the student's as it is

The squared difference of normalized taps is their cosine: twice one less it.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn

from fxdistill.plan.schema import Tap
from fxdistill.plan.training import Comparison


class Projection(nn.Module):
    """A learned encoder from the student's to the teacher's width: a 1x1 convolution (FitNets, Romero et al., 2015).

    Reads the student's tap in its own layout and returns the same layout.
    """

    def __init__(self, student: Tap, width: int) -> None:
        super().__init__()
        self.channel_dim = student.channel_dim
        self.weight = nn.Linear(student.width, width, bias=False)

    def forward(self, value: Tensor) -> Tensor:
        """Apply to the channel dimension."""
        return self.weight(value.movedim(self.channel_dim, -1)).movedim(-1, self.channel_dim)  # type: ignore[no-any-return]


EPS = 1e-5
"""Added to variances, as BatchNorm does."""


def standardized(tap: Tensor) -> Tensor:
    """A tap (B, C, ...) as float32, each channel minus its mean, divided by its deviation over batch and positions."""
    return batch_normalized(tap.float(), None, EPS)


def normalized(tap: Tensor) -> Tensor:
    """A tap (B, C, ...) as float32, the values of each image divided by their root mean square."""
    value = tap.float()
    square = value.square().flatten(1).mean(1)
    return value / (square + EPS).sqrt().reshape(-1, *[1] * (value.dim() - 1))


def batch_normalized(value: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """BatchNorm of a value (B, C, ...) with the statistics of this batch and without an offset."""
    if value.numel() == value.shape[1]:  # one value a channel is its own mean
        return value - value
    return F.batch_norm(value, None, None, weight, None, training=True, eps=eps)


class FixedScale(nn.Module):
    """A tap (B, C, ...) as float32, each channel minus a fixed mean, divided by a fixed deviation.

    They are not numbers until :meth:`set`; see :mod:`fxdistill.compiler.tap_statistics`.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("mean", "deviation"):
            self.register_buffer(name, torch.full((width,), torch.nan))

    @torch.no_grad()
    def set(self, mean: Tensor, variance: Tensor) -> None:
        """Give it the statistics of each channel, (C,) both."""
        self.mean.copy_(mean)
        self.deviation.copy_((variance.clamp_min(0) + EPS).sqrt())

    def forward(self, value: Tensor) -> Tensor:
        """Apply it."""
        shape = (1, -1, *[1] * (value.dim() - 2))
        return (value.float() - self.mean.view(shape)) / self.deviation.view(shape)


SCALES: Mapping[Comparison, Callable[[Tensor], Tensor]] = {"standardized": standardized, "normalized": normalized}
"""What makes the scale of both taps one, by what a term compares."""


class Called(nn.Module):
    """A callable that is neither a module nor a function with a name, such as a ``functools.partial``."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: Tensor, **arguments: object) -> Tensor:
        """Call it."""
        return self.function(*values, **arguments)
