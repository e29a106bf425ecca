"""LowerLinear: linear layers of ±1 over the last of three and more dimensions become BinaryLinear."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.bits import pack_bits, words
from bnn_deploy.operators.contract import DOMAIN, MAX_SPATIAL, MAX_TERMS
from bnn_deploy.passes.conditions import constants_folded, shapes_known, signs_canonical
from bnn_deploy.passes.graph import add_initializer, insert_node, is_op, maker, replace_value, static_shape
from bnn_deploy.passes.lower.bases import plane_of_signs, sum_of_bases
from bnn_deploy.passes.lower.each_layer import EachLayer
from bnn_deploy.passes.lower.layer import (
    SMALLEST,
    FloatLayer,
    NotTwoValuedError,
    SignInput,
    is_on_rows,
    sign_input,
    two_valued,
)
from bnn_deploy.passes.lower.tokens import channels_second, replace_by_convolution
from bnn_deploy.passes.monotone import Floats
from bnn_deploy.passes.outcome import display_name, take_in
from bnn_deploy.passes.reasons import Channels, ManyProducts, Reason, SpatialDimensions
from bnn_deploy.provenance import layer_metadata, node_place, place_before, zero_value


class LowerLinear(EachLayer[SignInput]):
    """Sign(x) -> MatMul  ==>  BinarizeChannelsLast(x, t) -> BinaryLinear, for x [N, ..., C] of 3 and more dimensions.

    With weights of a few values it is BinaryConvBases -> Transpose instead, for x of up to 5 dimensions.

    1. The input comes from a Sign, possibly times a positive number; the weight [C, O] is constant and two-valued,
       ±alpha per output; alpha (times the input's number) becomes `scale`.
    2. One BinarizeChannelsLast per Sign, with t as in LowerBinaryConv; a Sign that also feeds something float stays for
       that.
    3. Weights of a few values per output, {beta - alpha, beta + alpha}, ternary or sums of ±alpha, are summed by a
       convolution with a 1x1 kernel, which reads the same bits.

    Declines, with the reason: real-valued weights, weights that take too many bases or of other dimensions, 2^24 or
    more products per output. It does not look at layers behind pools, or of an input with two dimensions:
    LowerBinaryConv does.

    Raises InputError for an output whose weights are all zeros.
    """

    needs = (constants_folded, shapes_known, signs_canonical)

    def _source(self, node: ir.Node) -> SignInput | Reason | None:
        source = sign_input(node) if is_op(node, "MatMul") else None
        return source if isinstance(source, SignInput) and is_on_rows(source) else None

    def _lower(self, node: ir.Node, source: SignInput, layer: FloatLayer) -> ir.Node | Reason:
        output, graph = node.outputs[0], node.graph
        shape = static_shape(source.sign.outputs[0])
        channels, weight = None if shape is None else shape[-1], layer.weight
        assert channels is not None and isinstance(graph, ir.Graph)
        if channels != weight.shape[1]:
            return Channels(channels, weight.shape[1])
        if channels >= MAX_TERMS:
            return ManyProducts(channels)
        try:
            signs, alpha = two_valued(weight)
        except NotTwoValuedError:
            new_node = self._sum(node, source, weight)
            if new_node is None:
                raise
            return new_node
        name = output.name or ""
        constants = {
            "weight_bits": pack_bits(signs),
            "scale": (alpha.astype(np.float64) * source.factor).astype(np.float32),
            "bias": np.zeros(len(weight), np.float32),
        }
        new = insert_node(
            node,
            "BinaryLinear",
            [self._bits(source), *(add_initializer(graph, f"{name}_{key}", a) for key, a in constants.items())],
            {"channels": channels},
            f"{name}_new",
            dtype=ir.DataType.FLOAT,
            shape=output.shape,
            domain=DOMAIN,
            name=display_name(node),
            metadata=layer_metadata(node),
        )
        replace_value(output, new)
        new.name = name
        return maker(new)

    def _sum(self, node: ir.Node, source: SignInput, weight: Floats) -> ir.Node | Reason | None:
        """Insert the BinaryConvBases of weights [O, C] of a few values; None if they have many."""
        name, graph, data = node.outputs[0].name, node.graph, source.sign.outputs[0]
        assert isinstance(graph, ir.Graph) and data.shape is not None
        spatial = len(data.shape) - 2
        if spatial > MAX_SPATIAL:
            return SpatialDimensions(spatial)
        found = sum_of_bases(plane_of_signs(source.factor), weight.reshape(*weight.shape, *[1] * spatial))
        if found is None or isinstance(found, Reason):
            return found
        constants, counts = found
        constants["bias"] = np.zeros(len(weight), np.float32)
        inputs = [self._bits(source), *(add_initializer(graph, f"{name}_{key}", a) for key, a in constants.items())]
        window = {"strides": [1] * spatial, "pads": [0] * 2 * spatial, "dilations": [1] * spatial, "group": 1}
        attributes = {"channels": weight.shape[1], **window, **counts}
        return replace_by_convolution(node, "BinaryConvBases", inputs, attributes, len(weight), DOMAIN)

    def _bits(self, source: SignInput) -> ir.Value:
        """The bits of the Sign, made once for each."""
        sign = source.sign
        value, data = sign.outputs[0], sign.inputs[0]
        assert data is not None and value.shape is not None and sign.graph is not None
        if value not in self._binarized:
            *lead, channels = value.shape
            assert isinstance(channels, int)
            # The float graph's tensor with its channels second, as those of other bits are: [N, T, C] -> [N, C, T].
            second = channels_second(len(value.shape))
            threshold = np.full(channels, SMALLEST if zero_value(sign) < 0 else 0, dtype=np.float32)
            self._binarized[value] = insert_node(
                sign,
                "BinarizeChannelsLast",
                [data, add_initializer(sign.graph, f"{value.name}_last_threshold", threshold)],
                {},
                f"{value.name}_last_bits",
                dtype=ir.DataType.UINT32,
                shape=[*lead, words(channels)],
                domain=DOMAIN,
                metadata=node_place(sign, value).then(second).as_source() | place_before(sign).then(second).as_before(),
            )
            take_in(maker(self._binarized[value]), sign)
        return self._binarized[value]
