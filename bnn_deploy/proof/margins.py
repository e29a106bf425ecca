"""Distances between two tensors: margins of signs, errors of floats, differing classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bnn_deploy.proof.cuts import Cut


def settle_zeros(cut: Cut, got: NDArray[Any], low: NDArray[Any], expected: NDArray[Any]) -> NDArray[Any]:
    """Replace the values of `got` that depend on a sign(0) by the admissible value nearest to `expected`.

    `got` was computed with +1 for each 0, `low` with -1. A layer is linear in its input and its epilogue is monotone,
    so the result for 0 lies between them: with got 5 and low 1, expected 3 gives 3, and expected 7 gives 5.
    """
    if not cut.is_bits:
        got, low = got.reshape(expected.shape), low.reshape(expected.shape)
        return np.where(got == low, got, np.clip(expected, np.minimum(got, low), np.maximum(got, low)))
    if cut.levels is not None:
        return got
    unsettled = got ^ low
    words: NDArray[Any] = (got & ~unsettled) | (cut.encode(expected).reshape(got.shape) & unsettled)
    return words


def count_differing(cut: Cut, got: NDArray[Any], low: NDArray[Any]) -> int:
    """The number of floats, or of bits, that differ between two results of a segment."""
    return int(np.unpackbits((got ^ low).view(np.uint8)).sum()) if cut.is_bits else int((got != low).sum())


def differing_values(got: NDArray[Any], expected: NDArray[Any], tolerance: float) -> NDArray[np.bool_]:
    """Mask of the values that differ; with a tolerance, by more than this times the expected magnitude."""
    differing: NDArray[np.bool_] = got != expected
    if tolerance:
        differing &= ~(absolute_error(got, expected) <= tolerance * np.abs(expected.astype(np.float64)))
    return differing


def cut_kind(cut: Cut) -> str:
    """The `kind` of a cut in LayerResult."""
    return "floats" if not cut.is_bits else "bits" if cut.levels is None else "levels"


def differences(
    cut: Cut,
    got: NDArray[Any],
    expected: NDArray[Any],
    before: NDArray[Any],
    whole: NDArray[Any] | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Mask of the bits, or levels, that differ from the reference's, and their margins.

    Args:
        cut: the cut that both tensors belong to.
        got: the converted model's tensor, packed bits.
        expected: the reference's tensor, [N, C, spatial...].
        before: the pre-activations, [N, C, spatial...].
        whole: those of more samples, from which the units of the margins come; None for `before`.

    Returns:
        The mask, bool, and the relative margin (see `relative_margin`) where it is True, both shaped as `expected`.
        The margin of a level is the largest margin of the thresholds between it and the reference's level.
    """
    if cut.levels is None:
        flips = cut.decode(got, expected.shape) != (expected >= 0)
        return flips, relative_margin(before, whole) if flips.any() else np.zeros(flips.shape)
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
            unit = None if whole is None else whole - threshold
            distance = np.where(finite_thresholds, relative_margin(before - threshold, unit), np.inf)
        margin = np.where(passed, np.maximum(margin, distance), margin)
    return found != wanted, margin


def relative_margin(before: NDArray[Any], whole: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """|pre-activation| in units of its channel's root mean square; pre-activations are [N, C, ...].

    The root mean square is that of `whole`, the pre-activations of more samples; without it, of `before`.
    """
    axes = (0, *range(2, before.ndim))
    rms = np.sqrt(((before if whole is None else whole).astype(np.float64) ** 2).mean(axis=axes, keepdims=True))
    margin: NDArray[np.float64] = np.abs(before.astype(np.float64)) / np.maximum(rms, np.finfo(np.float64).tiny)
    return margin


def rows_of(sample: int, samples: int, rows: int) -> slice:
    """Which of a tensor's rows belong to one of some samples: of [N * T, C], T rows; all if no such split is even."""
    if rows % samples == 0 or samples % rows == 0:
        return slice(sample * rows // samples, -(-(sample + 1) * rows // samples))
    return slice(0, rows)


def absolute_error(got: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """|got - expected|, infinite where one of them is NaN."""
    error = np.abs(got.astype(np.float64) - expected)
    infinite: NDArray[np.float64] = np.where(np.isnan(error), np.inf, error)
    return infinite


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """The absolute error in units of the largest |expected| in the channel; tensors are [N, C, ...].

    With one unit for the whole tensor, a wrong filter whose alpha is small would hide behind the others. A hundredth of
    the tensor's largest value is the least unit: a channel may be 0 on all the data.
    """
    magnitude = np.abs(expected.astype(np.float64))
    channel = magnitude.max(axis=(0, *range(2, expected.ndim)), keepdims=True)
    unit = np.maximum(channel, 0.01 * magnitude.max())
    relative: NDArray[np.float64] = absolute_error(got, expected) / np.maximum(unit, np.finfo(np.float64).tiny)
    return relative


def classes(output: NDArray[Any]) -> NDArray[np.intp]:
    """The predicted classes [N] of outputs [N, classes], with any number of unit dimensions behind."""
    predicted: NDArray[np.intp] = output.reshape(len(output), -1).argmax(axis=1)
    return predicted


def has_classes(output: NDArray[Any]) -> bool:
    """Whether an output is [N, classes]: not a map, not a single number per sample."""
    return output.ndim >= 2 and output.shape[1] > 1 and output[0].size == output.shape[1]


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
    unit = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    gap = float(expected.max() - expected[got.argmax()])
    return max(gap, float(absolute_error(got, expected).max())) / unit


def other_class(got: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.intp]:
    """Indices of the samples whose predicted class differs; none if the output is not [N, classes]."""
    if not has_classes(expected):
        return np.zeros(0, dtype=np.intp)
    return np.flatnonzero(classes(got) != classes(expected))
