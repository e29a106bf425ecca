"""HoistPad: padding before a sign is the padding of the convolution, with the sign of what was padded."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.passes.recognise.hoist_pad import HoistPad
from bnn_deploy.provenance import BEFORE, MOVES, SOURCE
from support.graphs import assert_same, batch_norm, copy, equal, only, op_types, parse, run_float, samples, weights

PADS = np.array([0, 0, 1, 0, 0, 0, 1, 2])


def hoist(model: ir.Model) -> tuple[ir.Model, int]:
    after = copy(model)
    return after, HoistPad()(after).count


def graph(text: str, outputs: tuple[str, ...] = ("y",), **constants: Any) -> ir.Model:
    known = {"pads": PADS, "w": weights(8, 4, 3, 3), "c": np.float32(-2), "low": np.float32(-1)} | constants
    return parse(
        text,
        outputs=outputs,
        **{name: value for name, value in known.items() if f"{name})" in text or f"{name}," in text},
    )


def pad_value(model: ir.Model) -> float:
    value = constant(only(to_binary(model)[0], "BinaryConv").inputs[4])
    assert value is not None
    return float(value[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p = Pad(x, pads)\ns = Sign(p)", 0),
        ("p = Pad(x, pads, c)\ns = Sign(p)", -1),
        ("p = Pad(x, pads, c)\nq = Neg(p)\ns = Sign(q)", -1),  # +1, of bits that are stored complemented
        ("p = Pad(x, pads)\nq = Clip(p, low)\ns = Sign(q)", 0),
        ("p = Pad(x, pads)\nq = Tanh(p)\nr = LeakyRelu(q)\ns = Sign(r)", 0),
        ("p = Pad(x, pads)\nq = Add(p, one)\ns = Sign(q)", 1),
    ],
)
def test_fires(text: str, expected: float) -> None:
    model = graph(f"{text}\ny = Conv(s, w)", one=np.ones((4, 1, 1), np.float32))
    after, modified = hoist(model)
    assert modified == 1
    assert op_types(after)[-3:] == ["Sign", "Pad", "Conv"]
    sign = only(after, "Sign")
    assert sign.metadata_props[SOURCE] == "s"
    assert json.loads(sign.metadata_props[MOVES]) == [["crop", PADS.tolist()]]
    assert json.loads(sign.metadata_props[BEFORE])[0] in ("x", "q", "r")
    assert pad_value(model) == expected
    assert_same(model, to_binary(model)[0])


def test_does_not_hoist_another_mode() -> None:
    model = graph('p = Pad <mode="reflect"> (x, pads)\ns = Sign(p)\ny = Conv(s, w)')
    assert hoist(model)[1] == 0
    assert_same(model, to_binary(model)[0])


def test_does_not_hoist_where_the_sign_of_the_padding_differs_by_channel() -> None:
    """The padded floats stay, and are exact."""
    model = graph(
        "p = Pad(x, pads)\nq = BatchNormalization(p, g, b, m, v)\ns = Sign(q)\ny = Conv(s, w)",
        **batch_norm(4) | {"b": np.float32([1, -1, 2, -2]), "m": np.zeros(4, np.float32)},
    )
    assert hoist(model)[1] == 0
    assert_same(model, to_binary(model)[0])


def test_zero_in_some_channels_stays_float_with_the_reason() -> None:
    shift = np.float32([0, 1, -1, 0]).reshape(4, 1, 1)
    model = graph("p = Pad(x, pads)\nq = Add(p, shift)\ns = Sign(q)\ny = Conv(s, w)", shift=shift)
    binary, left, _ = to_binary(model)
    assert [decline.reason for decline in left] == ["its padding, from Pad 'p', is 0 in channel 0 and ±1 in others"]
    assert left[0].has_sign_input
    assert equal(run_float(binary, samples(model)), run_float(model, samples(model)))


def test_zeros_before_a_pool_stay_float_with_the_reason() -> None:
    """A 0 among -1 wins the maximum, and no bit can hold it."""
    model = graph("p = Pad(x, pads)\ns = Sign(p)\nq = MaxPool <kernel_shape=[2,2]> (s)\ny = Conv(q, w)")
    left = to_binary(model)[1]
    assert len(left) == 1
    assert "stands between the sign and a MaxPool" in left[0].reason


def test_padded_channels_stay_float_with_the_reason() -> None:
    model = parse(
        "p = Pad(x, pads)\ns = Sign(p)\ny = Conv(s, w)", pads=np.array([0, 1, 0, 0, 0, 1, 0, 0]), w=weights(8, 6, 3, 3)
    )
    assert "pads channels" in to_binary(model)[1][0].reason


def test_fan_out() -> None:
    """The padded data, its sign and a convolution of each are all used."""
    text = "p = Pad(x, pads)\ns = Sign(p)\ny = Conv(s, w)\nz = Relu(p)\nt = Sign(x)\nu = Conv(t, w)\nv = Neg(s)"
    model = graph(text, ("y", "z", "u", "v"))
    after, modified = hoist(model)
    assert modified == 1
    assert equal(run_float(after, samples(model)), run_float(model, samples(model)))
    assert_same(model, to_binary(model)[0])


def test_pads_shared_by_two_nodes() -> None:
    text = "p = Pad(x, pads)\ns = Sign(p)\ny = Conv(s, w)\nq = Pad(x, pads, c)\nt = Sign(q)\nz = Conv(t, w)"
    model = graph(text, ("y", "z"))
    assert hoist(model)[1] == 2
    assert_same(model, to_binary(model)[0])


def test_zeros_and_ones_in_one_padding_stay_float_with_the_reason() -> None:
    model = graph("s = Sign(x)\np = Pad(s, pads, c)\ny = Conv <pads=[1,1,1,1]> (p, w)", c=np.float32(1))
    assert "which cannot be mixed" in to_binary(model)[1][0].reason
    model = graph("s = Sign(x)\np = Pad(s, pads, c)\ny = Conv(p, w)")
    assert "padded with -2 times the magnitude of the signs" in to_binary(model)[1][0].reason
