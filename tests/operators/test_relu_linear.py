"""The body of ReluLinear, on numbers whose sums are exact in any order, and what its sums may be rounded to."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from bnn_deploy.operators.contract import DOMAIN
from support.bodies import Array, check, make_model, nowhere_equal
from support.graphs import eighths


def model(x: Array, w: Array, bias: Array) -> bytes:
    node = helper.make_node("ReluLinear", ["X", "W", "bias"], ["Y"], "last", domain=DOMAIN)
    return make_model([node], x, {"W": w, "bias": bias}, {"Y": TensorProto.FLOAT}, 2)


@pytest.mark.parametrize("shape", [(3, 24), (2, 6, 4), (1, 2, 3, 4)])
def test_body(shape: tuple[int, ...]) -> None:
    x, w, bias = eighths(*shape, seed=3), eighths(24, 10), eighths(10, seed=1)
    expected = np.maximum(x.reshape(len(x), 24), 0) @ w + bias
    check(model(x, w, bias), x, [expected])
    for wrong in ((x, w + np.float32(0.125) * (np.arange(240) == 7).reshape(24, 10), bias), (x, w, bias[::-1].copy())):
        assert nowhere_equal(model(wrong[0], wrong[1].astype(np.float32), wrong[2]), x, [expected])


def test_a_number_that_is_none_counts() -> None:
    x, w, bias = eighths(2, 24), eighths(24, 10), eighths(10)
    x[0, 3] = np.nan
    x[1] = -np.inf
    check(model(x, w, bias), x, [np.stack([np.full(10, np.nan, np.float32), bias])])
