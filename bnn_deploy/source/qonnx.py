"""QONNX's Quant, written in standard operators."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper

from bnn_deploy.errors import InputError
from bnn_deploy.source.expansion import Expansion

QONNX = ("qonnx.custom_op.general", "finn.custom_op.general", "onnx.brevitas")
"""The domains under which BipolarQuant and Quant are known."""


def expand_bipolar_quant(model: ModelProto) -> None:
    """Replace BipolarQuant(x, scale) by scale * (-1 where x < 0, else 1), its definition in QONNX."""
    if not any(node.domain in QONNX and node.op_type == "BipolarQuant" for node in model.graph.node):
        return
    to = Expansion(model, "")
    zero, one, minus = (to.constant(np.array(n, np.float32), f"bipolar_quant_{n}") for n in (0, 1, -1))
    for node in model.graph.node:
        if node.domain not in QONNX or node.op_type != "BipolarQuant":
            to.nodes.append(node)
            continue
        (x, scale), (y,) = node.input, node.output
        negative = to.step("Less", [x, zero], f"{y}_negative")
        to.write("Mul", [to.step("Where", [negative, minus, one], f"{y}_sign"), scale], y, node.name)
    to.finish()


_QUANT = ("Quant", "IntQuant")

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
    if not any(node.domain in QONNX and node.op_type in _QUANT for node in model.graph.node):
        return
    to = Expansion(model, name)
    for node in model.graph.node:
        if node.domain not in QONNX or node.op_type not in _QUANT:
            to.nodes.append(node)
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        mode = attributes.get("rounding_mode", b"ROUND").decode()
        label = f"{name}: Quant '{node.name or node.output[0]}'"
        if mode not in _ROUNDING:
            raise InputError(
                f"{label} has rounding_mode {mode}; known: {', '.join(_ROUNDING)}; export with one of these"
            )
        (x, scale, zero, bits), (y,) = node.input, node.output
        if bits not in to.constants:
            raise InputError(f"{label}: its bit width '{bits}' is no constant; export with a fixed bit width")
        width = float(to.constants[bits].reshape(()))
        narrow = bool(attributes.get("narrow", 0))
        if attributes.get("signed", 1):
            low, high = -(2 ** (width - 1)) + narrow, 2 ** (width - 1) - 1
        else:
            low, high = 0, 2**width - 1 - narrow
        limits = [to.constant(np.array(n, np.float32), f"{y}_{key}") for key, n in (("low", low), ("high", high))]
        divided = to.step("Div", [x, scale], f"{y}_divided")
        shifted = to.step("Add", [divided, zero], f"{y}_shifted")
        rounded = to.step(_ROUNDING[mode], [shifted], f"{y}_rounded")
        clipped = to.step("Clip", [rounded, *limits], f"{y}_clipped")
        to.write("Mul", [to.step("Sub", [clipped, zero], f"{y}_integer"), scale], y)
    to.finish()
