"""SimplifyProducts: Einsum, and weights on the left of a MatMul."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnn_deploy.conversion import convert
from bnn_deploy.passes.normalise.simplify_products import SimplifyProducts
from bnn_deploy.proof.verification import verify
from support.damage import with_flipped_bit
from support.golden_files import BEST
from support.graphs import parse, weights

LAYERS = {  # of x and of weights [O, C] or [C, O]
    "btc,co->bto": ((6, 40), "MatMul"),
    "btc,oc->bto": ((6, 40), "MatMul"),
    "oc,btc->bto": ((6, 40), "MatMul"),
    "bc,oc->bo": ((40,), "MatMul"),
    "bct,oc->bto": ((40, 6), "MatMul"),
    "bhtc,oc->bhto": ((2, 3, 40), "MatMul"),
    "btc,oc->bot": ((6, 40), "MatMul"),
    "oc,bct->bot": ((40, 6), "Conv"),
    "bchw,co->bohw": ((40, 4, 3), "Conv"),
    "...c,oc->...o": ((2, 3, 40), "MatMul"),
}


def layer(equation: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    w = weights(24, 40)
    w = w.T.copy() if "co" in equation else w
    operands = "w, s" if equation.startswith("oc") else "s, w"
    return ir.to_proto(parse(f's = Sign (x)\ny = Einsum <equation="{equation}"> ({operands})', ("N", *shape), w=w))


def inputs(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((8, *shape)).astype(np.float32)


@pytest.mark.parametrize("equation", LAYERS)
def test_layers(equation: str, tmp_path: Path) -> None:
    shape, op_type = LAYERS[equation]
    model = layer(equation, shape)
    after = ir.from_proto(model)
    assert SimplifyProducts()(after).modified
    assert [node.op_type for node in after.graph if node.op_type in ("Einsum", "MatMul", "Conv")] == [op_type]
    result = convert(model, tmp_path / "m.onnx")
    assert len(result.binary_layers) == 1
    (report,) = result.layers
    assert (report.operator, report.status, report.inputs, report.outputs) == ("Einsum", "binary", 40, 24)
    assert report.scale == (0.5, 0.5)
    assert verify(result.output, model, data=inputs(shape), isas=BEST, reference_samples=1).passed
    wrong = with_flipped_bit(result.output, tmp_path / "wrong.onnx")
    assert not verify(wrong, model, data=inputs(shape), isas=BEST, reference_samples=0).passed


def test_weights_on_the_left(tmp_path: Path) -> None:
    model = ir.to_proto(parse("s = Sign (x)\ny = MatMul (w, s)", ("N", 40, 6), w=weights(24, 40)))
    result = convert(model, tmp_path / "m.onnx")
    assert len(result.binary_layers) == 1
    assert verify(result.output, model, data=inputs((40, 6)), isas=BEST, reference_samples=1).passed
    wrong = with_flipped_bit(result.output, tmp_path / "wrong.onnx")
    assert not verify(wrong, model, data=inputs((40, 6)), isas=BEST, reference_samples=0).passed


@pytest.mark.parametrize("equation", ["bhqd,bhkd->bhqk", "bqhd,bkhd->bhqk", "bqhd,bkd->bhqk", "bhqd,bdk->bqhk"])
def test_attention(equation: str, tmp_path: Path) -> None:
    (shared,) = {"bkd", "bdk"}.intersection(equation.replace("->", ",").split(",")) or {""}
    first = "f = ReduceMax<keepdims=0> (x, axes)\n" if shared else "f = Identity (x)\n"
    turn = "g = Transpose<perm=[0, 2, 1]> (f)\n" if shared == "bdk" else "g = Identity (f)\n"
    body = (
        f"q = Sign (x)\n{first}{turn}p = Mul (g, minus)\nr = Add (p, half)\nk = Sign (r)\n"
        f'y = Einsum <equation="{equation}"> (q, k)'
    )
    constants = {"minus": np.float32(-0.7), "half": np.float32(0.5)} | ({"axes": np.array([1])} if shared else {})
    model = ir.to_proto(parse(body, ("N", 4, 4, 32), **constants))
    result = convert(model, tmp_path / "m.onnx")
    assert len(result.binary_layers) == 1
    assert verify(result.output, model, data=inputs((4, 4, 32)), isas=BEST, reference_samples=1).passed
    wrong = onnx.load(result.output)
    bits = next(tensor for tensor in wrong.graph.initializer if tensor.name.endswith("_scales"))
    bits.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(bits), bits.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    assert not verify(tmp_path / "wrong.onnx", model, data=inputs((4, 4, 32)), isas=BEST, reference_samples=0).passed


@pytest.mark.parametrize("equation", ["bc,oc->b", "btc,otc->bo"])
def test_does_not_take_others(equation: str) -> None:
    w = weights(24, 40) if "otc" not in equation else np.ones((24, 6, 40), np.float32)
    shape = ("N", 40) if equation.startswith("bc") else ("N", 6, 40)
    model = parse(f's = Sign (x)\ny = Einsum <equation="{equation}"> (s, w)', shape, w=w)
    assert not SimplifyProducts()(model).modified
