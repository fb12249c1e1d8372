"""Differences of two arms, seed by seed: what a pair of runs under one seed has in common cancels.

    d_s = a_s - b_s,    mean(d) ± t(97.5 %, n - 1) std(d) / sqrt(n)

the 95 % confidence interval of Student's t over n seeds; it takes the differences for normally distributed. A metric of
few images has few values. Where all differences are one, and that is not zero, an interval would have no width, which
promises of the next seed what nobody knows: there is none.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

_ROUNDING = 1e-6
"""Of a metric, which may be known in float32."""


@dataclass(frozen=True)
class Difference:
    """How far an arm is from another one.

    Attributes:
        beside: The other arm.
        mean: Mean of the differences, in units of the metric.
        low: Lower end of its 95 % confidence interval; None for one seed, and for several with one difference.
        high: Upper end.
        seeds: Over how many seeds that both have.
    """

    beside: str
    mean: float
    low: float | None
    high: float | None
    seeds: int


def paired(values: Mapping[int, float], others: Mapping[int, float], *, beside: str) -> Difference | None:
    """The difference of two arms by their metric under each seed; None where no seed has both."""
    found = [values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())]
    if not found:
        return None
    mean = statistics.fmean(found)
    known = _ROUNDING * max(map(abs, (*values.values(), *others.values())))
    if len(found) == 1 or max(found) - min(found) <= known < abs(mean):
        return Difference(beside, mean, None, None, len(found))
    from scipy.stats import t as student_t  # noqa: PLC0415  # slow to import

    half = float(student_t.ppf(0.975, len(found) - 1)) * statistics.stdev(found) / math.sqrt(len(found))
    return Difference(beside, mean, mean - half, mean + half, len(found))
