"""SplitZeros: binary layers whose signs are exactly 0 where the source's are, at the cost of a second plane of bits."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.graph import add_initializer, constant, insert_node, is_binary_op, maker, replace_value
from bnn_deploy.passes.lower.layer import SMALLEST
from bnn_deploy.passes.outcome import Outcome, Pass, display_name
from bnn_deploy.provenance import BIT_KEYS, SOURCE, Place, Subtract, part_metadata, read_before, source_place


class SplitZeros(Pass):
    """Binarize(x, 0) -> BinaryConv  ==>  Add(BinaryConv(Binarize(x, 0)), BinaryConv(Binarize(x, smallest number))).

    1. sign(x) with sign(0) = 0 is the mean of one that is +1 at 0 and one that is -1 there. Both layers have the
       weights, with half the scale; the bias is the first one's. Where all products cancel out, so do the two sums.
       BinaryConvBases, with weights of a few values, and BinaryLinear likewise.
    2. What moves or pools the bits between (BinaryMaxPool, Transpose, ...) is doubled: it commutes with both steps.
    3. BinaryMatMul becomes the sum of the products of all such operands, with half the scale for each operand that has
       two: sign(Q) sign(K)^T of four.
    4. Layers whose bits stand for one of the given tensors, the source's signs; before any fusion, so that a threshold
       is still 0.

    Declines: nothing; a layer that reads other bits stays as it is.
    """

    def __init__(self, signs: Collection[str]) -> None:
        """For the source's tensors `signs`, outputs of Signs that are 0 at 0."""
        super().__init__()
        self._signs = signs
        self._twins: dict[ir.Value, ir.Value] = {}

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite each such layer."""
        result = Outcome(model)
        for node in list(model.graph):
            if is_binary_op(node, "BinaryConv", "BinaryConvBases", "BinaryLinear"):
                bits = node.inputs[0]
                chain = None if bits is None else self._chain(bits)
                if chain is not None:
                    result.rewrote(self._split(model.graph, node, chain), node)
            elif is_binary_op(node, "BinaryMatMul"):
                chains = [None if bits is None else self._chain(bits) for bits in node.inputs[:2]]
                if any(chain is not None for chain in chains):
                    result.rewrote(self._split_product(model.graph, node, chains), node)
        return result

    def _chain(self, bits: ir.Value) -> list[ir.Node] | None:
        """The Binarize of one of the signs and the nodes behind it that lead to `bits`; None if there is none."""
        chain: list[ir.Node] = []
        value: ir.Value | None = bits
        while value is not None and value.dtype == ir.DataType.UINT32 and (node := value.producer()) is not None:
            chain.insert(0, node)
            if is_binary_op(node, "Binarize", "BinarizeChannelsLast"):
                return chain if node.metadata_props.get(SOURCE) in self._signs else None
            if any(other is not None and constant(other) is None for other in node.inputs[1:]):
                return None
            value = node.inputs[0]
        return None

    def _split(self, graph: ir.Graph, layer: ir.Node, chain: list[ir.Node]) -> ir.Node:
        twin = self._twin(graph, chain)
        old, scale, bias = layer.outputs[0], layer.inputs[2], layer.inputs[3]
        assert scale is not None and bias is not None
        values, zeros = constant(scale), constant(bias)
        assert values is not None and zeros is not None
        half = add_initializer(graph, f"{old.name}_half_scale", values * np.float32(0.5))
        nothing = add_initializer(graph, f"{old.name}_no_bias", np.zeros_like(zeros))
        rest = layer.inputs[4:]
        return _sum(
            layer,
            {
                "at_least_0": [layer.inputs[0], layer.inputs[1], half, bias, *rest],
                "above_0": [twin, layer.inputs[1], half, nothing, *rest],
            },
        )

    def _split_product(self, graph: ir.Graph, product: ir.Node, chains: list[list[ir.Node] | None]) -> ir.Node:
        name, scale = product.outputs[0].name, constant(product.inputs[2])
        assert scale is not None
        sides = [
            {"": bits} if chain is None else {"_at_least_0": bits, "_above_0": self._twin(graph, chain)}
            for bits, chain in zip(product.inputs[:2], chains, strict=True)
        ]
        share = scale / np.float32(len(sides[0]) * len(sides[1]))
        part = add_initializer(graph, f"{name}_share_of_scale", share.astype(np.float32))
        return _sum(product, {f"a{a}_b{b}": [sides[0][a], sides[1][b], part] for a in sides[0] for b in sides[1]})

    def _twin(self, graph: ir.Graph, chain: list[ir.Node]) -> ir.Value:
        """The bits at the end of a chain that starts at x > 0 instead of x >= 0."""
        binarize = chain[0]
        bits = binarize.outputs[0]
        if bits not in self._twins:
            thresholds = constant(binarize.inputs[1])
            assert thresholds is not None
            threshold = np.full_like(thresholds, SMALLEST)
            source, before = source_place(binarize.metadata_props), read_before(binarize.metadata_props)
            assert source is not None
            first, second = (_metadata(source.then(Subtract(t)), before) for t in (-0.5, 0.5))
            binarize.metadata_props.update(first)
            self._twins[bits] = insert_node(
                binarize,
                binarize.op_type,
                [binarize.inputs[0], add_initializer(graph, f"{bits.name}_above_threshold", threshold)],
                dict(binarize.attributes),
                f"{bits.name}_above",
                dtype=ir.DataType.UINT32,
                shape=bits.shape,
                domain=DOMAIN,
                metadata=second,
            )
        for node in chain[1:]:
            value, data = node.outputs[0], node.inputs[0]
            assert data is not None
            if value not in self._twins:
                source, metadata = source_place(node.metadata_props), {}
                if source is not None:  # a pool of signs, of which the two planes hold what is >= 0 and what is > 0
                    node.metadata_props.update(source.then(Subtract(-0.5)).as_source())
                    metadata = source.then(Subtract(0.5)).as_source()
                self._twins[value] = insert_node(
                    node,
                    node.op_type,
                    [self._twins[data], *node.inputs[1:]],
                    dict(node.attributes),
                    f"{value.name}_above",
                    dtype=ir.DataType.UINT32,
                    shape=value.shape,
                    domain=node.domain,
                    metadata=metadata,
                )
        return self._twins[chain[-1].outputs[0]]


def _metadata(source: Place, before: Place | None) -> dict[str, str]:
    return source.as_source() | ({} if before is None else before.as_before())


def _sum(layer: ir.Node, parts: dict[str, list[ir.Value | None]]) -> ir.Node:
    """Replace a layer by the sum of several with other inputs, of which the first one is returned.

    Args:
        layer: which is gone then.
        parts: their inputs, by what their outputs' names end with.
    """
    old = layer.outputs[0]
    name = old.name or ""
    own = {key: layer.metadata_props.pop(key) for key in BIT_KEYS if key in layer.metadata_props}
    total: ir.Value | None = None
    for i, (suffix, inputs) in enumerate(parts.items()):
        value = insert_node(
            layer,
            layer.op_type,
            inputs,
            dict(layer.attributes),
            f"{name}_{suffix}",
            dtype=ir.DataType.FLOAT,
            shape=old.shape,
            domain=DOMAIN,
            metadata=dict(layer.metadata_props) if total is None else part_metadata(display_name(layer)),
        )
        if total is None:
            result, total = maker(value), value
            continue
        number = "" if i == 1 else str(i)
        total = insert_node(
            layer, "Add", [total, value], {}, f"{name}_sum{number}", dtype=ir.DataType.FLOAT, shape=old.shape
        )
    assert total is not None
    maker(total).metadata_props.update(own)
    result.name = layer.name
    result.meta.update(layer.meta)
    replace_value(old, total)
    total.name = name
    return result
