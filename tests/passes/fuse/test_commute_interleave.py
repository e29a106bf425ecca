"""CommuteInterleave: the phases of a transposed convolution are binarised before they are interleaved."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.fuse.commute_interleave import CommuteInterleave
from bnn_deploy.passes.lower.lower_binary_conv import LowerBinaryConv
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.provenance import SOURCE
from support.graphs import assert_same, batch_norm, eighths, op_types, parse, weights

LAYERS = "s = Sign(x)\nc = ConvTranspose<strides=[2, 2], pads=[1, 1, 1, 1]>(s, w, o)\nt = Sign(c)\ny = Conv(t, u)"
CONSTANTS = {"w": weights(4, 40, 3, 3), "o": eighths(40) + np.float32(1 / 16), "u": weights(5, 40, 2, 2)}


def lowered(text: str = LAYERS, *outputs: str) -> ir.Model:
    model = parse(text, ("N", 4, 4, 5), outputs=outputs or ("y",), **CONSTANTS)
    LowerBinaryConv()(model)
    return model


def test_fires() -> None:
    before, model = lowered(), lowered()
    assert CommuteInterleave()(model).count == 1
    assert op_types(model).count("Binarize") == 5
    bits = next(node for node in model.graph if node.metadata_props.get(SOURCE) == "t")
    assert (bits.op_type, bits.outputs[0].dtype) == ("Slice", ir.DataType.UINT32)
    assert_same(before, model)


def test_does_not_fire_where_the_floats_are_read_too() -> None:
    model = lowered(LAYERS, "y", "c")
    result = CommuteInterleave()(model)
    assert (result.count, [decline.reason for decline in result.declined]) == (0, ["'c' is used elsewhere too"])


def test_does_not_look_at_other_joins() -> None:
    text = "s = Sign(x)\na = Conv(s, w)\nb = Conv(s, w)\nc = Concat<axis=1>(a, b)\nt = Sign(c)\ny = Conv(t, u)"
    model = parse(text, ("N", 4, 4, 5), w=weights(8, 4, 3, 3), u=weights(5, 16, 1, 1))
    LowerBinaryConv()(model)
    assert (CommuteInterleave()(model).count, CommuteInterleave()(model).declined) == (0, [])


@pytest.mark.parametrize("behind", ["t = Sign(n)\ny = Conv(t, u)", "y = Relu(n)"])
def test_a_batch_norm_behind_goes_into_the_phases(behind: str) -> None:
    """Exactly if a sign follows, into the thresholds; else into scale and bias."""
    text = (
        "s = Sign(x)\nc = ConvTranspose<strides=[2, 2], pads=[1, 1, 0, 0]>(s, w, o)\n"
        f"n = BatchNormalization(c, g, b, m, v)\n{behind}"
    )
    gamma = np.where(np.arange(40) % 3 == 0, -1.0, 1.0).tolist()
    before = parse(text, ("N", 4, 4, 5), **CONSTANTS, **batch_norm(40, gamma=gamma))
    after, left, not_fused = to_binary(before)
    assert (left, not_fused) == ([], [])
    wanted = {"BatchNormalization", "ConvTranspose", "Sign"}
    assert not wanted & set(op_types(after))
    if "Relu" not in behind:
        assert op_types(after).count("BinaryConvThreshold") == 4
        assert_same(before, after)
