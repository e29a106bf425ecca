"""Binarize, BinarizeChannelsLast and BinarizeQuantized on every ISA, against numpy, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import TensorProto, helper

from support.kernels import CHANNEL_TAILS, DOMAIN, ISAS, make_model, make_session, only_runs, pack

# --- Binarize ---------------------------------------------------------------------------------


def binarize_differences(
    arrays: Sequence[np.ndarray], thresholds: Sequence[np.ndarray], isa: str, threads: int = 1
) -> list[tuple[int, ...]]:
    nodes, inputs, outputs, constants = [], [], [], {}
    for i, (x, threshold) in enumerate(zip(arrays, thresholds, strict=True)):
        nodes.append(helper.make_node("Binarize", [f"X{i}", f"t{i}"], [f"Y{i}"], domain=DOMAIN))
        constants[f"t{i}"] = threshold
        shape = [None] * x.ndim
        inputs.append(helper.make_tensor_value_info(f"X{i}", TensorProto.FLOAT, shape))
        outputs.append(helper.make_tensor_value_info(f"Y{i}", TensorProto.UINT32, shape))
    session = make_session(make_model(nodes, inputs, outputs, constants), isa, threads)
    got = session.run(None, {f"X{i}": x for i, x in enumerate(arrays)})
    wrong = []
    for x, threshold, actual in zip(arrays, thresholds, got, strict=True):
        bits = x >= threshold.reshape(1, -1, *[1] * (x.ndim - 2))
        expected = pack(np.where(bits, 1, -1), 1)
        if actual.shape != expected.shape or actual.tobytes() != expected.tobytes():
            wrong.append(x.shape)
    return wrong


def binarize_inputs(shapes: Sequence[tuple[int, ...]]) -> tuple[list, list]:
    """Small integers, so that many values equal their threshold, with NaN and infinities."""
    rng = np.random.default_rng(3)
    arrays, thresholds = [], []
    for shape in shapes:
        x = rng.integers(-3, 4, shape).astype(np.float32)
        special = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
        x.ravel()[:: max(7, x.size // 50)] = rng.choice(special, x.ravel()[:: max(7, x.size // 50)].size)
        threshold = rng.integers(-2, 3, shape[1]).astype(np.float32)
        threshold[::11] = np.inf
        threshold[3::11] = -np.inf
        threshold[5::11] = np.nan
        arrays.append(x)
        thresholds.append(threshold)
    return arrays, thresholds


@pytest.mark.parametrize("isa", ISAS)
def test_binarize(isa: str) -> None:
    shapes = [(2, c, 3, 3) for c in CHANNEL_TAILS]
    shapes += [(1, 35, 1, w) for w in [*range(1, 34), 63, 64, 65, 80, 127, 128, 129]]
    shapes += [(3, 70), (2, 33, 9), (2, 5, 2, 3, 7), (0, 5, 4, 4), (2, 5, 0, 4), (1, 4096)]
    arrays, thresholds = binarize_inputs(shapes)
    with only_runs(isa):
        assert not binarize_differences(arrays, thresholds, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_threads(isa: str) -> None:
    arrays, thresholds = binarize_inputs([(2, 64, 56, 56), (1, 3, 224, 224), (64, 512, 7, 7)])
    with only_runs(isa):
        assert not binarize_differences(arrays, thresholds, isa, threads=2)


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_a_moved_threshold_is_caught(isa: str) -> None:
    x = np.zeros((1, 40, 5, 5), np.float32)
    x[0, 33, 4, 4] = 1.0

    class Moved(np.ndarray):
        """The reference compares with one more than what the model is given."""

        def reshape(self, *shape: int) -> np.ndarray:
            return np.asarray(self).reshape(*shape) + np.float32(1e-6)

    threshold = np.full(40, 1.0, np.float32)
    assert not binarize_differences([x], [threshold], isa)
    assert binarize_differences([x], [threshold.view(Moved)], isa)


# --- BinarizeChannelsLast ---------------------------------------------------------------------


def channels_last_differences(shapes: Sequence[tuple[int, ...]], isa: str, threads: int = 1, moved: float = 0) -> list:
    """Shapes, channels second, for which the kernel differs; the reference's thresholds are `moved`."""
    arrays, thresholds = binarize_inputs(shapes)
    nodes, inputs, outputs, constants, feeds = [], [], [], {}, {}
    for i, (x, threshold) in enumerate(zip(arrays, thresholds, strict=True)):
        nodes.append(helper.make_node("BinarizeChannelsLast", [f"X{i}", f"t{i}"], [f"Y{i}"], domain=DOMAIN))
        constants[f"t{i}"] = threshold
        inputs.append(helper.make_tensor_value_info(f"X{i}", TensorProto.FLOAT, [None] * x.ndim))
        outputs.append(helper.make_tensor_value_info(f"Y{i}", TensorProto.UINT32, [None] * x.ndim))
        feeds[f"X{i}"] = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    got = make_session(make_model(nodes, inputs, outputs, constants), isa, threads).run(None, feeds)
    wrong = []
    for x, threshold, actual in zip(feeds.values(), thresholds, got, strict=True):
        expected = pack(np.where(x >= threshold + np.float32(moved), 1, -1), -1)
        if actual.shape != expected.shape or actual.tobytes() != expected.tobytes():
            wrong.append(x.shape)
    return wrong


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_channels_last(isa: str) -> None:
    shapes: list[tuple[int, ...]] = [(2, c, 3, 3) for c in CHANNEL_TAILS]
    shapes += [(3, 70), (2, 33, 9), (2, 5, 2, 3, 7), (0, 5, 4, 4), (1, 4096, 1, 1)]
    with only_runs(isa):
        assert not channels_last_differences(shapes, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_channels_last_threads(isa: str) -> None:
    with only_runs(isa):
        assert not channels_last_differences([(2, 64, 56, 56), (1, 33, 112, 112)], isa, threads=2)


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_channels_last_a_moved_threshold_is_caught(isa: str) -> None:
    assert channels_last_differences([(1, 40, 5, 5)], isa, moved=0.5)


# --- BinarizeQuantized ------------------------------------------------------------------------


def quantized_differences(
    arrays: Sequence[np.ndarray],
    thresholds: Sequence[np.ndarray],
    isa: str,
    threads: int = 1,
    moved: int = 0,
) -> list[tuple[int, ...]]:
    """Shapes for which the kernel differs; the reference's thresholds are `moved`."""
    nodes, inputs, outputs, constants = [], [], [], {}
    for i, (x, threshold) in enumerate(zip(arrays, thresholds, strict=True)):
        nodes.append(helper.make_node("BinarizeQuantized", [f"X{i}", f"t{i}"], [f"Y{i}"], domain=DOMAIN))
        constants[f"t{i}"] = threshold
        shape = [None] * x.ndim
        inputs.append(helper.make_tensor_value_info(f"X{i}", TensorProto.UINT8, shape))
        outputs.append(helper.make_tensor_value_info(f"Y{i}", TensorProto.UINT32, shape))
    session = make_session(make_model(nodes, inputs, outputs, constants), isa, threads)
    got = session.run(None, {f"X{i}": x for i, x in enumerate(arrays)})
    wrong = []
    for x, threshold, actual in zip(arrays, thresholds, got, strict=True):
        reached = x.astype(np.int64) >= threshold.astype(np.int64) + moved
        expected = pack(np.where(reached, 1, -1), -1)
        if actual.shape != expected.shape or actual.tobytes() != expected.tobytes():
            wrong.append(x.shape)
    return wrong


def quantized_inputs(shapes: Sequence[tuple[int, ...]]) -> tuple[list, list]:
    """All bytes, and thresholds below, inside and above their range."""
    rng = np.random.default_rng(5)
    arrays = [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
    limits = [np.iinfo(np.int32).min, -1, 0, 1, 254, 255, 256, np.iinfo(np.int32).max]
    thresholds = []
    for shape in shapes:
        threshold = rng.integers(0, 257, shape[-1]).astype(np.int32)
        threshold[::3] = rng.choice(limits, len(threshold[::3]))
        thresholds.append(threshold)
    return arrays, thresholds


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_quantized(isa: str) -> None:
    shapes: list[tuple[int, ...]] = [(2, 3, 5, c) for c in CHANNEL_TAILS]
    shapes += [(3, 70), (2, 9, 33), (2, 2, 3, 7, 5), (0, 4, 4, 5), (1, 1, 1, 4096)]
    arrays, thresholds = quantized_inputs(shapes)
    with only_runs(isa):
        assert not quantized_differences(arrays, thresholds, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_quantized_threads(isa: str) -> None:
    arrays, thresholds = quantized_inputs([(2, 112, 112, 64), (1, 224, 224, 33)])
    with only_runs(isa):
        assert not quantized_differences(arrays, thresholds, isa, threads=2)


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_quantized_a_moved_threshold_is_caught(isa: str) -> None:
    arrays, thresholds = quantized_inputs([(2, 16, 16, 40)])
    thresholds = [np.clip(t, 1, 254) for t in thresholds]
    assert not quantized_differences(arrays, thresholds, isa)
    assert quantized_differences(arrays, thresholds, isa, moved=1)
