"""HoistPad: a sign of padded data is the padded sign."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir

from bnn_deploy.passes.graph import (
    BEFORE,
    CROP,
    SOURCE,
    ZERO,
    PassResult,
    add_initializer,
    constant,
    insert_node,
    is_op,
    provenance,
    remove_if_dead,
    static_shape,
    zero_value,
)


class HoistPad:
    """Sign(f(Pad(x, c)))  ==>  Pad(Sign(f(x)), sign(f(c))), so that the padding becomes that of a convolution.

    1. The Pad is of constant mode, with constant pads, none of them negative; f is nothing, or a chain of Clip, Relu,
       LeakyRelu, Neg, Tanh and Identity. sign(f(c)) follows the source's convention: Pad(0) before a sign with
       sign(0) = +1 is +1 padding; where sign(0) = 0 it is zero padding.
    2. A convolution reads the sign; or sign(f(c)) is 0, which no bit can stand for.
    3. The new Sign's source in the float graph is the old one without its border (CROP).

    Declines: other modes of Pad; they stay where they are, on floats, and are exact there.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """Rewrite every Sign that qualifies."""
        result = PassResult()
        for node in list(model.graph):
            chain = _chain(node) if is_op(node, "Sign") else None
            if chain is None:
                continue
            pad, functions = chain
            border = read_pad(pad)
            if border is None:
                continue
            pads, value = border
            for function in functions:
                value = _scalar(function, value)
            value = float(np.sign(value)) if value else float(zero_value(node))
            if value == 0 or any(is_op(user, "Conv") for user in node.outputs[0].consumers()):
                self._hoist(model.graph, node, pad, functions, pads, value)
                result.modified += 1
        return result

    def _hoist(
        self, graph: ir.Graph, node: ir.Node, pad: ir.Node, functions: list[ir.Node], pads: list[int], value: float
    ) -> None:
        data, old = pad.inputs[0], node.outputs[0]
        assert data is not None
        shape = None if data.shape is None else list(data.shape)
        for function in functions:
            operands = [data, *function.inputs[1:]]
            attributes = {key: attribute.value for key, attribute in function.attributes.items()}
            padded = function.outputs[0]
            data = insert_node(
                node,
                function.op_type,
                operands,
                attributes,
                f"{padded.name}_inside",
                dtype=ir.DataType.FLOAT,
                shape=shape,
            )
            data.metadata_props[BEFORE] = json.dumps([*provenance(padded), ["crop", pads]])
        name = old.name or ""
        metadata = {
            SOURCE: node.metadata_props.get(SOURCE, name),
            CROP: json.dumps(pads),
            BEFORE: json.dumps(provenance(data)),
        }
        if ZERO in node.metadata_props:
            metadata[ZERO] = node.metadata_props[ZERO]
        inside = insert_node(
            node, "Sign", [data], {}, f"{name}_inside", dtype=ir.DataType.FLOAT, shape=shape, metadata=metadata
        )
        operands = [
            inside,
            add_initializer(graph, f"{name}_pads", np.array(pads, np.int64)),
            add_initializer(graph, f"{name}_border", np.array(value, np.float32)),
        ]
        shape = None if old.shape is None else list(old.shape)
        new = insert_node(node, "Pad", operands, {}, f"{name}_padded", dtype=ir.DataType.FLOAT, shape=shape)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        old.name = f"{name}_before_hoisting"
        new.name = name
        remove_if_dead(node)


def _chain(sign: ir.Node) -> tuple[ir.Node, list[ir.Node]] | None:
    """The Pad above a Sign, and the elementwise functions between them from above; None if there is no Pad."""
    functions: list[ir.Node] = []
    value = sign.inputs[0]
    while value is not None and (node := value.producer()) is not None:
        if is_op(node, "Pad"):
            return node, functions[::-1]
        if not is_op(node, "Clip", "Identity", "LeakyRelu", "Neg", "Relu", "Tanh"):
            return None
        functions.append(node)
        value = node.inputs[0]
    return None


def _scalar(node: ir.Node, x: float) -> float:
    """One of the functions of `_chain` at one number."""
    match node.op_type:
        case "Relu":
            return max(x, 0.0)
        case "Neg":
            return -x
        case "Clip":
            low, high = ([constant(v) for v in node.inputs[1:]] + [None, None])[:2]
            return float(np.clip(x, -np.inf if low is None else low, np.inf if high is None else high))
        case "LeakyRelu":
            attribute = node.attributes.get("alpha")
            return x if x >= 0 else x * (0.01 if attribute is None else attribute.as_float())
        case "Tanh":
            return float(np.tanh(x))
        case _:
            return x


def read_pad(node: ir.Node) -> tuple[list[int], float] | None:
    """The pads of all dimensions (begins, then ends) and the value of a constant Pad that adds; None for any other."""
    data = node.inputs[0] if is_op(node, "Pad") else None
    shape = None if data is None else static_shape(data)
    mode = node.attributes.get("mode")
    pads = constant(node.inputs[1]) if is_op(node, "Pad") and len(node.inputs) > 1 else None
    if shape is None or pads is None or (mode is not None and mode.as_string() != "constant"):
        return None
    value_input, axes_input = ([*node.inputs[2:], None, None])[:2]
    value, axes = constant(value_input), constant(axes_input)
    if (value_input is not None and value is None) or (axes_input is not None and axes is None):
        return None
    rank = len(shape)
    every = list(range(rank)) if axes is None else [int(axis) % rank for axis in axes]
    found = [0] * (2 * rank)
    for i, axis in enumerate(every):
        found[axis], found[axis + rank] = int(pads[i]), int(pads[i + len(every)])
    return None if min(found) < 0 else (found, 0.0 if value is None else float(value.reshape(())))
