"""CommuteMove: what concatenates and enlarges maps moves bits, and each tensor is binarised once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.fuse.commute_move import CommuteMove
from bnn_deploy.passes.graph import is_binary_op, is_op
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.passes.recognise.sink_sign import SinkSign
from bnn_deploy.provenance import read_before, source_place
from support.graphs import assert_same, batch_norm, copy, eighths, lower, op_types, parse, weights

WIDE = ("N", 32, 6, 6)
SIXTEENTH = np.float32(1 / 16)
CONV = "Conv <pads=[1,1,1,1]> "
DENSE = f"""
    s = Sign(x)
    c = {CONV} (s, w, k)
    n = BatchNormalization(c, g, b, m, v)
    t = Sign(n)
    d = Concat<axis=1> (s, t)
    e = {CONV} (d, u, o)
    r = Sign(e)
    f = Concat<axis=1> (d, r)
    y = {CONV} (f, z)"""
"""Two layers of a dense block: each reads the signs of all before it."""

NEAREST = 'Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">'
UP = f"s = Sign(x)\nc = {CONV} (s, w, k)\nt = Sign(c)\na = {NEAREST} (t, , up)\ny = {CONV} (a, v)"


def dense(last: int = 32, norm: dict[str, np.ndarray] | None = None) -> ir.Model:
    norm = norm or batch_norm(32, gamma=[1.0, -0.5] * 16)
    norm["m"], norm["v"] = norm["m"] * np.float32(10), norm["v"] * np.float32(200)
    more = {"w": weights(32, 32, 3, 3), "u": weights(last, 64, 3, 3, seed=1), "z": weights(3, 64 + last, 3, 3, seed=2)}
    return parse(DENSE, WIDE, k=np.full(32, SIXTEENTH), o=np.full(last, SIXTEENTH), **more, **norm)


@pytest.mark.parametrize("last", [32, 40])
def test_a_dense_block_binarises_each_tensor_once(last: int) -> None:
    """Channels whose BatchNorm falls are complemented in the weights of all layers that read them."""
    model = dense(last)
    binary, left, _ = to_binary(model)
    assert not left
    expected = ["Binarize", "BinaryConvThreshold", "Concat", "BinaryConvThreshold", "Concat", "BinaryConv"]
    assert op_types(binary) == expected
    assert_same(model, binary)


def test_a_nearest_resize_moves_words() -> None:
    model = parse(
        UP, WIDE, w=weights(32, 32, 3, 3), k=np.full(32, SIXTEENTH), v=weights(8, 32, 3, 3), up=np.float32([1, 1, 2, 3])
    )
    binary, left, _ = to_binary(model)
    assert not left
    assert op_types(binary) == ["Binarize", "BinaryConvThreshold", "Gather", "Gather", "BinaryConv"]
    assert_same(model, binary)


def test_each_part_says_what_it_stands_for() -> None:
    """Behind a Concat they are the tensors that the float graph has: s and t, and not d."""
    binary, _, _ = to_binary(dense())
    bits = [node for node in binary.graph if is_binary_op(node, "Binarize", "BinaryConvThreshold")]
    places = [place for node in bits if (place := source_place(node.metadata_props))]
    assert [(place.tensor, place.moves) for place in places] == [("s", ()), ("t", ()), ("r", ())]
    pre_activations = [place for node in bits if (place := read_before(node.metadata_props))]
    assert [(place.tensor, place.moves) for place in pre_activations] == [("n", ()), ("e", ())], (
        "that of s is its input"
    )


def commuted(text: str, *, outputs: tuple[str, ...] = ("y",), channels: int = 32) -> tuple[ir.Model, list[str]]:
    """A model after SinkSign, LowerBinaryConv and this pass, and what it declined."""
    constants = {"h": eighths(channels, 1, 1), "w": weights(8, 2 * channels, 3, 3), "v": weights(8, channels, 3, 3)}
    used = {name: array for name, array in constants.items() if f"{name})" in text}
    model = parse(text, ("N", channels, 6, 6), outputs=outputs, **used)
    SinkSign()(model)
    after = lower(model)
    before = op_types(after)
    result = CommuteMove()(after)
    assert bool(result.count) == (op_types(after) != before)
    return after, [decline.reason for decline in result.declined]


TWO = "s = Sign(x)\nq = Add(x, h)\nt = Sign(q)\na = Concat<axis=1>(s, t)\ny = Conv(a, w)"


def test_fires_on_a_concat() -> None:
    after, _ = commuted(TWO)
    assert op_types(after) == ["Add", "Binarize", "Binarize", "Concat", "BinaryConv"]


def test_does_not_fire_where_channels_are_no_whole_words() -> None:
    after, _ = commuted(TWO, channels=20)
    assert op_types(after) == ["Add", "Concat", "Binarize", "BinaryConv"]


def test_does_not_fire_on_floats_that_something_else_reads() -> None:
    text = "q = Add(x, h)\nd = Concat<axis=1>(x, q)\ns = Sign(d)\ny = Conv(s, w)"
    after, declined = commuted(text, outputs=("y", "d"))
    assert [node.op_type for node in after.graph if is_op(node, "Concat")] == ["Concat"]
    assert declined == ["'d' is used elsewhere too"]


def test_does_not_fire_on_a_flip() -> None:
    """It is no smaller before than behind."""
    model = parse(
        "s = Sign(x)\na = Slice(s, last, least, axis, last)\ny = Conv(a, v)",
        WIDE,
        v=weights(8, 32, 3, 3),
        last=np.array([-1]),
        least=np.array([-99]),
        axis=np.array([3]),
    )
    assert op_types(to_binary(model)[0])[0] == "Slice"


def test_thresholds_that_differ_make_bits_of_their_own() -> None:
    """Two layers read the same tensor, concatenated, with different thresholds."""
    text = "q = Add(x, h)\ns = Sign(x)\nt = Sign(q)\na = Concat<axis=1>(s, t)\ny = Conv(a, w)\nz = Conv(s, v)"
    after, _ = commuted(text, outputs=("y", "z"))
    assert op_types(after).count("Binarize") == 2, "those of x are made once"
    again = copy(after)
    assert not CommuteMove()(again).count
