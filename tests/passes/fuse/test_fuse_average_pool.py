"""FuseAveragePool: an average pool between binary layers makes bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.fuse.fuse_average_pool import FuseAveragePool
from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.provenance import SOURCE
from support.graphs import (
    batch_norm,
    copy,
    eighths,
    lower,
    only,
    op_types,
    parse,
    run_binary,
    run_float,
    same_bits,
    samples,
    weights,
)

X = ("N", 8, 6, 6)
CONSTANTS = {"w": weights(8, 8, 3, 3), "w2": weights(8, 8, 3, 3, seed=1), "b": eighths(8)}
CONV = "Conv <pads=[1,1,1,1]> "
POOL = "AveragePool <kernel_shape=[2,2], strides=[2,2]> "
START = f"s = Sign(x)\nc = {CONV} (s, w, b)\n"
END = f"t = Sign(p)\ny = {CONV} (t, w2)"


def fused(text: str, outputs: tuple[str, ...] = ("y",)) -> tuple[ir.Model, ir.Model]:
    before = lower(parse(text, X, outputs=outputs, **CONSTANTS))
    after = copy(before)
    FuseAveragePool()(after)
    return before, after


def moved(model: ir.Model) -> ir.Model:
    """The threshold of one channel is another one."""
    broken = copy(model)
    value = next(n for n in broken.graph if n.op_type == "AveragePoolThreshold").inputs[1]
    array = np.array(constant(value))
    array[3] += 2
    assert value is not None
    value.const_value = ir.tensor(array, name=value.name)
    return broken


PADDED = "AveragePool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1> "


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("pool", [POOL, PADDED])
@pytest.mark.parametrize("relu", [0, 1])
def test_fuses_the_pool_and_the_relu(relu: int, pool: str, kernels: bool) -> None:
    """Sums of eighths are exact in any order: every bit is the same."""
    middle = f"r = Relu(c)\np = {pool} (r)\n" if relu else f"p = {pool} (c)\n"
    before, after = fused(START + middle + END)
    assert op_types(after) == ["Binarize", "BinaryConv", "AveragePoolThreshold", "BinaryConv"]
    node = only(after, "AveragePoolThreshold")
    assert node.attributes["relu"].as_int() == relu
    assert node.metadata_props[SOURCE] == "t"
    assert same_bits(before, after, kernels)
    assert not same_bits(before, moved(after), kernels)


def test_the_threshold_is_the_smallest_sum_whose_average_reaches() -> None:
    """Of thresholds that a BatchNorm made, which no division by 9 gives back."""
    text = START + f"p = {PADDED} (c)\nn = BatchNormalization(p, g, b2, m, v)\nt = Sign(n)\ny = {CONV} (t, w2)"
    norm = batch_norm(8)
    constants = CONSTANTS | {"b2": norm["b"]} | {name: norm[name] for name in "gmv"}
    model, _, _ = to_binary(parse(text, X, **constants))
    node = only(model, "AveragePoolThreshold")
    sums = constant(node.inputs[1])
    assert sums is not None
    before = lower(parse(text, X, **constants))
    average = sums / np.float32(9)
    below = np.nextafter(sums, np.float32(-np.inf)) / np.float32(9)
    assert (average > below).all() and (sums != average * np.float32(9)).any()
    x = samples(before)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(run_float(parse(text, X, **constants), x), run_binary(model, x, True), strict=True)
    )


@pytest.mark.parametrize(
    "middle",
    [
        "p = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (c)\n",  # divides by what is inside
        "p = AveragePool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (c)\n",
        'p = AveragePool <kernel_shape=[3,3], auto_pad="SAME_UPPER"> (c)\n',
        "q = Tanh(c)\np = AveragePool <kernel_shape=[2,2]> (q)\n",  # not made by an operator of the domain
        "p = MaxPool <kernel_shape=[2,2]> (c)\n",
    ],
)
def test_leaves_other_pools_alone(middle: str) -> None:
    before, after = fused(START + middle + END)
    assert op_types(after) == op_types(before)


def test_leaves_a_pool_alone_whose_average_is_used_elsewhere() -> None:
    before, after = fused(START + f"p = {POOL} (c)\n" + END, outputs=("y", "p"))
    assert op_types(after) == op_types(before)


def test_a_relu_that_is_used_elsewhere_stays() -> None:
    before, after = fused(START + f"r = Relu(c)\np = {POOL} (r)\n" + END, outputs=("y", "r"))
    assert op_types(after) == op_types(before)
