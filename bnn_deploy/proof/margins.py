"""Distances between two tensors: margins of signs, errors of floats, differing classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bnn_deploy.proof.cuts import Cut


def settle_zeros(cut: Cut, got: NDArray[Any], others: Sequence[NDArray[Any]], expected: NDArray[Any]) -> NDArray[Any]:
    """Replace the values of `got` that depend on a sign(0) by the admissible value nearest to `expected`.

    `got` was computed with +1 for each 0, `others` with -1: of all inputs, and of each alone. A layer is linear in each
    input and its epilogue is monotone, so the result for 0 lies between them: with 5 and 1, expected 3 gives 3, and
    expected 7 gives 5.
    """
    if not cut.is_bits:
        results = np.stack([result.reshape(expected.shape) for result in (got, *others)])
        low, high = results.min(axis=0), results.max(axis=0)
        settled: NDArray[Any] = np.where(low == high, results[0], np.clip(expected, low, high))
        return settled
    if cut.levels is not None:
        return got
    unsettled = _differing_bits(got, others)
    words: NDArray[Any] = (got & ~unsettled) | (cut.encode(expected).reshape(got.shape) & unsettled)
    return words


def count_differing(cut: Cut, got: NDArray[Any], others: Sequence[NDArray[Any]]) -> int:
    """The number of floats, or of bits, in which a result of a segment differs from any of the others."""
    if not cut.is_bits:
        return int(np.any([got != other for other in others], axis=0).sum())
    return int(np.unpackbits(np.ascontiguousarray(_differing_bits(got, others)).view(np.uint8)).sum())


def _differing_bits(got: NDArray[Any], others: Sequence[NDArray[Any]]) -> NDArray[Any]:
    differing: NDArray[Any] = np.bitwise_or.reduce([got ^ other for other in others])
    return differing


def differing_values(got: NDArray[Any], expected: NDArray[Any], tolerance: float) -> NDArray[np.bool_]:
    """Mask of the values that differ; with a tolerance, by more than this times the expected magnitude."""
    differing: NDArray[np.bool_] = got != expected
    if tolerance:
        differing &= ~(absolute_error(got, expected) <= tolerance * np.abs(expected.astype(np.float64)))
    return differing


def cut_kind(cut: Cut) -> str:
    """The `kind` of a cut in LayerResult."""
    if cut.is_bits:
        return "bits" if cut.levels is None else "levels"
    return "floats" if cut.is_float else "integers"


class Magnitudes:
    """The magnitudes of each channel of a tensor [N, C, ...] in all batches so far: the units of its tolerances.

    Infinities and NaN have none, and count as 0: an infinite unit would hide every error.

    Attributes:
        largest: the largest |x|, [1, C, 1, ...] float64.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.largest: NDArray[np.float64] = np.zeros(1)
        self._sum: NDArray[np.float64] = np.zeros(1)
        self._squares: NDArray[np.float64] = np.zeros(1)
        self._count = 0

    def add(self, batch: NDArray[Any]) -> None:
        """Add a batch; where the second dimension is none of channels, but of samples, it is alone."""
        if self._count and not self.fits(batch):
            self._clear()
        exact = np.where(np.isfinite(batch), batch, 0).astype(np.float64)
        axes = (0, *range(2, batch.ndim))[: batch.ndim]
        self.largest = np.maximum(self.largest, np.abs(exact).max(axis=axes, keepdims=True))
        self._sum = self._sum + exact.sum(axis=axes, keepdims=True)
        self._squares = self._squares + (exact**2).sum(axis=axes, keepdims=True)
        self._count += exact.size // max(self._sum.size, 1)

    def fits(self, tensor: NDArray[Any]) -> bool:
        """Whether a tensor has these channels."""
        return self.largest.shape == tuple(size if i == 1 else 1 for i, size in enumerate(tensor.shape))

    def rms(self, threshold: NDArray[Any] | float = 0.0) -> NDArray[np.float64]:
        """The root mean square of the distances from the channel's threshold, [1, C, 1, ...]."""
        mean, square = self._sum / max(self._count, 1), self._squares / max(self._count, 1)
        root: NDArray[np.float64] = np.sqrt(np.maximum(square - threshold * (2 * mean - threshold), 0))
        return root

    def deviation(self) -> NDArray[np.float64]:
        """The standard deviation, but at least a hundredth of the largest of all channels, [1, C, 1, ...]."""
        own = self.rms(self._sum / max(self._count, 1))
        least: NDArray[np.float64] = np.maximum(own, 0.01 * own.max())
        return least

    def unit(self) -> NDArray[np.float64]:
        """The unit of relative errors: `largest`, but at least a hundredth of the largest of all channels.

        With one unit for the whole tensor, a wrong filter whose alpha is small would hide behind the others; and a
        channel may be 0 on all the data.
        """
        least: NDArray[np.float64] = np.maximum(self.largest, 0.01 * self.largest.max())
        return least


