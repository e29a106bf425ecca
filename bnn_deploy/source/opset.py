"""Brings an ONNX model of any opset to the one that the passes know."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import GraphProto, ModelProto, NodeProto, version_converter

from bnn_deploy.errors import InputError, one_line
from bnn_deploy.operators.contract import OPSET

_CHANGED_MEANING = ("GroupNormalization",)
"""Operators that newer opsets compute otherwise with the same inputs and attributes."""


def opset_of(model: ModelProto) -> int:
    """The version of the standard operators that a model asks for; that of the passes, if it asks for none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), OPSET)


def set_opset(model: ModelProto, name: str) -> ModelProto:
    """The model with the opset of the passes.

    An older one is converted up by onnx. A newer one is relabelled: since opset 20, onnx mostly gave old operators new
    types. So the result runs in every onnxruntime that the operators need, whatever the exporter's opset was.

    Args:
        model: may be changed.
        name: its name in errors.

    Raises:
        InputError: onnx cannot convert it up, or an operator of a newer opset has no old form.
    """
    entry = next((entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if entry is None or entry.version == OPSET:
        return model
    opset = entry.version
    if opset > OPSET:
        for node in all_nodes(model.graph):
            if not _has_old_form(node, opset):
                raise InputError(
                    f"{name}: its opset is {opset}, and {node.op_type} '{node.name or node.output[0]}' has no form in "
                    f"opset {OPSET}, which convert takes; export it with opset {OPSET}"
                )
        entry.version = OPSET
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # whatever the C++ converter raises
        raise InputError(
            f"{name}: its opset is {opset}, and onnx cannot convert it to {OPSET} ({one_line(error, 120)}); "
            f"export it with opset {OPSET}"
        ) from error


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of a graph, and those in the branches and bodies of an If, Loop or Scan."""
    for node in graph.node:
        yield node
        yield from inner_nodes(node)


def inner_nodes(node: NodeProto) -> Iterator[NodeProto]:
    """The nodes in the branches and bodies of an If, Loop or Scan, those of inner ones included."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from all_nodes(graph)


def _has_old_form(node: NodeProto, opset: int) -> bool:
    """Whether a node of a newer opset means the same in that of the passes: by the schemas, but for tensor types."""
    if node.domain not in ("", "ai.onnx"):
        return True
    new = onnx.defs.get_schema(node.op_type, opset)
    if new.since_version <= OPSET:
        return True
    try:
        old = onnx.defs.get_schema(node.op_type, OPSET)
    except onnx.defs.SchemaError:
        return False
    known = all(attribute.name in old.attributes for attribute in node.attribute)
    fits = len(node.input) <= old.max_input and len(node.output) <= old.max_output
    return known and fits and node.op_type not in _CHANGED_MEANING
