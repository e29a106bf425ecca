"""Medians of samples, and intervals that hold them with a known confidence."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Least confidence of `median_interval`."""


def median_interval(sample: NDArray[np.float64], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """A confidence interval for the median of the distribution that a sample is drawn from.

    It is that of the sign test: x[k] to x[n + 1 - k] of the n sorted numbers x[1], x[2], ... . The number of them
    below the median is binomial (n, 1/2), whatever the distribution is, so the interval holds the median with the
    probability 1 - 2 P(fewer than k below). k is the largest for which that is at least `confidence`; of 50 numbers it
    is 18, and the probability 0.967. See H. A. David and H. N. Nagaraja, Order Statistics, 3rd edition, 2003, section
    7.1. The numbers must be independent; nothing else is assumed of them.

    Args:
        sample: [n].
        confidence: least probability that the interval holds the median, in (0, 1).

    Returns:
        Both ends; None if n is too small (below 6 for 0.95).
    """
    rank = interval_rank(len(sample), confidence)
    if rank == 0:
        return None
    ordered = np.sort(sample)
    return float(ordered[rank - 1]), float(ordered[-rank])


def interval_rank(count: int, confidence: float) -> int:
    """The rank k of `median_interval` among `count` numbers, from 1; 0 if there are too few."""
    below, rank = 0.0, 0
    while rank < count // 2:
        # P(exactly `rank` below): by logarithms, because the binomial coefficients of many runs are beyond floats.
        chosen = math.lgamma(count + 1) - math.lgamma(rank + 1) - math.lgamma(count - rank + 1)
        below += math.exp(chosen - count * math.log(2))
        if 1 - 2 * below < confidence:
            break
        rank += 1
    return rank
