"""The interval of a median against its exact probability, on samples whose median is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bnn_deploy.runtime.statistics import CONFIDENCE, interval_rank, median_interval


def probability(count: int, rank: int) -> float:
    """That x[rank] to x[count + 1 - rank] hold the median, in exact integers."""
    return 1 - 2 * sum(math.comb(count, i) for i in range(rank)) / 2**count


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_ranks_are_the_largest_that_hold(confidence: float) -> None:
    for count in range(200):
        rank = interval_rank(count, confidence)
        if rank:
            assert probability(count, rank) >= confidence
        if 2 * (rank + 1) <= count:
            assert probability(count, rank + 1) < confidence


def test_the_table_of_the_sign_test() -> None:
    """Ranks of 95 % intervals as books print them."""
    assert [interval_rank(count, 0.95) for count in (5, 6, 8, 9, 20, 50, 100)] == [0, 1, 1, 2, 6, 18, 40]
    assert median_interval(np.arange(5.0)) is None
    assert median_interval(np.array([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])) == (1.0, 6.0)
    assert interval_rank(1_000_000, 0.95) == pytest.approx(500_000 - 1.96 * 500, abs=2)


def share_that_holds(inner: int, count: int = 50, samples: int = 4000) -> float:
    """The share of samples of skewed numbers with median 1 whose interval holds it, `inner` ranks further in."""
    rng = np.random.default_rng(0)
    numbers = np.sort(np.exp(rng.standard_normal((samples, count))), axis=1)  # as times are: skewed, with a long tail
    held = 0
    for sample in numbers:
        low, high = median_interval(sample) or (np.nan, np.nan)
        rank = int(np.searchsorted(sample, low)) + inner
        assert sample[rank - inner] == low and sample[-1 - rank + inner] == high
        held += sample[rank] <= 1 <= sample[-1 - rank]
    return held / samples


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    exact = probability(50, interval_rank(50, CONFIDENCE))
    error = 4 * math.sqrt(exact * (1 - exact) / 4000)
    assert exact == pytest.approx(0.967, abs=0.001)
    assert share_that_holds(0) == pytest.approx(exact, abs=error)
    # An interval of one rank less on both sides is caught.
    assert share_that_holds(1) < exact - error
