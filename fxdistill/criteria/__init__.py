"""Criteria: how much each coupled class of channels matters, one file each, and the registry of their names.

The importance of a class is the sum over its members, the filters f of the weights W that produce its channels. A
criterion is a function of :class:`Channels` (what is known of one model), or scores it whole:

    CRITERION = Criterion(score=lambda channels: channels.sum_over_filters(lambda filters: filters.abs().sum(1)))
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxdistill.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from fxdistill.criteria.channels import Channels


@dataclass(frozen=True)
class Criterion:
    """A measure of importance.

    Attributes:
        score: The importance of every class, by class id: float64 of shape (classes + 1,); 0 where it says nothing.
        needs_batch: Whether it reads gradients or activations, on a batch of data.
    """

    score: "Callable[[Channels], Tensor]"
    needs_batch: bool = False


CRITERIA: Registry[Criterion] = Registry("criterion", __name__, "CRITERION")
