"""Malformed nodes of QuantizeLevels and BinaryConvLevels are refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bnn_deploy.operators.bits import pack_bits
from bnn_deploy.operators.contract import OPSET
from bnn_deploy.runtime.session import load_session
from support.levels import Conv


def conv_error(attributes: dict[str, object] | None = None, **constants: NDArray[np.generic]) -> str:
    conv = Conv(20, 8, (3, 3), (5, 5), batch=1)
    given = {"W": pack_bits(np.moveaxis(conv.w > 0, 1, -1)), "scale": conv.scale, "bias": conv.bias} | constants
    everything = {name: value for name, value in (conv.attributes() | (attributes or {})).items() if value is not None}
    return error("BinaryConvLevels", conv.x(), given, everything)


def error(
    op_type: str, x: NDArray[np.generic], constants: dict[str, NDArray[np.generic]], attributes: dict[str, object]
) -> str:
    """What a kernel says; without functions, so that no other error comes first."""
    node = helper.make_node(op_type, ["X", *constants], ["Y"], name="layer7", domain="bnn_deploy", **attributes)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("X", helper.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim)],
        [helper.make_empty_tensor_value_info("Y")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("bnn_deploy", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    with pytest.raises(Exception, match="layer7") as caught:
        load_session(model.SerializeToString(), 1).run(None, {"X": x})
    return str(caught.value)


def test_the_base_cases_run() -> None:
    """Each test below changes one thing of what works here."""
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        conv_error()
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        quantize_error()


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"bits": None}, "attribute bits is missing: it is a required int"),
        ({"bits": 0}, "attribute bits = 0: it must be in 1 to 4"),
        ({"bits": 5}, "attribute bits = 5: it must be in 1 to 4"),
        ({"bits": 3}, "input X has shape [1, 5, 5, 2], but it must be [N, H, W, 3]"),
        ({"channels": 40}, "input W has shape [8, 3, 3, 1], but channels = 40, group = 1"),
        ({"group": 3}, "attribute group = 3 must divide channels = 20"),
        (
            {"kernel_shape": [1024, 1024], "channels": 20},
            "channels / group = 20 times 1048576 kernel taps and the highest level 3 must be at most 16777215",
        ),
        ({"pads": None}, "attribute pads is missing"),
    ],
)
def test_conv_attributes(attributes: dict[str, object], text: str) -> None:
    message = conv_error(attributes)
    assert "BinaryConvLevels 'layer7': " in message
    assert text in message


def test_conv_constants() -> None:
    assert "input scale has shape [7], but W has 8 output channels and needs [8]" in conv_error(
        scale=np.ones(7, np.float32)
    )
    assert "input bias has shape [7], but W has 8 output channels and needs [8]" in conv_error(
        bias=np.ones(7, np.float32)
    )
    tiny = np.full(8, 1e-45, np.float32)
    assert "input scale[0] is too small: it must be 0 or at least 2^-125 in magnitude" in conv_error(scale=tiny)
    bits = np.full((8, 3, 3, 1), 1 << 20, np.uint32)
    assert "input W has bits set beyond channel 19" in conv_error(W=bits)


def quantize_error(
    x: NDArray[np.float32] | None = None, thresholds: NDArray[np.float32] | None = None, bits: int | None = 2
) -> str:
    x = np.zeros((1, 4, 3), np.float32) if x is None else x
    thresholds = np.arange(12, dtype=np.float32).reshape(3, 4) if thresholds is None else thresholds
    return error("QuantizeLevels", x, {"thresholds": thresholds}, {} if bits is None else {"bits": bits})


def test_quantize_errors() -> None:
    ascending = np.arange(12, dtype=np.float32).reshape(3, 4)
    falling, nan = ascending.copy(), ascending.copy()
    falling[2, 1], nan[1, 3] = 4, np.nan
    cases = {
        "attribute bits is missing: it is a required int": quantize_error(bits=None),
        "attribute bits = 5: it must be in 1 to 4": quantize_error(bits=5),
        "input thresholds has shape [3, 4], but it must be [2^bits - 1, C] = [7, C]": quantize_error(bits=3),
        "input thresholds has shape [12], but it must be [2^bits - 1, C]": quantize_error(
            thresholds=ascending.reshape(-1)
        ),
        "input thresholds has shape [3, 0]": quantize_error(thresholds=np.zeros((3, 0), np.float32)),
        "input thresholds[2][1] = 4.000000, which is not at least the one before, 5.000000: "
        "the thresholds of a channel must ascend": quantize_error(thresholds=falling),
        "input thresholds[1][3] = nan": quantize_error(thresholds=nan),
        "input X has shape [1, 5, 3], but it must be [N, 4, 0 to 3 spatial dimensions], as thresholds has 4 columns": (
            quantize_error(np.zeros((1, 5, 3), np.float32))
        ),
        "input X has shape [4], but it must be [N, 4,": quantize_error(np.zeros(4, np.float32)),
    }
    for text, message in cases.items():
        assert "QuantizeLevels 'layer7': " in message
        assert text in message
