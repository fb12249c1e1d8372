"""Scales of the batch norms, divided by the mean of the group. Liu et al. 2017, https://arxiv.org/abs/1708.06519."""

from torch_pruning.pruner import importance

from fxdistill.criteria import Criterion
from fxdistill.criteria.tp._groups import measured

CRITERION = Criterion(
    summary="Torch-Pruning: scales of the batch norms, group-wise",
    score=lambda channels: measured(channels, importance.BNScaleImportance()),
)
