"""FuseFactor: a binary convolution times one number per pixel."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.fuse.fuse_factor import FuseFactor
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.provenance import SOURCE
from support.graphs import assert_same, copy, eighths, lower, only, op_types, parse, samples, weights

X = ("N", 4, 6, 6)
CONV = "s = Sign(x)\nc = Conv <pads=[1,1,1,1]> (s, w, b)\n"
GATE = "k = ReduceMax(x, axes)\n"


CONSTANTS = {
    "w": weights(8, 4, 3, 3),
    "b": eighths(8),
    "axes": np.array([1]),
    "rest": np.array([1, 2, 3]),
    "rows": np.array([2]),
    "pixels": np.array([2, 3]),
    "alpha": np.arange(1, 9, dtype=np.float32).reshape(8, 1, 1) / 8,
    "half": np.float32(0.5),
    "columns": np.arange(1, 7, dtype=np.float32) / 8,
    "places": np.arange(1, 289, dtype=np.float32).reshape(8, 6, 6) / 8,
}


def model(text: str, outputs: tuple[str, ...] = ("y",)) -> ir.Model:
    used = set(re.findall(r"\w+", text))
    return lower(parse(text, X, outputs, **{name: value for name, value in CONSTANTS.items() if name in used}))


def fused(before: ir.Model) -> tuple[ir.Model, list[str]]:
    after = copy(before)
    result = FuseFactor()(after)
    assert bool(result.count) == ("BinaryConvScaled" in op_types(after))
    return after, [decline.reason for decline in result.declined]


@pytest.mark.parametrize("product", ["Mul(c, k)", "Mul(k, c)"])
def test_fuses(product: str) -> None:
    before = model(f"{CONV}{GATE}y = {product}")
    after, declined = fused(before)
    assert declined == []
    assert sorted(op_types(after)) == ["Binarize", "BinaryConvScaled", "ReduceMax"]
    node = only(after, "BinaryConvScaled")
    assert (node.metadata_props[SOURCE], node.outputs[0].name) == ("y", "y")
    assert_same(before, after)


def test_fuses_a_map_of_one_pixel() -> None:
    before = model(f"{CONV.replace('<pads=[1,1,1,1]>', '<strides=[4,4]>')}k = ReduceMax(x, rest)\ny = Mul(c, k)")
    after, declined = fused(before)
    assert declined == []
    assert_same(before, after)


def test_fuses_a_factor_per_sample() -> None:
    before = model(f"{CONV}k = ReduceMax(x, rest)\ny = Mul(c, k)")
    after, declined = fused(before)
    assert declined == []
    assert sorted(op_types(after)) == ["Binarize", "BinaryConvScaled", "Expand", "ReduceMax"]
    assert_same(before, after)


@pytest.mark.parametrize("factor", ["Mul(k, alpha)", "Mul(alpha, k)", "Mul(half, k)"])
def test_takes_a_constant_per_filter_out_of_the_factor(factor: str) -> None:
    before = model(f"{CONV}{GATE}f = {factor}\ny = Mul(c, f)")
    after, declined = fused(before)
    assert declined == []
    assert sorted(op_types(after)) == ["Binarize", "BinaryConvScaled", "ReduceMax"]
    assert_same(before, after, np.round(samples(before) * 8) / np.float32(8))  # in eighths, all products are exact


@pytest.mark.parametrize(
    "gate",
    [
        "p = ReduceMax(x, pixels)\nk = Concat <axis=1> (p, p)",
        "k = Conv <pads=[1,1,1,1]> (x, w)",
        "q = ReduceMax(x, axes)\nk = ReduceMax(q, rows)",
    ],
)
def test_does_not_fuse_a_factor_of_another_shape(gate: str) -> None:
    """One number per channel of each image, one per filter and pixel, one per column."""
    _, declined = fused(model(f"{CONV}{gate}\ny = Mul(c, k)"))
    assert declined == ["its factor 'k' has not one value per pixel, or an unknown shape"]


@pytest.mark.parametrize("factor", ["columns", "places"])
def test_names_a_constant_that_differs_by_position(factor: str) -> None:
    """The vectors of XNOR-Net++."""
    after, declined = fused(model(f"{CONV}y = Mul(c, {factor})"))
    assert declined == [f"its factor '{factor}' has not one value per pixel, or an unknown shape"]
    assert "Mul" in op_types(after)


def test_names_a_factor_behind_another_layer() -> None:
    text = "s = Sign(x)\nc = ConvTranspose <strides=[2,2]> (s, w)\nk = ReduceMax(x, pixels)\ny = Mul(k, c)"
    before = parse(text, X, w=weights(4, 4, 2, 2), pixels=CONSTANTS["pixels"])
    binary, _, not_fused = to_binary(before)
    assert "its factor 'k' stays behind BinaryConv: only a BinaryConv whose map it multiplies takes one" in [
        decline.reason for decline in not_fused
    ]
    assert "Mul" in op_types(binary)


def test_does_not_fuse_a_convolution_that_is_used_elsewhere() -> None:
    _, declined = fused(model(f"{CONV}{GATE}y = Mul(c, k)\nz = Relu(c)", ("y", "z")))
    assert declined == ["'c' is used elsewhere too"]


def test_does_not_fuse_a_square() -> None:
    _, declined = fused(model(f"{CONV}y = Mul(c, c)"))
    assert set(declined) == {"'c' is used elsewhere too"}


def test_does_not_look_at_a_constant_factor() -> None:
    after, declined = fused(model(f"{CONV}y = Mul(c, alpha)"))
    assert declined == []
    assert "Mul" in op_types(after)


def test_shared_weights() -> None:
    before = model(f"{CONV}{GATE}y = Mul(c, k)\nd = Conv(s, w, b)\nz = Relu(d)", ("y", "z"))
    after, declined = fused(before)
    assert declined == []
    assert op_types(after).count("BinaryConv") == 1
    assert_same(before, after)


def test_fan_out_one_factor_of_two_convolutions() -> None:
    before = model(f"{CONV}{GATE}y = Mul(c, k)\nd = Conv <pads=[1,1,1,1]> (s, w)\nz = Mul(k, d)", ("y", "z"))
    after, declined = fused(before)
    assert declined == []
    assert op_types(after).count("BinaryConvScaled") == 2
    assert_same(before, after)
