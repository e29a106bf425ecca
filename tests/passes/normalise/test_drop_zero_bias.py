"""DropZeroBias: the bias that PyTorch's exporter gives a Conv3d without one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.normalise.drop_zero_bias import DropZeroBias
from support.graphs import parse, weights


def dropped(op: str, bias: Any) -> tuple[int, int]:
    """How often the pass fired on a layer of 8 outputs, and the number of inputs that the layer has then."""
    model = parse(f"y = {op}(x, w)", ("N", 4, 6, 6, 6), w=weights(*((8, 4) if op == "Conv" else (4, 8)), 3, 3, 3))
    node = model.graph.node(0)
    node.resize_inputs(3)
    value = ir.Value(name="b", const_value=ir.tensor(bias, name="b"))
    model.graph.register_initializer(value)
    node.replace_input_with(2, value)
    return DropZeroBias()(model).count, len(node.inputs)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_fires(op: str) -> None:
    assert dropped(op, np.zeros((8, 2), np.float32)) == (1, 2)


@pytest.mark.parametrize("bias", [np.zeros(8, np.float32), np.ones((8, 2), np.float32)])
def test_does_not_drop_other_biases(bias: Any) -> None:
    assert dropped("Conv", bias) == (0, 3)
