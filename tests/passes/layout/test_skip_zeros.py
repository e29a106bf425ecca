"""SkipZeros: a linear layer behind a ReLU of a binary layer's floats is one operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.pipeline import to_binary
from support.graphs import copy, eighths, equal, only, op_types, parse, run_binary, weights

CONV = "s = Sign(x)\nc = Conv(s, w)"
GEMM = "y = Gemm<transB=1>(r, f, b)"
BOTH = f"{CONV}\nl = Flatten(c)\nr = Relu(l)\n{GEMM}"


def network(text: str, outputs: tuple[str, ...] = ("y",), **constants: Any) -> ir.Model:
    """A float graph with a binary layer's weights w, [20, 3, 3, 3], and those of a linear layer, f and b."""
    given = {"w": weights(20, 3, 3, 3), "f": eighths(10, 80), "b": eighths(10, seed=4)}
    return parse(text, ("N", 3, 4, 4), outputs, **(given | constants))


def converted(model: ir.Model) -> ir.Model:
    """The converted model: as without the pass, and another with a wrong weight. All sums are exact in any order."""
    plain, after = to_binary(model, float_edges=False)[0], to_binary(model)[0]
    assert "ReluLinear" not in op_types(plain)
    x = eighths(5, 3, 4, 4, seed=5)
    expected = run_binary(plain, x, kernels=True)
    for kernels in (False, True):
        assert equal(run_binary(after, x, kernels), expected), f"kernels: {kernels}"
    wrong = copy(after)
    weight = next(node for node in wrong.graph if node.op_type == "ReluLinear").inputs[1]
    assert weight is not None
    array = np.array(constant(weight))
    array[4] += 0.5
    weight.const_value = ir.tensor(array, name=weight.name)
    assert not equal(run_binary(wrong, x, kernels=True), expected)
    return after


FIRES = {
    "as exported": (BOTH, {}),
    "weights as stored, one bias": (
        BOTH.replace("transB=1", "transB=0"),
        {"f": eighths(80, 10), "b": np.float32([0.25])},
    ),
    "no bias": (BOTH.replace(", b)", ")"), {}),
}


@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str) -> None:
    text, constants = FIRES[name]
    after = converted(network(text, **constants))
    assert op_types(after)[-2:] == ["BinaryConv", "ReluLinear"]
    assert (only(after, "ReluLinear").name, after.graph.outputs[0].name) == ("y", "y")


def test_behind_a_linear_layer() -> None:
    text = f"s = Sign(x)\nl = Gemm<transB=1>(s, w)\nr = Relu(l)\n{GEMM}"
    model = parse(text, ("N", 40), w=weights(80, 40), f=eighths(10, 80), b=eighths(10, seed=4))
    assert op_types(to_binary(model)[0]) == ["Binarize", "Unsqueeze", "BinaryConv", "ReluLinear"]


def test_shared_weights() -> None:
    text = f"{BOTH}\nt = Sign(y)\nd = Conv(s, v)\nk = Flatten(d)\nq = Relu(k)\nz = Gemm<transB=1>(q, f, b)"
    after = converted(network(text, ("y", "z"), v=weights(20, 3, 3, 3, seed=6)))
    first, second = (node for node in after.graph if node.op_type == "ReluLinear")
    assert first.inputs[1] is second.inputs[1] and first.inputs[2] is second.inputs[2]


@pytest.mark.parametrize(
    ("text", "outputs", "constants"),
    [
        (f"{BOTH}\nz = Add(r, one)", ("y", "z"), {"one": np.float32([1])}),
        (BOTH, ("y", "r"), {}),
        (f"{BOTH}\nz = Neg(l)", ("y", "z"), {}),
        (BOTH.replace("transB=1", "transB=1,alpha=0.5"), ("y",), {}),
        (BOTH, ("y",), {"b": eighths(5, 10)}),
        (BOTH.replace("r = Relu(l)", "r = Tanh(l)"), ("y",), {}),
        (
            f"c = AveragePool<kernel_shape=[2,2]>(x)\nl = Flatten(c)\nr = Relu(l)\n{GEMM}",
            ("y",),
            {"f": eighths(10, 27)},
        ),
        (BOTH, ("y",), {"f": np.where(np.arange(800).reshape(10, 80) == 7, np.float32(np.inf), eighths(10, 80))}),
    ],
    ids=[
        "a ReLU that is read twice",
        "an output",
        "a Flatten that is read twice",
        "alpha",
        "biases per row",
        "Tanh",
        "no binary layer",
        "infinity",
    ],
)
def test_does_not_rewrite(text: str, outputs: tuple[str, ...], constants: dict[str, Any]) -> None:
    after = to_binary(network(text, outputs, **constants))[0]
    assert "Gemm" in op_types(after) and "ReluLinear" not in op_types(after)
