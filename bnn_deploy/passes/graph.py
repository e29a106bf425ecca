"""What every pass uses: its result, and a few questions and edits on onnx_ir graphs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.operators import DOMAIN

SOURCE = "bnn_deploy.source"
"""Node metadata: the tensor of the float graph that the node's output stands for (for bits: the output of the Sign)."""

COMPLEMENTED = "bnn_deploy.complemented"
"""Node metadata: comma-separated channels whose bits are stored complemented."""

BEFORE = "bnn_deploy.before"
"""Metadata of bits whose source is no plain Sign: where their pre-activation is in the float graph.

JSON: [tensor, move...] with the moves ["transpose", perm], ["reshape", shape], ["crop", pads] (those of a Pad to undo),
["subtract", threshold] and ["max_pool", window], applied in order. CanonicalizeSign notes it on values, too, while the
passes run.
"""

MOVES = "bnn_deploy.moves"
"""Metadata of what stands for a tensor of the float graph moved, or for its inside: JSON, the moves, as in BEFORE."""

LEVELS = "bnn_deploy.levels"
"""Metadata of planes of levels: JSON, {"bits": k, "step": what a level counts in the source, "thresholds": t}.

t [levels - 1, C or 1] are the thresholds between the levels, of the tensor that BEFORE names.
"""

ZERO = "bnn_deploy.zero"
"""Metadata of a Sign that CanonicalizeSign made: its value at 0, "1" or "-1"; without it, 0 as in ONNX."""

REFUSED = "bnn_deploy.refused"
"""Metadata of a Sign that no bits can stand for: why."""

BIT_KEYS = (SOURCE, COMPLEMENTED, BEFORE, MOVES)
"""The metadata that belongs to a tensor of bits, and goes where it goes."""


def zero_value(sign: ir.Node) -> int:
    """What a Sign gives at 0."""
    return int(sign.metadata_props.get(ZERO, "0"))


def provenance(value: ir.Value) -> list[Any]:
    """Where a value is in the float graph, in the form of BEFORE: it, or what a pass made it of."""
    found: list[Any] = json.loads(value.metadata_props.get(BEFORE, json.dumps([value.name])))
    return found


def source_metadata(value: ir.Value) -> dict[str, str]:
    """SOURCE of a node whose output stands for `value`, and the MOVES to that value from the tensor so called."""
    source, *moves = provenance(value)
    return {SOURCE: source} | ({MOVES: json.dumps(moves)} if moves else {})


def set_source(node: ir.Node, value: ir.Value) -> None:
    """Note that the output of `node` now stands for `value`, instead of what it stood for before."""
    for key in (SOURCE, MOVES):
        node.metadata_props.pop(key, None)
    node.metadata_props.update(source_metadata(value))


def output_key(key: str, output: int) -> str:
    """The metadata key for a node's output: BIT_KEYS themselves are those of the first."""
    return key if output == 0 else f"{key}.{output}"


@dataclass(frozen=True)
class Decline:
    """A node that a pass looked at and left alone.

    Attributes:
        node: its name.
        op_type: its operator.
        reason: why, as one sentence for the user.
        has_sign_input: whether it is a layer whose input is a sign, so that it looks as if it was meant to be binary.
    """

    node: str
    op_type: str
    reason: str
    has_sign_input: bool = False


@dataclass
class PassResult:
    """What a pass did.

    Attributes:
        modified: number of rewrites.
        declined: a reason for each node that it declined.
    """

    modified: int = 0
    declined: list[Decline] = field(default_factory=list)

    def decline(self, node: ir.Node, reason: str) -> None:
        """Record that `node` was left alone."""
        self.declined.append(Decline(display_name(node), node.op_type, reason))


def display_name(node: ir.Node) -> str:
    """What reports call a node: its name, else its output's."""
    return node.name or node.outputs[0].name or ""


class Pass(Protocol):
    """A rewrite of a model in place."""

    def __call__(self, model: ir.Model) -> PassResult:
        """Run on every node of the model's main graph."""
        ...


def is_op(node: ir.Node | None, *op_types: str, domain: str = "") -> bool:
    """Whether `node` is one of these operators."""
    return node is not None and node.domain == domain and node.op_type in op_types


