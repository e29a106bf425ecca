"""The nodes of a model file with their attributes, for machines without the onnx package.

onnxruntime's profile has the times and shapes of nodes, but not their attributes, on which the multiply-accumulates of
our operators and the number of channels in their bits depend. This reads just those from the file: a message of
Protocol Buffers is a sequence of (field number, value), and the fields' numbers are those of onnx.proto.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bnn_deploy.errors import reading

_MODEL_GRAPH = 7
_GRAPH_NODE = 1
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_INTS = 1, 3, 8

_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
"""Wire types: a number of 7 bits a byte; a size and that many bytes; the others' sizes in bytes."""


@dataclass(frozen=True)
class ModelNode:
    """A node of a model's main graph.

    Attributes:
        name: its name; "" if it has none.
        op_type: the operator.
        domain: the operator's domain; "" is standard ONNX.
        inputs: names of tensors.
        outputs: names of tensors.
        attributes: the integer ones, name -> values; an INT has one.
    """

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, tuple[int, ...]]


def read_nodes(path: str | os.PathLike[str]) -> list[ModelNode]:
    """The nodes of the main graph, in the order of the file.

    Raises:
        InputError: the file is damaged.
    """
    with reading(path, "not an ONNX file, or a truncated one"):
        model = memoryview(Path(path).read_bytes())
        graphs = [value for number, value in _fields(model) if number == _MODEL_GRAPH]
        return [_node(value) for graph in graphs for number, value in _fields(graph) if number == _GRAPH_NODE]


def _node(message: int | memoryview) -> ModelNode:
    texts: dict[int, list[str]] = {}
    attributes = {}
    for number, value in _fields(message):
        if number == _NODE_ATTRIBUTE:
            name, values = _attribute(value)
            attributes[name] = values
        elif isinstance(value, memoryview):
            texts.setdefault(number, []).append(bytes(value).decode(errors="replace"))
    name, op_type, domain = (texts.get(key, [""])[-1] for key in (_NODE_NAME, _NODE_OP_TYPE, _NODE_DOMAIN))
    inputs, outputs = (tuple(texts.get(key, [])) for key in (_NODE_INPUT, _NODE_OUTPUT))
    return ModelNode(name, op_type, domain, inputs, outputs, attributes)


def _attribute(message: int | memoryview) -> tuple[str, tuple[int, ...]]:
    name, values = "", []
    for number, value in _fields(message):
        if number == _ATTRIBUTE_NAME and isinstance(value, memoryview):
            name = bytes(value).decode(errors="replace")
        elif number in (_ATTRIBUTE_INT, _ATTRIBUTE_INTS):
            values += [value] if isinstance(value, int) else list(_packed(value))
    return name, tuple(value - (1 << 64) if value >> 63 else value for value in values)


def _fields(message: int | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: number and value. Values of bytes are views of the message, not copies."""
    if isinstance(message, int):
        raise ValueError("a number in place of a message")
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            number, at = _varint(message, at)
            yield key >> 3, number
            continue
        size = _FIXED.get(kind, 0)
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif not size:
            raise ValueError(f"wire type {kind}")
        if at + size > len(message):
            raise ValueError("a value ends behind its message")
        yield key >> 3, message[at : at + size]
        at += size


def _packed(message: memoryview) -> Iterator[int]:
    """The numbers of a repeated field that is written as one value."""
    at = 0
    while at < len(message):
        number, at = _varint(message, at)
        yield number


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at a position, its lowest 7 bits first, and the position behind it."""
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
