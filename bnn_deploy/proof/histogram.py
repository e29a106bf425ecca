"""How far differences are from their tolerance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = range(-16, 8)
"""The powers of two, in units of the tolerance, at which the bins of a histogram begin."""

_BIAS = 127
"""Of the exponent of a float32."""


@dataclass
class Histogram:
    """How many values lie how far from their tolerance, in bins of one power of two each.

    Attributes:
        tolerance: the largest value that counts as rounding.
        edges: where each bin begins, in the same unit: the tolerance times 2^-16, 2^-15, ... 2^7; 0 instead of the
            first. The bin of 2^0 holds the tolerance itself and up to twice as much; the last is open, and holds
            infinity, too.
        counts: the number of values in each bin.
        zeros: the number of values that are exactly 0, which are in no bin.
    """

    tolerance: float
    edges: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    zeros: int = 0

    def __post_init__(self) -> None:
        """Make the bins."""
        if not self.edges:
            self.edges = [0.0, *(self.tolerance * 2.0**power for power in BINS[1:])]
            self.counts = [0] * len(BINS)

    def add(self, values: NDArray[Any]) -> None:
        """Add values, which are not negative."""
        # A float32 has its exponent in bits 23 to 30, and no sign here: that is faster than a search in the edges.
        nonzero = values[values != 0]
        self.zeros += values.size - nonzero.size
        with np.errstate(divide="ignore", over="ignore"):
            scaled = (nonzero / self.tolerance).astype(np.float32)
        exponents = np.bincount(scaled.view(np.uint32) >> 23, minlength=256)
        first, last = BINS[0] + _BIAS, BINS[-1] + _BIAS
        bins = [exponents[: first + 1].sum(), *exponents[first + 1 : last], exponents[last:].sum()]
        self.counts = [count + int(more) for count, more in zip(self.counts, bins, strict=True)]

    def plus(self, other: Histogram) -> Histogram:
        """Both together."""
        counts = [own + more for own, more in zip(self.counts, other.counts, strict=True)]
        return Histogram(self.tolerance, self.edges, counts, self.zeros + other.zeros)
