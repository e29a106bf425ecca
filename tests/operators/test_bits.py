"""The bit format: its layout against numbers worked by hand, and that packing loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from bnn_deploy.operators.bits import WORD, pack_bits, unpack_bits, words

deterministic = settings(derandomize=True, max_examples=60, deadline=None, database=None)
booleans = arrays(
    np.bool_, array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=70).filter(lambda s: np.prod(s) < 5000)
)


def on(channels: int, *ones: int) -> NDArray[np.bool_]:
    """`channels` booleans, True at `ones`."""
    values = np.zeros(channels, bool)
    values[list(ones)] = True
    return values


@pytest.mark.parametrize(
    ("channels", "ones", "expected"),
    [
        (1, [0], [1]),
        (4, [1, 3], [2 + 8]),
        (20, [0, 19], [1 + 2**19]),
        (31, [30], [2**30]),
        (32, [0, 31], [2**31 + 1]),
        (32, range(32), [0xFFFFFFFF]),
        (33, [32], [0, 1]),
        (33, [0, 8, 31, 32], [2**31 + 2**8 + 1, 1]),
        (96, [31, 32, 64, 95], [2**31, 1, 1 + 2**31]),
        (5, [], [0]),
    ],
)
def test_layout_on_hand_worked_numbers(channels: int, ones: list[int], expected: list[int]) -> None:
    packed = pack_bits(on(channels, *ones))
    assert packed.dtype == np.uint32
    assert packed.tolist() == expected
    assert np.array_equal(unpack_bits(np.array(expected, np.uint32), channels), on(channels, *ones))
    assert pack_bits(~on(channels, *ones)).tolist() != expected


def test_leading_dimensions_stay() -> None:
    values = np.zeros((2, 3, 5, 33), bool)
    values[1, 2, 4, 32] = True
    packed = pack_bits(values)
    assert packed.shape == (2, 3, 5, 2)
    assert packed[1, 2, 4].tolist() == [0, 1]
    assert np.count_nonzero(packed) == 1


@pytest.mark.parametrize(("channels", "count"), [(1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (65, 3), (800, 25)])
def test_number_of_words(channels: int, count: int) -> None:
    assert WORD == 32
    assert words(channels) == count


@deterministic
@given(values=booleans)
def test_round_trip(values: NDArray[np.bool_]) -> None:
    packed = pack_bits(values)
    assert packed.shape == (*values.shape[:-1], words(values.shape[-1]))
    restored = unpack_bits(packed, values.shape[-1])
    assert restored.dtype == np.bool_
    assert np.array_equal(restored, values)
    packed.flat[0] ^= 1  # one bit wrong is one boolean wrong
    assert np.count_nonzero(unpack_bits(packed, values.shape[-1]) != values) == 1


@deterministic
@given(values=booleans)
def test_each_bit_is_where_the_contract_says_and_unused_bits_are_zero(values: NDArray[np.bool_]) -> None:
    packed = pack_bits(values)
    for channel in range(packed.shape[-1] * 32):
        bit = packed[..., channel // 32] >> np.uint32(channel % 32) & np.uint32(1)
        assert np.array_equal(bit, values[..., channel] if channel < values.shape[-1] else np.zeros(values.shape[:-1]))


@deterministic
@given(values=booleans)
def test_memory_order_does_not_matter(values: NDArray[np.bool_]) -> None:
    strided = np.asfortranarray(values)[..., ::-1]
    assert np.array_equal(pack_bits(strided), pack_bits(strided.copy(order="C")))
    packed = pack_bits(values)
    assert np.array_equal(unpack_bits(np.asfortranarray(packed), values.shape[-1]), values)


@pytest.mark.parametrize("channels", [32, 65])
def test_a_channel_count_that_does_not_fit_the_words_is_an_error(channels: int) -> None:
    with pytest.raises(ValueError, match=rf"{channels} channels need {words(channels)} words, but .* has 2"):
        unpack_bits(np.zeros((3, 2), np.uint32), channels)


def test_only_booleans_are_packed() -> None:
    with pytest.raises(TypeError, match=r"float32.*values > 0"):
        pack_bits(np.array([-1.0, 1.0], np.float32))  # type: ignore[arg-type]
