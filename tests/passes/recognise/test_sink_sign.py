"""SinkSign: signs above moves go below them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnn_deploy.conversion import convert
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.passes.recognise.canonicalize_sign import CanonicalizeSign
from bnn_deploy.passes.recognise.sink_sign import SinkSign
from bnn_deploy.proof.verification import verify
from bnn_deploy.provenance import BEFORE, SOURCE, ZERO, read_before, source_place
from bnn_deploy.runtime.session import library_info
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


NEAREST = 'Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">'
CONSTANTS = {
    "w": weights(8, 4, 3, 3),
    "half": weights(8, 2, 3, 3),
    "double": weights(8, 8, 3, 3),
    "flat": weights(288, 5),
    "scale": np.float32(0.5),
    "shift": eighths(4, 1, 1),
    "zero": np.float32(0),
    "one": np.float32(1),
    "minus": np.float32(-1),
    "twos": np.array([2, 2]),
    "first": np.array([0]),
    "second": np.array([2]),
    "last": np.array([-1]),
    "least": np.array([-100]),
    "all": np.array([100]),
    "axis": np.array([3]),
    "picks": np.array([2, 0, 1, 1]),
    "up": np.float32([1, 1, 2, 2]),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "times": np.array([1, 2, 1, 1]),
}

TWO = "q = Add(x, shift)\nr = Sign(q)"
ABOVE = "g = GreaterOrEqual(x, zero)\ns = Where(g, one, minus)"
POOL = "MaxPool<kernel_shape=[2,2], strides=[2,2]>"

MOVED = {
    "Split": "s = Sign(x)\na, b = Split<axis=1>(s, twos)\nc = Conv(a, half)\nd = Conv(b, half)\ny = Add(c, d)",
    "Split of scaled signs": (
        "s = Sign(x)\nm = Mul(s, scale)\na, b = Split<axis=1>(m, twos)\nc = Conv(a, half)\nd = Conv(b, half)\n"
        "y = Add(c, d)"
    ),
    "flip": "s = Sign(x)\na = Slice(s, last, least, axis, last)\ny = Conv(a, w)",
    "roll": (
        "s = Sign(x)\na = Slice(s, first, second, axis)\nb = Slice(s, second, all, axis)\nc = Concat<axis=3>(b, a)\n"
        "y = Conv(c, w)"
    ),
    "Gather": "s = Sign(x)\na = Gather<axis=1>(s, picks)\ny = Conv(a, w)",
    "Tile": "s = Sign(x)\na = Tile(s, times)\ny = Conv(a, double)",
    "reflected borders": 's = Sign(x)\na = Pad<mode="reflect">(s, pads)\ny = Conv(a, w)',
    "nearest Resize behind a pool": f"s = Sign(x)\np = {POOL}(s)\na = {NEAREST}(p, , up)\ny = Conv(a, w)",
    "DepthToSpace and back": (
        "s = Sign(x)\na = DepthToSpace<blocksize=2>(s)\nb = SpaceToDepth<blocksize=2>(a)\ny = Conv(b, w)"
    ),
    "Concat": f"s = Sign(x)\n{TWO}\na = Concat<axis=1>(s, r)\ny = Conv(a, double)",
    "Concat of scaled signs": (
        f"s = Sign(x)\n{TWO}\nm = Mul(s, scale)\nn = Mul(scale, r)\na = Concat<axis=1>(m, n)\ny = Conv(a, double)"
    ),
    "Concat with a pool": (
        "s = Sign(x)\np = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(s)\na = Concat<axis=1>(s, p)\ny = Conv(a, double)"
    ),
    "Concat of flat signs": (
        f"s = Sign(x)\n{TWO}\na = Flatten(s)\nb = Flatten(r)\nc = Concat<axis=1>(a, b)\ny = MatMul(c, flat)"
    ),
    "min-pool": f"s = Sign(x)\na = Neg(s)\nb = {POOL}(a)\nc = Neg(b)\ny = Conv(c, w)",
}


def moved(text: str) -> ir.Model:
    return parse(text, **{name: array for name, array in CONSTANTS.items() if re.search(rf"\b{name}\b", text)})


@pytest.mark.parametrize("name", MOVED)
def test_layers_behind_moved_signs_are_found(name: str) -> None:
    model = moved(MOVED[name])
    binary, left, _ = to_binary(model)
    assert not left and "BinaryConv" in op_types(binary)
    assert_same(model, binary)


@pytest.mark.parametrize(
    ("kinds", "zero"),
    [
        (("", "Greater"), 0),
        (("", "GreaterOrEqual"), 0),
        (("Greater", "Greater"), -1),
        (("Greater", "GreaterOrEqual"), 1),
    ],
)
def test_signs_that_differ_at_zero_meet_in_a_concat(kinds: tuple[str, str], zero: int) -> None:
    lines = []
    for i, kind in enumerate(kinds):
        data = ("x", "q")[i]
        lines += [f"g{i} = {kind}({data}, zero)\ns{i} = Where(g{i}, one, minus)" if kind else f"s{i} = Sign({data})"]
    model = moved("q = Neg(x)\n" + "\n".join(lines) + "\na = Concat<axis=1>(s0, s1)\ny = Conv(a, double)")
    x = samples(model)
    x.flat[::3] = 0  # of the paper's kind, where the source gives 0
    binary, left, _ = to_binary(model)
    assert not left
    if zero:
        assert_same(model, binary, x)
    after = copy(model)
    while CanonicalizeSign()(after).count + SinkSign()(after).count:
        pass
    assert only(after, "Sign").metadata_props.get(ZERO, "0") == str(zero)


@pytest.mark.parametrize(
    "text",
    [
        f"s = Sign(x)\n{TWO}\nm = Mul(s, scale)\na = Concat<axis=1>(m, r)\ny = Conv(a, double)",
        "s = Sign(x)\na = Concat<axis=1>(s, x)\ny = Conv(a, double)",
        f"{ABOVE}\nt = Sign(x)\na = Concat<axis=1>(s, t)\nb = Conv(a, double)\nc = ReduceMax(a)\ny = Add(b, c)",
    ],
    ids=["of two magnitudes", "with floats", "of two kinds that something else reads"],
)
def test_does_not_fire_on_a_concat(text: str) -> None:
    model = moved(text)
    CanonicalizeSign()(model)
    after, modified = sink(model)
    assert modified == 0
    assert "Concat" in op_types(after)
    assert to_binary(moved(text))[1]


def test_does_not_fire_where_no_layer_reads_what_is_moved() -> None:
    model = moved(
        "s = Sign(x)\na = Slice(s, first, second, axis)\nb = ReduceMax<keepdims=1>(a)\nc = Conv(s, w)\ny = Mul(b, c)"
    )
    assert sink(model)[1] == 0


def test_the_source_and_the_pre_activation_of_a_concat() -> None:
    """They are of two tensors each, and are those that onnxruntime computes."""
    model = moved(
        f"s = Sign(x)\n{TWO}\nb = Slice(r, last, least, axis, last)\na = Concat<axis=1>(s, b)\ny = Conv(a, double)"
    )
    after, _ = sink(model)
    sign = next(node for node in after.graph if node.op_type == "Sign")
    source, before = source_place(sign.metadata_props), read_before(sign.metadata_props)
    assert source is not None and before is not None
    x = samples(model)
    q = x + CONSTANTS["shift"]
    values = {"x": x, "q": q, "s": np.sign(x), "r": np.sign(q)}
    assert (source.tensors, before.tensors) == (("s", "r"), ("x", "q"))
    expected = np.concatenate([x, q[:, :, :, ::-1]], axis=1)
    np.testing.assert_array_equal(before.read(values), expected)
    np.testing.assert_array_equal(source.read(values), np.sign(expected))
    assert not np.array_equal(before.read(values | {"q": x}), expected)


def test_verify_holds_a_concat_of_signs_against_all_its_tensors(tmp_path: Path) -> None:
    """A threshold that is shifted in one of the parts is seen, and is that of the part's own pre-activation."""
    text = "c = Conv(x, u)\nq = Neg(c)\nn = Mul(q, k)\ns = Sign(c)\nr = Sign(n)\na = Concat<axis=1>(s, r)"
    text += "\ny = Conv(a, double)"
    constants = {"u": eighths(4, 4, 1, 1), "k": np.float32(0.3), "double": CONSTANTS["double"]}
    source = ir.to_proto(parse(text, **constants))
    convert(source, tmp_path / "m.onnx", weights="as-is")
    x = samples(parse(text, **constants))
    options: dict[str, Any] = {"data": x, "reference_samples": 0, "isas": library_info().isas[:1]}
    assert verify(tmp_path / "m.onnx", source, **options).passed
    wrong = onnx.load(tmp_path / "m.onnx")
    (bits,) = (node for node in wrong.graph.node if node.op_type == "Binarize")
    (threshold,) = (tensor for tensor in wrong.graph.initializer if tensor.name == bits.input[1])
    shifted = onnx.numpy_helper.to_array(threshold).copy()
    shifted[-1] += 0.125
    threshold.CopyFrom(onnx.numpy_helper.from_array(shifted, threshold.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    assert not verify(tmp_path / "wrong.onnx", source, **options).passed
