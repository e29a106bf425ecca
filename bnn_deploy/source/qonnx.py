"""QONNX's Quant, written in standard operators."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnn_deploy.errors import InputError

QONNX = ("qonnx.custom_op.general", "finn.custom_op.general", "onnx.brevitas")
"""The domains under which BipolarQuant and Quant are known."""


def expand_bipolar_quant(model: ModelProto) -> None:
    """Replace BipolarQuant(x, scale) by scale * (-1 where x < 0, else 1), its definition in QONNX."""
    nodes: list[NodeProto] = []
    found = False
    for node in model.graph.node:
        if node.domain not in QONNX or node.op_type != "BipolarQuant":
            nodes.append(node)
            continue
        found = True
        (x, scale), (y,) = node.input, node.output
        nodes += [
            helper.make_node("Less", [x, "bipolar_quant_0"], [f"{y}_negative"], f"{y}_negative"),
            helper.make_node(
                "Where", [f"{y}_negative", "bipolar_quant_-1", "bipolar_quant_1"], [f"{y}_sign"], f"{y}_sign"
            ),
            helper.make_node("Mul", [f"{y}_sign", scale], [y], node.name),
        ]
    if found:
        for number in (0, 1, -1):
            model.graph.initializer.append(
                numpy_helper.from_array(np.array(number, np.float32), f"bipolar_quant_{number}")
            )
        del model.graph.node[:]
        model.graph.node.extend(nodes)


_ROUNDING = {"ROUND": "Round", "HALF_EVEN": "Round", "CEIL": "Ceil", "FLOOR": "Floor"}


def constants(model: ModelProto) -> dict[str, TensorProto]:
    """The initializers and the tensors of Constant nodes, by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer} | {
        node.output[0]: attribute.t
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }


def expand_quant(model: ModelProto, name: str) -> None:
    """Replace Quant(x, scale, zero, bits) by scale * (clip(round(x / scale + zero), low, high) - zero).

    This is QONNX's definition; its new name is IntQuant. low and high are the smallest and the largest integer of
    `bits` bits, as the attributes signed and narrow say: -8 and 7 for 4 bits, signed, not narrow.

    Args:
        model: changed in place.
        name: the model's name in errors.

    Raises:
        InputError: the number of bits is not constant, or a rounding mode has no standard operator.
    """
    known = constants(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.domain not in QONNX or node.op_type not in ("Quant", "IntQuant"):
            nodes.append(node)
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        mode = attributes.get("rounding_mode", b"ROUND").decode()
        label = f"{name}: Quant '{node.name or node.output[0]}'"
        if mode not in _ROUNDING:
            raise InputError(
                f"{label} has rounding_mode {mode}; known: {', '.join(_ROUNDING)}; export with one of these"
            )
        (x, scale, zero, bits), (y,) = node.input, node.output
        if bits not in known:
            raise InputError(f"{label}: its bit width '{bits}' is no constant; export with a fixed bit width")
        width = float(numpy_helper.to_array(known[bits]).reshape(()))
        narrow = bool(attributes.get("narrow", 0))
        if attributes.get("signed", 1):
            low, high = -(2 ** (width - 1)) + narrow, 2 ** (width - 1) - 1
        else:
            low, high = 0, 2**width - 1 - narrow
        for key, value in (("low", low), ("high", high)):
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), f"{y}_{key}"))
        steps = [
            ("Div", [x, scale], f"{y}_divided"),
            ("Add", [f"{y}_divided", zero], f"{y}_shifted"),
            (_ROUNDING[mode], [f"{y}_shifted"], f"{y}_rounded"),
            ("Clip", [f"{y}_rounded", f"{y}_low", f"{y}_high"], f"{y}_clipped"),
            ("Sub", [f"{y}_clipped", zero], f"{y}_integer"),
            ("Mul", [f"{y}_integer", scale], y),
        ]
        nodes += [helper.make_node(op_type, inputs, [output], output) for op_type, inputs, output in steps]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
