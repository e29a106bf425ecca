"""The proof where a network holds more than floats with names that PyTorch and ONNX share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from bnn_deploy.conversion import convert
from bnn_deploy.proof.results import Verification
from bnn_deploy.proof.verification import verify
from support.golden_files import BEST
from support.graphs import parse, weights


class Named(nn.Module):
    """Masks and shapes are no floats; ELU and x - 2 y are one operator in PyTorch and several in ONNX."""

    input_shape = (3, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.attention = nn.Conv2d(3, 8, 3, padding=1), nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("w", torch.from_numpy(weights(8, 8, 3, 3)))
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        out = y.sign()
        out[out == 0] = 1
        out = F.elu(F.conv2d(out, self.w, padding=1), 0.5)  # type: ignore[arg-type]
        out = torch.sub(out + 0.1, y, alpha=2)
        out = F.conv2d(torch.sign(out), self.w)  # type: ignore[arg-type]
        tokens = F.elu(out).view(x.shape[0], 8, -1).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        result: Tensor = self.last(tokens.mean(1)).topk(3)[1]
        return result


def corrupted(model: Path, name: str) -> Path:
    """A copy with one bit of a weight flipped."""
    proto = onnx.load(model)
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] ^= 1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    path = model.with_name("corrupted.onnx")
    onnx.save(proto, path)
    return path


def prove(model: Path, against: Any, count: int = 8) -> Verification:
    x = np.random.default_rng(1).standard_normal((count, 3, 4, 4)).astype(np.float32)
    return verify(model, against, data=x, isas=BEST, reference_samples=3)


def test_masks_shapes_and_names_of_onnx_alone(tmp_path: Path) -> None:
    module = Named().eval()
    result = convert(module, tmp_path / "m.onnx", float_output=tmp_path / "float.onnx", strict=True)
    assert len(result.binary_layers) == 2
    for against in (module, tmp_path / "float.onnx"):
        proof = prove(result.output, against)
        assert proof.passed, proof.failures
        assert [layer.kind for layer in proof.layers].count("bits") == 2
        assert proof.layers[-1].kind == "integers"
    proof = prove(corrupted(result.output, "conv2d_1_weight_bits"), tmp_path / "float.onnx")
    assert len([layer for layer in proof.layers if not layer.passed]) == 1


@pytest.mark.parametrize("head", ["ArgMax <axis=1, keepdims=0> (d)", "Cast <to=3> (r)"])
def test_integers_are_held_to_the_last_one(head: str, tmp_path: Path) -> None:
    """Each step that decides is fed with the reference's own floats, so its integers have no tolerance."""
    body = f"c = Conv <pads=[1,1,1,1]> (x, first)\ns = Sign (c)\nd = Conv (s, w)\nr = Round (d)\ny = {head}"
    kind = "int64" if "Arg" in head else "int8"
    model = parse(body, ("N", 3, 4, 4), (f"{kind}[] y",), first=weights(8, 3, 3, 3), w=weights(6, 8, 3, 3))
    result = convert(model, tmp_path / "m.onnx")
    proof = prove(result.output, model)
    assert proof.passed, proof.failures
    assert [layer.kind for layer in proof.layers] == [
        "bits",
        "floats",
        *(["floats"] if kind == "int8" else []),
        "integers",
    ]
    onnx_model = onnx.load(result.output)
    onnx_model.graph.node[-1].input[0] = "d"
    last = onnx.helper.make_node("Add", ["before", "one"], list(onnx_model.graph.node[-1].output))
    onnx_model.graph.node[-1].output[0] = "before"
    onnx_model.graph.node.append(last)
    one = np.ones((), np.int64 if kind == "int64" else np.int8)
    onnx_model.graph.initializer.append(numpy_helper.from_array(one, "one"))
    onnx.save(onnx_model, tmp_path / "wrong.onnx")
    failed = [layer for layer in prove(tmp_path / "wrong.onnx", model).layers if not layer.passed]
    assert [layer.kind for layer in failed] == ["integers"]
