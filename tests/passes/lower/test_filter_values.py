"""Weights of a few values per filter are sums of the fewest ±alpha."""

from __future__ import annotations

import numpy as np
import pytest

from bnn_deploy.passes.lower.filter_values import WeightSums, filter_values, weight_sums
from bnn_deploy.passes.lower.layer import NotTwoValuedError, two_valued
from bnn_deploy.passes.reasons import ManyWeightValues

RNG = np.random.default_rng(0)

VALUES: dict[str, tuple[list[float], int]] = {
    "one value": ([0.25], 1),
    "±alpha": ([-0.5, 0.5], 1),
    "two values": ([0.1, 0.4], 1),
    "TWN": ([-0.5, 0, 0.5], 2),
    "TTQ": ([-0.4, 0, 0.7], 2),
    "evenly spaced": ([-1, -1 / 3, 1 / 3, 1], 2),
    "sums of two": ([-1.75, -0.75, 0.75, 1.75], 2),
    "no sums of two": ([-1, -0.8, 0.1, 1], 3),
    "sums of three": ([a + b + c for a in (-1, 1) for b in (-0.6, 0.6) for c in (-0.5, 0.5)], 3),
    "some sums of three": ([-2.1, -1.1, -0.9, 0.1, 1.1], 3),
    "five values": ([-1, -0.8, 0.1, 1, 1.35], 4),
}


def rebuilt(found: WeightSums) -> np.ndarray:
    column = (-1, *[1] * (found.signs.ndim - 2))
    sums = np.where(found.signs, 1.0, -1.0) * found.alpha.reshape(found.bases, *column)
    return sums.sum(axis=0) + found.beta.reshape(column)


@pytest.mark.parametrize("name", VALUES)
def test_sums_of_the_fewest(name: str) -> None:
    values, bases = VALUES[name]
    weight = (RNG.choice(values, (6, 40, 3, 3)) * RNG.uniform(0.1, 2, (6, 1, 1, 1))).astype(np.float32)
    found = weight_sums(weight)
    assert isinstance(found, WeightSums)
    assert found.bases == bases
    np.testing.assert_allclose(rebuilt(found), weight, rtol=0, atol=1e-6)
    if abs(min(values) + max(values)) < 1e-9:
        assert (found.beta == 0).all()
    found.signs[0, 2, 3, 1, 1] ^= True
    assert np.abs(rebuilt(found) - weight).max() > 1e-2


def test_each_filter_has_its_own() -> None:
    weight = np.stack([RNG.choice(values, 90) for values in ([-1, 1], [0.2, 0.7], [-1, 0, 2], [0, 0])])
    found = weight_sums(weight.astype(np.float32))
    assert isinstance(found, WeightSums)
    assert found.alpha.tolist() == [[1, pytest.approx(0.25), 0.5, 0], [0, 0, 1, 0]]
    assert found.beta.tolist() == [0, pytest.approx(0.45), 0.5, 0]


def test_values_that_differ_by_rounding_are_one() -> None:
    weight = (RNG.choice([-0.5, 0.0, 0.5], (4, 100)) * RNG.uniform(0.9998, 1.0002, (4, 100))).astype(np.float32)
    found = weight_sums(weight)
    assert isinstance(found, WeightSums)
    np.testing.assert_allclose(rebuilt(found), weight, rtol=0, atol=2e-4)


def test_a_small_centre_is_kept() -> None:
    """AdaBin's centre may be a thousandth of its distance: over many taps it counts."""
    weight = np.where(RNG.random((3, 200)) < 0.5, np.float32(-0.05733841), np.float32(0.05729953))
    found = weight_sums(weight)
    assert isinstance(found, WeightSums)
    np.testing.assert_allclose(rebuilt(found), weight, rtol=1e-6)
    with pytest.raises(NotTwoValuedError):
        two_valued(weight)
    noise = 1 + RNG.uniform(-1e-4, 1e-4, weight.shape).astype(np.float32)
    centred = np.sign(weight) * np.float32(0.05) * noise
    np.testing.assert_allclose(two_valued(centred)[1], 0.05, rtol=1e-4)


def test_does_not_take_real_values() -> None:
    assert weight_sums(RNG.standard_normal((4, 8), np.float32)) is None
    assert weight_sums(RNG.standard_normal((2, 20000), np.float32)) is None  # nowhere a gap of 1e-3
    assert filter_values(np.full((1, 20), np.nan, np.float32)) is None
    one_real = RNG.choice([-1, 1], (4, 60)).astype(np.float32)
    one_real[3] = RNG.standard_normal(60)
    assert weight_sums(one_real) is None


def test_does_not_take_many_sums() -> None:
    weight = RNG.choice(RNG.standard_normal(9), (4, 100)).astype(np.float32)
    assert weight_sums(weight) == ManyWeightValues(0, 9, 4)
    values = filter_values(weight)
    assert values is not None
    assert [len(each) for each in values] == [9] * 4
