"""LowerLinear: which linear layers over the last dimension become BinaryLinear, exactly, and which stay float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from onnx import numpy_helper

from bnn_deploy import convert, verify
from bnn_deploy.errors import InputError
from bnn_deploy.inspection import inspect_model
from bnn_deploy.passes.lower.lower_linear import LowerLinear
from bnn_deploy.proof.golden.check import check_golden
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.golden.record import write_golden
from support.graphs import Array, assert_same, copy, eighths, op_types, parse, weights

X = ("N", 5, 40)


def lower(text: str, x: Any = X, **constants: Array) -> tuple[ir.Model, ir.Model, list[str]]:
    """The model, the lowered one, and why layers were declined."""
    before = parse(text, x, **constants)
    after = copy(before)
    result = LowerLinear()(after)
    common.RemoveUnusedNodesPass()(after)
    assert result.count == op_types(after).count("BinaryLinear")
    return before, after, [decline.reason for decline in result.declined]


@pytest.mark.parametrize("x", [X, ("N", 2, 5, 40)], ids=str)
def test_fires(x: Any) -> None:
    before, after, declined = lower("s = Sign(x)\ny = MatMul(s, w)", x, w=weights(40, 6))
    assert (op_types(after), declined) == (["BinarizeChannelsLast", "BinaryLinear"], [])
    assert_same(before, after)


def test_takes_a_number_in_between() -> None:
    number = np.array(0.5, np.float32)
    before, after, _ = lower("s = Sign(x)\nm = Mul(s, k)\ny = MatMul(m, w)", w=weights(40, 6), k=number)
    assert op_types(after) == ["BinarizeChannelsLast", "BinaryLinear"]
    assert_same(before, after)


def test_a_sign_of_several_layers_is_binarised_once() -> None:
    text = "s = Sign(x)\na = MatMul(s, w)\nb = MatMul(s, v)\nr = ReduceMean(s)\nc = Add(a, b)\ny = Add(c, r)"
    before, after, _ = lower(text, w=weights(40, 6), v=weights(40, 6, seed=1))
    assert op_types(after).count("BinarizeChannelsLast") == 1 and "Sign" in op_types(after)
    assert_same(before, after)


def test_shared_weights() -> None:
    before, after, _ = lower(
        "s = Sign(x)\nt = Sign(s)\na = MatMul(s, w)\nb = MatMul(t, w)\ny = Add(a, b)", w=weights(40, 6)
    )
    assert op_types(after).count("BinaryLinear") == 2
    assert_same(before, after)


def test_does_not_lower_real_weights() -> None:
    _, after, declined = lower("s = Sign(x)\ny = MatMul(s, w)", w=eighths(40, 6) + np.float32(0.01))
    assert "BinaryLinear" not in op_types(after)
    assert len(declined) == 1 and "its weights are real-valued" in declined[0]


def test_does_not_look_at_matrices() -> None:
    for text, x in (("s = Sign(x)\ny = MatMul(s, w)", ("N", 40)), ("r = Relu(x)\ny = MatMul(r, w)", X)):
        _, after, declined = lower(text, x, w=weights(40, 6))
        assert "BinaryLinear" not in op_types(after) and declined == []


def test_refuses_a_filter_of_zeros() -> None:
    zeros = weights(40, 6) * np.float32([1, 1, 0, 1, 1, 1])
    with pytest.raises(InputError, match="MatMul 'y': filter 2 is all zeros"):
        lower("s = Sign(x)\ny = MatMul(s, w)", w=zeros)


# A mixer's block: the whole way.

BLOCK = """
a = MatMul(x, w0)
s = Sign(a)
b = MatMul(s, w1)
c = Mul(b, k)
d = Add(c, bias)
r = Add(d, a)
n = LayerNormalization <axis=-1> (r, g, h)
zero = Constant <value = float {0.0}> ()
m = GreaterOrEqual(n, zero)
one = Constant <value = float {1.0}> ()
minus = Constant <value = float {-1.0}> ()
t = Where(m, one, minus)
e = MatMul(t, w2)
y = ReduceMean <keepdims=0> (e, axes)
"""


def block() -> ir.Model:
    rng = np.random.default_rng(7)
    return parse(
        BLOCK,
        ("N", 5, 24),
        w0=rng.standard_normal((24, 40)).astype(np.float32),
        w1=weights(40, 40),
        w2=weights(40, 10, seed=2),
        k=np.array(0.25, np.float32),
        bias=rng.standard_normal(40).astype(np.float32),
        g=np.ones(40, np.float32),
        h=rng.standard_normal(40).astype(np.float32) * np.float32(0.1),
        axes=np.array([1], np.int64),
    )


def test_a_block_is_converted_proved_and_corrupted(tmp_path: Path) -> None:
    model, source = tmp_path / "m.onnx", tmp_path / "f.onnx"
    conversion = convert(block(), model, float_output=source)
    assert conversion.binary_layers == ("b", "e")
    assert [layer.status for layer in conversion.layers] == ["float", "binary", "binary"]
    found = {layer.name: layer for layer in inspect_model(model).layers}
    assert found["b"].output.shape is not None and found["b"].output.shape[1:] == (5, 40)
    assert (found["b"].binary_macs, found["e"].binary_macs) == (5 * 40 * 40, 5 * 40 * 10)
    result = verify(model, source, reference_samples=2)
    assert result.passed, result.failures
    assert [layer.kind for layer in result.layers].count("bits") == 2
    write_golden(make_golden(model, samples=4), tmp_path / "golden.npz")
    assert check_golden(model, tmp_path / "golden.npz").passed
    wrong = onnx.load(model)
    layer = next(node for node in wrong.graph.node if node.name == "e")
    tensor = next(tensor for tensor in wrong.graph.initializer if tensor.name == layer.input[1])
    words = numpy_helper.to_array(tensor).copy()
    words[3, 0] ^= 1 << 7
    tensor.CopyFrom(numpy_helper.from_array(words, tensor.name))
    onnx.save(wrong, model)
    result = verify(model, source, reference_samples=2)
    assert not result.passed and any("'e'" in line for line in result.failures)
