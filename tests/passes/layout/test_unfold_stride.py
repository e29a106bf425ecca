"""UnfoldStride: a strided convolution over an image becomes one without a stride; checked value by value."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.layout.unfold_stride import UnfoldStride
from support.graphs import copy, eighths, equal, only, op_types, parse, run_float, samples, weights

X = ("N", 3, 12, 16)
STEM = 'y = Conv<strides=[2, 2], pads=[3, 3, 3, 3], auto_pad="NOTSET">(x, w, b)'


def strided(text: str = STEM, kernel: tuple[int, int] = (7, 7), x: tuple[str | int, ...] = X) -> ir.Model:
    return parse(text, x, w=weights(5, int(x[1]), *kernel), b=eighths(5))


def exact_samples(model: ir.Model) -> np.ndarray:
    return np.round(samples(model) * 16) / 16  # every sum of products is exact, in any order


def assert_unfolds(before: ir.Model, count: int = 1) -> ir.Model:
    after = copy(before)
    assert UnfoldStride()(after).count == count
    x = exact_samples(before)
    expected = run_float(before, x)
    assert equal(run_float(after, x), expected)

    weight = next(node for node in after.graph if node.op_type == "Conv").inputs[1]
    assert weight is not None
    moved = np.roll(np.array(constant(weight)), 1, axis=3)
    weight.const_value = ir.tensor(moved, name=weight.name)
    assert not equal(run_float(after, x), expected), "a shifted kernel does not show"
    return after


def test_fires_on_the_stem_of_a_resnet() -> None:
    after = assert_unfolds(strided())
    assert op_types(after) == ["SpaceToDepth", "Conv"]
    weight = only(after, "Conv").inputs[1]
    assert weight is not None and list(weight.shape or ()) == [5, 12, 4, 4]


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 2, 3, 4], [2, 0, 1, 3], [4, 4, 4, 4]])
@pytest.mark.parametrize(("kernel", "stride"), [((7, 7), 2), ((3, 4), 2), ((5, 5), 4), ((11, 6), 4)])
def test_pads_and_kernels(kernel: tuple[int, int], stride: int, pads: list[int]) -> None:
    assert_unfolds(strided(f"y = Conv<strides=[{stride}, {stride}], pads={pads}>(x, w, b)", kernel))


def test_shared_weights_and_fan_out() -> None:
    second = STEM.replace("y =", "z =").replace("pads=[3, 3, 3, 3]", "pads=[2, 2, 2, 2]")
    before = parse(f"{STEM}\n{second}", X, ("y", "z"), w=weights(5, 3, 7, 7), b=eighths(5))
    assert_unfolds(before, count=2)


@pytest.mark.parametrize(
    ("text", "x"),
    [
        ("y = Conv(x, w, b)", X),
        ("y = Conv<strides=[2, 1]>(x, w, b)", X),
        ("y = Conv<strides=[2, 2], dilations=[2, 1]>(x, w, b)", X),
        ('y = Conv<strides=[2, 2], auto_pad="SAME_UPPER">(x, w, b)', X),
        (STEM, ("N", 3, 13, 16)),
        (STEM, ("N", 3, 12, "W")),
        (STEM, ("N", 5, 12, 16)),
    ],
    ids=["no stride", "two strides", "dilated", "auto_pad", "odd height", "unknown width", "many channels"],
)
def test_does_not_unfold(text: str, x: tuple[str | int, ...]) -> None:
    assert UnfoldStride()(strided(text, x=x)).count == 0


def test_does_not_unfold_a_subsampling() -> None:
    assert UnfoldStride()(strided("y = Conv<strides=[2, 2]>(x, w, b)", (1, 1))).count == 0


def test_does_not_unfold_groups() -> None:
    before = parse("y = Conv<strides=[2, 2], group=2>(x, w)", ("N", 4, 8, 8), w=weights(4, 2, 3, 3))
    assert UnfoldStride()(before).count == 0