def is_binary_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether `node` is one of these operators of the domain bnn_deploy."""
    return is_op(node, *op_types, domain=DOMAIN)


def reads_abs_mean(node: ir.Node) -> bool:
    """Whether the first input of `node` is the mean magnitude that a BinarizeAbsMean gives: a filter of one channel."""
    value = node.inputs[0]
    return value is not None and value.index() == 1 and is_binary_op(value.producer(), "BinarizeAbsMean")


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The value of an initializer or a Constant node; None for anything else, graph inputs with a default included."""
    tensor = None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def static_shape(value: ir.Value) -> list[int | None] | None:
    """The shape with None for symbolic dimensions; None if the rank is unknown."""
    if value.shape is None:
        return None
    return [dim if isinstance(dim, int) else None for dim in value.shape]


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The only node that uses `value`, or None if there are more uses or it is a graph output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def ints(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    """The INTS attribute `name` of `node`."""
    attribute = node.attributes.get(name)
    return list(default) if attribute is None else list(attribute.as_ints())


def auto_pad(node: ir.Node) -> str | None:
    """The rule from which a Conv or MaxPool takes its pads; None if its `pads` say them."""
    attribute = node.attributes.get("auto_pad")
    rule = "" if attribute is None else attribute.as_string()
    return None if rule in ("", "NOTSET") else rule


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Add a constant to the graph under `name`, or a longer one if that is taken, and return its value."""
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def insert_node(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any],
    output: str,
    *,
    dtype: ir.DataType,
    shape: Iterable[Any] | None,
    domain: str = "",
    name: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ir.Value:
    """Insert a node with one output before another and return the output."""
    node = ir.Node(
        domain,
        op_type,
        inputs,
        ir.convenience.convert_attributes(attributes),
        name=name or output,
        metadata_props=dict(metadata or {}),
    )
    value = node.outputs[0]
    value.name = output
    value.dtype = dtype
    value.shape = None if shape is None else ir.Shape(list(shape))
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return value


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let every user of `old`, and the graph's outputs, use `new`; remove old's node if that leaves it dead."""
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    remove_if_dead(old.producer())


def remove_if_dead(node: ir.Node | None) -> None:
    """Remove `node`, and what fed only it, if nothing uses its outputs."""
    if node is None or node.graph is None or any(o.uses() or o.is_graph_output() for o in node.outputs):
        return
    producers = [i.producer() for i in node.inputs if i is not None]
    node.graph.remove(node, safe=True)
    for producer in producers:
        remove_if_dead(producer)


def replace_channels_last(
    binarize: ir.Node, data: ir.Value, op_type: str, threshold: ir.Value, dtype: ir.DataType
) -> None:
    """Replace a Binarize by Transpose(data, channels last) and a binarisation of that form.

    Args:
        binarize: the node; the shape of its bits is known.
        data: what to binarise instead of its input, [N, C, spatial...].
        op_type: BinarizeChannelsLast or BinarizeQuantized.
        threshold: of the new node, [C].
        dtype: of `data`.
    """
    bits = binarize.outputs[0]
    assert bits.shape is not None and threshold.shape is not None
    name = bits.name or ""
    last = insert_node(
        binarize,
        "Transpose",
        [data],
        {"perm": [0, *range(2, len(bits.shape)), 1]},
        f"{name}_channels_last",
        dtype=dtype,
        shape=[*bits.shape[:-1], threshold.shape[0]],
    )
    new = insert_node(
        binarize,
        op_type,
        [last, threshold],
        {},
        f"{name}_new",
        dtype=ir.DataType.UINT32,
        shape=bits.shape,
        domain=DOMAIN,
        metadata=binarize.metadata_props,
    )
    replace_value(bits, new)
    new.name = name


def complemented(node: ir.Node) -> set[int]:
    """The channels whose bits `node` stores complemented."""
    text = node.metadata_props.get(COMPLEMENTED, "")
    return {int(channel) for channel in text.split(",") if channel}


def set_complemented(node: ir.Node, channels: set[int]) -> None:
    """Record the channels whose bits `node` stores complemented."""
    if channels:
        node.metadata_props[COMPLEMENTED] = ",".join(map(str, sorted(channels)))
    else:
        node.metadata_props.pop(COMPLEMENTED, None)
