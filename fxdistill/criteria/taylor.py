"""First order of what the loss loses: Σ |W[f] · ∂loss/∂W[f]|. Molchanov et al. 2019, https://arxiv.org/abs/1906.10771."""

from torch import Tensor

from fxdistill.criteria import Criterion
from fxdistill.ir.channels import Channels


def taylor(channels: Channels) -> Tensor:
    """On a batch, or with the gradients that lie in ``.grad``."""
    gradients = channels.gradients("taylor")
    return channels.sum_over_filters(lambda entries: entries.abs().sum(1), factors=gradients, apart=True)


CRITERION = Criterion(score=taylor, summary="first order of what the loss loses", needs_batch=True, of_loss=True)
