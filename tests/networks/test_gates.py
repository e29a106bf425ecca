"""Scales and gates: a mean of each sample in front of a layer, XNOR-Net++'s three vectors, a Real-to-Binary block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from bnn_deploy import convert, verify
from support.damage import Damage
from support.graphs import batch_norm, eighths, parse, weights

GATES = """
a = Conv <pads=[1, 1, 1, 1]> (x, w0)
s = Sign(a)
magnitude = Abs(a)
mean = ReduceMean(magnitude, rest)
scaled = Mul(s, mean)
b = Conv <pads=[1, 1, 1, 1]> (scaled, w1, o1)
t = Sign(b)
c = Conv <pads=[1, 1, 1, 1]> (t, w2)
c1 = Mul(c, alpha)
c2 = Mul(c1, beta)
c3 = Mul(c2, gamma)
n = BatchNormalization(c3, g, bb, m, v)
u = Sign(n)
d = Conv <pads=[1, 1, 1, 1]> (u, w3)
pooled = ReduceMean(a, pixels)
e1 = Conv(pooled, squeeze)
e2 = Relu(e1)
e3 = Conv(e2, excite)
gate = Sigmoid(e3)
f = Mul(d, gate)
h = BatchNormalization(f, g, bb, m, v)
k = Sign(h)
y0 = Conv(k, w4)
y = ReduceMean <keepdims=0> (y0, pixels)
"""


def gates() -> ir.Model:
    rng = np.random.default_rng(3)

    def real(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))

    def positive(*shape: int) -> np.ndarray:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)

    norm = batch_norm(40)
    norm["bb"] = norm.pop("b")
    return parse(
        GATES,
        ("N", 3, 5, 4),
        w0=real(40, 3, 3, 3),
        w1=weights(40, 40, 3, 3, seed=1, alpha=2.0**-4),
        w2=weights(40, 40, 3, 3, seed=2, alpha=1),
        w3=weights(40, 40, 3, 3, seed=3, alpha=2.0**-3),
        w4=weights(5, 40, 1, 1, seed=4, alpha=2.0**-3),
        o1=eighths(40) + np.float32(0.01),  # no sum is 0
        alpha=positive(40, 1, 1) / np.float32(19),
        beta=positive(1, 5, 1),
        gamma=positive(1, 1, 4),
        squeeze=real(10, 40, 1, 1),
        excite=real(40, 10, 1, 1),
        rest=np.array([1, 2, 3]),
        pixels=np.array([2, 3]),
        **norm,
    )


def flip(layer: str) -> Callable[[Damage], None]:
    def damage(model: Damage) -> None:
        def edit(words: np.ndarray) -> None:
            words[(3, *[1] * (words.ndim - 1))] ^= 1 << 3

        model.change(model.node(layer).input[1], edit)

    return damage


def scale_row(model: Damage) -> None:
    node = next(node for node in model.model.graph.node if "gamma" in node.input)
    model.change("gamma", lambda vector: np.where(np.arange(4) == 2, vector * np.float32(1.5), vector))
    assert node.op_type == "Mul"


def test_it_is_equivalent_and_not_if_corrupted(tmp_path: Path) -> None:
    model, source = tmp_path / "m.onnx", tmp_path / "f.onnx"
    conversion = convert(gates(), model, float_output=source, strict=True)
    assert [(layer.name, layer.becomes) for layer in conversion.layers if layer.status == "binary"] == [
        ("b", "BinaryConvScaled"),
        ("c", "BinaryConv"),
        ("d", "BinaryConv"),
        ("y0", "BinaryConv"),
    ]
    reasons = {decline.node: decline.reason for decline in conversion.not_fused}
    assert "has not one value per pixel" in reasons["f"]
    assert any("which is not one value per channel" in reason for reason in reasons.values())
    result = verify(model, source, samples=8, reference_samples=1)
    assert result.passed, result.failures
    assert [layer.kind for layer in result.layers].count("bits") == 4
    for corrupt in (flip("b"), flip("d"), scale_row):
        damage = Damage(onnx.load(model))
        corrupt(damage)
        onnx.save(damage.model, tmp_path / "wrong.onnx")
        assert not verify(tmp_path / "wrong.onnx", source, samples=8, reference_samples=0, isas=["scalar"]).passed
