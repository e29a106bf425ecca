"""Numbers, sizes and shapes as text."""

from __future__ import annotations

from collections.abc import Sequence

TIMES = "\N{MULTIPLICATION SIGN}"
"""The sign between the sizes of a shape, and after a factor such as 2.00."""


def human_bytes(count: int) -> str:
    """A number of bytes with three digits and a decimal unit: 1648123 -> '1.65 MB'."""
    return _scaled(count, [" B", " kB", " MB", " GB", " TB"])


def human_count(count: int) -> str:
    """A number with three digits and a decimal prefix: 1648123 -> '1.65 M'."""
    return _scaled(count, ["", " k", " M", " G", " T", " P"])


def exact_bytes(count: int) -> str:
    """A number of bytes, short and exact: '1.65 MB (1,648,123 bytes)'."""
    return f"{human_bytes(count)} ({count:,} bytes)"


def _scaled(count: int, units: Sequence[str]) -> str:
    if abs(count) < 1000:
        return f"{count}{units[0]}"
    value = float(count)
    index = 0
    while abs(value) >= 999.5 and index < len(units) - 1:  # 999.5 would be printed as 1000
        value /= 1000
        index += 1
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}{units[index]}"


def shape_text(shape: Sequence[int | str | None] | None) -> str:
    """The sizes of a shape with TIMES between them; '?' for an unknown size or shape, 'scalar' for no dimension."""
    if shape is None:
        return "?"
    return TIMES.join("?" if size is None else str(size) for size in shape) or "scalar"


def tensor_text(shape: Sequence[int | str | None] | None, dtype: str | None, bits: int | None) -> str:
    """A tensor's shape and, if it is not float32, its type.

    Args:
        shape: as it is stored; of bits uint32 [N, spatial..., ceil(C/32)].
        dtype: numpy's name of its type; None if it is unknown.
        bits: the number of channels C of bits, which are shown in place of words: 40 channels, not 2 words; None for
            what is no bits.
    """
    if bits is not None and shape is not None:
        return f"{shape_text((*shape[:-1], bits))} bits"
    return shape_text(shape) + ("" if dtype == "float32" else f" {dtype or '?'}")


def percent(count: float, of: float) -> str:
    """A share with two decimals, '99.30 %'; '-' of nothing."""
    return f"{100 * count / of:.2f} %" if of else "-"


def milliseconds(value: float) -> str:
    """A time in ms with at least three digits, and no more than it takes to read: '0.123', '12.34', '123.4'."""
    return f"{value:,.{3 if value < 10 else 2 if value < 100 else 1}f}"


def plural(count: int, noun: str) -> str:
    """'1 thread', '2 threads'."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
