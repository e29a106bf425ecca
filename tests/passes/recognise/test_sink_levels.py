"""SinkLevels: few levels above moves go below them, where layers of levels are found."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnn_deploy.conversion import convert
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.passes.recognise.sink_levels import SinkLevels
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import library_info
from support.graphs import (
    assert_same,
    copy,
    corruptions,
    eighths,
    equal,
    op_types,
    parse,
    run_binary,
    run_float,
    samples,
    weights,
)

NEAREST = 'Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">'
CONSTANTS = {
    "w": weights(8, 4, 3, 3),
    "half": weights(8, 2, 3, 3),
    "double": weights(8, 8, 3, 3),
    "real": eighths(8, 4, 3, 3),
    "flat": weights(288, 5),
    "quarter": np.float32(0.25),
    "zero": np.float32(0),
    "one": np.float32(1),
    "three": np.float32(3),
    "minus": np.float32(-0.75),
    "per": np.float32([0, 0.5, -0.5, 0.25]).reshape(4, 1, 1),
    "twos": np.array([2, 2]),
    "first": np.array([0]),
    "second": np.array([2]),
    "last": np.array([-1]),
    "least": np.array([-100]),
    "axis": np.array([3]),
    "picks": np.array([2, 0, 1, 1]),
    "up": np.float32([1, 1, 2, 2]),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "apart": np.array([0, 2, 2, 6, 6]),
    "joined": np.array([0, 4, 6, 6]),
    "turned": np.array([0, 4, 36]),
}


def quarters(x: str, q: str) -> str:
    """q: 0, 1/4, 1/2 or 3/4."""
    return f"{q}f = Floor({x})\n{q}c = Clip({q}f, zero, three)\n{q} = Mul({q}c, quarter)\n"


def step(x: str, q: str) -> str:
    """q: 0 or 1."""
    return f"{q}g = Greater({x}, quarter)\n{q} = Cast<to=1>({q}g)\n"


def ternary(x: str, q: str) -> str:
    """q: -1, 0 or 1."""
    return (
        f"{q}p = Greater({x}, quarter)\n{q}n = Less({x}, minus)\n{q}a = Cast<to=1>({q}p)\n{q}b = Cast<to=1>({q}n)\n"
        f"{q} = Sub({q}a, {q}b)\n"
    )


QUANTISERS = {"quarters": quarters, "0 and 1": step, "ternary": ternary}

SHUFFLE = "a = Reshape(q, apart)\nb = Transpose<perm=[0,2,1,3,4]>(a)\nc = Reshape(b, joined)\ny = Conv(c, w)"
CONCAT = "a = Concat<axis=1>(q, r)\ny = Conv(a, double)"

MOVED = {
    "channel shuffle": SHUFFLE,
    "Split": "a, b = Split<axis=1>(q, twos)\nc = Conv(a, half)\nd = Conv(b, half)\ny = Add(c, d)",
    "flip": "a = Slice(q, last, least, axis, last)\ny = Conv(a, w)",
    "Gather": "a = Gather<axis=1>(q, picks)\ny = Conv(a, w)",
    "reflected borders": 'a = Pad<mode="reflect">(q, pads)\ny = Conv(a, w)',
    "nearest Resize behind a pool": f"p = MaxPool<kernel_shape=[2,2]>(q)\na = {NEAREST}(p, , up)\ny = Conv(a, w)",
    "DepthToSpace and back": "a = DepthToSpace<blocksize=2>(q)\nb = SpaceToDepth<blocksize=2>(a)\ny = Conv(b, w)",
    "Concat": CONCAT,
    "Concat with a pool": (
        "p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(q)\na = Concat<axis=1>(q, p)\ny = Conv(a, double)"
    ),
    "Concat of flat levels": "a = Flatten(q)\nb = Flatten(r)\nc = Concat<axis=1>(a, b)\ny = MatMul(c, flat)",
    "Concat, and floats that read it": f"{CONCAT}\nz = ReduceMean(a)",
    "channels last": (
        "a = Transpose<perm=[0,2,3,1]>(q)\nb = Slice(a, last, least, axis, last)\n"
        "c = Transpose<perm=[0,3,1,2]>(b)\ny = Conv(c, w)"
    ),
}
"""What stands between q, or q and r, and layers."""


def model(moves: str, quantise: str = "quarters") -> ir.Model:
    levels = QUANTISERS[quantise]
    other = "o = Mul(x, minus)\n" + levels("o", "r") if re.search(r"\br\b", moves) else ""
    text = levels("x", "q") + other + moves
    outputs = ("y", "z") if "z =" in moves else ("y",)
    used = {name: array for name, array in CONSTANTS.items() if re.search(rf"\b{name}\b", text)}
    return parse(text, outputs=outputs, **used)


@pytest.mark.parametrize(
    ("name", "quantise"),
    [*((name, "quarters") for name in MOVED), ("Concat", "0 and 1"), ("Concat", "ternary")],
)
def test_layers_behind_moved_levels_are_found(name: str, quantise: str) -> None:
    before = model(MOVED[name], quantise)
    binary, left, _ = to_binary(before)
    assert not left and "Conv" not in op_types(binary) and "MatMul" not in op_types(binary)
    assert {"BinaryConvLevels", "BinaryConvBases"} & set(op_types(binary))
    if name == "Concat":
        assert_same(before, binary)
        return
    x = samples(before)
    expected = run_float(before, x)
    assert equal(run_binary(binary, x, kernels=True), expected)
    for op_type, (wrong, *_) in corruptions(binary):  # a weight bit; a threshold that is always reached
        assert not equal(run_binary(wrong, x, kernels=True), expected), op_type


def test_thresholds_per_channel_stay_in_their_channels() -> None:
    text = "g = Greater(x, per)\nq = Cast<to=1>(g)\n"
    used = {name: CONSTANTS[name] for name in ("per", "up", "w", "picks")}
    found = parse(f"{text}a = {NEAREST}(q, , up)\ny = Conv(a, w)", **{n: used[n] for n in ("per", "up", "w")})
    binary, left, _ = to_binary(found)
    assert not left
    assert equal(run_binary(binary, samples(found), kernels=True), run_float(found, samples(found)))
    across = parse(f"{text}a = Gather<axis=1>(q, picks)\ny = Conv(a, w)", **{n: used[n] for n in ("per", "picks", "w")})
    assert SinkLevels()(copy(across)).count == 0
    assert "has only 2 values" in to_binary(across)[1][0].reason


@pytest.mark.parametrize(
    "moves",
    [
        "a = Gather<axis=1>(q, picks)\ny = Conv(a, real)",
        "a = Concat<axis=1>(q, x)\ny = Conv(a, double)",
        "a = Gather<axis=1>(q, picks)\nb = ReduceMax<keepdims=1>(a)\nc = Conv(q, w)\ny = Mul(b, c)",
        "a = Transpose<perm=[0,2,3,1]>(q)\nb = Transpose<perm=[0,3,1,2]>(a)\ny = Conv(b, w)",
    ],
    ids=["real weights", "with floats", "no layer", "what the quantiser is seen through"],
)
def test_does_not_fire(moves: str) -> None:
    before = model(moves)
    after = copy(before)
    assert SinkLevels()(after).count == 0
    assert op_types(after) == op_types(before)


def test_fan_out() -> None:
    """The levels are moved for one layer and not for the other; the float graph stays the same."""
    before = model("a = Gather<axis=1>(q, picks)\nb = Conv(a, w)\nc = Conv(q, w)\ny = Add(b, c)\nz = Neg(a)")
    after = copy(before)
    assert SinkLevels()(after).count == 1
    assert equal(run_float(after, samples(before)), run_float(before, samples(before)))
    binary, left, _ = to_binary(before)
    assert not left and op_types(binary).count("QuantizeLevels") == 2
    assert_same(before, binary)


STEP_OF_SIGN = "s = Sign(x)\nt = Add(s, one)\nq = Mul(t, half_one)\na = Gather<axis=1>(q, picks)\nb = Mul(a, three)\n"


@pytest.mark.parametrize(
    "reader", ["y = Conv(b, w)", "y = Conv(b, w)\nz = ReduceMean(b)", "y = Conv(b, w)\nz = Neg(a)"]
)
def test_what_is_no_layer_reads_the_value_at_0(reader: str) -> None:
    """(Sign(x) + 1) / 2 is 0 or 1 for a layer, and 1/2 at 0 for what stays float."""
    text = STEP_OF_SIGN + reader
    values = {**CONSTANTS, "half_one": np.float32(0.5)}
    used = {name: array for name, array in values.items() if re.search(rf"\b{name}\b", text)}
    before = parse(text, outputs=("y", "z") if "z =" in text else ("y",), **used)
    binary, left, _ = to_binary(before)
    assert ("BinaryConvLevels" in op_types(binary)) != ("ReduceMean" in text) and bool(left) == ("ReduceMean" in text)
    x = samples(before)
    assert equal(run_binary(binary, x, kernels=True), run_float(before, x))
    for op_type, (wrong, *_) in corruptions(binary):
        assert not equal(run_binary(wrong, x, kernels=True), run_float(before, x)), op_type
    x[:, :, ::2] = 0
    assert equal(run_binary(binary, x, kernels=True)[1:], run_float(before, x)[1:])


def test_verify_holds_a_concat_of_levels_against_all_its_tensors(tmp_path: Path) -> None:
    """A threshold that is shifted in one channel of the second part is seen."""
    text = "c = Conv(x, u)\nn = Mul(c, minus)\n" + quarters("c", "q") + quarters("n", "r") + CONCAT
    names = ("minus", "zero", "three", "quarter", "double")
    source = parse(text, u=eighths(4, 4, 1, 1), **{name: CONSTANTS[name] for name in names})
    x, proto = samples(source), ir.to_proto(source)
    convert(proto, tmp_path / "m.onnx", weights="as-is")
    options = {"data": x, "reference_samples": 0, "isas": library_info().isas[:1]}
    assert verify(tmp_path / "m.onnx", proto, **options).passed
    wrong = onnx.load(tmp_path / "m.onnx")
    planes = next(node for node in wrong.graph.node if node.op_type == "QuantizeLevels")
    (threshold,) = (tensor for tensor in wrong.graph.initializer if tensor.name == planes.input[1])
    shifted = onnx.numpy_helper.to_array(threshold).copy()
    shifted[0, -1] += 0.125
    threshold.CopyFrom(onnx.numpy_helper.from_array(shifted, threshold.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    assert not verify(tmp_path / "wrong.onnx", proto, **options).passed
