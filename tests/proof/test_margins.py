"""Errors of tensors that hold infinities or NaN: neither may hide another error."""

from __future__ import annotations

import numpy as np
import pytest

from bnn_deploy.proof.margins import absolute_error, agreeing, magnitudes, relative_error, tie_margin

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("expected", "got", "errors"),
    [
        ([[1, -INF], [2, 3]], [[1, -INF], [2, 3]], [[0, 0], [0, 0]]),
        ([[1, -INF], [2, 3]], [[77, 5], [2, 3]], [[38, INF], [0, 0]]),
        ([[1, INF], [2, 3]], [[1, -INF], [2, 3]], [[0, INF], [0, 0]]),
        ([[1, NAN], [2, 3]], [[5, NAN], [2, 3]], [[2, INF], [0, 0]]),
        ([[1, 4], [2, 3]], [[1, NAN], [2, INF]], [[0, INF], [0, INF]]),
        ([[INF, -INF]], [[INF, -INF]], [[0, 0]]),
    ],
)
def test_errors_beside_infinities(
    expected: list[list[float]], got: list[list[float]], errors: list[list[float]]
) -> None:
    """The unit of a channel is the largest of its finite values."""
    wanted, found = np.float32(expected), np.float32(got)
    np.testing.assert_array_equal(relative_error(found, wanted, magnitudes(wanted)), errors)
    finite = np.isfinite(absolute_error(found, wanted))
    np.testing.assert_array_equal(finite, np.isfinite(errors))


def test_a_masked_class_is_no_tie() -> None:
    """Scores of -inf, as of masked classes."""
    expected = np.float32([[2, 1, -INF]])
    assert agreeing(expected.copy(), expected, magnitudes(expected), 1).all()
    assert not agreeing(np.float32([[2, 1, 3]]), expected, magnitudes(expected), 1).any()
    assert tie_margin(np.float32([2, 1, 3]), expected[0]) == INF
    assert tie_margin(np.float32([2, 2.5, -INF]), expected[0]) == pytest.approx(0.75)


def test_a_single_number_has_one_error() -> None:
    """The output of a ReduceMax to [], say."""
    wanted = np.float32(4)
    error = relative_error(np.float32(3), np.asarray(wanted), magnitudes(np.asarray(wanted)))
    assert error.shape == () and error == 0.25
