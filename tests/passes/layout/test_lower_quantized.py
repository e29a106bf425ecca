"""LowerQuantized: an 8-bit layer's output is binarised as it is; checked value by value."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.layout.lower_quantized import LowerQuantized
from support.graphs import copy, lower, op_types, parse, same_bits, weights

X = ("N", 33, 5, 4)
TEXT = """
q = QuantizeLinear(x, scale, zero)
d = DequantizeLinear(q, scale, zero)
s = Sign(d)
y = Conv(s, w)
"""
THRESHOLDS = np.linspace(-3, 3, 33, dtype=np.float32)


def quantized(text: str = TEXT, zero: int = 120) -> ir.Model:
    model = parse(text, X, w=weights(4, 33, 2, 2), scale=np.float32(0.02), zero=np.uint8(zero))
    before = lower(model)
    threshold = next(node for node in before.graph if node.op_type == "Binarize").inputs[1]
    assert threshold is not None
    values = THRESHOLDS.copy()
    values[:2] = -np.inf, np.inf
    threshold.const_value = ir.tensor(values, name=threshold.name)
    return before


SAMPLES = 40
"""Which reach below 0 and above 255, too."""


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("zero", [0, 120, 255])
def test_fires(kernels: bool, zero: int) -> None:
    before = quantized(zero=zero)
    after = copy(before)
    assert LowerQuantized()(after).count == 1
    assert op_types(after) == ["QuantizeLinear", "Transpose", "BinarizeQuantized", "BinaryConv"]
    assert same_bits(before, after, kernels, SAMPLES)


def test_a_threshold_moved_by_one_level_shows() -> None:
    before = quantized()
    after = copy(before)
    LowerQuantized()(after)
    value = next(node for node in after.graph if node.op_type == "BinarizeQuantized").inputs[1]
    assert value is not None
    levels = np.array(constant(value))
    assert levels.min() == 0 and levels.max() == 256  # always, never
    levels[16] += 1
    value.const_value = ir.tensor(levels, name=value.name)
    assert not same_bits(before, after, True, SAMPLES)


def test_does_not_touch_a_float_binarize() -> None:
    before = lower(parse("s = Sign(x)\ny = Conv(s, w)", X, w=weights(4, 33, 2, 2)))
    assert LowerQuantized()(before).count == 0


def test_does_not_touch_a_tensor_that_is_used_elsewhere() -> None:
    before = quantized(TEXT.replace("y = Conv(s, w)", "c = Conv(s, w)\ne = ReduceMax(d)\ny = Add(c, e)"))
    assert LowerQuantized()(before).count == 0
