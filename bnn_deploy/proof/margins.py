"""Distances between two tensors: margins of signs, errors of floats, differing classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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


def chunks(tensor: NDArray[Any]) -> Iterator[Any]:
    """Indices of some of a tensor's rows at a time: what is computed of them in float64 stays in the CPU's caches."""
    if not tensor.ndim:
        yield ...
        return
    rows = max(1, 2**17 // max(tensor[:1].size, 1))
    for start in range(0, len(tensor), rows):
        yield slice(start, start + rows)


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
        axes = (0, *range(2, batch.ndim))[: batch.ndim]
        for rows in chunks(batch):
            part = batch[rows]
            exact = part.astype(np.float64)
            exact[~np.isfinite(exact)] = 0
            ends = exact.max(axis=axes, keepdims=True), -exact.min(axis=axes, keepdims=True)
            self.largest = np.maximum(self.largest, np.maximum(*ends))
            self._sum = self._sum + exact.sum(axis=axes, keepdims=True)
            self._squares = self._squares + np.square(exact, out=exact).sum(axis=axes, keepdims=True)
        self._count += batch.size // max(self._sum.size, 1)

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


@dataclass(frozen=True)
class Flips:
    """The bits, or levels, of a tensor that differ from the reference's.

    Attributes:
        places: their indices, one array for each dimension of the reference's tensor [N, C, spatial...].
        margins: float64, see `relative_margin`.
    """

    places: tuple[NDArray[np.intp], ...]
    margins: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.margins)

    def of(self, rows: slice) -> Flips:
        """Those in some rows."""
        inside = (self.places[0] >= rows.start) & (self.places[0] < rows.stop)
        return Flips(tuple(axis[inside] for axis in self.places), self.margins[inside])

    def infinite(self, where: NDArray[np.bool_]) -> Flips:
        """The same, with an infinite margin for some of them."""
        return replace(self, margins=np.where(where, np.inf, self.margins))

    def largest(self) -> tuple[tuple[int, ...], float]:
        """The place of the largest margin, the first if there are several, and the margin."""
        first = int(self.margins.argmax())
        return tuple(int(axis[first]) for axis in self.places), float(self.margins[first])


def differences(cut: Cut, got: NDArray[Any], expected: NDArray[Any], before: NDArray[Any], scale: Magnitudes) -> Flips:
    """The bits, or levels, that differ from the reference's, and their margins.

    Args:
        cut: the cut that both tensors belong to.
        got: the converted model's tensor, packed bits.
        expected: the reference's tensor, [N, C, spatial...].
        before: the pre-activations, [N, C, spatial...].
        scale: the magnitudes of the pre-activations on all the data.

    Returns:
        Where they differ, with the relative margin (see `relative_margin`) there. The margin of a level is the largest
        margin of the thresholds between it and the reference's level.

    Raises:
        ValueError: the tensors do not fit each other.
    """
    if cut.levels is None:
        places = cut.flips(got, expected)
        return Flips(places, relative_margin(_at(before, expected, places), _at(scale.rms(), expected, places)))
    found, wanted = cut.decode_levels(got, expected.shape), cut.levels.encode(expected)
    places = np.nonzero(found != wanted)
    low, high = (function(found[places], wanted[places]) for function in (np.minimum, np.maximum))
    value = _at(before, expected, places)
    margins = np.zeros(len(low))
    thresholds = cut.levels.columns(before.ndim)
    for level in range(1, 2**cut.levels.bits) if len(low) else ():
        passed = (low < level) & (level <= high)
        # Rounding explains neither a level without a threshold nor the crossing of an infinite threshold.
        distance = np.full(len(low), np.inf)
        if level <= len(thresholds):
            finite = np.isfinite(thresholds[level - 1])
            threshold = np.where(finite, thresholds[level - 1], np.float32(0))
            here = _at(threshold, expected, places)
            shifted = relative_margin(value - here, _at(scale.rms(threshold), expected, places))
            distance = np.where(_at(finite, expected, places), shifted, np.inf)
        margins = np.where(passed, np.maximum(margins, distance), margins)
    return Flips(places, margins)


def _at(tensor: NDArray[Any], like: NDArray[Any], places: tuple[NDArray[np.intp], ...]) -> NDArray[Any]:
    """The values at some places of a tensor that is broadcast to the shape of another one."""
    values: NDArray[Any] = np.broadcast_to(tensor, like.shape)[places]
    return values


def zero_flips(flips: Flips, expected: NDArray[Any], before: NDArray[Any]) -> NDArray[np.bool_]:
    """Which flips have a pre-activation of exactly 0 and a reference that says on which side of the threshold that is.

    Rounding explains none of these if the model's pre-activation is exactly 0, too.
    """
    found: NDArray[np.bool_] = (_at(before, expected, flips.places) == 0) & (np.abs(expected[flips.places]) > 0)
    return found  # NaN says nothing


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
    return in_units(absolute_error(got, expected), expected, scale)


def in_units(error: NDArray[np.float64], expected: NDArray[Any], scale: Magnitudes) -> NDArray[np.float64]:
    """Absolute errors of values like the expected ones in units of their channels, see `relative_error`."""
    if expected.dtype.kind != "f":
        return np.where(error == 0, 0.0, np.inf)
    relative: NDArray[np.float64] = error / np.maximum(scale.unit(), np.finfo(np.float64).tiny)
    return relative.reshape(error.shape)  # a single number has none of the unit's dimensions


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


HIGHEST = 5
"""Of a "top-5" accuracy."""


def among_highest(scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Which samples' labels are among the HIGHEST scores; of equal scores the lower class is the higher one.

    None if the output is of classes alone, or of no more than HIGHEST, among which each label would be.
    """
    rows = scores.reshape(len(scores), -1)
    if scores.dtype.kind != "f" or rows.shape[1] <= HIGHEST:
        return None
    columns = labels.astype(np.intp)
    known = (columns >= 0) & (columns < rows.shape[1])
    columns = np.where(known, columns, 0)[:, np.newaxis]
    own = np.take_along_axis(rows, columns, axis=1)
    before = (rows > own) | ((rows == own) & (np.arange(rows.shape[1]) < columns))
    among: NDArray[np.bool_] = known & ~np.isnan(own[:, 0]) & (before.sum(axis=1) < HIGHEST)
    return among


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
