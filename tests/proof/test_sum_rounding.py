"""Sums of float products: what two orders round may differ, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnn_deploy.operators.bits import pack_bits
from bnn_deploy.operators.contract import DOMAIN, OPSET, VERSION
from bnn_deploy.proof.backends import Backends
from bnn_deploy.proof.pieces import add_body
from bnn_deploy.proof.rounding import SumBound, sum_bound
from support.bodies import Array

WINDOW = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 0, 1, 0], "dilations": [1, 1]}
POOL = {"pool_shape": [2, 2], "pool_strides": [2, 2], "pool_pads": [0, 0, 0, 0]}


def inputs() -> tuple[Array, Array, Array]:
    """X, W and bias."""
    rng = np.random.default_rng(3)
    shapes = ((6, 3, 8, 10), (33, 3, 3, 3), (33,))
    x, w, bias = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return x, w, bias


def one_after_the_other(x: Array, w: Array, bias: Array) -> Array:
    """The sums in another order than the body's, each rounded to float32, and the pool."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    sums = np.broadcast_to(bias.reshape(-1, 1, 1), (len(x), len(bias), 8, 8)).copy()
    for c, i, j in np.ndindex(*w.shape[1:]):
        sums += padded[:, c, None, i : i + 8, j : j + 8] * w[:, c, i, j].reshape(-1, 1, 1)
    return sums.reshape(len(x), len(bias), 4, 2, 4, 2).max(axis=(3, 5))


def model(operator: str, constants: dict[str, Array], rank: int = 4, **changes: list[int]) -> onnx.ModelProto:
    """One node of the operator, named like it, and its body; only a node of images, of rank 4, has windows."""
    attributes = WINDOW | POOL | changes if rank == 4 else {}
    node = helper.make_node(operator, ["x", *constants], ["y"], name=operator, domain=DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * rank)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    made = helper.make_model(graph, opset_imports=imports, ir_version=10)
    add_body(made, operator)
    return made


BACKENDS = Backends([], 1)


def run(proto: onnx.ModelProto, x: Array) -> Array:
    (result,) = BACKENDS.make(proto, BACKENDS.BODIES)({"x": x})
    return result


def bound_of(proto: onnx.ModelProto, x: Array) -> SumBound:
    found = sum_bound(proto, proto.graph.node[0], {"x": x}, lambda alone: BACKENDS.make(alone, BACKENDS.BODIES))
    assert found is not None
    return found


def changed(array: Array, by: float) -> Array:
    """The array with one element changed, in relative terms."""
    copy = array.copy()
    copy.flat[7] *= np.float32(1 + by)
    return copy


def test_floats_may_differ_by_rounding_only() -> None:
    x, w, bias = inputs()
    proto = model("DirectConv", {"w": w, "b": bias})
    expected, other, bound = run(proto, x), one_after_the_other(x, w, bias), bound_of(proto, x)
    assert expected.shape == other.shape and (expected != other).mean() > 0.1
    assert not bound.differing(other, expected).any() and not bound.differing(other[:2], expected[:2]).any()
    assert (bound.bound < 2e-4).all()
    for wrong in (
        model("DirectConv", {"w": changed(w, 1e-3), "b": bias}),
        model("DirectConv", {"w": w, "b": changed(bias, 1e-3)}),
        model("DirectConv", {"w": w, "b": bias}, pads=[0, 0, 2, 0]),
        model("DirectConv", {"w": w, "b": bias}, pool_pads=[1, 0, 0, 0], pool_strides=[2, 2]),
    ):
        got = run(wrong, x)[:, :, :4]
        assert bound.differing(got, expected).any()


def test_a_linear_layer_may_differ_by_rounding_only() -> None:
    rng = np.random.default_rng(5)
    x, w, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 400), (400, 10), (10,)))

    def linear(w: Array, bias: Array) -> onnx.ModelProto:
        return model("ReluLinear", {"w": w, "b": bias}, rank=2)

    proto = linear(w, bias)
    expected, bound = run(proto, x), bound_of(proto, x)
    other = bias.copy() + np.zeros((6, 1), np.float32)
    for c in range(400):
        other += np.maximum(x[:, c : c + 1], 0) * w[c]
    assert (expected != other).mean() > 0.1 and not bound.differing(other, expected).any()
    assert (bound.bound < 402 * 2.0**-23 * (np.abs(x) @ np.abs(w) + np.abs(bias)) * 1.001).all(), "by its 400 products"
    column = w.copy()
    column[:, 3] *= np.float32(1 + 1e-2)
    for wrong in (linear(column, bias), linear(w, bias + np.float32(0.02))):
        assert bound.differing(run(wrong, x), expected).any()


def test_bits_may_differ_near_their_threshold_only() -> None:
    x, w, bias = inputs()
    sums, other = run(model("DirectConv", {"w": w, "b": bias}), x), one_after_the_other(x, w, bias)
    # Of each channel the larger of two values of one sum: one order reaches it, the other does not.
    rows = [np.flatnonzero((sums != other)[:, o])[0] for o in range(33)]
    threshold = np.array([np.maximum(sums, other)[:, o].flat[row] for o, row in enumerate(rows)])
    proto = model("DirectConvThreshold", {"w": w, "b": bias, "t": threshold})
    expected, bound = run(proto, x), bound_of(proto, x)
    got = pack_bits(np.moveaxis(other >= threshold.reshape(-1, 1, 1), 1, -1))
    assert expected.shape == got.shape == (6, 4, 4, 2) and np.bitwise_count(got ^ expected).sum() >= 33
    assert not bound.differing(got, expected).any()
    assert bound.differing(got ^ np.uint32(1 << 31), expected).any(), "a bit that is far from its threshold"


def test_bits_that_differ_for_another_reason() -> None:
    x, w, bias = inputs()
    threshold = np.median(run(model("DirectConv", {"w": w, "b": bias}), x), axis=(0, 2, 3))
    proto = model("DirectConvThreshold", {"w": w, "b": bias, "t": threshold})
    expected, bound = run(proto, x), bound_of(proto, x)
    assert not bound.differing(expected, expected).any()
    for wrong in (
        model("DirectConvThreshold", {"w": changed(w, 0.1), "b": bias, "t": threshold}),
        model("DirectConvThreshold", {"w": w, "b": bias, "t": threshold + np.float32(1e-2)}),
        model("DirectConvThreshold", {"w": w, "b": bias, "t": threshold}, pads=[0, 0, 2, 0]),
    ):
        assert bound.differing(run(wrong, x), expected).any()


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_excuses_nothing(value: float) -> None:
    x, w, bias = inputs()
    x[0, 0, 0, 0] = value
    proto = model("DirectConv", {"w": w, "b": bias})
    expected, bound = run(proto, x), bound_of(proto, x)
    got = expected.copy()
    got[0, :, 0, 0] += 1
    got[0, :, 0, 0] = np.where(np.isfinite(got[0, :, 0, 0]), got[0, :, 0, 0], 0)
    assert bound.differing(got, expected)[0, :, 0, 0].all()


def test_an_exact_operator_has_no_bound() -> None:
    proto = model("Binarize", {"t": np.zeros(3, np.float32)})
    del proto.graph.node[0].attribute[:]
    assert sum_bound(proto, proto.graph.node[0], {"x": inputs()[0]}, lambda alone: pytest.fail("it runs")) is None
