"""DelayScale: the factor of a sample's signs goes behind the layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.fusion_reasons import FactorLayer
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.passes.recognise.delay_scale import DelayScale
from support.graphs import Array, assert_same, copy, eighths, op_types, parse, samples, weights

MEAN = "s = Sign(x)\nk = ReduceMax(x, rest)\nm = Mul(s, k)\n"
MAP: Any = ("N", 4, 5, 6)
LAYERS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "a convolution": ("y = Conv <pads=[1, 1, 1, 1]> (m, w, b)", MAP, {"w": weights(8, 4, 3, 3), "b": eighths(8)}),
    "without bias": ("y = Conv <group=2> (m, w)", MAP, {"w": weights(8, 2, 3, 3)}),
    "transposed": ("y = ConvTranspose <strides=[2, 2]> (m, w, b)", MAP, {"w": weights(4, 8, 3, 3), "b": eighths(8)}),
    "a linear layer": ("y = Gemm(m, w, b)", ("N", 40), {"w": weights(40, 5), "b": eighths(5)}),
    "on tokens": ("y = MatMul(m, w)", ("N", 3, 40), {"w": weights(40, 5)}),
}


def odd_sixteenths(model: ir.Model) -> Array:
    """Inputs of which none is 0, and whose sums are exact."""
    return (np.floor(samples(model, 3) * 8) + np.float32(0.5)) / np.float32(8)


@pytest.mark.parametrize("name", LAYERS)
def test_fires(name: str) -> None:
    text, x, constants = LAYERS[name]
    rest = np.arange(2 if name == "on tokens" else 1, len(x))  # on tokens one factor for each
    before = parse(MEAN + text, x, rest=rest, **constants)
    after, left, not_fused = to_binary(before)
    assert left == []
    # Only a convolution multiplies by it in its epilogue; behind the others it stays a Mul, with a word.
    fused = name in ("a convolution", "without bias")
    assert [type(decline.why) for decline in not_fused] == ([] if fused else [FactorLayer])
    assert not {"Sign", "Conv", "ConvTranspose", "Gemm", "MatMul"} & set(op_types(after))
    assert_same(before, after, odd_sixteenths(before))


@pytest.mark.parametrize(
    "text",
    [
        "k = ReduceMax(x, pixels)\nm = Mul(s, k)\ny = Conv(m, w)",  # one per channel that the layer sums
        "k = ReduceMax(x, channels)\nm = Mul(s, k)\ny = Conv(m, w)",  # one per pixel of the window
        "k = ReduceMax(x, rest)\nr = Relu(x)\nm = Mul(r, k)\ny = Conv(m, w)",  # no sign
    ],
)
def test_does_not_fire(text: str) -> None:
    axes = {"pixels": np.array([2, 3]), "channels": np.array([1]), "rest": np.array([1, 2, 3])}
    used = {name: array for name, array in axes.items() if name in text}
    model = parse(f"s = Sign(x)\n{text}", MAP, w=weights(8, 4, 3, 3), **used)
    assert DelayScale()(copy(model)).count == 0


def test_shared_weights_and_fan_out() -> None:
    text = f"{MEAN}a = Conv(m, w, b)\nc = Conv(s, w, b)\nd = ReduceMax(m, rest)\ne = Add(a, c)\ny = Add(e, d)"
    before = parse(text, MAP, w=weights(8, 4, 3, 3), b=eighths(8), rest=np.array([1, 2, 3]))
    after, left, _ = to_binary(before)
    assert left == [] and op_types(after).count("Binarize") == 1
    assert_same(before, after, odd_sixteenths(before))
