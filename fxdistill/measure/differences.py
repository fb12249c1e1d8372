"""Differences of two arms, seed by seed: what a pair of runs under one seed has in common cancels.

    d_s = a_s - b_s,    mean(d) ± t(97.5 %, n - 1) std(d) / sqrt(n)

the 95 % confidence interval of Student's t over n seeds; it takes the differences for normally distributed.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """How far an arm is from another one.

    Attributes:
        beside: The other arm.
        mean: Mean of the differences, in units of the metric.
        low: Lower end of its 95 % confidence interval; None for one seed.
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
    if len(found) == 1:
        return Difference(beside, mean, None, None, 1)
    from scipy.stats import t as student_t  # noqa: PLC0415  # slow to import

    half = float(student_t.ppf(0.975, len(found) - 1)) * statistics.stdev(found) / math.sqrt(len(found))
    return Difference(beside, mean, mean - half, mean + half, len(found))
