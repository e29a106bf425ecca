"""ConvolveDirectly: a float convolution of few channels becomes ours, with its pool and its thresholds.

Inputs, weights and biases are multiples of 1/8, so the sums are exact in any order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.provenance import BEFORE, COMPLEMENTED, SOURCE
from support.graphs import batch_norm, copy, eighths, equal, only, op_types, parse, run_binary, weights

POOL = "MaxPool<kernel_shape=[2,2],strides=[2,2]>"
PAD_POOL = "MaxPool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]>"
RESIDUAL = "q = Sub(p, half)\ns = Sign(q)\nd = Conv<pads=[1,1,1,1]>(s, w)\ny = Add(d, p)"


def network(text: str, channels: int = 3, outputs: tuple[str, ...] = ("y",), **constants: Any) -> ir.Model:
    """A float graph with the first layer's weights f and bias b, and the binary layer's w."""
    given = {"f": eighths(40, channels, 3, 3), "b": eighths(40), "w": weights(40, 40, 3, 3), "v": weights(4, 3, 3, 3)}
    given["half"] = np.float32(0.5)
    return parse(text, ("N", channels, 12, 10), outputs, **(given | constants))


def converted(model: ir.Model) -> ir.Model:
    """The converted model: as with the first layer left to onnxruntime, and another with a wrong weight of it."""
    plain, after = to_binary(model, float_edges=False)[0], to_binary(model)[0]
    assert "Conv" in op_types(plain) and "Conv" not in op_types(after)
    shape = model.graph.inputs[0].shape
    assert shape is not None
    x = eighths(4, *shape[1:], seed=5)
    expected = run_binary(plain, x, kernels=True)
    for kernels in (False, True):
        assert equal(run_binary(after, x, kernels), expected), f"kernels: {kernels}"
    wrong = copy(after)
    weight = next(node for node in wrong.graph if node.op_type.startswith("Direct")).inputs[1]
    assert weight is not None
    array = np.array(constant(weight))
    array.reshape(len(array), -1)[:, 4] += 0.5
    weight.const_value = ir.tensor(array, name=weight.name)
    assert not equal(run_binary(wrong, x, kernels=True), expected)
    return after


def ours(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.domain == DOMAIN]


def pool_of(node: ir.Node) -> list[list[int]]:
    return [list(node.attributes[name].as_ints()) for name in ("pool_shape", "pool_strides", "pool_pads")]


NO_POOL = [[1, 1], [1, 1], [0, 0, 0, 0]]

TO_BITS = {
    "a sign": ("c = Conv(x, f, b)\ns = Sign(c)", NO_POOL),
    "no bias, padded and strided": (
        "c = Conv<strides=[2,1],pads=[1,0,2,1],dilations=[1,2]>(x, f)\ns = Sign(c)",
        NO_POOL,
    ),
    "a pool": (f"c = Conv(x, f, b)\np = {POOL}(c)\ns = Sign(p)", [[2, 2], [2, 2], [0, 0, 0, 0]]),
    "a padded pool": (
        f"c = Conv<pads=[1,1,1,1]>(x, f, b)\np = {PAD_POOL}(c)\ns = Sign(p)",
        [[3, 3], [2, 2], [1, 1, 1, 1]],
    ),
    "a pool that need not round up": (
        "c = Conv(x, f, b)\np = MaxPool<kernel_shape=[2,2],strides=[2,2],ceil_mode=1>(c)\ns = Sign(p)",
        [[2, 2], [2, 2], [0, 0, 0, 0]],
    ),
    "what a threshold takes in": (
        f"c = Conv(x, f, b)\nr = Relu(c)\np = {POOL}(r)\nq = Sub(p, half)\ns = Sign(q)",
        [[2, 2], [2, 2], [0, 0, 0, 0]],
    ),
}


@pytest.mark.parametrize("name", TO_BITS)
def test_fires_to_bits(name: str) -> None:
    text, pool = TO_BITS[name]
    after = converted(network(f"{text}\ny = Conv(s, w)"))
    assert op_types(after) == ["DirectConvThreshold", "BinaryConv"]
    node = only(after, "DirectConvThreshold")
    assert pool_of(node) == pool
    assert (node.name, node.metadata_props[SOURCE]) == ("c", "s")


TO_FLOATS = {
    "a sign and a residual": (f"p = Conv<pads=[1,1,1,1]>(x, f, b)\n{RESIDUAL}", [], NO_POOL, "p"),
    "a pool": (
        f"c = Conv(x, f, b)\np = {POOL}(c)\n{RESIDUAL}",
        [],
        [[2, 2], [2, 2], [0, 0, 0, 0]],
        "p",
    ),
    "a pool, and a ReLU in front of it": (
        f"c = Conv(x, f, b)\nr = Relu(c)\np = {POOL}(r)\n{RESIDUAL}",
        ["Relu"],
        [[2, 2], [2, 2], [0, 0, 0, 0]],
        None,
    ),
    "a pool, and a ReLU behind it": (
        f"c = Conv(x, f, b)\nm = {POOL}(c)\np = Relu(m)\n{RESIDUAL}",
        ["Relu"],
        [[2, 2], [2, 2], [0, 0, 0, 0]],
        None,
    ),
}


@pytest.mark.parametrize("name", TO_FLOATS)
def test_fires_to_floats(name: str) -> None:
    text, between, pool, source = TO_FLOATS[name]
    after = converted(network(text))
    assert ours(after) == ["DirectConv", "Binarize", "BinaryConv"]
    assert [name for name in op_types(after) if name in ("Conv", "MaxPool", "Relu")] == between
    node = only(after, "DirectConv")
    assert pool_of(node) == pool
    assert node.metadata_props.get(SOURCE) == source, "a float that is read twice is a cut for verify"


def test_one_dimension() -> None:
    text = "c = Conv<pads=[1,1]>(x, f, b)\np = MaxPool<kernel_shape=[2],strides=[2]>(c)\ns = Sign(p)\ny = Conv(s, w)"
    constants = {"f": eighths(33, 2, 3), "b": eighths(33), "w": weights(4, 33, 3)}
    after = converted(parse(text, ("N", 2, 17), **constants))
    assert op_types(after) == ["DirectConvThreshold", "BinaryConv"]
    assert pool_of(only(after, "DirectConvThreshold")) == [[2], [2], [0, 0]]


def test_complemented_channels_stay_so() -> None:
    norm = batch_norm(40, gamma=[(-1.0) ** i for i in range(40)])
    text = "c = Conv(x, f, b)\nn = BatchNormalization(c, g, t, m, v)\ns = Sign(n)\ny = Conv(s, w)"
    norm["t"] = norm.pop("b")
    after = converted(network(text, **norm))
    node = only(after, "DirectConvThreshold")
    assert node.metadata_props[COMPLEMENTED] == ",".join(map(str, range(1, 40, 2)))
    assert node.metadata_props[SOURCE] == "s"


def test_signs_in_front_of_their_pool_stay_apart() -> None:
    """They are a cut for verify: behind the pool of signs no rounding would be excused."""
    after = converted(network(f"c = Conv(x, f, b)\ns = Sign(c)\np = {POOL}(s)\ny = Conv(p, w)"))
    assert ours(after) == ["DirectConvThreshold", "BinaryMaxPool", "BinaryConv"]
    assert pool_of(only(after, "DirectConvThreshold")) == NO_POOL
    assert only(after, "DirectConvThreshold").metadata_props[SOURCE] == "s"


def test_bits_that_are_read_pooled_and_not_pooled() -> None:
    text = f"c = Conv(x, f, b)\np = {POOL}(c)\ns = Sign(p)\nt = Sign(c)\ny = Conv(s, w)\nz = Conv(t, w)"
    after = converted(network(text, outputs=("y", "z")))
    assert ours(after)[0] == "DirectConv" and ours(after).count("Binarize") == 2


def test_shared_weights() -> None:
    text = (
        "c = Conv(x, f, b)\ns = Sign(c)\ny = Conv(s, w)\nk = Conv<strides=[2,2]>(x, f, b)\nt = Sign(k)\nz = Conv(t, w)"
    )
    after = converted(network(text, outputs=("y", "z")))
    first, second = (node for node in after.graph if node.op_type == "DirectConvThreshold")
    assert first.inputs[1] is second.inputs[1]


CEIL = "MaxPool<kernel_shape=[3,3],strides=[2,2],ceil_mode=1>"
DILATED = "MaxPool<kernel_shape=[2,2],dilations=[2,2]>"
OUTSIDE = "MaxPool<kernel_shape=[2,2],strides=[2,2],pads=[0,0,1,1],ceil_mode=1>"
"""Rounding up, its last windows begin in the padding, and so are left out; shape inference counts them."""
LARGE = "MaxPool<kernel_shape=[1,17],pads=[0,8,0,8]>"


@pytest.mark.parametrize("pool", [CEIL, OUTSIDE, DILATED, LARGE])
def test_does_not_take_in_another_pool(pool: str) -> None:
    to_bits = to_binary(network(f"c = Conv(x, f, b)\np = {pool}(c)\ns = Sign(p)\ny = Conv(s, w)"))[0]
    assert ours(to_bits) == ["DirectConvThreshold", "BinaryMaxPool", "BinaryConv"]
    assert only(to_bits, "BinaryMaxPool").metadata_props[SOURCE] == "s"
    # Nobody of ours reads what onnxruntime pools.
    to_floats = to_binary(network(f"c = Conv(x, f, b)\np = {pool}(c)\n{RESIDUAL}"))[0]
    assert ours(to_floats) == ["Binarize", "BinaryConv"] and "Conv" in op_types(to_floats)
    run_binary(to_floats, eighths(4, 3, 12, 10), kernels=False)  # the shapes fit together


GROUPED = "c = Conv<group=3>(x, f, b)\ns = Sign(c)\ny = Conv(s, w)"


@pytest.mark.parametrize(
    ("text", "channels", "constants"),
    [
        ("c = Conv(x, f, b)\ns = Sign(c)\ny = Conv(s, w)", 5, {}),
        (GROUPED, 3, {"f": eighths(39, 1, 3, 3), "b": eighths(39), "w": weights(4, 39, 3, 3)}),
        ("c = Conv(x, f, b)\na = AveragePool<kernel_shape=[2,2]>(c)\ns = Sign(a)\ny = Conv(s, w)", 3, {}),
        (
            "c = Conv(x, f, b)\nt = Tanh(c)\na = ReduceMean(t)\ns = Sign(x)\nd = Conv(s, v)\ny = Add(d, a)",
            3,
            {},
        ),
    ],
    ids=["many channels", "groups", "an average pool behind it", "nobody of ours reads it"],
)
def test_does_not_fire(text: str, channels: int, constants: dict[str, Any]) -> None:
    after = to_binary(network(text, channels, **constants))[0]
    assert "Conv" in op_types(after) and not any(name.startswith("Direct") for name in op_types(after))


def test_does_not_fire_for_a_bias_or_weights_that_are_computed() -> None:
    text = "k = ReduceMean<keepdims=0>(x, axes)\nc = Conv(x, f, k)\ns = Sign(c)\ny = Conv(s, w)"
    constants = {"f": eighths(3, 3, 3, 3), "w": weights(4, 3, 3, 3), "axes": np.array([0, 2, 3])}
    assert "DirectConvThreshold" not in op_types(to_binary(parse(text, (1, 3, 8, 8), **constants))[0])


def test_does_not_fire_for_edges_that_are_quantised() -> None:
    model = network("c = Conv(x, f, b)\ns = Sign(c)\ny = Conv(s, w)")
    assert op_types(to_binary(model, float_edges=False)[0]) == ["Conv", "Binarize", "BinaryConv"]


def test_the_place_of_the_pre_activation_is_kept() -> None:
    """Of a sign behind a threshold, which no tensor of the float graph is the input of."""
    model = network(
        "c = Conv(x, f, b)\nl = Less(c, t)\ns = Where(l, lo, hi)\ny = Conv(s, w)",
        t=eighths(40, 1, 1),
        lo=np.float32(-1),
        hi=np.float32(1),
    )
    assert "subtract" in only(converted(model), "DirectConvThreshold").metadata_props[BEFORE]
