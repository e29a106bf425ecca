"""PreferChannelsLast: a float convolution's output is binarised channels last, with the same bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.layout.prefer_channels_last import PreferChannelsLast
from bnn_deploy.provenance import SOURCE
from support.graphs import copy, eighths, lower, op_types, parse, same_bits, weights

X = ("N", 3, 6, 5)
TEXT = "c = Conv(x, f, bias)\ns = Sign(c)\ny = Conv(s, w)"


def binary(text: str = TEXT, channels: int = 64, outputs: tuple[str, ...] = ("y",)) -> ir.Model:
    constants = {"f": eighths(channels, 3, 2, 2), "bias": eighths(channels), "w": weights(4, channels, 2, 2)}
    return lower(parse(text, X, outputs=outputs, **constants))


@pytest.mark.parametrize("kernels", [False, True])
def test_fires(kernels: bool) -> None:
    before = binary()
    after = copy(before)
    assert PreferChannelsLast()(after).count == 1
    assert op_types(after) == ["Conv", "Transpose", "BinarizeChannelsLast", "BinaryConv"]
    node = next(node for node in after.graph if node.op_type == "BinarizeChannelsLast")
    assert node.metadata_props[SOURCE] == "s"
    assert same_bits(before, after, kernels)
    value = node.inputs[1]
    assert value is not None
    moved = np.array(constant(value))
    moved[5] += 0.5
    value.const_value = ir.tensor(moved, name=value.name)
    assert not same_bits(before, after, kernels)


def test_does_not_fire_for_a_rest_of_channels() -> None:
    assert PreferChannelsLast()(binary(channels=40)).count == 0


def test_does_not_fire_for_a_convolution_that_is_used_elsewhere() -> None:
    text = TEXT.replace("y = Conv(s, w)", "d = Conv(s, w)\ne = ReduceMax(c)\ny = Add(d, e)")
    assert PreferChannelsLast()(binary(text)).count == 0


def test_does_not_fire_without_a_convolution() -> None:
    text = "c = Conv(x, f, bias)\nr = Relu(c)\ns = Sign(r)\ny = Conv(s, w)"
    assert PreferChannelsLast()(binary(text)).count == 0


def test_one_sign_for_two_layers() -> None:
    before = binary(TEXT.replace("y = Conv(s, w)", "d = Conv(s, w)\ne = Conv(s, w)\ny = Add(d, e)"))
    after = copy(before)
    assert PreferChannelsLast()(after).count == 1
    assert op_types(after).count("BinarizeChannelsLast") == 1
    assert same_bits(before, after, True)
