"""Squared L2 norms of all members, producing and consuming weights and norms, of a group. Torch-Pruning 1.6."""

from torch_pruning.pruner import importance

from fxdistill.criteria import Criterion
from fxdistill.criteria.tp._groups import measured

CRITERION = Criterion(
    summary="Torch-Pruning: group norm of all coupled weights",
    score=lambda channels: measured(channels, importance.MagnitudeImportance()),
)
