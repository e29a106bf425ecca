"""ConvolveTokens, and LowerLinear's sums: linear layers on [N, T, C] of levels, and of weights of a few values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.graph import constant, is_binary_op
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.proof.verification import verify
from support.golden_files import BEST
from support.graphs import copy, op_types, parse, run_binary, run_float, samples, weights

pytestmark = pytest.mark.usefixtures("small_sums_pay")

ROUNDED = """d = Div (x, step)
e = Clip (d, low, high)
r = Round (e)
q = Mul (r, step)
y = MatMul (q, w)"""


def network(shape: tuple[int, ...], levels: int) -> onnx.ModelProto:
    numbers = {"step": np.float32(0.1), "low": np.float32(0), "high": np.float32(levels)}
    return ir.to_proto(parse(ROUNDED, ("N", *shape), w=weights(24, shape[-1]).T.copy(), **numbers))


def test_fires(tmp_path: Path) -> None:
    model = network((2, 5, 33), 3)
    x = np.random.default_rng(0).normal(0.15, 0.2, (8, 2, 5, 33)).astype(np.float32)
    result = convert(model, tmp_path / "m.onnx")
    assert result.binary_layers == ("y",)
    assert verify(result.output, model, data=x, isas=BEST, reference_samples=2).passed
    wrong = onnx.load(result.output)
    flip(wrong, "y")
    onnx.save(wrong, tmp_path / "wrong.onnx")
    assert not verify(tmp_path / "wrong.onnx", model, data=x, isas=BEST, reference_samples=0).passed


def flip(model: onnx.ModelProto, layer: str) -> None:
    """Flip one weight bit of a layer, of channel 0."""
    node = next(node for node in model.graph.node if node.name == layer)
    bits = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    array = onnx.numpy_helper.to_array(bits).copy()
    array.flat[0] ^= 1
    bits.CopyFrom(onnx.numpy_helper.from_array(array, bits.name))


# Every form of activations and weights.

NUMBERS = {"half": 0.5, "zero": 0.0, "one": 1.0, "minus": -1.0, "three": 3.0, "eighth": 0.125, "fifteen": 15.0}
ACTIVATIONS = {
    "sign": "q = Sign(x)",
    "scaled": "s = Sign(x)\nq = Mul(s, half)",
    "0/1": "g = Greater(x, zero)\nq = Cast<to=1>(g)",
    "ternary": "c = Clip(x, minus, one)\nq = Round(c)",
    "DoReFa": "c = Clip(x, zero, one)\nm = Mul(c, three)\nr = Round(m)\nq = Div(r, three)",
    "AdaBin": "u = Sub(x, shift)\ns = Sign(u)\nt = Mul(s, half)\nq = Add(t, eighth)",
    "4 bits": "c = Clip(x, zero, one)\nm = Mul(c, fifteen)\nr = Round(m)\nq = Div(r, fifteen)",
}


def filters(kind: str, channels: int, outputs: int = 24) -> NDArray[np.float32]:
    """Weights [C, O] of a few values per output, each with magnitudes of its own."""
    rng = np.random.default_rng(3)
    first, second = (np.where(rng.random((channels, outputs)) < 0.5, -1.0, 1.0) for _ in range(2))
    alpha = rng.uniform(0.5, 1, outputs)
    made = {
        "alpha": first * alpha,
        "ternary": np.where(second > 0, first * alpha, 0),
        "TTQ": np.where(second > 0, np.where(first > 0, 1.5, -1) * alpha, 0),
        "offset": (first + 0.25) * alpha,
        "two bases": (first + 0.375 * second) * alpha,
        "real": rng.normal(size=(channels, outputs)),
        "pruned": np.where(second > 0, rng.normal(size=(channels, outputs)), 0),
    }
    return made[kind].astype(np.float32)


def layer(activation: str, kind: str, x: Any = ("N", 6, 40), text: str = "", **constants: NDArray[Any]) -> ir.Model:
    """An activation, a linear layer and its bias."""
    nodes = text or f"{ACTIVATIONS[activation]}\nm0 = MatMul(q, w)\ny = Add(m0, bias)"
    rng = np.random.default_rng(4)
    named = {name: np.float32(number) for name, number in NUMBERS.items() if re.search(rf"\b{name}\b", nodes)}
    named |= {"bias": rng.normal(size=24).astype(np.float32)} if "bias" in nodes else {}
    named |= {"shift": rng.normal(0, 0.2, x[-1]).astype(np.float32)} if "shift" in nodes else {}
    return parse(nodes, x, **{"w": filters(kind, x[-1])} | named | constants)


def same(before: ir.Model, after: ir.Model, x: NDArray[np.float32]) -> bool:
    """Whether bodies and kernels give what the float graph gives, but for the rounding of its sums."""
    (expected,) = run_float(before, x)
    return all(
        np.abs(run_binary(after, x, kernels)[0] - expected).max() <= 1e-5 * np.abs(expected).max()
        for kernels in (False, True)
    )


@pytest.mark.parametrize(
    ("activation", "kind", "x"),
    [
        ("sign", "ternary", ("N", 6, 40)),
        ("sign", "offset", ("N", 2, 3, 33)),
        ("sign", "two bases", (2, 2, 2, 3, 64)),
        ("scaled", "TTQ", ("N", "T", 40)),
        ("0/1", "ternary", ("N", 2, 3, 40)),
        ("ternary", "offset", ("N", 6, 40)),
        ("DoReFa", "TTQ", ("N", "T", 40)),
        ("DoReFa", "two bases", ("N", 6, 33)),
        ("DoReFa", "alpha", ("N", "T", 40)),
        ("AdaBin", "offset", ("N", 6, 40)),
        ("AdaBin", "two bases", ("N", 2, "T", 33)),
    ],
    ids=str,
)
def test_every_form_becomes_binary(activation: str, kind: str, x: Any) -> None:
    model = layer(activation, kind, x)
    after, left, _ = to_binary(copy(model))
    assert left == [] and "MatMul" not in op_types(after)
    form = next(node for node in after.graph if is_binary_op(node, "BinaryConvLevels", "BinaryConvBases"))
    data = samples(model)
    assert same(model, after, data)
    wrong = copy(after)
    bits = next(node for node in wrong.graph if node.name == form.name).inputs[1]
    assert bits is not None
    array = np.array(constant(bits))
    array.flat[0] ^= 1
    bits.const_value = ir.tensor(array, name=bits.name)
    assert not same(model, wrong, data)


def test_layers_of_one_sign_share_its_bits() -> None:
    text = "q = Sign(x)\na = MatMul(q, w)\nb = MatMul(q, v)\ny = Add(a, b)"
    model = layer("", "ternary", text=text, v=filters("alpha", 40))
    after, left, _ = to_binary(copy(model))
    assert left == [] and op_types(after).count("BinarizeChannelsLast") == 1
    assert {"BinaryLinear", "BinaryConvBases"} < set(op_types(after))
    assert same(model, after, samples(model))


@pytest.mark.parametrize(
    ("activation", "kind", "x", "reason"),
    [
        ("sign", "real", ("N", 6, 40), "its weights are real-valued: filter 0"),
        ("sign", "pruned", ("N", 6, 40), "its weights are real-valued: filter 0"),
        ("0/1", "real", ("N", 2, 3, 40), "its weights are real-valued: filter 0"),
        ("DoReFa", "real", ("N", "T", 40), "its weights are real-valued: filter 0"),
        ("4 bits", "ternary", ("N", 6, 40), "its 4 bit planes of activations times 2 of weights"),
        ("sign", "ternary", ("N", 1, 2, 1, 2, 40), "it has 4 spatial dimensions"),
        ("DoReFa", "alpha", ("N", 1, 2, 1, 2, 40), "it has 4 spatial dimensions"),
    ],
    ids=str,
)
def test_does_not_take_others_and_says_why(activation: str, kind: str, x: Any, reason: str) -> None:
    after, left, _ = to_binary(layer(activation, kind, x))
    assert [decline.reason.startswith(reason) and decline.has_sign_input for decline in left] == [True], left
    assert "MatMul" in op_types(after) and not any(node.domain == DOMAIN for node in after.graph)


@pytest.mark.parametrize("activation", ["sign", "DoReFa"])
def test_refuses_an_output_of_zeros(activation: str) -> None:
    model = layer(activation, "alpha", w=filters("alpha", 40) * (np.arange(24) != 2))
    with pytest.raises(InputError, match="MatMul 'm0': filter 2 is all zeros"):
        to_binary(model)


# Networks: the whole way.

TWO = """a = LayerNormalization <axis=-1> (x, g, h)
s = Sign (a)
b = MatMul (s, w)
c = Add (b, bias)
n = LayerNormalization <axis=-1> (c, g2, h2)
l = Clip (n, zero, one)
m = Mul (l, three)
r = Round (m)
q = Div (r, three)
d = MatMul (q, v)
y = Add (d, bias)"""


def test_two_layers_are_proved_and_corrupted(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    norms = {"g": np.ones(40), "h": rng.normal(0, 0.1, 40), "g2": np.ones(24), "h2": rng.normal(0.3, 0.1, 24)}
    constants = {name: array.astype(np.float32) for name, array in norms.items()}
    model = layer("", "ternary", text=TWO, v=filters("two bases", 24), **constants)
    onnx.save(ir.to_proto(model), tmp_path / "f.onnx")
    result = convert(tmp_path / "f.onnx", tmp_path / "m.onnx")
    assert result.binary_layers == ("b", "d")
    x = samples(model, 8)
    assert verify(result.output, tmp_path / "f.onnx", data=x, isas=BEST, reference_samples=2).passed
    wrong = onnx.load(result.output)
    flip(wrong, "b")
    onnx.save(wrong, tmp_path / "wrong.onnx")
    proof = verify(tmp_path / "wrong.onnx", tmp_path / "f.onnx", data=x, isas=BEST, reference_samples=0)
    assert not proof.passed and any("'b'" in line for line in proof.failures), proof.failures


def test_takes_a_number_per_token_behind_the_layer(tmp_path: Path) -> None:
    text = "z = Relu(x)\ns = Sign(z)\nf = Sigmoid(t)\nq = Mul(s, f)\nm0 = MatMul(q, w)\ny = Add(m0, bias)"
    text = f"a = Abs(x)\nt = ReduceMean<keepdims=1>(a, last)\n{text}"
    model = layer("", "ternary", text=text, last=np.array([-1]))
    onnx.save(ir.to_proto(model), tmp_path / "f.onnx")
    result = convert(tmp_path / "f.onnx", tmp_path / "m.onnx")
    assert result.binary_layers == ("m0",)
    assert verify(result.output, tmp_path / "f.onnx", isas=BEST, reference_samples=2).passed


def test_does_not_take_signs_or_real_weights(tmp_path: Path) -> None:
    model = parse("s = Sign (x)\ny = MatMul (s, w)", ("N", 6, 40), w=weights(24, 40).T.copy())
    convert(model, tmp_path / "m.onnx")
    nodes = onnx.load(tmp_path / "m.onnx").graph.node
    assert [node.op_type for node in nodes if node.domain == DOMAIN] == ["BinarizeChannelsLast", "BinaryLinear"]
    real = network((6, 40), 3)
    noise = np.random.default_rng(0).normal(size=(40, 24)).astype(np.float32)
    real.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(noise, "w"))
    with pytest.raises(Exception, match="no layer of"):
        convert(real, tmp_path / "real.onnx", weights="as-is")
