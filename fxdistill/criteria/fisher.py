"""Fisher information of a gate on a filter: Σ E (Σ W[f] · ∂loss/∂W[f])², E the mean over images, one by one.

Theis et al. 2018, https://arxiv.org/abs/1801.05787; in terms of weights as in Molchanov et al. 2019,
https://arxiv.org/abs/1906.10771. Near a minimum it is the second derivative of the loss.
"""

import torch
from torch import Tensor

from fxdistill.criteria import Criterion
from fxdistill.ir.channels import Channels


def fisher(channels: Channels) -> Tensor:
    """On a batch."""
    scores = [
        channels.sum_over_filters(lambda entries: entries.sum(1).square(), factors=gradients, apart=True)
        for gradients in channels.gradients_by_image("fisher")
    ]
    return torch.stack(scores).mean(0)


CRITERION = Criterion(score=fisher, summary="second order of what the loss loses", needs_batch=True, of_loss=True)
