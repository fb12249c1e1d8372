"""Distance to the other filters, of producing and consuming weights. He et al. 2019, https://arxiv.org/abs/1811.00250."""

from torch_pruning.pruner import importance

from fxdistill.criteria import Criterion
from fxdistill.criteria.tp._groups import measured

CRITERION = Criterion(
    summary="Torch-Pruning: distance to the other filters, group-wise",
    score=lambda channels: measured(channels, importance.FPGMImportance()),
)
