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


NUMBERS = {"zero": np.float32(0), "one": np.float32(1), "minus": np.float32(-1)}


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


def damaged(model: Path, suffix: str, value: float) -> Path:
    """A copy with some thresholds set to `value`, or with the first bit of the weights flipped."""
    wrong = onnx.load(model)
    tensor = next(t for t in wrong.graph.initializer if t.name.endswith(suffix))
    array = onnx.numpy_helper.to_array(tensor).copy()
    if suffix == "weight_bits":
        array.flat[0] ^= 1
    else:
        array[...] = value
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(wrong, model.with_name("wrong.onnx"))
    return model.with_name("wrong.onnx")


@pytest.mark.parametrize(
    ("suffix", "value"),
    [("above_threshold", 0.5), ("s_bits_above_threshold", 0), ("t_threshold", 1e-30), ("weight_bits", 0)],
)
def test_damage_is_found(suffix: str, value: float, tmp_path: Path) -> None:
    """A sign of exactly 0 that flips, too: it has no distance from its threshold, but rounding is no excuse."""
    model = network()
    wrong = damaged(convert(model, tmp_path / "m.onnx", sign_zero="exact").output, suffix, value)
    proof = verify(wrong, model, data=half_zero(), isas=BEST, reference_samples=0)
    assert any(not layer.passed for layer in proof.layers)
    if value in (0, 1e-30) and "threshold" in suffix:
        (layer,) = (layer for layer in proof.layers if not layer.passed)
        assert layer.source == suffix[0] and layer.margin == np.inf


def test_a_sign_of_1_at_0_that_is_lost_is_found(tmp_path: Path) -> None:
    body = "b = GreaterOrEqual (x, zero)\ns = Where (b, one, minus)\ny = Conv (s, w)"
    model = ir.to_proto(parse(body, ("N", 4, 6, 6), w=weights(8, 4, 3, 3), **NUMBERS))
    made = convert(model, tmp_path / "m.onnx").output
    assert verify(made, model, data=half_zero(), isas=BEST, reference_samples=0).passed
    wrong = damaged(made, "threshold", 1e-30)
    assert not verify(wrong, model, data=half_zero(), isas=BEST, reference_samples=0).passed


def test_does_not_touch_signs_that_are_1_at_0(tmp_path: Path) -> None:
    body = "b = GreaterOrEqual (x, zero)\ns = Where (b, one, minus)\ny = Conv (s, w)"
    model = parse(body, ("N", 4, 6, 6), w=weights(8, 4, 3, 3), **NUMBERS)
    files = [convert(model, tmp_path / f"{how}.onnx", sign_zero=how).output for how in ("plus", "exact")]  # type: ignore[arg-type]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.usefixtures("small_sums_pay")
@pytest.mark.parametrize("ternary", [False, True])
def test_linear_layers_on_tokens(ternary: bool, tmp_path: Path) -> None:
    constants = {"w": weights(32, 8).T.copy(), "v": weights(5, 32, seed=3).T.copy()}
    if ternary:
        constants["w"][weights(8, 32, seed=7) > 0] = 0
    body = "s = Sign (x)\nc = MatMul (s, w)\nt = Sign (c)\ny = MatMul (t, v)"
    model = ir.to_proto(parse(body, ("N", 3, 8), **constants))
    x = np.where(np.random.default_rng(0).random((8, 3, 8)) < 0.5, 0, 1).astype(np.float32)
    result = convert(model, tmp_path / "m.onnx", sign_zero="exact")
    assert result.binary_layers == ("c", "y")
    assert verify(result.output, model, data=x, isas=BEST, reference_samples=2).passed
    wrong = damaged(result.output, "weight_bits", 0)
    assert not verify(wrong, model, data=x, isas=BEST, reference_samples=0).passed
    plain = convert(model, tmp_path / "plain.onnx").output
    assert not verify(plain, model, data=x, isas=BEST, reference_samples=0).passed


def attention(levels: bool) -> onnx.ModelProto:
    """sign(Q) sign(K)^T, whose signs are 0 in the same places; or a map of 0 and 1 times sign(V)."""
    q = "g = Greater(x, c)\nq = Cast <to=1> (g)" if levels else "q = Sign(x)"
    v = "m = Mul(x, w)\nt = Transpose <perm=[0, 2, 1]> (m)\nk = Sign(t)"
    return ir.to_proto(
        parse(f"{q}\n{v}\np = MatMul(q, k)\ny = Mul(p, c)", ("N", 5, 33), w=weights(33), c=np.float32(0.3))
    )


@pytest.mark.parametrize("levels", [False, True])
def test_products_of_two_activations(levels: bool, tmp_path: Path) -> None:
    model = attention(levels)
    x = np.random.default_rng(0).standard_normal((6, 5, 33)).astype(np.float32)
    x[:, :, ::4] = 0
    result = convert(model, tmp_path / "m.onnx", sign_zero="exact")
    assert result.binary_layers == ("p",)
    counts = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node].count("BinaryMatMul")
    assert counts == (2 if levels else 4)
    proof = verify(tmp_path / "m.onnx", model, data=x, isas=BEST, reference_samples=2)
    assert proof.passed, proof.failures
    assert all(output.agreeing == output.samples for output in proof.outputs)
    wrong = onnx.load(tmp_path / "m.onnx")
    tensor = next(t for t in wrong.graph.initializer if t.name.endswith("above_threshold"))
    tensor.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(tensor) - 1, tensor.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    assert not verify(tmp_path / "wrong.onnx", model, data=x, isas=BEST, reference_samples=0).passed
