"""FusedConv, which onnxruntime writes into the models that it optimised, in standard operators."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from bnn_deploy.errors import InputError

_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": (),
}
"""Activation -> the attributes that its parameters are; those of Clip are inputs."""


def expand_fused_conv(model: ModelProto, name: str) -> None:
    """Replace FusedConv(x, w, bias, summand) by a Conv, an Add, if there is a summand, and the activation.

    Args:
        model: changed in place.
        name: the model's name in errors.

    Raises:
        InputError: an activation that has no standard operator here.
    """
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.domain != "com.microsoft" or node.op_type != "FusedConv":
            nodes.append(node)
            continue
        (y,) = node.output
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        kind = attributes.pop("activation", b"").decode()
        numbers = list(attributes.pop("activation_params", []))
        if kind and kind not in _ACTIVATIONS:
            raise InputError(
                f"{name}: FusedConv '{node.name or y}' has the activation {kind}, which has no definition here; "
                "give the model as it was before onnxruntime optimised it"
            )
        summand = node.input[3] if len(node.input) > 3 else ""
        summed = f"{y}_summed" if kind else y
        nodes.append(
            helper.make_node("Conv", node.input[:3], [f"{y}_conv" if summand else summed], node.name, **attributes)
        )
        if summand:
            nodes.append(helper.make_node("Add", [f"{y}_conv", summand], [summed], f"{y}_sum"))
        if kind:
            bounds = [f"{y}_bound_{i}" for i, _ in enumerate(numbers if kind == "Clip" else ())]
            for bound, number in zip(bounds, numbers, strict=False):
                model.graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), bound))
            given = dict(zip(_ACTIVATIONS[kind], numbers, strict=False))
            nodes.append(helper.make_node(kind, [summed, *bounds], [y], f"{y}_activation", **given))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
