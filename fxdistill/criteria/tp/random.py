"""Uniform in [0, 1) for each group, from the seed: a control."""

from torch_pruning.pruner import importance

from fxdistill.criteria import Criterion
from fxdistill.criteria.tp._groups import measured

CRITERION = Criterion(
    summary="Torch-Pruning: a control, from the seed",
    score=lambda channels: measured(channels, importance.RandomImportance()),
)
