"""The ReferenceEvaluator's MaxPool of the proof gives what onnx's own gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from bnn_deploy.proof.evaluator import Evaluator, ShiftedMaxPool

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "AlexNet's": {"kernel_shape": [3, 3], "strides": [2, 2]},
    "ResNet's": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "defaults": {"kernel_shape": [2, 3]},
    "all different": {"kernel_shape": [3, 2], "strides": [2, 3], "dilations": [2, 1], "pads": [0, 1, 2, 0]},
    "one dimension": {"kernel_shape": [3], "strides": [2], "pads": [1, 0]},
    "three dimensions": {"kernel_shape": [2, 2, 2], "strides": [2, 1, 2]},
    "ceil": {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
    "SAME_UPPER": {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    "wide pads": {"kernel_shape": [2, 2], "strides": [1, 2], "pads": [2, 2, 2, 2]},
    "window of one": {"kernel_shape": [1, 1], "strides": [2, 2]},
    "whole": {"kernel_shape": [7, 9], "strides": [1, 2]},
}


def pool(attributes: dict[str, Any], outputs: int, kind: int = TensorProto.FLOAT) -> ModelProto:
    """A model of one MaxPool."""
    rank = len(attributes["kernel_shape"])
    names = ["y", "indices"][:outputs]
    graph = helper.make_graph(
        [helper.make_node("MaxPool", ["x"], names, **attributes)],
        "pool",
        [helper.make_tensor_value_info("x", kind, [None] * (rank + 2))],
        [helper.make_tensor_value_info(n, t, None) for n, t in zip(names, (kind, TensorProto.INT64), strict=False)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])


def wrapped(model: ModelProto) -> ModelProto:
    """The model with its one node in a function, as the bodies of operators are."""
    (node,) = model.graph.node
    function = helper.make_function("of.mine", "Pool", node.input, node.output, [node], model.opset_import)
    graph = helper.make_graph(
        [helper.make_node("Pool", node.input, node.output, domain="of.mine")],
        "pool",
        model.graph.input,
        model.graph.output,
    )
    opsets = [*model.opset_import, helper.make_opsetid("of.mine", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[function])


def run(model: ModelProto, x: NDArray[Any], *operators: Any) -> list[Any]:
    """What the ReferenceEvaluator makes of it."""
    found: list[Any] = ReferenceEvaluator(model, new_ops=[*operators]).run(None, {"x": x})
    return found


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("case", ATTRIBUTES)
def test_agrees_with_onnx(case: str, outputs: int) -> None:
    """All values, and indices where they are asked for, of signs, of integers with ties, and with infinities."""
    attributes = ATTRIBUTES[case]
    shape = (2, 3, 7, 9, 6)[: 2 + len(attributes["kernel_shape"])]
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, shape).astype(np.float32)
    x[0, 0] = -np.inf
    for array in (x, np.sign(x + 0.5), rng.standard_normal(shape).astype(np.float32)):
        model = pool(attributes, outputs)
        for got, expected in zip(run(model, array, ShiftedMaxPool), run(model, array), strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected)
            assert len(np.unique(got)) > 1  # it is no constant that is compared


def test_is_used_in_function_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not onnx's loops, which take most of the time of a proof."""
    x = np.random.default_rng(0).standard_normal((1, 2, 7, 9)).astype(np.float32)
    model = wrapped(pool(ATTRIBUTES["ResNet's"], 1))
    (expected,) = run(model, x)

    def called(*arguments: Any, **attributes: Any) -> None:
        raise AssertionError("onnx's own MaxPool was called")

    monkeypatch.setattr("onnx.reference.ops.op_max_pool.MaxPool._run", called)
    np.testing.assert_array_equal(Evaluator(model).run(None, {"x": x})[0], expected)
    with pytest.raises(AssertionError):
        run(model, x)


def test_not_a_number_is_treated_as_by_onnx() -> None:
    """numpy's maximum and onnx's comparison say different things about NaN."""
    x = np.random.default_rng(0).standard_normal((1, 2, 6, 6)).astype(np.float32)
    x[0, 0, 2, 3] = np.nan
    model = pool(ATTRIBUTES["ResNet's"], 1)
    np.testing.assert_array_equal(run(model, x, ShiftedMaxPool)[0], run(model, x)[0])


def test_a_wrong_pool_is_found() -> None:
    """A pool that leaves out one value of each window is not what onnx gives."""

    class Short(ShiftedMaxPool):
        """Without the last column of its windows."""

        def _run(self, x: NDArray[Any], **attributes: Any) -> tuple[NDArray[Any], ...]:
            kernel = attributes["kernel_shape"]
            return super()._run(
                x[..., : x.shape[-1] - 1], **attributes | {"kernel_shape": [*kernel[:-1], kernel[-1] - 1]}
            )

    Short.__name__ = "MaxPool"
    x = np.random.default_rng(0).standard_normal((1, 2, 7, 9)).astype(np.float32)
    model = pool(ATTRIBUTES["AlexNet's"], 1)
    got, expected = run(model, x, Short)[0], run(model, x)[0]
    assert got.shape == expected.shape
    assert (got != expected).mean() > 0.1
