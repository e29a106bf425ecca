"""The body of Binarize against plain numpy, exactly, wherever ONNX runs without our library."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnn_deploy.operators.contract import OPSET
from support.bodies import FUNCTIONS, Array, check, make_model, nowhere_equal, pack

# --- Binarize ---------------------------------------------------------------------------------------------------


def binarize_model(x: Array, threshold: Array) -> bytes:
    node = helper.make_node("Binarize", ["X", "t"], ["Y"], domain="bnn_deploy")
    return make_model([node], x, {"t": threshold}, {"Y": TensorProto.UINT32}, max(2, x.ndim))


def binarized(x: Array, threshold: Array) -> Array:
    """X >= threshold one number at a time."""
    result = np.zeros(x.shape, bool)
    for index in np.ndindex(x.shape):
        result[index] = float(x[index]) >= float(threshold[index[1]])
    return pack(result)


@pytest.mark.parametrize("spatial", [(), (3,), (3, 2), (2, 3, 2)])
@pytest.mark.parametrize("channels", [1, 20, 31, 32, 33, 96, 800])
def test_binarize(channels: int, spatial: tuple[int, ...], rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, channels, *spatial)).astype(np.float32)
    threshold = rng.standard_normal(channels).astype(np.float32)
    x[0, ...] = np.where(rng.random(x[0].shape) < 0.2, threshold.reshape(-1, *[1] * len(spatial)), x[0])  # ties
    model, expected = binarize_model(x, threshold), binarized(x, threshold)
    check(model, x, [expected])
    moved = threshold.copy()
    moved[-1] = np.nextafter(x[0, -1].max(), np.float32(np.inf))  # above every number of the last channel of sample 0
    if (x[0, -1] >= threshold[-1]).any():
        assert nowhere_equal(binarize_model(x, moved), x, [expected])


def test_binarize_of_special_numbers() -> None:
    tiny = np.float32(1e-45)  # the smallest subnormal
    numbers = np.array(
        [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, tiny, -tiny, 1.0, np.nextafter(np.float32(1), 0), 3e38],
        np.float32,
    )
    x = np.tile(numbers, (1, len(numbers), 1))  # every number against every number as the threshold
    expected = binarized(x, numbers)
    as_bits = (
        expected[0, :, 0][None, :] >> np.arange(len(numbers), dtype=np.uint32)[:, None]
    ) & 1  # [threshold, number]
    assert as_bits[4].tolist() == [0, 0, 1, 0, 1, 1, 1, 0, 1, 1, 1]  # threshold 0: NaN gives 0, -0 gives 1
    assert as_bits[3].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]  # threshold -inf: always, but for NaN
    assert not as_bits[0].any()  # threshold NaN: never
    check(binarize_model(x, numbers), x, [expected])


# --- the functions themselves -----------------------------------------------------------------------------------


def test_attributes_have_no_defaults() -> None:
    """The reference evaluator does not apply them."""
    assert FUNCTIONS and all(not function.attribute_proto for function in FUNCTIONS)


def foreign(function: onnx.FunctionProto) -> list[str]:
    """What in a body isn't a standard, current operator of the opset that it imports."""
    if [(o.domain, o.version) for o in function.opset_import] != [("", OPSET)]:
        return [f"imports {function.opset_import}"]
    nodes = list(function.node)
    for node in nodes:  # grows while it runs: the bodies of If and Loop
        nodes.extend(n for a in node.attribute for g in [a.g, *a.graphs] for n in g.node)
    return [
        f"{n.domain}::{n.op_type}"
        for n in nodes
        if n.domain not in ("", "ai.onnx")
        or not onnx.defs.has(n.op_type)
        or onnx.defs.get_schema(n.op_type, OPSET).deprecated
    ]


def test_bodies_use_standard_operators_only() -> None:
    for function in FUNCTIONS:
        assert len(function.node) > 3
        assert foreign(function) == []
    bad = onnx.FunctionProto()
    bad.CopyFrom(FUNCTIONS[1])
    bad.node.append(helper.make_node("FusedConv", ["Y"], ["Z"], domain="com.microsoft"))
    assert foreign(bad) == ["com.microsoft::FusedConv"]
