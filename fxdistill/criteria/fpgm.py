"""Distance to the other filters of the weight: Σ_g ‖W[f] - W[g]‖₂. He et al. 2019, https://arxiv.org/abs/1811.00250."""

import torch

from fxdistill.criteria import Criterion

CRITERION = Criterion(
    summary="distance to the other filters",
    score=lambda channels: channels.sum_over_filters(lambda filters: torch.cdist(filters, filters).sum(1)),
)
