"""Mean magnitude of what a channel hands to layers that weigh it: Σ E |x|, over images and positions.

Hu et al. 2016, https://arxiv.org/abs/1607.03250, count zeros instead of magnitudes.
"""

from torch import Tensor

from fxdistill.criteria import Criterion
from fxdistill.criteria._handed import handed_on
from fxdistill.ir.channels import Channels


def activation(channels: Channels) -> Tensor:
    """On a batch."""
    scores = channels.zeros()

    def look(value: Tensor, classes: Tensor) -> None:
        scores.index_add_(0, classes, value.abs().double().mean(1).cpu())

    handed_on(channels, "activation", look)
    return scores


CRITERION = Criterion(score=activation, summary="magnitude of what a channel hands on", needs_batch=True)
