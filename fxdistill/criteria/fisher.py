"""Fisher information of a gate on a filter: Σ E (Σ W[f] · ∂loss/∂W[f])², E the mean over images, one by one.

Theis et al. 2018, https://arxiv.org/abs/1801.05787; in terms of weights as in Molchanov et al. 2019,
https://arxiv.org/abs/1906.10771. Near a minimum it is the second derivative of the loss.
"""

from dataclasses import replace

from torch import Tensor

from fxdistill.criteria import Criterion
from fxdistill.ir.channels import Channels


def fisher(channels: Channels) -> Tensor:
    """On a batch."""
    images, targets = channels.examples("fisher")
    scores = channels.zeros()
    for image, target in zip(images.split(1), targets.split(1), strict=True):
        gradients = replace(channels, batch=(image, target)).gradients("fisher")
        scores += channels.sum_over_filters(lambda entries: entries.sum(1).square(), factors=gradients)
    return scores / len(images)


CRITERION = Criterion(score=fisher, summary="second order of what the loss loses", needs_batch=True)
