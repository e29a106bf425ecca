"""AuditLeftovers: no layer stays float without a reason."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from bnn_deploy.passes.graph import MOVING_OPERATORS, constant, is_op, is_standard_layer, maker, reads_abs_mean
from bnn_deploy.passes.moves import moves_only
from bnn_deploy.passes.outcome import Decline, Outcome, Pass, display_name
from bnn_deploy.passes.reasons import (
    ChannelFactors,
    EinsumForm,
    IntegerLayer,
    MeanMagnitude,
    MixedParts,
    ModelInput,
    RealInput,
    Reason,
    StepSign,
    Stranger,
)
from bnn_deploy.passes.recognise.few_levels import Quantizer, quantizer
from bnn_deploy.provenance import node_place

_KEEPS_SIGNS = ("Concat", "Identity", "MaxPool", "Pad")
"""Operators whose output is ±1 (or the padding's 0) if their first input is, besides those that only move it."""


class AuditLeftovers(Pass):
    """Every Conv, ConvTranspose, Gemm, MatMul and Einsum that is still float -> one line with the reason.

    It changes nothing.

    Args:
        declined: the layers whose input is a sign or has few levels, that LowerBinaryConv and LowerLevels declined.
    """

    def __init__(self, declined: Iterable[Decline]) -> None:
        self.declined: dict[str, Decline] = {}
        for decline in declined:
            if decline.node not in self.declined or not isinstance(decline.why, StepSign):  # it has levels, at least
                self.declined[decline.node] = decline

    def call(self, model: ir.Model) -> Outcome:
        """List the leftovers as declined nodes."""
        result = Outcome(model)
        for node in model.graph:
            if is_op(node, *_IN_INTEGERS) and _sign_above(_before_rounding(node.inputs[0])) is not None:
                result.decline(node, IntegerLayer(node.op_type))
            elif is_standard_layer(node):
                declined = self.declined.get(display_name(node))
                if declined is not None:
                    result.declined.append(declined)
                elif is_op(node, "Einsum") and any(map(_has_few_values, node.inputs)):
                    result.decline(node, EinsumForm(node.attributes["equation"].as_string()))
                elif parts := _mixed_parts(node.inputs[0]):
                    result.decline(node, MixedParts(parts))
                elif nearest_sign(node) is not None and node.inputs[0] is not None:
                    stranger = maker(node.inputs[0])
                    result.decline(node, ChannelFactors() if _scales(stranger) else Stranger(stranger.op_type))
                else:
                    result.decline(node, _reason(node))
        return result


_IN_INTEGERS = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
"""Layers that multiply 8-bit integers."""


def _before_rounding(value: ir.Value | None) -> ir.Value | None:
    """What quantisers in front of a tensor read."""
    while value is not None and is_op(node := value.producer(), *_ROUNDING) and node is not None:
        value = node.inputs[0]
    return value


_ROUNDING = ("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear")


def _has_few_values(value: ir.Value | None) -> bool:
    """Whether a tensor is made of signs, or of a few levels."""
    return value is not None and (_sign_above(value) is not None or bool(_values(value)))


def _values(value: ir.Value) -> str:
    """What few values a tensor has; "" if it has many."""
    found = (quantizer(value, signs=True, axis=axis) for axis in (1, -1))
    levels = next((each.levels for each in found if isinstance(each, Quantizer)), None)
    if levels is None:
        return ""
    if len(levels) == 2 and levels[0] == -levels[1]:
        return f"\N{PLUS-MINUS SIGN}{levels[1]:.4g}"
    return ", ".join(f"{level:.4g}" for level in levels)


def _mixed_parts(value: ir.Value | None) -> str:
    """The parts of a Concat, possibly moved, pooled or padded, if all have few values but not the same; else ""."""
    while value is not None and (node := value.producer()) is not None and not is_op(node, "Concat"):
        value = node.inputs[0] if is_op(node, "Identity", "MaxPool", "Pad") or moves_only(node) else None
    operands = [] if value is None or value.producer() is None else list(maker(value).inputs)
    values = [_values(operand) for operand in operands if operand is not None]
    if not all(values) or len(set(values)) < 2:
        return ""
    names = [node_place(operand.producer(), operand).tensor for operand in operands if operand is not None]
    return "; ".join(f"'{name}' {what}" for name, what in zip(names, values, strict=True))


def nearest_sign(node: ir.Node) -> ir.Node | None:
    """The Sign whose output `node` reads, possibly through operators that hand it on; the first of a Concat of such."""
    return _sign_above(node.inputs[0])


def _sign_above(value: ir.Value | None) -> ir.Node | None:
    while value is not None and (node := value.producer()) is not None:
        if is_op(node, "Sign"):
            return node
        if not is_op(node, *_KEEPS_SIGNS) and not _scales(node) and not moves_only(node):
            return None
        data = [v for v in node.inputs if constant(v) is None]
        if is_op(node, "Concat") and not all(_sign_above(v) for v in data[1:]):
            return None
        value = data[0] if data else None
    return None


def _scales(node: ir.Node) -> bool:
    """Whether `node` multiplies by a constant."""
    return is_op(node, "Mul") and any(constant(value) is not None for value in node.inputs)


def _reason(node: ir.Node) -> Reason:
    value = node.inputs[0]
    producer = None if value is None else value.producer()
    if reads_abs_mean(node):
        return MeanMagnitude()
    while is_op(producer, *MOVING_OPERATORS, *_ROUNDING) and producer is not None and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()  # what is only moved or rounded is not what makes it real-valued
    if producer is None:
        return ModelInput()
    return RealInput(producer.op_type)
