"""Layer-adaptive magnitude: a squared norm over the sum of those that are no smaller. Lee et al. 2021, https://arxiv.org/abs/2010.07611."""

from torch_pruning.pruner import importance

from fxdistill.criteria import Criterion
from fxdistill.criteria.tp._groups import measured

CRITERION = Criterion(
    summary="Torch-Pruning: layer-adaptive magnitude",
    score=lambda channels: measured(channels, importance.LAMPImportance()),
)
