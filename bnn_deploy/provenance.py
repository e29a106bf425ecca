"""Provenance: which tensor of the float graph a tensor of the converted model stands for, as metadata."""

from __future__ import annotations

import json
from typing import Any

import onnx_ir as ir

ARCH_KEY = "bnn_deploy.arch"

ARCH_ARGS_KEY = "bnn_deploy.arch_args"

SHAPE_KEY = "bnn_deploy.input_shape"

WEIGHTS_KEY = "bnn_deploy.weights"

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
"""Key, in `meta`, of a Sign that no bits can stand for: the Reason why."""

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
