"""LowerMatMul: which products of two activations become BinaryMatMul, exactly, and which stay float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from bnn_deploy import convert, verify
from bnn_deploy.inspection import inspect_model
from bnn_deploy.passes.lower.lower_matmul import LowerMatMul
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.proof.golden.check import check_golden
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.golden.record import write_golden
from bnn_deploy.provenance import SOURCE, properties
from support.damage import Damage
from support.graphs import Array, assert_same, copy, eighths, op_types, parse, weights

X = ("N", 2, 5, 40)
BITS = "BinarizeChannelsLast"
NUMBERS = {"half": np.float32(0.5), "eight": np.float32(8), "t": np.float32(0.25)}
K = "k = Transpose <perm=[0, 1, 3, 2]> (x)\n"
ALL_HEADS = "h = ReduceMax(x, axes)\ne = Expand(h, heads)\nk = Transpose <perm=[0, 1, 3, 2]> (e)\n"
SHAPES = {"axes": np.array([1]), "heads": np.array([1, 2, 1, 1]), "zero": np.array([0])}
B = f"{K}t0 = Sub(k, t)\nb = Sign(t0)\n"


def lower(text: str, x: Any = X, **constants: Array) -> tuple[ir.Model, ir.Model, list[str]]:
    """The model, the lowered one, and why products were declined."""
    numbers = {name: value for name, value in NUMBERS.items() if f" {name})" in text}
    before = parse(text, x, **numbers, **constants)
    after = copy(before)
    result = LowerMatMul()(after)
    common.RemoveUnusedNodesPass()(after)
    assert result.count == op_types(after).count("BinaryMatMul")
    return before, after, [decline.reason for decline in result.declined]


VALUES = "v = Transpose <perm=[0, 2, 1, 3]> (x)\nb = Sign(v)\nt0 = Sub(k, t)\na = Sign(t0)\ny = MatMul(a, b)"

# The graph, and how many BinarizeChannelsLast and Transposes are left; the others are Binarize.
FIRES: dict[str, tuple[str, Any, int, int]] = {
    "keys made of a transposed tensor": (f"{K}z = Neg(x)\na = Sign(z)\nb = Sign(k)\ny = MatMul(a, b)", X, 2, 0),
    "a threshold behind the transpose": (f"{B}a = Sign(x)\ny = MatMul(a, b)", X, 2, 2),
    "numbers": (f"{B}c = Sign(x)\na = Mul(c, half)\nd = Mul(b, eight)\ny = MatMul(a, d)", X, 2, 2),
    "0 and 1": (f"{B}g = GreaterOrEqual(x, t)\na = Cast <to=1> (g)\ny = MatMul(a, b)", X, 2, 2),
    "0 and a half": (f"{B}g = Greater(x, t)\nh = Cast <to=1> (g)\na = Mul(h, half)\ny = MatMul(a, b)", X, 2, 2),
    "a square of values": ("a = Sign(x)\nz = Neg(x)\nb = Sign(z)\ny = MatMul(a, b)", ("N", 3, 7, 7), 2, 1),
    "a tensor times itself": (f"{K}a = Sign(x)\nb = Sign(k)\ny = MatMul(a, b)", X, 1, 0),
    "matrices": ("a = Sign(x)\nk = Transpose <perm=[1, 0]> (x)\nb = Sign(k)\ny = MatMul(a, b)", (6, 9), 1, 0),
    "keys of all heads": (f"{K}h = ReduceMax(k, axes)\na = Sign(x)\nb = Sign(h)\ny = MatMul(a, b)", X, 2, 2),
    "keys of all heads, repeated": (f"{ALL_HEADS}a = Sign(x)\nb = Sign(k)\ny = MatMul(a, b)", X, 2, 0),
    "values of all heads": (
        f"{ALL_HEADS}g = GreaterOrEqual(x, t)\na = Cast <to=1> (g)\nb = Sign(k)\ny = MatMul(a, b)",
        X,
        2,
        0,
    ),
    "heads without a batch": ("h = ReduceMax(x, zero)\na = Sign(x)\nb = Sign(h)\ny = MatMul(a, b)", (3, 6, 6), 1, 0),
    "values of heads": (f"k = Transpose <perm=[0, 2, 3, 1]> (x)\n{VALUES}", ("N", 5, 2, 40), 1, 1),
    "a batch of matrices": ("t0 = Sub(x, t)\na = Sign(t0)\nb = Sign(x)\ny = MatMul(a, b)", ("N", 7, 7), 1, 0),
    "a batch of matrices and itself": ("a = Sign(x)\nb = Sign(x)\ny = MatMul(a, b)", ("N", 7, 7), 1, 0),
}


@pytest.mark.parametrize("case", FIRES)
def test_fires(case: str) -> None:
    text, x, bits, transposes = FIRES[case]
    constants = {name: array for name, array in SHAPES.items() if f" {name})" in text}
    before, after, declined = lower(text, x, **constants)
    types = op_types(after)
    assert declined == [] and types.count("BinaryMatMul") == 1 and "MatMul" not in types and "Expand" not in types
    assert (types.count(BITS), types.count("Transpose")) == (bits, transposes)
    assert_same(before, after)


def test_a_falling_channel_in_front_of_a_product_stays() -> None:
    """The first operand has no weights that could be complemented with the second one."""
    before = parse(
        "a = Sign(x)\nn = Neg(x)\nm = Mul(n, eight)\nb = Sign(m)\ny = MatMul(a, b)", ("N", 7, 7), eight=np.float32(8)
    )
    after, _, declined = to_binary(before)
    types = op_types(after)
    assert (types.count("BinaryMatMul"), types.count("Neg"), types.count("Mul")) == (1, 1, 0)
    assert ["BinaryMatMul" in decline.reason for decline in declined] == [True]
    assert_same(before, after)


def test_an_operand_of_several_products_is_binarised_once() -> None:
    text = "a = Sign(x)\nu = MatMul(a, b)\nv = MatMul(a, b)\nw = Add(u, v)\nr = ReduceMean(a)\ny = Add(w, r)"
    before, after, _ = lower(B + text)
    assert op_types(after).count("BinaryMatMul") == 2
    assert op_types(after).count(BITS) == 2 and "Sign" in op_types(after)
    assert_same(before, after)


REPEATED = "it multiplies activations [N,1,5,40] and [N,2,40,5]; they need the same leading dimensions"
DECLINES = {
    "a real-valued operand": (
        "a = Sign(x)\nz = Relu(k)\ny = MatMul(a, z)",
        "the second one is real-valued: the output",
    ),
    "a real-valued first one": (
        "a = Softmax(x)\ny = MatMul(a, b)",
        "the first one is real-valued: the output of Softmax",
    ),
    "0 and 1 behind": ("a = Sign(x)\nz = Relu(b)\ny = MatMul(a, z)", "the second one has other levels than ±1"),
    "a threshold per head": ("g = Greater(x, h)\na = Cast <to=1> (g)\ny = MatMul(a, b)", "the first one has other"),
    "a repeated first one": ("z = ReduceMax(x, axes)\na = Sign(z)\ny = MatMul(a, b)", REPEATED),
}


@pytest.mark.parametrize("case", DECLINES)
def test_does_not_lower(case: str) -> None:
    text, reason = DECLINES[case]
    constants = {"h": eighths(2, 1, 1)} | SHAPES
    _, after, declined = lower(B + text, **{n: a for n, a in constants.items() if f", {n})" in text})
    assert "MatMul" in op_types(after) and BITS not in op_types(after)
    assert len(declined) == 1 and reason in declined[0]


def test_does_not_look_at_real_numbers_and_layers() -> None:
    for text in ("a = Relu(x)\nb = Tanh(k)\ny = MatMul(a, b)", "a = Sign(x)\ny = MatMul(a, w)"):
        _, after, declined = lower(K + text, **({"w": weights(40, 6)} if "w)" in text else {}))
        assert "BinaryMatMul" not in op_types(after) and declined == []


# A block of binary attention, as BiBERT and BiT have it: the whole way.

BLOCK = """
e = MatMul(x, w0)
se = Sign(e)
q0 = MatMul(se, wq)
q1 = Reshape(q0, heads)
q2 = Transpose <perm=[0, 2, 1, 3]> (q1)
q = Sign(q2)
k0 = MatMul(se, wk)
k1 = Reshape(k0, heads)
k2 = Transpose <perm=[0, 2, 3, 1]> (k1)
k = Sign(k2)
v0 = MatMul(se, wv)
v1 = Reshape(v0, heads)
v2 = Transpose <perm=[0, 2, 1, 3]> (v1)
v = Sign(v2)
scores = MatMul(q, k)
scaled = Div(scores, root)
masked = Add(scaled, mask)
soft = Softmax <axis=-1> (masked)
above = GreaterOrEqual(soft, level)
map = Cast <to=1> (above)
att = MatMul(map, v)
o1 = Transpose <perm=[0, 2, 1, 3]> (att)
o2 = Reshape(o1, tokens)
o3 = Sub(o2, half)
so = Sign(o3)
o = MatMul(so, wo)
ob = Add(o, bias)
r = Add(ob, e)
n = LayerNormalization <axis=-1> (r, g, h)
y = ReduceMean <keepdims=0> (n, axes)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The converted block, and its float graph; 6 tokens, 2 heads of 33 channels. No sum of signs is 0."""
    rng = np.random.default_rng(7)
    model = parse(
        BLOCK,
        ("N", 6, 10),
        w0=rng.standard_normal((10, 65)).astype(np.float32),
        **{f"w{name}": weights(65, 66, seed=seed) for seed, name in enumerate("qkv")},
        wo=weights(66, 65, seed=3),
        bias=rng.standard_normal(65).astype(np.float32),
        heads=np.array([0, 0, 2, 33]),
        tokens=np.array([0, 0, 66]),
        root=np.float32(33**0.5),
        mask=np.where(np.arange(6) < 5, 0, -1e4).astype(np.float32),
        level=np.float32(0.15),
        half=np.float32(0.5),
        g=np.ones(65, np.float32),
        h=np.zeros(65, np.float32),
        axes=np.array([1]),
    )
    folder = tmp_path_factory.mktemp("block")
    conversion = convert(model, folder / "m.onnx", float_output=folder / "f.onnx")
    assert [layer.status for layer in conversion.layers] == ["float", *["binary"] * 6]
    assert [layer.becomes for layer in conversion.layers][4:] == ["BinaryMatMul", "BinaryMatMul", "BinaryLinear"]
    return folder / "m.onnx", folder / "f.onnx"


def data() -> Array:
    return np.random.default_rng(1).standard_normal((6, 6, 10)).astype(np.float32)


def test_a_block_is_proved(files: tuple[Path, Path], tmp_path: Path) -> None:
    result = verify(*files, data=data(), reference_samples=2)
    assert result.passed, result.failures
    assert {layer.layer: layer.values for layer in result.layers}["scores"] == 6 * 2 * 6 * 6
    found = {layer.name: layer for layer in inspect_model(files[0]).layers}
    assert [found[name].binary_macs for name in ("scores", "att")] == [2 * 6 * 6 * 33, 2 * 6 * 33 * 6]
    assert found["att"].output.shape is not None and found["att"].output.shape[1:] == (2, 6, 33)
    write_golden(make_golden(files[0], samples=4), tmp_path / "golden.npz")
    assert check_golden(files[0], tmp_path / "golden.npz").passed


def double_scale(damage: Damage, layer: str) -> None:
    damage.change(damage.node(layer).input[2], lambda scale: 2 * scale)


def misread_signs(damage: Damage, layer: str) -> None:
    """Take signs for 0/1, or these for signs."""
    for attribute in damage.node(layer).attribute:
        if attribute.name == "signs":
            attribute.i = 1 - attribute.i


def move_threshold(damage: Damage, source: str) -> None:
    node = next(node for node in damage.model.graph.node if properties(node).get(SOURCE) == source)
    damage.change(node.input[1], lambda threshold: threshold + np.float32(1))


@pytest.mark.parametrize(
    ("layer", "edit"),
    [
        ("scores", double_scale),
        ("att", misread_signs),
        ("k", move_threshold),
        ("map", move_threshold),
    ],
)
def test_a_damaged_block_fails(
    files: tuple[Path, Path], tmp_path: Path, layer: str, edit: Callable[[Damage, str], None]
) -> None:
    model = onnx.load(files[0])
    edit(Damage(model), layer)
    onnx.save(model, tmp_path / "wrong.onnx")
    result = verify(tmp_path / "wrong.onnx", files[1], data=data(), reference_samples=0)
    assert not result.passed and any(f"'{layer}'" in line for line in result.failures)
