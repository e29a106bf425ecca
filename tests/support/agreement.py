"""A model of one node of the domain, and its outcomes by kernel and by body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bnn_deploy.operators.contract import DOMAIN, OPERATORS, OPSET, VERSION
from support.bodies import functions_of

Array = NDArray[Any]


def model_of(op: str, inputs: Sequence[Array], attributes: dict[str, Any], constants: dict[str, Array]) -> Any:
    """One node, with its body; the inputs that are no constants have open sizes."""
    row = OPERATORS[op]
    outputs = [output.name for output in row.outputs]
    fed = [given.name for given in row.inputs if given.name not in constants]
    node = helper.make_node(op, [given.name for given in row.inputs], outputs, "layer", domain=DOMAIN, **attributes)
    kinds = [onnx.TensorProto.FLOAT if out.content == "floats" else onnx.TensorProto.UINT32 for out in row.outputs]
    graph = helper.make_graph(
        [node],
        "agreement",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), None)
            if row.operand is not None
            else helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(x.dtype), [f"{name}{i}" for i in range(x.ndim)]
            )
            for name, x in zip(fed, inputs, strict=True)
        ],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(outputs, kinds, strict=True)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=imports, functions=functions_of([node]), ir_version=10)


def outcome(session: Any, inputs: Sequence[Array]) -> list[Array] | None:
    """The outputs; None where the inputs are refused."""
    try:
        return list(session.run(None, {given.name: x for given, x in zip(session.get_inputs(), inputs, strict=True)}))
    except Exception:
        return None


def equal_outputs(left: list[Array] | None, right: list[Array] | None, exact: bool) -> bool:
    """Whether two outcomes are the same, refusals too: to the sign of a 0, but for the bits of a NaN, if `exact`."""
    if left is None or right is None:
        return left is right
    return all(_equal(a, b, exact) for a, b in zip(left, right, strict=True))


def _equal(left: Array, right: Array, exact: bool) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if not exact:
        return bool(np.allclose(left, right, rtol=1e-5, atol=1e-5, equal_nan=True))
    if left.dtype.kind != "f":
        return bool(np.array_equal(left, right))
    nan = np.isnan(left)
    return bool((nan == np.isnan(right)).all() and (left[~nan].tobytes() == right[~nan].tobytes()))
