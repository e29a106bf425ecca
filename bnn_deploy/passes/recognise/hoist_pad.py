"""HoistPad: a sign of padded data is the padded sign."""

from __future__ import annotations

from functools import reduce

import numpy as np
import onnx_ir as ir

from bnn_deploy.passes.conditions import constants_folded, shapes_known
from bnn_deploy.passes.elementwise import evaluate
from bnn_deploy.passes.graph import (
    add_initializer,
    constant,
    insert_node,
    is_op,
    maker,
    read_pad,
    remove_if_dead,
    static_shape,
)
from bnn_deploy.passes.monotone import Monotone, monotone
from bnn_deploy.passes.outcome import Outcome, Pass, take_in
from bnn_deploy.passes.reasons import PadSigns, Reason
from bnn_deploy.provenance import REFUSED, Crop, node_place, note_place, place, sign_metadata, zero_value


class HoistPad(Pass):
    """Sign(f(Pad(x, c)))  ==>  Pad(Sign(f(x)), sign(f(c))), so that the padding becomes that of a convolution.

    1. The Pad is of constant mode, with constant pads, none of them negative; f is nothing, or a chain of Tanh and what
       FoldThreshold knows. sign(f(c)) follows the source's convention: Pad(0) before a sign with sign(0) = +1 is +1
       padding; where sign(0) = 0 it is zero padding. It is the same in all channels.
    2. A convolution reads the sign; or sign(f(c)) is 0, which no bit can stand for.
    3. The new Sign's source in the float graph is the old one without its border (MOVES).

    Declines: other modes of Pad, and values sign(f(c)) that differ by channel; they stay where they are, on floats, and
    are exact there. But 0 in some channels and ±1 in others no operator can hold: the Sign is marked, for
    LowerBinaryConv to leave its layers float.
    """

    needs = (constants_folded, shapes_known)

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every Sign that qualifies."""
        result = Outcome(model)
        for node in list(model.graph):
            chain = _chain(node) if is_op(node, "Sign") else None
            if chain is None:
                continue
            pad, functions, together = chain
            border, shape = read_pad(pad), static_shape(node.outputs[0])
            channels = shape[1] if shape else None
            if border is None or channels is None:
                continue
            pads, value = border
            values = together(np.full(channels, value, np.float32))
            signs = evaluate(node, [values])
            if (signs == signs[0]).all():
                if signs[0] == 0 or any(is_op(user, "Conv") for user in node.outputs[0].consumers()):
                    new = self._hoist(model.graph, node, pad, functions, pads, float(signs[0]))
                    result.rewrote(new, node, *(() if functions else (pad,)))
            elif (signs == 0).any():
                channel = int(np.flatnonzero(signs == 0)[0])
                node.meta[REFUSED] = PadSigns(pad.outputs[0].name or "", channel)
        return result

    def _hoist(
        self, graph: ir.Graph, node: ir.Node, pad: ir.Node, functions: list[ir.Node], pads: list[int], value: float
    ) -> ir.Node:
        data, old = pad.inputs[0], node.outputs[0]
        assert data is not None
        shape = None if data.shape is None else list(data.shape)
        for function in functions:
            operands = list(function.inputs)
            operands[_data_index(function)] = data
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
            note_place(data, place(padded).then(Crop(pads)))
            take_in(maker(data), *((pad, function) if function is functions[0] else (function,)))
        name = old.name or ""
        metadata = sign_metadata(node_place(node, old).then(Crop(pads)), place(data), zero_value(node))
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
        return maker(inside)


def _chain(sign: ir.Node) -> tuple[ir.Node, list[ir.Node], Monotone] | None:
    """The Pad above a Sign, the functions between them from above, and these as one function [C] -> [C].

    None if there is no Pad, or something else than a function per channel in between.
    """
    shape = static_shape(sign.outputs[0])
    if shape is None or len(shape) < 2 or shape[1] is None:
        return None
    functions: list[tuple[ir.Node, Monotone]] = []
    value = sign.inputs[0]
    while value is not None and (node := value.producer()) is not None:
        if is_op(node, "Pad"):
            return node, [step for step, _ in functions[::-1]], _composed([step for _, step in functions[::-1]])
        function = np.tanh if is_op(node, "Tanh") else monotone(node, shape[1])
        if function is None or isinstance(function, Reason):
            return None
        functions.append((node, function))
        value = node.inputs[_data_index(node)]
    return None


def _composed(functions: list[Monotone]) -> Monotone:
    return lambda x: reduce(lambda y, function: function(y), functions, x)


def _data_index(function: ir.Node) -> int:
    """Which input of a function per channel is the data."""
    return 0 if constant(function.inputs[0]) is None else 1
