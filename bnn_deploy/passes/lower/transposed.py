"""A transposed convolution of bits: one binary convolution for each phase of its output, and their interleaving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.graph import add_initializer, insert_node, maker, replace_value
from bnn_deploy.passes.interleave import Interleaved, interleave
from bnn_deploy.passes.lower.phases import Phase, find_phases
from bnn_deploy.passes.outcome import display_name
from bnn_deploy.provenance import layer_metadata, part_metadata

if TYPE_CHECKING:
    from bnn_deploy.passes.lower.layer import FloatLayer


def replace_transposed(
    node: ir.Node,
    op_type: str,
    bits: ir.Value,
    constants: dict[str, NDArray[Any]],
    layer: FloatLayer,
    attributes: dict[str, Any],
) -> ir.Node:
    """Replace a ConvTranspose: see `layer.replace_layer`, whose arguments these are."""
    output, graph = node.outputs[0], node.graph
    name, layer_name = output.name or "", display_name(node)
    assert isinstance(graph, ir.Graph) and bits.shape is not None and layer.output_padding is not None
    found = find_phases(attributes["kernel_shape"], layer.strides, layer.dilations, layer.pads, layer.output_padding)
    sizes = [
        size + extra if isinstance(size, int) else None
        for size, extra in zip(list(bits.shape)[1:-1], found.extra, strict=True)
    ]
    alone = len(found.phases) == 1 and not any(found.crop)
    shared = {key: add_initializer(graph, f"{name}_{key}", array) for key, array in constants.items() if key != WEIGHT}
    maps = []
    for i, phase in enumerate(found.phases):
        given = shared | {WEIGHT: add_initializer(graph, f"{name}_{WEIGHT}_{i}", _words(constants[WEIGHT], phase))}
        if phase.is_bias:
            given["scale"] = add_initializer(graph, f"{name}_no_scale", np.zeros_like(constants["scale"]))
        geometry = {
            "kernel_shape": list(phase.kernel),
            "strides": [1] * len(phase.kernel),
            "pads": list(phase.pads),
            "dilations": list(phase.dilations),
            "group": layer.group,
        }
        maps.append(
            insert_node(
                node,
                op_type,
                [bits, *(given[key] for key in constants)],
                attributes | geometry,
                f"{name}_phase_{i}",
                dtype=ir.DataType.FLOAT,
                shape=[bits.shape[0], len(layer.weight), *sizes],
                domain=DOMAIN,
                name=layer_name if i == 0 else f"{layer_name}_phase_{i}",
                metadata=layer_metadata(node) if alone else part_metadata(layer_name) if i else {},
            )
        )
    new = maps[0]
    if not alone:
        made = Interleaved(tuple(maps), tuple(layer.strides), found.crop)
        new = interleave(node, made, f"{name}_interleaved", layer_metadata(node))
    replace_value(output, new)
    new.name = name
    return maker(maps[0])


WEIGHT = "weight_bits"
"""The key of the weights [O, kernel..., words] among the constants."""


def _words(words: NDArray[Any], phase: Phase) -> NDArray[Any]:
    """The weights [O, kernel..., words] of a phase; of one that is the bias alone, any."""
    if phase.is_bias:
        return np.zeros((len(words), *phase.kernel, words.shape[-1]), words.dtype)
    for axis, taps in enumerate(phase.taps, start=1):
        words = words.take(taps, axis)
    return words
