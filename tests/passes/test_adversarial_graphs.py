"""Graphs that look like binary layers and are not, or are in an odd way: each gives what its float graph gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.operators.contract import is_binary_layer
from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.report.summary import binary_layers
from support.graphs import copy, parse, run_binary, run_float, samples, weights

LAYER = "\ny = Conv(s, w)"
GREATER = "a = GreaterOrEqual(x, zero)\n"

# How many layers become binary, the text, and constants of its own.
GRAPHS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "the sign of a product of two tensors": (1, "a = Neg(x)\np = Mul(x, a)\ns = Sign(p)", {}),
    "a product of two signs": (1, "a = Sign(x)\nq = Sub(x, half)\nb = Sign(q)\ns = Mul(a, b)", {}),
    "a sign times itself": (0, "a = Sign(x)\ns = Mul(a, a)", {}),
    "Where with swapped branches": (1, f"{GREATER}s = Where(a, minus, one)", {}),
    "Where that falls in one channel only": (
        0,
        f"{GREATER}s = Where(a, above, below)",
        {"above": [1, -1, 1, 1], "below": [-1, 1, -1, -1]},
    ),
    "Where with a scale per channel": (
        0,
        f"{GREATER}s = Where(a, above, below)",
        {"above": [1, 1, 1, 2], "below": [-1, -1, -1, -2]},
    ),
    "Clip that leaves only +1": (1, "a = Clip(x, half)\ns = Sign(a)", {}),
    "Clip that leaves only -1": (1, "a = Clip(x, , minus)\ns = Sign(a)", {}),
    "the lower limit of a Clip as threshold": (
        1,
        "a = Clip(x, half, one)\nb = GreaterOrEqual(a, half)\ns = Where(b, one, minus)",
        {},
    ),
    "a threshold that is NaN": (0, "a = Greater(x, t)\ns = Where(a, one, minus)", {"t": [np.nan, 0, 0, 0]}),
    "thresholds that are infinite": (0, "a = Greater(x, t)\ns = Where(a, one, minus)", {"t": [np.inf, 0, -np.inf, 1]}),
    "an infinite shift": (1, "a = Sub(x, t)\ns = Sign(a)", {"t": [np.inf, 0.3, -np.inf, 1]}),
    "a border of one half": (0, "a = Sign(x)\ns = Pad(a, pads, half)", {}),
    "a border of nearly one": (0, "a = Sign(x)\ns = Pad(a, pads, t)", {"t": 0.99999}),
    "a sign for a layer and for something float": (1, "s = Sign(x)\nz = Mul(s, x)", {}),
    "MaxPool with padding": (1, "a = Sign(x)\ns = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (a)", {}),
    "MaxPool with ceil_mode": (1, "a = Sign(x)\ns = MaxPool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (a)", {}),
    "MaxPool of negated signs": (1, "a = Sign(x)\nb = Neg(a)\ns = MaxPool <kernel_shape=[2,2]> (b)", {}),
    "AveragePool of signs": (0, "a = Sign(x)\ns = AveragePool <kernel_shape=[2,2]> (a)", {}),
    "the sign of a Concat": (
        1,
        "a = Relu(x)\nb = Neg(x)\nc = Concat <axis=1> (a, b)\nd = Sub(c, half)\ns = Sign(d)",
        {"w": weights(8, 8, 3, 3)},
    ),
    "a Concat of signs": (
        1,
        "a = Sign(x)\nb = Sub(x, half)\nc = Sign(b)\ns = Concat <axis=1> (a, c)",
        {"w": weights(8, 8, 3, 3)},
    ),
    "±1 in 64-bit integers": (
        1,
        f"{GREATER}b = Cast <to=7> (a)\nc = Mul(b, t)\nd = Sub(c, u)\ns = Cast <to=1> (d)",
        {"t": np.int64(2), "u": np.int64(1)},
    ),
    "8-bit integers that overflow": (
        0,
        f"{GREATER}b = Cast <to=3> (a)\nc = Mul(b, t)\nd = Sub(c, u)\ns = Cast <to=1> (d)",
        {"t": np.int8(-128), "u": np.int8(-127)},
    ),
    "a window between two thresholds": (
        0,
        f"{GREATER}b = Greater(x, one)\nc = Xor(a, b)\nd = Cast <to=1> (c)\ne = Mul(d, two)\ns = Sub(e, one)",
        {},
    ),
    "the sign of a distance": (1, "a = Abs(x)\nb = Sub(a, half)\ns = Sign(b)", {}),
    "the sign of a reciprocal": (1, "a = Div(half, x)\ns = Sign(a)", {}),
    "the sign of a power": (1, "a = Pow(x, two)\nb = Sub(a, half)\ns = Sign(b)", {}),
    "a clamp of two comparisons": (
        0,
        "a = Less(x, minus)\nb = Greater(x, one)\nc = Where(a, minus, x)\ns = Where(b, one, c)",
        {},
    ),
    "a step to 0 and 1": (1, f"{GREATER}s = Cast <to=1> (a)", {}),
    "three levels": (1, "a = Sign(x)\nb = Sub(x, half)\nc = Sign(b)\ns = Add(a, c)", {}),
    "another number than 1": (1, "a = Sign(x)\ns = Add(a, half)", {}),
    "grouped and dilated": (
        1,
        "s = Sign(x)",
        {"w": weights(8, 2, 3, 3), "layer": "group=2, dilations=[2,2], pads=[1,1,2,2]"},
    ),
    "depthwise": (1, "s = Sign(x)", {"w": weights(8, 1, 3, 3), "layer": "group=4"}),
}


def graph(name: str) -> ir.Model:
    _, text, own = GRAPHS[name]
    own = dict(own)
    text += LAYER.replace("Conv", f"Conv <{own.pop('layer')}> ") if "layer" in own else LAYER
    numbers = {"zero": 0, "one": 1, "minus": -1, "two": 2, "half": 0.5}
    values: dict[str, Any] = {key: np.float32(number) for key, number in numbers.items()}
    values |= {"w": weights(8, 4, 3, 3), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    for key, value in own.items():
        values[key] = np.float32(value).reshape(-1, 1, 1) if isinstance(value, list) else value
        if isinstance(value, float):
            values[key] = np.float32(value)
    read = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    outputs = ("y", "z") if "z =" in text else ("y",)
    return parse(text, outputs=outputs, **{key: value for key, value in values.items() if key in read})


@pytest.mark.parametrize("name", GRAPHS)
def test_it_gives_what_the_float_graph_gives(name: str) -> None:
    model = graph(name)
    # None is a threshold, or its negative.
    x = np.round(samples(model) * 8) / 8 + np.float32(1 / 64)
    binary, left, _ = to_binary(model)
    assert len(binary_layers(binary)) == GRAPHS[name][0]
    assert len(left) == 1 - GRAPHS[name][0]
    expected = run_float(model, x)

    def same(converted: ir.Model) -> bool:
        results = zip(run_binary(converted, x, True), expected, strict=True)
        return all(np.allclose(got, wanted, rtol=1e-5, atol=1e-5) for got, wanted in results)

    assert same(binary)
    wrong = copy(binary)
    layer = next(node for node in wrong.graph if node.op_type == "Conv" or is_binary_layer(node))
    value = layer.inputs[1]
    array = np.array(constant(value))
    assert value is not None
    array[:2] = array[:2] ^ np.uint32(1) if array.dtype == np.uint32 else -array[:2]
    value.const_value = ir.tensor(array, name=value.name)
    assert not same(wrong)
