"""A criterion: the standard deviation of a filter's weights, so that a filter of equal weights counts for nothing."""

from fxdistill.criteria import Criterion

CRITERION = Criterion(score=lambda channels: channels.sum_over_filters(lambda filters: filters.std(1, correction=0)))
