"""DelayScale: what the signs of a sample are multiplied by goes behind the layer that reads them."""

from __future__ import annotations

import onnx_ir as ir

from bnn_deploy.operators.contract import FLOAT_LAYERS
from bnn_deploy.passes.conditions import shapes_known, signs_canonical
from bnn_deploy.passes.graph import add_initializer, constant, is_op, remove_if_dead
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.provenance import NO_PLACE, Place, Subtract, note_place


class DelayScale(Pass):
    """layer(Mul(Sign(x), k), w, b)  ==>  Add(Mul(layer(Sign(x), w), k), b), k one number per sample.

    k is a mean of |x| over the whole sample, say: XNOR-Net's K without its filter. A layer is linear, so the factor of
    all that it sums may come last, and the layer then reads a sign.

    1. The layer is a convolution, transposed or not, or a linear layer; k is not constant, and has one value per
       sample, [N, 1, ...], or for a linear layer one per row, [N, ..., 1].
    2. Its bias, if there is one, is constant.

    Declines: nothing; a factor per channel of the input cannot be moved.
    """

    needs = (shapes_known, signs_canonical)

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every layer that qualifies."""
        result = Outcome(model)
        for node in list(model.graph):
            mul = node.inputs[0].producer() if is_op(node, *FLOAT_LAYERS) and node.inputs[0] is not None else None
            if mul is None or not is_op(mul, "Mul"):
                continue
            bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
            if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
                continue
            for sign, factor in (mul.inputs, mul.inputs[::-1]):
                if sign is not None and factor is not None and _can_delay(node, sign, factor):
                    self._delay(model.graph, node, sign, factor)
                    remove_if_dead(mul)
                    result.rewrote(node, mul)
                    break
        return result

    def _delay(self, graph: ir.Graph, node: ir.Node, sign: ir.Value, factor: ir.Value) -> None:
        output = node.outputs[0]
        name = output.name or ""
        assert output.shape is not None
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        after = ir.Node("", "Mul", [output, factor], name=f"{name}_scaled")
        node.append(after)
        value = after.outputs[0]
        value.dtype, value.shape = ir.DataType.FLOAT, output.shape
        if bias is not None and bias.any():
            aligned = bias.reshape(-1, *[1] * (len(output.shape) - 2)) if is_op(node, "Conv", "ConvTranspose") else bias
            add = ir.Node("", "Add", [value, add_initializer(graph, f"{name}_bias", aligned)], name=f"{name}_shifted")
            after.append(add)
            value.name = f"{name}_scaled"
            note_place(value, Place(name).then(Subtract(aligned.tolist())))
            value = add.outputs[0]
            value.dtype, value.shape = ir.DataType.FLOAT, output.shape
        ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
        after.replace_input_with(0, output)
        output.name, value.name = f"{name}_unscaled", name
        node.meta[NO_PLACE] = True
        node.replace_input_with(0, sign)
        if len(node.inputs) > 2:
            node.resize_inputs(2)


def _can_delay(node: ir.Node, sign: ir.Value, factor: ir.Value) -> bool:
    """Whether the product of `sign` and `factor`, which `node` reads, may be taken behind it."""
    if not is_op(sign.producer(), "Sign") or constant(factor) is not None:
        return False
    if sign.shape is None or factor.shape is None or len(sign.shape) != len(factor.shape):
        return False
    first, *rest = factor.shape
    if first not in (1, sign.shape[0]):
        return False
    if is_op(node, "MatMul"):
        rows = zip(rest[:-1], list(sign.shape)[1:-1], strict=True)
        return rest[-1] == 1 and all(size in (1, other) for size, other in rows)
    scaled = [node.attributes[key].as_float() for key in ("alpha", "beta") if key in node.attributes]
    transposed = "transA" in node.attributes and node.attributes["transA"].as_int() != 0
    return all(size == 1 for size in rest) and all(number == 1 for number in scaled) and not transposed
