"""ImageConv and ImageConvThreshold: to the last bit what DirectConv makes of the normalised floats."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from support.direct_conv import BY_INTEGERS, CASES, Case, image
from support.kernels import ISAS, library_info, only_runs

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def normalised(channels: int) -> np.ndarray:
    """Levels [C, 256]: (byte / 255 - mean) / std in float32."""
    q = np.arange(256, dtype=np.float32) / np.float32(255)
    return (q - MEAN[:channels, None]) / STD[:channels, None]


def bytes_of(case: Case) -> np.ndarray:
    """X uint8 [N, C, spatial...]: smooth, with black and white."""
    rng = np.random.default_rng(3)
    x = rng.normal(120, 70, (case.batch, case.channels, *case.size))
    return np.clip(x, 0, 255).astype(np.uint8)


def look_up(levels: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The level of each byte."""
    return np.stack([levels[c][x[:, c]] for c in range(len(levels))], axis=1)


def by_floats(case: Case, isa: str, levels: np.ndarray, x: np.ndarray, bits: bool, **changes: np.ndarray) -> bytes:
    operator = "DirectConvThreshold" if bits else "DirectConv"
    (made,) = case.session(operator, isa, **changes).run(None, {"X": look_up(levels, x)})
    return made.tobytes()


def by_bytes(
    case: Case, isa: str, levels: np.ndarray, x: np.ndarray, bits: bool, last: bool = False, **changes: np.ndarray
) -> bytes:
    operator = "ImageConvThreshold" if bits else "ImageConv"
    session = case.session(operator, isa, levels=levels, channels_last=np.array(int(last)), **changes)
    (made,) = session.run(None, {"X": np.ascontiguousarray(np.moveaxis(x, 1, -1)) if last else x})
    return made.tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_the_floats_and_the_bits_are_those_of_the_normalised_image(isa):
    before = library_info(isa)
    for i, case in enumerate(CASES):
        levels, x = normalised(case.channels), bytes_of(case)
        with only_runs(isa):
            assert by_bytes(case, isa, levels, x, False, i % 2 == 0) == by_floats(case, isa, levels, x, False), case
        # Thresholds inside the sums' range, and the sums of one window themselves, the hardest there are: they and the
        # numbers above them.
        (floats,) = case.session("DirectConv", isa).run(None, {"X": look_up(levels, x)})
        reached = np.ascontiguousarray(floats[(0, slice(None), *[n // 2 for n in floats.shape[2:]])])
        above = np.nextafter(reached, np.float32(np.inf))
        for threshold in (case.tensors()["threshold"] * 9, reached, above):
            bits = by_bytes(case, isa, levels, x, True, i % 2 == 1, threshold=threshold)
            assert bits == by_floats(case, isa, levels, x, True, threshold=threshold), case
        # Levels that are off by a bit show; so do thresholds at the very next number.
        moved = np.nextafter(levels, np.float32(4))
        assert by_bytes(case, isa, moved, x, False) != floats.tobytes()
        assert by_bytes(case, isa, levels, x, True, threshold=reached) != by_floats(
            case, isa, levels, x, True, threshold=above
        )
    after = library_info(isa)
    made = after["integer_bits"] - before["integer_bits"]
    undecided = after["undecided_bits"] - before["undecided_bits"]
    assert (0 < undecided < made / 20) if isa in BY_INTEGERS else made == undecided == 0


@pytest.mark.parametrize("isa", ISAS)
def test_few_bits_are_undecided(isa):
    """Of a layer as networks have them: thresholds and weights of no relation to the sums."""
    case = image(64, kernel=5, size=(40, 40), channels=3, pads=(2, 2, 2, 2))
    before = library_info(isa)
    by_bytes(case, isa, normalised(3), bytes_of(case), True)
    after = library_info(isa)
    made = after["integer_bits"] - before["integer_bits"]
    undecided = after["undecided_bits"] - before["undecided_bits"]
    if isa in BY_INTEGERS:
        # 8-bit levels meet the padding, 0, less closely.
        most = made / (200 if isa == "neon_dotprod" else 500)
        assert made == case.batch * 64 * 40 * 40 and 0 < undecided < most
    else:
        assert made == undecided == 0


def hard_levels() -> dict[str, np.ndarray]:
    """Levels [2, 256] that no straight line gives, or that no integer stands for."""
    rng = np.random.default_rng(5)
    usual = normalised(2)
    result = {
        "random": rng.standard_normal((2, 256)).astype(np.float32),
        "constant": np.full((2, 256), 0.25, np.float32),
        "zero": np.zeros((2, 256), np.float32),
        "far from 0": usual + np.float32(1e6),
        "tiny": usual * np.float32(1e-42),
        "huge": usual * np.float32(1e38),
        "bent": np.maximum(usual, 0),
        "falling": np.ascontiguousarray(usual[:, ::-1]),
        "one that is off": usual.copy(),
        "infinite": usual.copy(),
        "not a number": usual.copy(),
    }
    result["one that is off"][1, 77] += 3
    result["infinite"][0, 9] = np.inf
    result["not a number"][0, 9] = np.nan
    return result


@pytest.mark.parametrize("isa", ISAS)
def test_any_levels_weights_and_thresholds_give_the_bits_of_the_floats(isa):
    case = image(33, strides=(2, 1), size=(12, 15))
    x, tensors = bytes_of(case), case.tensors()
    for name, levels in hard_levels().items():
        (floats,) = case.session("DirectConv", isa).run(None, {"X": look_up(levels, x)})
        threshold = np.ascontiguousarray(floats[0, :, 2, 3])
        assert by_bytes(case, isa, levels, x, True, threshold=threshold) == by_floats(
            case, isa, levels, x, True, threshold=threshold
        ), name
    levels = normalised(2)
    special = tensors["threshold"].copy()
    special[:3] = np.inf, -np.inf, np.nan
    zeros = tensors["W"].copy()
    zeros[4] = 0  # the sum is the bias
    at_bias = tensors["threshold"].copy()
    at_bias[4] = tensors["bias"][4]
    infinite, nan, one = tensors["W"].copy(), tensors["bias"].copy(), tensors["W"].copy()
    infinite[3, 0, 1, 1], nan[3], one[:, 0, 0, 0] = np.inf, np.nan, 1e6
    for changes in (
        {"threshold": special},
        {"W": zeros, "threshold": at_bias},
        {"W": infinite},
        {"bias": nan},
        {"W": one},
        {"W": tensors["W"] * np.float32(1e-40), "bias": tensors["bias"] * 0, "threshold": tensors["bias"] * 0},
    ):
        got, expected = (by(case, isa, levels, x, True, **changes) for by in (by_bytes, by_floats))
        assert got == expected, sorted(changes)


@pytest.mark.parametrize("isa", ISAS)
def test_the_rounding_of_the_floats_is_bounded_too(isa):
    """Levels and weights are integers, so the integer sums are exact, and the float sums are not."""
    case = image(64, kernel=5, size=(24, 24), channels=3)
    x, levels = bytes_of(case), np.tile(np.arange(256, dtype=np.float32), (3, 1))
    largest = 257 * 127  # of the weights' integers, so their step is 1
    weights = np.random.default_rng(9).integers(-largest, largest + 1, (64, 3, 5, 5)).astype(np.float32)
    weights[:, 0, 0, 0] = largest
    (floats,) = case.session("DirectConv", isa, W=weights).run(None, {"X": look_up(levels, x)})
    exact = sum(
        np.einsum(
            "nchw,oc->nohw",
            np.pad(look_up(levels, x), [(0, 0), (0, 0), (1, 1), (1, 1)])[
                :, :, i : i + floats.shape[2], j : j + floats.shape[3]
            ].astype(np.float64),
            weights[:, :, i, j].astype(np.float64),
        )
        for i in range(5)
        for j in range(5)
    ) + case.tensors()["bias"].reshape(1, -1, 1, 1)
    # The threshold of each channel is the float sum that rounding lifted or lowered most.
    lifted = (floats - exact).transpose(1, 0, 2, 3).reshape(64, -1)
    sums = floats.transpose(1, 0, 2, 3).reshape(64, -1)
    for pick in (lifted.argmax(1), lifted.argmin(1)):
        assert np.abs(lifted[range(64), pick]).min() > 3
        threshold = sums[range(64), pick]
        for moved in (threshold, np.nextafter(threshold, np.float32(np.inf))):
            assert by_bytes(case, isa, levels, x, True, W=weights, threshold=moved) == by_floats(
                case, isa, levels, x, True, W=weights, threshold=moved
            )


@pytest.mark.parametrize("isa", ISAS)
def test_threads_and_batches_of_images_change_nothing(isa):
    case = image(40, size=(90, 100), channels=3, kernel=5, batch=3, pool=(3, 3), pool_strides=(2, 2))
    x, levels = bytes_of(case), normalised(3)
    (together,) = case.session("ImageConvThreshold", isa, 3, levels=levels).run(None, {"X": x})
    one = case.session("ImageConvThreshold", isa, levels=levels)
    alone = np.concatenate([one.run(None, {"X": x[i : i + 1]})[0] for i in range(case.batch)])
    assert together.tobytes() == alone.tobytes() == by_floats(case, isa, levels, x, True)


def test_wrong_images_and_levels_are_named():
    case = image(10)
    levels, x = normalised(2), bytes_of(case)
    with pytest.raises(
        Exception, match=r"input levels has shape \[1, 256\], but W has 2 channels and needs \[2, 256\]"
    ):
        by_bytes(case, ISAS[0], levels[:1], x, True)
    with pytest.raises(Exception, match=r"input levels has shape \[2, 255\]"):
        by_bytes(case, ISAS[0], levels[:, 1:], x, False)
    session = case.session("ImageConv", ISAS[0], levels=levels, channels_last=np.array(1))
    with pytest.raises(Exception, match=r"input X has shape \[2, 2, 9, 11\], but it must be \[N, H, W, 2\]"):
        session.run(None, {"X": x})
    with pytest.raises(Exception, match="channels_last"):
        case.session("ImageConv", ISAS[0], levels=levels, channels_last=np.array(2))
    empty = dataclasses.replace(case, batch=0)
    (made,) = case.session("ImageConvThreshold", ISAS[0], levels=levels).run(None, {"X": bytes_of(empty)})
    assert made.shape == (0, 9, 11, 1)
