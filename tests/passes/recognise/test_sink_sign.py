"""SinkSign: signs above moves go below them."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.passes.recognise.sink_sign import SinkSign
from bnn_deploy.provenance import BEFORE, SOURCE
from support.graphs import assert_same, copy, eighths, equal, only, op_types, parse, run_float, samples, weights


def sink(model: ir.Model) -> tuple[ir.Model, int]:
    after = copy(model)
    return after, SinkSign()(after).count


SHUFFLE = (
    "s = Sign(x)\na = Reshape(s, split)\nb = Transpose <perm=[0,2,1,3,4]> (a)\nc = Reshape(b, join)\ny = Conv(c, w)"
)


def shuffle(outputs: tuple[str, ...] = ("y",), more: str = "") -> ir.Model:
    split, join = np.array([0, 2, 2, 6, 6]), np.array([0, 4, 6, 6])
    return parse(SHUFFLE + more, outputs=outputs, split=split, join=join, w=weights(8, 4, 3, 3))


def test_fires_through_a_channel_shuffle() -> None:
    model = shuffle()
    after, modified = sink(model)
    assert modified == 3
    assert op_types(after) == ["Reshape", "Transpose", "Reshape", "Sign", "Conv"]
    sign = only(after, "Sign")
    assert sign.metadata_props[SOURCE] == "c"
    moves = [["reshape", [-1, 2, 2, 6, 6]], ["transpose", [0, 2, 1, 3, 4]], ["reshape", [-1, 4, 6, 6]]]
    assert json.loads(sign.metadata_props[BEFORE]) == ["x", *moves]
    assert_same(model, to_binary(model)[0])


def test_a_transpose_back_leaves_none() -> None:
    text = "t = Transpose <perm=[0,2,3,1]> (x)\ns = Sign(t)\nm = Mul(s, k)"
    text += "\nu = Transpose <perm=[0,3,1,2]> (m)\ny = Conv(u, w)"
    model = parse(text, k=np.float32(0.5), w=weights(8, 4, 3, 3))
    after, modified = sink(model)
    assert (modified, op_types(after)) == (1, ["Sign", "Mul", "Conv"])
    assert_same(model, to_binary(model)[0])


@pytest.mark.parametrize("flatten", ["f = Flatten(s)", "f = Reshape(s, shape)"])
def test_does_not_fire_on_a_flatten_before_a_linear_layer(flatten: str) -> None:
    shape = {"shape": np.array([0, -1])} if "shape" in flatten else {}
    after, modified = sink(parse(f"s = Sign(x)\n{flatten}\ny = MatMul(f, w)", w=weights(144, 5), **shape))
    assert modified == 0
    assert op_types(after)[0] == "Sign"


def test_does_not_fire_on_moves_of_what_is_no_sign() -> None:
    model = parse("s = Relu(x)\nt = Transpose <perm=[0,2,3,1]> (s)\ny = Mul(t, k)", k=eighths(4))
    assert sink(model)[1] == 0


def test_channels_last_then_flat() -> None:
    """Features in the order H, W, C, as a channels-last network flattens them."""
    model = parse(
        "s = Sign(x)\nt = Transpose <perm=[0,2,3,1]> (s)\nf = Flatten(t)\ny = MatMul(f, w)",
        ("N", 5, 3, 4),
        w=weights(60, 7),
    )
    binary = to_binary(model)[0]
    assert "BinaryConv" in op_types(binary)
    assert_same(model, binary)


def test_fan_out() -> None:
    """The sign is moved for one layer and not for the other."""
    model = shuffle(("y", "z"), "\nz = Conv(s, w)")
    binary = to_binary(model)[0]
    assert op_types(binary).count("BinaryConv") == 2
    assert_same(model, binary)


def test_shapes_shared_by_two_moves() -> None:
    text = "s = Sign(x)\na = Reshape(s, shape)\nt = Sign(v)\nb = Reshape(t, shape)\ny = Conv(a, w)\nz = Conv(b, w)"
    model = parse("v = Neg(x)\n" + text, outputs=("y", "z"), shape=np.array([0, 4, 4, 9]), w=weights(8, 4, 3, 3))
    after, modified = sink(model)
    assert modified == 2
    assert equal(run_float(after, samples(model)), run_float(model, samples(model)))
    assert_same(model, to_binary(model)[0])