def magnitudes(tensor: NDArray[Any]) -> Magnitudes:
    """The magnitudes of one tensor alone."""
    result = Magnitudes()
    result.add(tensor)
    return result


def differences(
    cut: Cut, got: NDArray[Any], expected: NDArray[Any], before: NDArray[Any], scale: Magnitudes
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Mask of the bits, or levels, that differ from the reference's, and their margins.

    Args:
        cut: the cut that both tensors belong to.
        got: the converted model's tensor, packed bits.
        expected: the reference's tensor, [N, C, spatial...].
        before: the pre-activations, [N, C, spatial...].
        scale: the magnitudes of the pre-activations on all the data.

    Returns:
        The mask, bool, and the relative margin (see `relative_margin`) where it is True, both shaped as `expected`.
        The margin of a level is the largest margin of the thresholds between it and the reference's level.
    """
    if cut.levels is None:
        flips = cut.decode(got, expected.shape) != (expected >= 0)
        return flips, relative_margin(before, scale.rms()) if flips.any() else np.zeros(flips.shape)
    found, wanted = cut.decode_levels(got, expected.shape), cut.levels.encode(expected)
    margin = np.zeros(expected.shape)
    if (found == wanted).all():
        return found != wanted, margin
    thresholds = cut.levels.columns(before.ndim)
    for level in range(1, 2**cut.levels.bits):
        passed = (found >= level) != (wanted >= level)
        if not passed.any():
            continue
        # Rounding explains neither a level without a threshold nor the crossing of an infinite threshold.
        distance = np.full(expected.shape, np.inf)
        if level <= len(thresholds):
            finite_thresholds = np.isfinite(thresholds[level - 1])
            threshold = np.where(finite_thresholds, thresholds[level - 1], np.float32(0))
            shifted = relative_margin(before - threshold, scale.rms(threshold))
            distance = np.where(finite_thresholds, shifted, np.inf)
        margin = np.where(passed, np.maximum(margin, distance), margin)
    return found != wanted, margin


def zero_flips(flips: NDArray[np.bool_], expected: NDArray[Any], before: NDArray[Any]) -> NDArray[np.bool_]:
    """The flips where the pre-activation is exactly 0 and the reference says on which side of the threshold that is.

    Rounding explains none of these if the model's pre-activation is exactly 0, too.
    """
    found: NDArray[np.bool_] = flips & (before == 0) & (np.abs(expected) > 0)  # NaN says nothing
    return found


def relative_margin(before: NDArray[Any], rms: NDArray[np.float64]) -> NDArray[np.float64]:
    """|pre-activation| in units of its channel's root mean square; pre-activations are [N, C, ...]."""
    margin: NDArray[np.float64] = np.abs(before.astype(np.float64)) / np.maximum(rms, np.finfo(np.float64).tiny)
    return margin


def rows_of(sample: int, samples: int, rows: int) -> slice:
    """Which of a tensor's rows belong to one of some samples: of [N * T, C], T rows; all if no such split is even."""
    if rows % samples == 0 or samples % rows == 0:
        return slice(sample * rows // samples, -(-(sample + 1) * rows // samples))
    return slice(0, rows)


def absolute_error(got: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """|got - expected|, infinite where one of them is NaN, 0 where both are the same infinity."""
    with np.errstate(invalid="ignore"):  # inf - inf
        error = np.abs(got.astype(np.float64) - expected)
    errors: NDArray[np.float64] = np.where(got == expected, 0, np.where(np.isnan(error), np.inf, error))
    return errors


def relative_error(got: NDArray[Any], expected: NDArray[Any], scale: Magnitudes) -> NDArray[np.float64]:
    """The absolute error in units of its channel, see `Magnitudes.unit`; of integers, infinite where they differ."""
    if expected.dtype.kind != "f":
        return np.where(got == expected, 0.0, np.inf)
    relative: NDArray[np.float64] = absolute_error(got, expected) / np.maximum(scale.unit(), np.finfo(np.float64).tiny)
    return relative


def classes(output: NDArray[Any]) -> NDArray[np.intp]:
    """The predicted classes [N]: of scores [N, classes] the highest, with any number of unit dimensions behind."""
    rows = output.reshape(len(output), -1)
    predicted: NDArray[np.intp] = rows.argmax(axis=1) if output.dtype.kind == "f" else rows[:, 0].astype(np.intp)
    return predicted


def has_classes(output: NDArray[Any]) -> bool:
    """Whether an output is [N, classes], or an integer per sample: not a map, not a single float per sample."""
    if output.dtype.kind != "f":
        return output.ndim >= 1 and output.size == len(output) > 0
    return output.ndim >= 2 and output.shape[1] > 1 and output[:1].size == output.shape[1]


AGREEING_ERROR = 0.5
"""The largest root mean square error of a sample's outputs, in standard deviations, with which it still agrees: two
unrelated outputs are 1.4 standard deviations apart."""

AGREEING_SHARE = 0.9
"""The share of a sample's integers that must be equal for it to agree."""


def agreeing(got: NDArray[Any], expected: NDArray[Any], scale: Magnitudes, samples: int) -> NDArray[np.bool_]:
    """Which samples, [samples], say the same as the reference: the same class, and nearly the same outputs.

    An output whose first dimension is not the sample's agrees as a whole.
    """
    if got.shape != expected.shape:
        return np.zeros(samples, bool)
    rows = (samples, -1) if len(expected) == samples and expected.size else (1, -1)
    if expected.dtype.kind != "f":
        same = (got == expected).reshape(rows).mean(axis=1) >= AGREEING_SHARE if expected.size else np.ones(1, bool)
    else:
        error = absolute_error(got, expected) / np.maximum(scale.deviation(), np.finfo(np.float64).tiny)
        same = np.sqrt((error**2).reshape(rows).mean(axis=1)) <= AGREEING_ERROR
        if rows[0] == samples and has_classes(expected):
            same &= classes(got) == classes(expected)
    return np.array(np.broadcast_to(same, samples))


def tie_margin(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """The distance from a tie of a sample whose class differs although no bit does: sums of few levels can tie.

    Args:
        got: the model's outputs for the sample.
        expected: the reference's.

    Returns:
        The larger of the reference's gap between the two classes and the largest error of an output, in units of the
        reference's largest |output|.
    """
    got, expected = got.reshape(-1).astype(np.float64), expected.reshape(-1).astype(np.float64)
    unit = float(np.abs(expected[np.isfinite(expected)]).max(initial=np.finfo(np.float32).tiny))
    gap = absolute_error(expected[got.argmax()], expected.max())
    return max(float(gap), float(absolute_error(got, expected).max())) / unit


def other_class(got: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.intp]:
    """Indices of the samples whose predicted class differs; none if the output is not [N, classes]."""
    if not has_classes(expected):
        return np.zeros(0, dtype=np.intp)
    return np.flatnonzero(classes(got) != classes(expected))
