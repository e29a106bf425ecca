"""A float model that takes images of bytes: the normalisation in front of it, as standard operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from bnn_deploy.errors import InputError, option
from bnn_deploy.image_input import FULL, ImageInput, listed, normalised_name
from bnn_deploy.passes.graph import add_initializer, replace_value
from bnn_deploy.source.input_sizes import Examples


def accept_images(model: ir.Model, examples: Examples, image: ImageInput, name: str) -> tuple[ir.Model, Examples]:
    """A copy of a float model that takes images of bytes, and its examples.

    The input keeps its name; what was the input is `normalised_name`, made by Transpose, Cast, Div, Sub and Div.

    Raises:
        InputError: the model has several inputs, or one that is no float image, or numbers for other channels, or a
            tensor whose name begins like those made here.
    """
    model = model.clone()
    graph = model.graph
    if len(graph.inputs) != 1:
        raise InputError(
            f"{name}: it has {len(graph.inputs)} inputs: {option('image_input')} is for networks of one image"
        )
    (old,) = graph.inputs
    shape = [] if old.shape is None else [dim if isinstance(dim, int) else dim.value for dim in old.shape]
    if old.dtype != ir.DataType.FLOAT or len(shape) < 3 or not isinstance(shape[1], int):
        shown = "?" if old.dtype is None else str(old.dtype.numpy())
        raise InputError(
            f"{name}: its input {old.name} is {shown} {shape}: {option('image_input')} is for float32 images "
            "[N, C, spatial...]"
        )
    channels = shape[1]
    for what, numbers in (("mean", image.mean), ("std", image.std)):
        if len(numbers) not in (1, channels):
            raise InputError(
                f"{name}: {what} {listed(numbers)} is for {len(numbers)} channels, but the input has {channels}: give "
                f"one number, or {channels}"
            )
    key = old.name or ""
    prefix = normalised_name(key)
    for value in [*graph.initializers.values(), *(made for node in graph for made in node.outputs)]:
        if (value.name or "").startswith(prefix):
            raise InputError(
                f"{name}: its tensor {value.name} has a name that {option('image_input')} gives: rename it"
            )
    new = ir.Value(
        name=key,
        shape=ir.Shape([shape[0], *image.stored(shape[1:])]),
        type=ir.TensorType(ir.DataType.UINT8),
    )
    rank = len(shape)
    nodes: list[ir.Node] = []

    def then(op_type: str, value: ir.Value, *more: ir.Value, dtype: ir.DataType, **attributes: Any) -> ir.Value:
        node = ir.Node("", op_type, [value, *more], ir.convenience.convert_attributes(attributes))
        made = node.outputs[0]
        made.name, made.dtype, made.shape = f"{prefix}_{len(nodes)}", dtype, ir.Shape(shape)
        nodes.append(node)
        return made

    made = new
    if image.layout == "nhwc":
        made = then("Transpose", made, dtype=ir.DataType.UINT8, perm=[0, rank - 1, *range(1, rank - 1)])
    made = then("Cast", made, dtype=ir.DataType.FLOAT, to=ir.DataType.FLOAT.value)
    made = then("Div", made, add_initializer(graph, f"{prefix}_full", np.array(FULL)), dtype=ir.DataType.FLOAT)
    for operator, numbers in image.steps():
        array = np.array(numbers, np.float32).reshape(-1, *[1] * (rank - 2))
        what = {"Sub": "mean", "Div": "std"}[operator]
        made = then(operator, made, add_initializer(graph, f"{prefix}_{what}", array), dtype=ir.DataType.FLOAT)
    replace_value(old, made)
    made.name = prefix
    graph.inputs[:] = [new]
    first = next(iter(graph))
    graph.insert_before(first, nodes)
    shapes = Examples(*({k: image.stored(v) for k, v in sizes.items()} for sizes in (examples.shapes, examples.others)))
    return model, shapes
