"""Cycles of whole layers of the NEON units, from their loops."""

from __future__ import annotations

import dataclasses
import math

from mca.listing import count
from mca.neon import BLOCK, DirectKernel, Library
from mca.tool import cycles, cycles_of

COPY_BYTES = 32
COPY = ("ldp q0, q1, [x1], #32", "stp q0, q1, [x0], #32", "subs x2, x2, #32", "b.hi 1f")
"""memcpy's loop for long rows, by COPY_BYTES."""

CARRY_SAVE_WORDS = 72  # kMinWords of kernels/neon_dotprod.cc
PIXEL_BYTES = 20  # per pixel: window pointer, initial-sum pointer, number of products; looked up once
TRACES = 100  # iterations of a whole tile


@dataclasses.dataclass(frozen=True)
class Window:
    """A convolution. `read` and `made` are numbers of pixels of its input and of its output."""

    channels: int
    outputs: int
    kernel: tuple[int, int]
    read: int
    made: int

    @property
    def macs(self) -> int:
        return self.channels * math.prod(self.kernel) * self.outputs * self.made

    @property
    def words(self) -> int:
        """Of one run: a row of the kernel."""
        return self.kernel[1] * -(-self.channels // 32)


def by_carry_save(window: Window, model: str) -> bool:
    """Whether the dotprod unit runs the layer by carry-save addition."""
    return model == "cortex-a76" and window.kernel[0] * window.words >= CARRY_SAVE_WORDS


def copied(size: float, model: str) -> float:
    """Cycles of a copy of so many bytes."""
    return size / COPY_BYTES * cycles(COPY, model)


def binary_conv(library: Library, window: Window, floats: bool, model: str) -> dict[str, float]:
    """The cycles of each part of a binary convolution, with output as floats or as bits."""
    runs, words, outputs, made = window.kernel[0], window.words, window.outputs, window.made
    parts = {
        "copies of input and pointers": copied(4 * -(-window.channels // 32) * window.read + PIXEL_BYTES * made, model)
    }
    if floats:
        each = cycles_of(library.finish, model) / (4 * count(library.finish, "scvtf"))
        parts["floats from sums"] = each * outputs * made
    if by_carry_save(window, model):
        vectors = -(-runs * words // 4)
        sums = (max if made > 1 else min)(library.carry_save)
        parts["copies of windows"] = copied(16 * vectors * made, model)
        parts["prefix XORs"] = vectors * made * cycles_of(library.encode, model)
        tile = cycles_of(library.carry_save[sums].trace(vectors), model, TRACES)
        parts["tiles"] = tile * -(-outputs * made // sums)
        if not floats:
            parts["bits from sums"] = -(-outputs // 32) * made * cycles_of(library.signs, model)
        return parts
    tiles = library.floats if floats else library.bits
    pixels = max(tiles)
    times = {pixels: made // pixels, made % pixels: 1}
    parts["tiles"] = -(-outputs // BLOCK) * sum(
        number * cycles_of(tiles[size].trace(words, runs), model, TRACES)
        for size, number in times.items()
        if size and number
    )
    return parts


def direct_conv(kernel: DirectKernel, window: Window, model: str) -> float:
    """Cycles of the direct convolution to sums [pixels, outputs], and of its copy of the input.

    A group of taps is from one column of the kernel; its copy is a number of 4 bytes for each tap that begins one.
    """
    each = cycles_of(kernel.loop, model)
    rows, columns = window.kernel
    groups = -(-window.channels * rows // kernel.group) * columns
    tile = cycles_of(kernel.trace(), model, TRACES) + (groups - 1) * each
    copies = window.channels // math.gcd(window.channels, kernel.group)
    return tile * -(-window.outputs * window.made // kernel.sums) + copied(4 * copies * window.read, model)


def binarized(library: Library, floats: int, rows: bool, model: str) -> float:
    """Cycles from floats to bits; rows: whether the channels are the last dimension."""
    loop = library.binarize_rows if rows else library.binarize
    return floats * cycles_of(loop, model) / (4 * count(loop, "fcmge"))
