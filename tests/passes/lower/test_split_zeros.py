"""SplitZeros: sign(0) = 0 in front of binary layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnn_deploy.conversion import convert
from bnn_deploy.proof.verification import verify
from support.golden_files import BEST
from support.graphs import parse, weights

NETWORK = """s = Sign (x)
p = MaxPool <kernel_shape=[2,2], strides=[1,1]> (s)
c = Conv <pads=[1,1,1,1]> (p, w)
t = Sign (c)
d = Conv (t, v)
u = Relu (d)
f = Flatten (u)
g = Sign (f)
y = MatMul (g, last)"""


def network() -> onnx.ModelProto:
    constants = {"w": weights(8, 4, 3, 3), "v": weights(8, 8, 3, 3, seed=5), "last": weights(72, 5, seed=2, alpha=0.25)}
    return ir.to_proto(parse(NETWORK, ("N", 4, 6, 6), **constants))


def half_zero(count: int = 12) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 4, 6, 6)).astype(np.float32)
    x[rng.random(x.shape) < 0.5] = 0
    return x


def test_keeps_every_zero(tmp_path: Path) -> None:
    model, x = network(), half_zero()
    result = convert(model, tmp_path / "m.onnx", sign_zero="exact")
    assert result.binary_layers[:2] == ("c", "d")
    proof = verify(tmp_path / "m.onnx", model, data=x, isas=BEST, reference_samples=2)
    assert proof.passed, proof.failures
    assert {layer.layer: layer.zeros for layer in proof.layers}["s"] == 0
    assert all(output.agreeing == output.samples for output in proof.outputs)
    plain = convert(model, tmp_path / "plain.onnx").output
    assert not verify(plain, model, data=x, isas=BEST, reference_samples=0).passed, "+1 at 0 is another network"


@pytest.mark.parametrize("suffix", ["above_threshold", "weight_bits"])
def test_damage_is_found(suffix: str, tmp_path: Path) -> None:
    model = network()
    convert(model, tmp_path / "m.onnx", sign_zero="exact")
    wrong = onnx.load(tmp_path / "m.onnx")
    tensor = next(t for t in wrong.graph.initializer if t.name.endswith(suffix))
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.flat[0] = array.flat[0] ^ 1 if suffix == "weight_bits" else 0.5
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    proof = verify(tmp_path / "wrong.onnx", model, data=half_zero(), isas=BEST, reference_samples=0)
    assert any(not layer.passed for layer in proof.layers)


def test_does_not_touch_signs_that_are_1_at_0(tmp_path: Path) -> None:
    body = "b = GreaterOrEqual (x, zero)\ns = Where (b, one, minus)\ny = Conv (s, w)"
    numbers = {"zero": np.float32(0), "one": np.float32(1), "minus": np.float32(-1)}
    model = parse(body, ("N", 4, 6, 6), w=weights(8, 4, 3, 3), **numbers)
    files = [convert(model, tmp_path / f"{how}.onnx", sign_zero=how).output for how in ("plus", "exact")]  # type: ignore[arg-type]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_linear_layers_on_tokens(tmp_path: Path) -> None:
    constants = {"w": weights(32, 8).T.copy(), "v": weights(5, 32, seed=3).T.copy()}
    body = "s = Sign (x)\nc = MatMul (s, w)\nt = Sign (c)\ny = MatMul (t, v)"
    model = ir.to_proto(parse(body, ("N", 3, 8), **constants))
    x = np.where(np.random.default_rng(0).random((8, 3, 8)) < 0.5, 0, 1).astype(np.float32)
    result = convert(model, tmp_path / "m.onnx", sign_zero="exact")
    assert result.binary_layers == ("c", "y")
    assert verify(result.output, model, data=x, isas=BEST, reference_samples=2).passed
    plain = convert(model, tmp_path / "plain.onnx").output
    assert not verify(plain, model, data=x, isas=BEST, reference_samples=0).passed
