"""What the modules that write other domains' operators in standard ones share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from bnn_deploy.source.opset import all_nodes, opset_of

MICROSOFT = "com.microsoft"


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node as Python values, strings as bytes."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


class Expansion:
    """The nodes of a graph while they are rewritten, in order.

    Attributes:
        model: it; `finish` gives it the nodes.
        name: its name in errors.
        nodes: those that were written.
        constants: its initializers and the values of its Constant nodes, by name.
        opset: its version of the standard operators.
    """

    def __init__(self, model: ModelProto, name: str) -> None:
        self.model, self.name = model, name
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        for node in model.graph.node:
            if node.op_type == "Constant" and (value := attributes_of(node).get("value")) is not None:
                self.constants[node.output[0]] = numpy_helper.to_array(value)
        self.opset = opset_of(model)
        self._taken = {tensor for node in all_nodes(model.graph) for tensor in (*node.input, *node.output)}
        self._taken.update(self.constants, (value.name for value in (*model.graph.input, *model.graph.output)))

    def write(self, op_type: str, inputs: Sequence[str], output: str, name: str = "", **attributes: Any) -> str:
        """Append a standard node whose output the graph has already, and return it."""
        self.nodes.append(helper.make_node(op_type, inputs, [output], name or output, **attributes))
        return output

    def step(self, op_type: str, inputs: Sequence[str], output: str, name: str = "", **attributes: Any) -> str:
        """Append a standard node with an output under this name, or a longer one if that is taken, and return it."""
        return self.write(op_type, inputs, self.free(output), name, **attributes)

    def free(self, name: str) -> str:
        """`name`, or a longer one if that is taken; from now on it is."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def constant(self, array: NDArray[Any], name: str) -> str:
        """Add an initializer under `name`, or a longer one if that is taken, and return its name."""
        name = self.free(name)
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        self.constants[name] = array
        return name

    def shape(self, tensor: str) -> list[int | None] | None:
        """The shape of a tensor that the nodes written so far make; None if its rank is not known."""
        if tensor in self.constants:
            return list(self.constants[tensor].shape)
        graph = self.model.graph
        so_far = helper.make_model(
            helper.make_graph(self.nodes, "so_far", graph.input, [], graph.initializer),
            opset_imports=self.model.opset_import,
            ir_version=self.model.ir_version,
        )
        inferred = onnx.shape_inference.infer_shapes(so_far, data_prop=True).graph
        for value in (*inferred.value_info, *inferred.input):
            if value.name == tensor and value.type.tensor_type.HasField("shape"):
                dims = value.type.tensor_type.shape.dim
                return [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        return None

    def finish(self) -> None:
        """Let the graph consist of the nodes that were written."""
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)

    def drop_domains(self) -> None:
        """Let the model ask for no domain that none of the written nodes is of."""
        domains = {"", "ai.onnx", *(node.domain for node in self.nodes)}
        kept = [entry for entry in self.model.opset_import if entry.domain in domains]
        del self.model.opset_import[:]
        self.model.opset_import.extend(kept)
