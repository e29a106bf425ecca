"""SimplifyProducts: an Einsum of two operands, or weights on the left, is a MatMul or a convolution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.contract import MAX_SPATIAL
from bnn_deploy.passes.graph import (
    add_initializer,
    constant,
    einsum_terms,
    insert_node,
    is_op,
    maker,
    replace_value,
    static_shape,
)
from bnn_deploy.passes.outcome import Outcome, Pass, display_name
from bnn_deploy.provenance import Reshape, Transpose, node_place, note_place


class SimplifyProducts(Pass):
    """Einsum(x, y) | MatMul(W, x)  ==>  MatMul, between Transposes | Conv with a 1x1 kernel.

    1. An Einsum has two operands, no label twice in one of them, one label that is summed over, and at most one that
       only the second operand and the output have. "btc,oc->bto" and "...c,oc->...o" are linear layers, "bhqd,bhkd->
       bhqk" is a product of two activations, and "bqhd,bkd->bhqk" one of which all heads share the second.
    2. Weights [O, C] for the second dimension of [N, C, spatial...], as "oc,nct->not" or as MatMul(W, x) of [N, C, T],
       are a convolution with a 1x1 kernel.

    Declines: nothing; another Einsum stays.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every such product."""
        result = Outcome(model)
        for node in list(model.graph):
            labels = _labels(node)
            if labels is None:
                continue
            (x, y), out = labels
            values = list(node.inputs)
            if constant(values[0]) is not None:  # the weights are the second operand
                values, (x, y) = values[::-1], (y, x)
            new = _convolution(node, values, x, y, out) or _product(node, values, x, y, out)
            if new is not None:
                result.rewrote(new, node)
        return result


def _labels(node: ir.Node) -> tuple[list[str], str] | None:
    """The labels of both operands and of the output; None if it is no product of condition 1 or 2."""
    if is_op(node, "MatMul"):
        weight, shape = constant(node.inputs[0]), None if node.inputs[1] is None else static_shape(node.inputs[1])
        on_left = weight is not None and weight.ndim == 2 and shape is not None and len(shape) == 3
        return (["oc", "nct"], "not") if on_left else None
    if not is_op(node, "Einsum") or len(node.inputs) != 2:
        return None
    equation = einsum_terms(node)
    if equation is None or any(len(set(term)) < len(term) for term in (*equation[0], equation[1])):
        return None
    operands, out = equation
    summed = set(operands[0] + operands[1]) - set(out)
    return (operands, out) if len(summed) == 1 and summed <= set(operands[0]) & set(operands[1]) else None


def _convolution(node: ir.Node, values: Sequence[ir.Value | None], x: str, y: str, out: str) -> ir.Node | None:
    """Replace a product of condition 2; return the Conv."""
    weight = constant(values[1])
    if weight is None or len(y) != 2 or not 3 <= len(x) <= 2 + MAX_SPATIAL or x[1] not in y or x[1] in out:
        return None
    o = y.replace(x[1], "")
    if out != x[0] + o + x[2:]:
        return None
    filters = weight if y[0] == o else weight.T
    output, graph = node.outputs[0], node.graph
    assert isinstance(graph, ir.Graph)
    filters = np.ascontiguousarray(filters).reshape(*filters.shape, *[1] * (len(x) - 2))
    new = insert_node(
        node,
        "Conv",
        [values[0], add_initializer(graph, f"{output.name}_filters", filters)],
        {"kernel_shape": [1] * (len(x) - 2)},
        f"{output.name}_new",
        dtype=ir.DataType.FLOAT,
        shape=output.shape,
        name=display_name(node),
        metadata=dict(node.metadata_props),
    )
    return _take_place(output, new)


def _product(node: ir.Node, values: Sequence[ir.Value | None], x: str, y: str, out: str) -> ir.Node | None:
    """Replace an Einsum by a MatMul; return it, or None if the labels are those of none."""
    if not is_op(node, "Einsum"):
        return None
    batch = [label for label in x if label in y and label in out]
    (summed,) = set(x + y) - set(out)
    rows, columns = ([label for label in term if label not in other] for term, other in ((x, y), (y, x)))
    shared = len(rows) - 1 if batch else 0  # dimensions along which the second operand is repeated
    sizes = None if values[1] is None else static_shape(values[1])
    if len(columns) != 1 or not rows or (shared and (sizes is None or sizes.count(None) > 1)):
        return None
    output, natural = node.outputs[0], [*batch, *rows, *columns]
    first = _moved(node, values[0], x, [*batch, *rows, summed], "left")
    second = _moved(node, values[1], y, [*batch, summed, *columns], "right")
    if shared:
        second = _repeated(node, second, len(batch), shared)
    perm = [out.index(label) for label in natural]
    back = sorted(range(len(out)), key=lambda i: perm[i])
    plain = back == list(range(len(out)))
    shape = None if output.shape is None else [output.shape[i] for i in perm]
    place = node_place(node, output) if plain else node_place(node, output).then(Transpose(perm))
    product = insert_node(
        node,
        "MatMul",
        [first, second],
        {},
        f"{output.name}_new" if plain else f"{output.name}_product",
        dtype=ir.DataType.FLOAT,
        shape=shape,
        name=display_name(node),
        metadata={} if plain else place.as_source(),
    )
    if plain:
        return _take_place(output, product)
    new = insert_node(
        node,
        "Transpose",
        [product],
        {"perm": back},
        f"{output.name}_new",
        dtype=ir.DataType.FLOAT,
        shape=output.shape,
    )
    _take_place(output, new)
    return maker(product)


def _moved(node: ir.Node, value: ir.Value | None, labels: str, wanted: Sequence[str], side: str) -> ir.Value | None:
    """An operand with its dimensions in the wanted order; a constant is moved at once."""
    perm = [labels.index(label) for label in wanted]
    if value is None or perm == list(range(len(perm))):
        return value
    array, name = constant(value), f"{node.outputs[0].name}_{side}"
    if array is not None:
        assert isinstance(node.graph, ir.Graph)
        return add_initializer(node.graph, name, np.ascontiguousarray(array.transpose(perm)))
    shape = None if value.shape is None else [value.shape[i] for i in perm]
    new = insert_node(node, "Transpose", [value], {"perm": perm}, name, dtype=ir.DataType.FLOAT, shape=shape)
    note_place(new, node_place(value.producer(), value).then(Transpose(perm)))
    return new


def _repeated(node: ir.Node, value: ir.Value | None, axis: int, count: int) -> ir.Value:
    """An operand with so many dimensions of 1 at an axis, along which a MatMul repeats it."""
    assert value is not None and isinstance(node.graph, ir.Graph)
    name, axes = f"{node.outputs[0].name}_shared", np.arange(axis, axis + count)
    shape = None if value.shape is None else [*value.shape[:axis], *[1] * count, *value.shape[axis:]]
    operands = [value, add_initializer(node.graph, f"{name}_axes", axes)]
    new = insert_node(node, "Unsqueeze", operands, {}, name, dtype=ir.DataType.FLOAT, shape=shape)
    sizes = [size if isinstance(size, int) else -1 for size in new.shape or ()]
    note_place(new, node_place(value.producer(), value).then(Reshape(sizes)))
    return new


def _take_place(old: ir.Value, new: ir.Value) -> ir.Node:
    """Let a new tensor have the users and the name of an old one; return the node that makes it."""
    name = old.name
    replace_value(old, new)
    new.name = name
    new.metadata_props.update(old.metadata_props)
    return maker(new)
