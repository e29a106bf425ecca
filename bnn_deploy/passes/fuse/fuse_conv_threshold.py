"""FuseConvThreshold: between two binary layers no float is made."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.operators.bits import words
from bnn_deploy.operators.contract import ALWAYS, DOMAIN, NEVER
from bnn_deploy.passes.fusion_reasons import LinearBits, ThresholdPerPosition, UsedElsewhere
from bnn_deploy.passes.graph import (
    add_initializer,
    constant,
    insert_node,
    is_binary_op,
    is_op,
    maker,
    remove_if_dead,
    replace_value,
    sole_consumer,
)
from bnn_deploy.passes.outcome import Outcome, Pass
from bnn_deploy.provenance import SOURCE, bit_metadata, part_metadata, part_of


def integer_threshold(
    scale: NDArray[np.float32], bias: NDArray[np.float32], threshold: NDArray[np.float32], terms: int
) -> NDArray[np.int32]:
    """The smallest acc in [-terms, terms] for which float32(float32(scale * acc) + bias) >= threshold, per channel.

    Args:
        scale: [O] float32, > 0.
        bias: [O] float32.
        threshold: [O] float32.
        terms: products that acc sums.

    Returns:
        [O] int32; ALWAYS where acc = -terms reaches the threshold, NEVER where acc = terms does not.
    """

    def reached(acc: NDArray[np.int64]) -> NDArray[np.bool_]:
        result: NDArray[np.bool_] = scale * acc.astype(np.float32) + bias >= threshold
        return result

    low = np.full(len(scale), -terms, dtype=np.int64)
    high = np.full(len(scale), terms, dtype=np.int64)
    always, never = reached(low), ~reached(high)
    while (high - low > 1).any():
        middle = (low + high) // 2
        true = reached(middle)
        high, low = np.where(true, middle, high), np.where(true, low, middle)
    result = high.astype(np.int32)
    result[always] = ALWAYS
    result[never] = NEVER
    return result


class FuseConvThreshold(Pass):
    """Binarize(BinaryConv(...), t), or Unsqueeze(Binarize(Flatten(BinaryConv(...)), t))  ==>  BinaryConvThreshold(...).

    1. The BinaryConv (and the Flatten behind a linear layer) feeds only this Binarize.
    2. The integer threshold is found by bisection over the integers that the sum can be, on the float32 expression as
       the graph evaluates it, so the bits agree by construction, rounding included.

    Declines: a BinaryConv whose floats are used elsewhere too. (scale is positive: LowerBinaryConv puts signs in
        weights.)
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every Binarize of a BinaryConv."""
        result = Outcome(model)
        for node in list(model.graph):
            if not is_binary_op(node, "Binarize"):
                continue
            value = node.inputs[0]
            producer = None if value is None else value.producer()
            flatten = producer if is_op(producer, "Flatten") else None
            conv_value = value if flatten is None else flatten.inputs[0]
            conv = None if conv_value is None else conv_value.producer()
            if conv is None or conv_value is None or value is None or not is_binary_op(conv, "BinaryConv"):
                continue
            if sole_consumer(value) is None or sole_consumer(conv_value) is None:
                result.decline(node, UsedElsewhere(f"the floats of '{conv.metadata_props.get(SOURCE)}' are"))
                continue
            consumers = list(node.outputs[0].consumers())
            if flatten is not None and not all(is_op(c, "Unsqueeze") for c in consumers):
                result.decline(node, LinearBits())
                continue
            thresholds, scales = constant(node.inputs[1]), constant(conv.inputs[2])
            assert thresholds is not None and scales is not None
            if len(thresholds) != len(scales):
                result.decline(node, ThresholdPerPosition())
                continue
            new = self._fuse(model.graph, conv, node, [c for c in consumers if flatten is not None])
            result.rewrote(new, conv, node)
        return result

    def _fuse(self, graph: ir.Graph, conv: ir.Node, binarize: ir.Node, unsqueezes: list[ir.Node]) -> ir.Node:
        weight_shape = conv.inputs[1].shape if conv.inputs[1] is not None else None
        scale, bias, threshold = (constant(v) for v in (conv.inputs[2], conv.inputs[3], binarize.inputs[1]))
        assert weight_shape is not None and scale is not None and bias is not None and threshold is not None
        per_group = conv.attributes["channels"].as_int() // conv.attributes["group"].as_int()
        terms = per_group * math.prod(conv.attributes["kernel_shape"].as_ints())
        old = binarize.outputs[0]
        name = old.name or ""
        x, w, pad_value = conv.inputs[0], conv.inputs[1], conv.inputs[4]
        assert x is not None and w is not None and pad_value is not None
        conv_shape = conv.outputs[0].shape
        integer = add_initializer(
            graph, f"{conv.outputs[0].name}_threshold", integer_threshold(scale, bias, threshold, terms)
        )
        new = insert_node(
            conv,
            "BinaryConvThreshold",
            [x, w, integer, pad_value],
            {key: a.value for key, a in conv.attributes.items()},
            f"{name}_new",
            dtype=ir.DataType.UINT32,
            shape=None if conv_shape is None else [conv_shape[0], *conv_shape[2:], words(len(scale))],
            domain=DOMAIN,
            name=conv.name,
            metadata=bit_metadata(binarize) | part_metadata(part_of(conv)),
        )
        for unsqueeze in unsqueezes:
            if new.shape is not None and len(new.shape) == 3:  # a one-dimensional map in front of a 1x1 convolution
                unsqueeze.replace_input_with(0, new)
                unsqueeze.replace_input_with(1, add_initializer(graph, f"{name}_axis", np.array([1], np.int64)))
            else:
                replace_value(unsqueeze.outputs[0], new)
        if binarize.graph is not None:
            replace_value(old, new)
            remove_if_dead(binarize)
        new.name = name
        return maker(new)
