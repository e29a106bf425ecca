"""What the report takes from the canonical graph: signs, pads and the float tensors that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from bnn_deploy.passes.graph import auto_pad, ints, is_op, is_standard_layer, read_pad, static_shape
from bnn_deploy.passes.lower.audit_leftovers import nearest_sign
from bnn_deploy.passes.lower.layer import SignInput, sign_input
from bnn_deploy.passes.outcome import display_name, parts
from bnn_deploy.provenance import SOURCE, place_before, zero_value
from bnn_deploy.report.zero_cause import zero_causes

# The canonical graph.


@dataclass(frozen=True)
class CanonicalLayer:
    """A layer in the canonical graph.

    Attributes:
        source: the tensor of the float graph that the sign's output stands for; None if the layer reads no sign.
        leaf: the tensor of the float graph that its sign is taken of; None likewise.
        sign: the names of the nodes of the float graph that make up the sign.
        zero: what the sign gives at 0.
        zero_cause: why what it is taken of can be exactly 0, see `zero_causes`; None likewise.
        factor: what the ±1 are multiplied by.
        padding: see LayerReport.
        pads: likewise.
        padded_by: likewise.
    """

    source: str | None
    leaf: str | None
    sign: tuple[str, ...]
    zero: int | None
    zero_cause: str | None
    factor: float
    padding: str
    pads: tuple[int, ...]
    padded_by: str | None


class Canonical:
    """What the report takes from the canonical graph.

    Attributes:
        layers: by name.
        signs: the names of the nodes of the float graph that make up a sign.
    """

    def __init__(self) -> None:
        self.layers: dict[str, CanonicalLayer] = {}
        self.signs: frozenset[str] = frozenset()

    def look(self, model: ir.Model) -> None:
        """Read a canonical model, before its layers are lowered."""
        causes = zero_causes(model)
        self.layers = {display_name(node): _seen(node, causes) for node in model.graph if is_standard_layer(node)}
        self.signs = frozenset(part for node in model.graph if is_op(node, "Sign") for part in parts(node))


def _sign_place(sign: ir.Node) -> tuple[str, str]:
    """The tensors of the float graph that a Sign of the canonical graph gives and takes."""
    return sign.metadata_props.get(SOURCE, sign.outputs[0].name or ""), place_before(sign).tensor


def _seen(node: ir.Node, causes: Mapping[ir.Value, str]) -> CanonicalLayer:
    source = sign_input(node)
    sign = source.sign if isinstance(source, SignInput) else nearest_sign(node)
    place = None if sign is None else _sign_place(sign)
    value = None if sign is None else sign.inputs[0]
    padding, pads, padded_by = _padding(node, source if isinstance(source, SignInput) else None)
    return CanonicalLayer(
        None if place is None else place[0],
        None if place is None else place[1],
        () if sign is None else parts(sign),
        None if sign is None else zero_value(sign),
        None if sign is None else None if value is None else causes.get(value),
        source.factor if isinstance(source, SignInput) else 1.0,
        padding,
        pads,
        padded_by,
    )


def _padding(node: ir.Node, source: SignInput | None) -> tuple[str, tuple[int, ...], str | None]:
    """Padding, pads and padded_by of a layer."""
    if is_op(node, "Einsum", "Gemm", "MatMul"):
        return "none", (), None
    if rule := auto_pad(node):
        return rule, (), node.op_type
    shape = None if node.inputs[0] is None else static_shape(node.inputs[0])
    own = ints(node, "pads", [0] * (0 if shape is None else 2 * len(shape) - 4))
    producer = None if node.inputs[0] is None else node.inputs[0].producer()
    extra, value = ([], 0.0) if source is None or source.pads is None else (source.pads, source.pad_value)
    if source is None and producer is not None and is_op(producer, "Pad") and (border := read_pad(producer)):
        rank = len(border[0]) // 2
        extra, value = [*border[0][2:rank], *border[0][rank + 2 :]], border[1]
    both = any(own) and any(extra)
    length = max(len(own), len(extra))
    pads = [a + b for a, b in zip(own or [0] * length, extra or [0] * length, strict=True)]
    if not any(pads):
        return "none", tuple(pads), None
    kind = "zero" if not any(extra) or value == 0 else "mixed" if both else f"{value:+g}"
    return kind, tuple(pads), node.op_type if not any(extra) else f"{node.op_type} and Pad" if both else "Pad"
