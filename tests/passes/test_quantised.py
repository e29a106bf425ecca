"""Networks of signs that onnxruntime's quantiser wrote: converted, they compute what it makes of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import load_session
from support.graphs import parse, weights

pytestmark = pytest.mark.usefixtures("small_sums_pay")

NODES = """c = Conv <pads=[1,1,1,1]> (x, first)
n = Add (c, shift)
s = Sign (n)
d = Conv <pads=[1,1,1,1]> (s, w)
o = Add (d, shift)
p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (o)
t = Sign (p)
f = Flatten (t)
y = MatMul (f, last)"""

X = np.random.default_rng(0).standard_normal((16, 3, 4, 4)).astype(np.float32)


def network(shift: float = 0.0) -> ModelProto:
    """Two binary layers behind a real one; without a shift, many quantised sums are exactly 0 in front of the signs."""
    first = np.random.default_rng(1).standard_normal((8, 3, 3, 3)).astype(np.float32)
    layers = {"first": first, "w": weights(6, 8, 3, 3, seed=1), "last": weights(24, 5, seed=2)}
    model = ir.to_proto(parse(NODES, ("N", 3, 4, 4), shift=np.float32(shift), **layers))
    del model.graph.value_info[:]
    return model


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.samples = iter([{"x": X}])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self.samples, None)


def run(path: Path) -> NDArray[Any]:
    return np.asarray(ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": X})[0])


def quantised(path: Path, model: ModelProto | None = None, **options: Any) -> Path:
    """The network as onnxruntime quantises it; weights of 7 bits, so that no CPU's sums saturate."""
    logging.disable(logging.WARNING)
    onnx.save(model or network(), path / "float.onnx")
    try:
        quantize_static(path / "float.onnx", path / "q.onnx", Reader(), reduce_range=True, **options)
    finally:
        logging.disable(logging.NOTSET)
    return path / "q.onnx"


def computes(path: Path, folder: Path, binary: tuple[str, ...]) -> ModelProto:
    """Convert, run, verify, and see a flipped weight bit; return the converted model."""
    result = convert(path, folder / "m.onnx")
    assert result.binary_layers == binary, result.left_float
    expected = run(path)
    assert np.array_equal(load_session(folder / "m.onnx").run(None, {"x": X})[0], expected)
    damaged = onnx.load(folder / "m.onnx")
    for tensor in damaged.graph.initializer:
        if tensor.name.endswith(("weight_bits", "weight_bases")):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) ^ 1, tensor.name))
    onnx.save(damaged, folder / "damaged.onnx")
    assert not np.array_equal(load_session(folder / "damaged.onnx").run(None, {"x": X})[0], expected)
    return onnx.load(folder / "m.onnx")


QDQ: dict[str, dict[str, Any]] = {
    "int8": {},
    "per channel": {"per_channel": True},
    "symmetric": {"extra_options": {"ActivationSymmetric": True}},
    "uint8": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8},
    "layers": {"op_types_to_quantize": ["Conv", "MatMul"]},
}


@pytest.mark.parametrize("options", QDQ)
def test_qdq(options: str, tmp_path: Path) -> None:
    path = quantised(tmp_path, **QDQ[options], quant_format=QuantFormat.QDQ)
    model = computes(path, tmp_path, ("d", "y_QuantizeLinear_Input"))
    stored = [tensor for tensor in model.graph.initializer if tensor.name == "first_quantized"]
    assert len(stored) == 1, "what stays float keeps its weights in 8 bits"
    assert not any(tensor.name.startswith(("w_", "last_")) for tensor in model.graph.initializer)


def test_verifies_qdq(tmp_path: Path) -> None:
    path = quantised(tmp_path, quant_format=QuantFormat.QDQ)
    computes(path, tmp_path, ("d", "y_QuantizeLinear_Input"))
    short: dict[str, Any] = {"samples": 16, "reference_samples": 1, "isas": ["scalar"]}
    assert verify(tmp_path / "m.onnx", path, **short).passed
    assert not verify(tmp_path / "damaged.onnx", path, **short).passed


def test_latent_weights_in_8_bits(tmp_path: Path) -> None:
    model = network()
    tensor = next(t for t in model.graph.initializer if t.name == "w")
    spread = np.random.default_rng(3).uniform(0.5, 2, tensor.dims).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(spread * numpy_helper.to_array(tensor), "w"))
    path = quantised(tmp_path, model, quant_format=QuantFormat.QDQ)
    with pytest.raises(
        InputError, match=r"'d'.*: its input is a sign, but its weights are real-valued: .*weights='xnor'"
    ):
        convert(path, tmp_path / "m.onnx")
    binarised = convert(path, tmp_path / "m.onnx", weights="sign")
    assert binarised.binary_layers == ("d", "y_QuantizeLinear_Input")
    (kept,) = (
        left.reason for left in convert(path, tmp_path / "m.onnx", weights="as-is").left_float if left.node == "d"
    )
    assert "real-valued" in kept


def test_a_sign_of_zero_is_zero(tmp_path: Path) -> None:
    """A quantised number is exactly 0 often, and its sign then neither -1 nor +1."""
    path = quantised(tmp_path, quant_format=QuantFormat.QDQ)
    expected = run(path)
    convert(path, tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_thresholds"):
            array = numpy_helper.to_array(tensor).copy()
            array[1:] = array[:1]  # what is 0 counts as +1
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    wrong = load_session(model.SerializeToString()).run(None, {"x": X})[0]
    assert not np.array_equal(wrong, expected)


def test_a_sign_that_no_quantised_number_makes_zero(tmp_path: Path) -> None:
    path = quantised(tmp_path, network(0.3137), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv", "MatMul"])
    model = computes(path, tmp_path, ("d", "y_QuantizeLinear_Input"))
    thresholds = [t for t in model.graph.initializer if t.name.startswith("s_") and t.name.endswith("_thresholds")]
    assert [tensor.dims[0] for tensor in thresholds] == [1], "two levels, and no third one for 0"
