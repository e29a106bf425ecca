"""Weights of a few values per filter, as sums of ±1: W[o] = beta[o] + sum over q of alpha[q, o] * B[q, o]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.operators.contract import MAX_BASES
from bnn_deploy.passes.graph import some_filters
from bnn_deploy.passes.lower.layer import EXACT, MAX_SPREAD
from bnn_deploy.passes.monotone import Doubles
from bnn_deploy.passes.reasons import ManyWeightValues

MAX_VALUES = 16
"""Most values of a filter's weights that are few: real-valued weights have as many as they are."""


@dataclass(frozen=True)
class WeightSums:
    """Weights [O, ...] as beta[o] + sum over q of ±alpha[q, o].

    Attributes:
        signs: [bases, O, ...] bool, True for +alpha.
        alpha: [bases, O] float64, >= 0.
        beta: [O] float64.
    """

    signs: NDArray[np.bool_]
    alpha: Doubles
    beta: Doubles

    @property
    def bases(self) -> int:
        """The number of bases."""
        return len(self.alpha)


def filter_values(weight: NDArray[np.float32]) -> list[Doubles] | None:
    """The values of each filter of weights [O, ...], ascending; None if they are not few.

    Few are up to MAX_VALUES, each at least twice on average. Values that differ by 1e-3 of the largest count as one:
    their mean.
    """
    found: list[Doubles] = []
    for part in some_filters(weight):
        values = _filter_values(part)
        if values is None:
            return None
        found += values
    return found


def _filter_values(flat: NDArray[np.float64]) -> list[Doubles] | None:
    if not np.isfinite(flat).all() or flat.shape[1] < 2:
        return None
    order = np.sort(flat, axis=1)
    near = MAX_SPREAD * np.abs(flat).max(axis=1)
    steps = np.diff(order, axis=1) > near[:, np.newaxis]
    counts = 1 + steps.sum(axis=1)
    if counts.max() > MAX_VALUES or (2 * counts > flat.shape[1]).any():
        return None
    found = []
    for row, step, width in zip(order, steps, near, strict=True):
        groups = np.split(row, np.flatnonzero(step) + 1)
        if any(group[-1] - group[0] > width for group in groups):
            return None
        found.append(np.array([group[0] if group[0] == group[-1] else group.mean() for group in groups]))
    return found


def weight_sums(weight: NDArray[np.float32]) -> WeightSums | ManyWeightValues | None:
    """Write weights [O, ...] as a sum of the fewest bases.

    Two values {beta - alpha, beta + alpha} (AdaBin) take one basis; three, such as {-alpha, 0, +beta} of TWN and TTQ,
    two; 2^k values that are sums of k numbers (ABC-Net, LQ-Nets) k; others one less than there are values.

    Returns:
        The sum; the reason if it takes more than MAX_BASES bases; None if some filter has more than a few values.
    """
    every = filter_values(weight)
    if every is None:
        return None
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    found = []
    for o, values in enumerate(every):
        nearest = np.abs(flat[o][:, np.newaxis] - values).argmin(axis=1)
        noise = float(np.abs(flat[o] - values[nearest]).max())
        sums = sums_of_signs(values, max(2 * noise, EXACT * float(np.abs(values).max())))
        if sums is None:
            return ManyWeightValues(o, len(values), MAX_BASES)
        beta, alpha, codes = sums
        found.append((beta, alpha, codes[nearest].T))
    bases = max(len(alpha) for _, alpha, _ in found)
    signs = np.zeros((bases, *flat.shape), np.bool_)
    alphas = np.zeros((bases, len(flat)))
    for o, (_, alpha, bits) in enumerate(found):
        signs[: len(alpha), o], alphas[: len(alpha), o] = bits, alpha
    return WeightSums(signs.reshape(bases, *weight.shape), alphas, np.array([beta for beta, _, _ in found]))


def sums_of_signs(values: Doubles, near: float) -> tuple[float, Doubles, NDArray[np.bool_]] | None:
    """Write ascending values [k] as beta + sum over q of ±alpha[q], with the fewest alpha.

    Args:
        values: the values.
        near: by how much a sum may differ from its value.

    Returns:
        beta; alpha [bases]; which are added, [k, bases]; None if they are more than MAX_BASES.
    """
    if len(values) == 1:
        return 0.0, np.abs(values), values[:, np.newaxis] > 0
    low = values[0]
    steps: list[float] = []  # from the lowest value: 2 * alpha
    for value in values:
        sums = _sums(steps)
        if np.abs(low + sums - value).min() > near:
            steps.append(float(value - low))
    if len(steps) >= len(values) - 1:
        steps = list(np.diff(values))
    if len(steps) > MAX_BASES:
        return None
    sums = _sums(steps)
    chosen = np.abs(low + sums - values[:, np.newaxis]).argmin(axis=1)
    if (np.abs(low + sums[chosen] - values) > near).any():
        return None
    codes = (chosen[:, np.newaxis] >> np.arange(len(steps)) & 1) == 1
    beta = 0.0 if abs(low + sums[-1] + low) <= near else float(low + sums[-1] / 2)
    return beta, np.array(steps) / 2, codes


def _sums(steps: list[float]) -> Doubles:
    """The sums of all subsets [2^k]: bit i of the index says whether step i is added."""
    return np.array([sum(step for i, step in enumerate(steps) if code >> i & 1) for code in range(2 ** len(steps))])
