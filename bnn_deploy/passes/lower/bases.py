"""Layers of planes of ±1 and weights of few values, as sums of binary convolutions: what BinaryConvBases reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.operators.bits import pack_bits
from bnn_deploy.operators.contract import MAX_LEVEL_BITS
from bnn_deploy.passes.lower.filter_values import weight_sums
from bnn_deploy.passes.reasons import FewProducts, ManyPasses, Reason
from bnn_deploy.passes.recognise.few_levels import EVEN

MAX_PASSES = 4
"""Most binary convolutions that a layer may become; docs/converting.md says what was measured."""

PIXEL_PRODUCTS, WINDOW_PRODUCTS = 48, 100
"""Fewest products of an output for each of several binary convolutions, of 1x1 kernels and of larger ones.

With fewer, what each convolution does beside its products makes the layer slower than in float32: measured by
tests/benchmarks/layer_speed.py on AVX2, where the ratio crosses 1.
"""


@dataclass(frozen=True)
class PlaneSums:
    """Activations as offset + sum over p of ±steps[p], with one plane of bits for each p.

    Attributes:
        offset: what is added.
        steps: [planes] float64.
        is_binary_code: whether plane j holds bit j of the level's index; else whether threshold j is reached.
    """

    offset: float
    steps: NDArray[np.float64]
    is_binary_code: bool


def plane_of_signs(factor: float) -> PlaneSums:
    """The plane of a sign times a number."""
    return PlaneSums(0.0, np.array([factor]), True)


def plane_sums(levels: NDArray[np.float64]) -> PlaneSums | None:
    """The planes of ascending levels: bits of their indices, or else one per threshold; None if they are too many."""
    low, count = float(levels[0]), len(levels)
    near = EVEN * float(np.abs(levels).max())
    bits = np.arange((count - 1).bit_length())
    codes = (np.arange(count)[:, np.newaxis] >> bits & 1) == 1
    steps = levels[2**bits] - low
    is_binary_code = bool((np.abs(low + codes @ steps - levels) <= near).all())
    if not is_binary_code:
        steps = np.diff(levels)
    if len(steps) > MAX_LEVEL_BITS:
        return None
    offset = low + steps.sum() / 2
    return PlaneSums(0.0 if abs(offset) <= near else float(offset), steps / 2, is_binary_code)


def sum_of_bases(
    planes: PlaneSums, weight: NDArray[np.float32]
) -> tuple[dict[str, NDArray[Any]], dict[str, int]] | Reason | None:
    """The weights and scales, and the attributes, of the BinaryConvBases of planes and weights [O, C/group, kernel...].

    Returns:
        They; the reason if it takes more than MAX_PASSES binary convolutions, or several that do not pay; None if the
        weights have many values.
    """
    values = weight_sums(weight)
    if values is None or isinstance(values, Reason):
        return values
    passes, products = len(planes.steps) * values.bases, weight[0].size
    if passes > MAX_PASSES:
        return ManyPasses(len(planes.steps), values.bases, MAX_PASSES)
    least = passes * (PIXEL_PRODUCTS if products == weight.shape[1] else WINDOW_PRODUCTS)
    if passes > 1 and products < least:
        return FewProducts(passes, products, least)
    factors = np.array([planes.offset, *planes.steps])
    scale = factors[:, np.newaxis, np.newaxis] * np.concatenate([values.beta[np.newaxis], values.alpha])
    words = [pack_bits(np.moveaxis(basis, 1, -1)) for basis in values.signs]
    constants: dict[str, NDArray[Any]] = {
        "weight_bits": np.concatenate(words, axis=-1),
        "scale": scale.astype(np.float32),
    }
    return constants, {"planes": len(planes.steps), "bases": values.bases}
