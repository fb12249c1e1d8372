"""Scales of the channel's batch norms: the sum of their magnitudes. Liu et al. 2017, https://arxiv.org/abs/1708.06519."""

from torch import Tensor

from fxdistill.criteria import Criterion
from fxdistill.errors import InputError
from fxdistill.ir.channels import Channels


def bn(channels: Channels) -> Tensor:
    """Classes without a batch norm have 0.

    Raises:
        InputError: No channel has one.
    """
    scores, found = channels.zeros(), list(channels.batch_norms())
    if not found:
        raise InputError(
            "the criterion 'bn' ranks channels by the scales of batch norms, and the model has none",
            where="criterion", hint="choose another, e.g. l1",
        )  # fmt: skip
    for classes, scales in found:
        scores.index_add_(0, classes, scales.abs())
    return scores


CRITERION = Criterion(score=bn, summary="scales of the batch norms")
