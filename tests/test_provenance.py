"""Provenance: the moves that lead from a tensor of the float graph to one of the converted model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bnn_deploy.provenance import MaxPool
from bnn_deploy.runtime.session import load_session


def pooled(x: NDArray[np.float32], window: dict[str, Any]) -> NDArray[Any]:
    """ONNX's MaxPool, by onnxruntime."""
    node = helper.make_node("MaxPool", ["x"], ["y"], **window)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * x.ndim) for name in ("x", "y")]
    graph = helper.make_graph([node], "pool", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return np.asarray(load_session(model.SerializeToString(), kernels=False).run(None, {"x": x})[0])


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, ...], dict[str, Any]]:
    rank = draw(st.integers(1, 2))

    def each(low: int, high: int, count: int = rank) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(count)]

    kernel = each(1, 3)
    dilations = each(1, 2)
    pads = [draw(st.integers(0, size - 1)) for size in kernel * 2]
    window = {"kernel_shape": kernel, "strides": each(1, 3), "pads": pads, "dilations": dilations}
    return tuple(each(6, 9)), window | {"ceil_mode": draw(st.integers(0, 1))}


@settings(max_examples=60, deadline=None)
@given(windows(), st.integers(0, 1000))
def test_max_pool_is_that_of_onnx(case: tuple[tuple[int, ...], dict[str, Any]], seed: int) -> None:
    size, window = case
    x = np.random.default_rng(seed).standard_normal((2, 3, *size)).astype(np.float32)
    np.testing.assert_array_equal(MaxPool(window).apply(x), pooled(x, window))


@pytest.mark.parametrize("change", [{"strides": [1, 1]}, {"pads": [0, 1, 0, 1]}, {"dilations": [1, 1]}])
def test_another_window_shows(change: dict[str, Any]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 7, 7)).astype(np.float32)
    window = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 0, 1, 0], "dilations": [2, 2], "ceil_mode": 0}
    assert not np.array_equal(MaxPool(window | change).apply(x), pooled(x, window))
