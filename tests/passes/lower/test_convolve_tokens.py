"""ConvolveTokens: linear layers of levels on [N, T, C]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnn_deploy.conversion import convert
from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.proof.verification import verify
from support.golden_files import BEST
from support.graphs import parse, weights

ROUNDED = """d = Div (x, step)
e = Clip (d, low, high)
r = Round (e)
q = Mul (r, step)
y = MatMul (q, w)"""


def network(shape: tuple[int, ...], levels: int) -> onnx.ModelProto:
    numbers = {"step": np.float32(0.1), "low": np.float32(0), "high": np.float32(levels)}
    return ir.to_proto(parse(ROUNDED, ("N", *shape), w=weights(24, shape[-1]).T.copy(), **numbers))


@pytest.mark.parametrize(("shape", "levels"), [((6, 40), 1), ((2, 5, 33), 3)])
def test_fires(shape: tuple[int, ...], levels: int, tmp_path: Path) -> None:
    model = network(shape, levels)
    x = np.random.default_rng(0).normal(0.15, 0.2, (8, *shape)).astype(np.float32)
    result = convert(model, tmp_path / "m.onnx")
    assert result.binary_layers == ("y",)
    assert verify(result.output, model, data=x, isas=BEST, reference_samples=2).passed
    wrong = onnx.load(result.output)
    bits = next(tensor for tensor in wrong.graph.initializer if tensor.name.endswith("weight_bits"))
    array = onnx.numpy_helper.to_array(bits).copy()
    array.flat[0] ^= 1
    bits.CopyFrom(onnx.numpy_helper.from_array(array, bits.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    assert not verify(tmp_path / "wrong.onnx", model, data=x, isas=BEST, reference_samples=0).passed


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
