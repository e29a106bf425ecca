"""The bit format of the operators, in numpy.

A bit tensor is uint32 [N, spatial..., ceil(C/32)]: channel c is bit c % 32 (least significant first) of word c // 32;
1 stands for +1, 0 for -1; unused bits of the last word are 0. For example, C = 40 takes 2 words, channel 33 is bit 1 of
word 1, and bits 8 to 31 of word 1 are 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WORD = 32


def words(channels: int) -> int:
    """Number of uint32 words that hold `channels` bits."""
    return -(-channels // WORD)


def pack_bits(values: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Pack booleans [..., C] (True is +1) into uint32 [..., ceil(C/32)].

    Raises:
        TypeError: `values` are not booleans: -1 and +1 would both count as True.
    """
    if values.dtype != np.bool_:
        raise TypeError(f"values are {values.dtype}, but must be bool: pass values > 0")
    channels = values.shape[-1]
    padded = np.zeros((*values.shape[:-1], words(channels) * WORD), dtype=np.uint8)
    padded[..., :channels] = values
    return np.packbits(padded, axis=-1, bitorder="little").view("<u4").astype(np.uint32, copy=False)


def unpack_bits(bits: NDArray[np.uint32], channels: int) -> NDArray[np.bool_]:
    """Unpack uint32 [..., ceil(C/32)] into booleans [..., C].

    Raises:
        ValueError: the last dimension of `bits` is not the number of words for `channels`.
    """
    count = bits.shape[-1]
    if count != words(channels):
        raise ValueError(f"{channels} channels need {words(channels)} words, but {list(bits.shape)} has {count}")
    as_bytes = np.ascontiguousarray(bits, dtype="<u4").view(np.uint8)
    return np.unpackbits(as_bytes, axis=-1, count=channels, bitorder="little").astype(bool)
