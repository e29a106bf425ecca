"""ConvolveImages: the normalisation of an image of bytes becomes a table of the first layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.layout.convolve_images import ConvolveImages
from bnn_deploy.passes.pipeline import to_binary
from support.graphs import copy, eighths, equal, op_types, parse, run_binary, weights

FIRST = {"nchw": "", "nhwc": "i = Transpose<perm=[0,3,1,2]>(x)\n"}
# Numbers of few bits, whose sums are exact in any order.
LEVELS = "f0 = Cast<to=1>({i})\nf1 = Sub(f0, mean)\nf = Mul(f1, scale)\n"
BITS = "c = Conv<pads=[1,1,1,1]>(f, k, b)\ns = Sign(c)\ny = Conv(s, w)"
FLOATS = (
    "c = Conv<pads=[1,1,1,1]>(f, k, b)\nq = Sub(c, half)\ns = Sign(q)\nd = Conv<pads=[1,1,1,1]>(s, w)\ny = Add(d, c)"
)
MEAN = np.array([100, 120, 140], np.float32).reshape(3, 1, 1)
SCALE = np.array([0.25, 0.125, 0.5], np.float32).reshape(3, 1, 1)


def network(text: str, layout: str, **constants: np.ndarray) -> ir.Model:
    """A float graph of an image of bytes."""
    shape = ("N", 3, 12, 10) if layout == "nchw" else ("N", 12, 10, 3)
    given = {"k": eighths(40, 3, 3, 3), "b": eighths(40), "w": weights(40, 40, 3, 3), "half": np.float32(0.5)}
    given |= {"mean": MEAN, "scale": SCALE} | constants
    used = {name: array for name, array in given.items() if f"{name})" in text or f"{name}," in text}
    return parse(text, shape, dtype="uint8", **used)


def image(layout: str) -> np.ndarray:
    x = np.random.default_rng(4).integers(0, 256, (4, 3, 12, 10)).astype(np.uint8)
    return x if layout == "nchw" else np.ascontiguousarray(np.moveaxis(x, 1, -1))


def ours(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.domain == DOMAIN]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(("tail", "operator"), [(BITS, "ImageConvThreshold"), (FLOATS, "ImageConv")])
def test_the_normalisation_becomes_levels(layout: str, tail: str, operator: str) -> None:
    model = network(FIRST[layout] + LEVELS.format(i="i" if layout == "nhwc" else "x") + tail, layout)
    plain, after = to_binary(model, float_edges=False)[0], to_binary(model)[0]
    assert ours(after)[0] == operator and "Conv" in op_types(plain)
    assert not {"Cast", "Sub", "Transpose"} & set(op_types(after)) - ({"Sub"} if tail is FLOATS else set())
    (first,) = (node for node in after.graph if node.op_type == operator)
    levels = constant(first.inputs[3])
    assert levels is not None and first.attributes["channels_last"].as_int() == (layout == "nhwc")
    assert np.array_equal(levels, (np.arange(256, dtype=np.float32) - MEAN[:, 0]) * SCALE[:, 0])
    expected = run_binary(plain, image(layout), kernels=True)
    for kernels in (False, True):
        assert equal(run_binary(after, image(layout), kernels), expected), f"kernels: {kernels}"
    wrong = copy(after)
    value = next(node for node in wrong.graph if node.op_type == operator).inputs[3]
    assert value is not None
    value.const_value = ir.tensor(levels + np.float32(0.125), name=value.name)
    assert not equal(run_binary(wrong, image(layout), kernels=True), expected)
    assert not ConvolveImages()(after).modified


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        ("f0 = Cast<to=1>(x)\nf = Sub(f0, mean)\n", {"mean": eighths(3, 12, 1)}),  # one mean per row
        ("f0 = Cast<to=1>(x)\nf = Sub(f0, mean)\n", {"mean": eighths(12, 10)}),  # one per pixel
        ("f0 = Cast<to=1>(x)\nf1 = Neg(f0)\nf = Mul(f0, f1)\n", {}),  # two uses of the image
        ("f0 = Cast<to=1>(x)\nf = MaxPool<kernel_shape=[2,2]>(f0)\n", {}),
        ("i = Transpose<perm=[0,1,3,2]>(x)\nf = Cast<to=1>(i)\n", {}),  # rows for columns
    ],
)
def test_what_is_no_table_stays(text: str, constants: dict[str, np.ndarray]) -> None:
    model = network(text + BITS, "nchw", **constants)
    after = to_binary(model)[0]
    assert ours(after)[0] == "DirectConvThreshold"
    assert equal(run_binary(after, image("nchw"), kernels=True), run_binary(after, image("nchw"), kernels=False))
