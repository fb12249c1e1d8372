"""L1 norm of the filters: ‖W[f]‖₁. Li et al. 2017, https://arxiv.org/abs/1608.08710."""

from fxdistill.criteria import Criterion

CRITERION = Criterion(
    summary="L1 norm of the filters",
    score=lambda channels: channels.sum_over_filters(lambda filters: filters.abs().sum(1), apart=True),
)
