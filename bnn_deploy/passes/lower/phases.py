"""Transposed convolutions as ordinary ones: one per phase of the output, whose results are interleaved."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """An ordinary convolution of stride 1 that computes every stride-th element along each spatial dimension.

    Attributes:
        taps: for each dimension the taps of the transposed convolution's kernel that it has, in its own order; none if
            the phase is the bias alone.
        kernel: its kernel_shape. Without taps it is that of a window that fits.
        dilations: its dilations.
        pads: its pads, begins and then ends.
    """

    taps: tuple[tuple[int, ...], ...]
    kernel: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @property
    def is_bias(self) -> bool:
        """Whether no tap reaches its elements."""
        return not all(self.taps)


@dataclass(frozen=True)
class Phases:
    """A transposed convolution as convolutions of stride 1.

    Element s * j + r of the output, along one dimension, sums the taps t for which r + pad - t * dilation is q * s,
    each with element j + q of the input. So for each r this is a convolution, with the taps in the order of ascending
    q.

    Attributes:
        phases: in the order of `interleave.Interleaved`.
        extra: by how many elements each phase's map is larger than the input, along each dimension.
        crop: what the interleaved map has too much, begins and then ends.
    """

    phases: tuple[Phase, ...]
    extra: tuple[int, ...]
    crop: tuple[int, ...]


def find_phases(
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    output_padding: Sequence[int],
) -> Phases:
    """Split a transposed convolution with these attributes of ONNX's ConvTranspose, whatever its input's size."""
    rank = len(kernel)
    axes = [
        _split_axis(kernel[i], strides[i], dilations[i], pads[i], pads[i + rank], output_padding[i])
        for i in range(rank)
    ]
    return Phases(
        tuple(_products([axis.phases for axis in axes])),
        tuple(axis.extra for axis in axes),
        (*(axis.begin for axis in axes), *(axis.end for axis in axes)),
    )


@dataclass(frozen=True)
class _Line:
    """A phase along one dimension: see Phase."""

    taps: tuple[int, ...]
    kernel: int
    dilation: int
    begin: int
    end: int


@dataclass(frozen=True)
class _Axis:
    """The phases along one dimension, and what they have too much; see Phases."""

    phases: tuple[_Line, ...]
    extra: int
    begin: int
    end: int


def _split_axis(kernel: int, stride: int, dilation: int, begin: int, end: int, output_padding: int) -> _Axis:
    # The output has stride * (size - 1) + length elements.
    length = (kernel - 1) * dilation + 1 + output_padding - begin - end
    # Phases that start at the output's first element, unless one of them would skip elements of the input.
    crop = 0
    offsets = _offsets(kernel, stride, dilation, begin)
    if any(min(found.values(), default=0) > 0 for found in offsets):
        crop, offsets = begin, _offsets(kernel, stride, dilation, 0)
    extra = -(-(crop + length) // stride) - 1
    extra = max(extra, *(-max(found.values(), default=-extra) for found in offsets))
    lines = []
    for found in offsets:
        taps = tuple(sorted(found, key=lambda tap: found[tap]))
        if taps:
            first, last = found[taps[0]], found[taps[-1]]
            lines.append(_Line(taps, len(taps), dilation // math.gcd(dilation, stride), -first, extra + last))
        else:
            lines.append(_Line((), max(1, 1 - extra), 1, 0, max(0, extra)))
    return _Axis(tuple(lines), extra, crop, stride * (1 + extra) - crop - length)


def _offsets(kernel: int, stride: int, dilation: int, pad: int) -> list[dict[int, int]]:
    """For each phase, the element of the input, from that of the phase on, that each of its taps meets."""
    return [
        {
            tap: (phase + pad - tap * dilation) // stride
            for tap in range(kernel)
            if (phase + pad - tap * dilation) % stride == 0
        }
        for phase in range(stride)
    ]


def _products(axes: Sequence[Sequence[_Line]]) -> Iterator[Phase]:
    for lines in itertools.product(*axes):
        yield Phase(
            tuple(line.taps for line in lines),
            tuple(line.kernel for line in lines),
            tuple(line.dilation for line in lines),
            (*(line.begin for line in lines), *(line.end for line in lines)),
        )
