"""L2 norm of the filters: ‖W[f]‖₂. Li et al. 2017, https://arxiv.org/abs/1608.08710."""

import torch

from fxdistill.criteria import Criterion

CRITERION = Criterion(
    summary="L2 norm of the filters",
    score=lambda channels: channels.sum_over_filters(
        lambda filters: torch.linalg.vector_norm(filters, dim=1), apart=True
    ),
)
