"""The conversion report: what became of each convolution and linear layer, from what, and what a user could change.

The float graph says which layers there are. Their signs, pads and weights are read in the canonical graph (see
`passes.pipeline.canonicalize`), where each has one form. The passes say what they declined, and recorded on each node
of the converted graph which nodes of the float graph became part of it (`passes.outcome.parts`).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from bnn_deploy.errors import with_options
from bnn_deploy.operators.contract import FLOAT, WEIGHTS_ONLY, is_binary_layer, is_layer, operator_of
from bnn_deploy.passes.elementwise import uniform
from bnn_deploy.passes.formula import formula
from bnn_deploy.passes.graph import (
    MOVING_OPERATORS,
    constant,
    group_of,
    ints,
    is_binary_op,
    is_op,
    is_standard_layer,
)
from bnn_deploy.passes.outcome import Decline, display_name, parts
from bnn_deploy.passes.reasons import CancelsOut
from bnn_deploy.provenance import read_levels
from bnn_deploy.report.canonical import Canonical, CanonicalLayer
from bnn_deploy.report.summary import REMOVED, LayerReport
from bnn_deploy.report.weights import describe_weights, layer_filters
from bnn_deploy.source.weight_form import WEIGHT_FORM

_NAMES = {"BatchNormalization": "BatchNorm", "Relu": "ReLU", "LeakyRelu": "LeakyReLU", "PRelu": "PReLU"}

# The report.


def layer_reports(
    model: ir.Model,
    canonical: Canonical,
    binary: ir.Model,
    left_float: Iterable[Decline],
    scheme: str,
    binarized: Mapping[str, int | None],
    kept_zeros: Container[str] = (),
) -> tuple[LayerReport, ...]:
    """Report on every layer of a float model.

    Args:
        model: the float model, folded, with the notes of `note_weights`.
        canonical: what it looked like in the forms that LowerBinaryConv matches.
        binary: the converted model, before 8-bit edges are made.
        left_float: the layers that stayed float, with the reason.
        scheme: by which latent weights were binarised.
        binarized: the parameters or layers whose latent weights were, with the number of their zeros if that is known.
        kept_zeros: the layers whose signs are still 0 at 0.

    Returns:
        One entry per layer, in the order of the float graph.
    """
    builder = _Builder(model, canonical, binary, {decline.node: decline for decline in left_float}, kept_zeros)
    nodes = [node for node in model.graph if is_standard_layer(node)]
    found = {
        display_name(node): builder.report(node, scheme, binarized)
        for node in nodes
        if display_name(node) in canonical.layers and display_name(node) in builder.binary
    }
    twins = _equal_values(model.graph) if len(found) < len(nodes) else {}
    for node in nodes:
        name = display_name(node)
        if name in found:
            continue
        equal = [n for n in nodes if display_name(n) in found and twins[n.outputs[0]] == twins[node.outputs[0]]]
        if equal:
            found[name] = replace(found[display_name(equal[0])], name=name, same_as=display_name(equal[0]))
        else:
            found[name] = builder.removed(node, scheme, binarized)
    return tuple(found[display_name(node)] for node in nodes)


class _Builder:
    """Reports on layers, one by one."""

    def __init__(
        self,
        model: ir.Model,
        canonical: Canonical,
        binary: ir.Model,
        left_float: Mapping[str, Decline],
        kept_zeros: Container[str],
    ) -> None:
        self.canonical = canonical
        self.left_float = left_float
        self.kept_zeros = kept_zeros
        self.order = list(model.graph)
        self.place = {display_name(node): i for i, node in enumerate(self.order)}
        self.values = {v.name: v for v in model.graph.inputs if v.name}
        self.values |= {v.name: v for node in self.order for v in node.outputs if v.name}
        self.binary = {display_name(node): node for node in binary.graph if is_standard_layer(node) or is_layer(node)}

    def report(self, node: ir.Node, scheme: str, binarized: Mapping[str, int | None]) -> LayerReport:
        """Report on a layer that the canonical graph has, too."""
        name = display_name(node)
        seen, final, decline = self.canonical.layers[name], self.binary[name], self.left_float.get(name)
        status = _status(final)
        is_binary = is_binary_layer(final)
        if is_binary and _levels(final) is not None:
            seen = replace(seen, source=None, zero=None)  # it reads something else than a sign
        zero, bit = seen.zero, -1 if seen.zero is not None and seen.zero < 0 else 1
        keeps = zero is None or not is_binary or name in self.kept_zeros
        plain = self._plain(node, scheme, binarized)
        if decline is not None and status == WEIGHTS_ONLY and not decline.has_sign_input:
            decline = None  # all that can be stored as bits is
        fused = self._parts(final)
        if is_binary and len(node.inputs) > 2 and (bias := constant(node.inputs[2])) is not None and bias.any():
            fused = ("bias", *fused)
        return replace(
            plain,
            status=status,
            becomes=final.op_type,
            activation=_levels(final) or self._activation(seen),
            sign_of_zero=zero,
            converted_sign_of_zero=zero if keeps else bit,
            zero_cause=seen.zero_cause if zero == 0 else None,
            scale=None if plain.scale is None else (plain.scale[0] * seen.factor, plain.scale[1] * seen.factor),
            padding=seen.padding,
            pads=seen.pads,
            padded_by=self._padded_by(seen),
            binarisation=self._binarisation(final, seen),
            fused=tuple(dict.fromkeys(fused)),
            reason=None if decline is None else decline.reason,
            advice=None if decline is None else decline.advice(self._is_last(node)),
            binary_in_training=decline is not None and decline.has_sign_input,
        )

    def removed(self, node: ir.Node, scheme: str, binarized: Mapping[str, int | None]) -> LayerReport:
        """Report on a layer whose output nothing in the converted model depends on."""
        return replace(
            self._plain(node, scheme, binarized),
            reason=CancelsOut().text,
            advice=with_options(CancelsOut.advice),
        )

    def _plain(self, node: ir.Node, scheme: str, binarized: Mapping[str, int | None]) -> LayerReport:
        """What the float graph alone says."""
        filters = layer_filters(node)
        linear = is_op(node, "Einsum", "Gemm", "MatMul")
        groups = group_of(node)
        kernel = () if filters is None or linear else tuple(filters.shape[2:])
        inputs = outputs = None
        if filters is not None:
            inputs, outputs = filters.shape[1] * groups, filters.shape[0]
        form = node.meta.get(WEIGHT_FORM)
        latent = next((key for key in (display_name(node), form and form.tensor) if key in binarized), None)
        text, spread, zeros, scale = describe_weights(filters, form, scheme if latent is not None else None)
        latent_zeros = form.zeros if form is not None and (latent is not None or form.text != "W") else None
        if latent is not None and binarized[latent] is not None:
            latent_zeros = binarized[latent]
        return LayerReport(
            name=display_name(node),
            operator=node.op_type,
            kind="linear" if linear else "convolution",
            kernel=kernel,
            inputs=inputs,
            outputs=outputs,
            strides=tuple(ints(node, "strides", [1] * len(kernel))),
            dilations=tuple(ints(node, "dilations", [1] * len(kernel))),
            group=groups,
            status=REMOVED,
            becomes=None,
            same_as=None,
            activation=None,
            sign_of_zero=None,
            converted_sign_of_zero=None,
            zero_cause=None,
            exact_zeros=None,
            weights=text,
            spread=spread,
            zeros=zeros,
            filled_zeros=0,
            latent_zeros=latent_zeros,
            scale=scale,
            padding="none",
            pads=(),
            padded_by=None,
            binarisation=(),
            fused=(),
            reason=None,
            advice=None,
            binary_in_training=False,
        )

    def _activation(self, seen: CanonicalLayer) -> str | None:
        """How the float graph writes the sign."""
        if seen.source is None or seen.leaf is None:
            return None
        value, leaf = self.values.get(seen.source), self.values.get(seen.leaf)
        if value is None or leaf is None:
            return "Sign(x)"
        # A learned threshold is an Add or Sub right above the sign. The bias of a linear layer, and the shift of a
        # BatchNorm that is written as Mul and Add, only look like one.
        producer = leaf.producer()
        if producer is not None and is_op(producer, "Add", "Sub") and value is not leaf:
            operands = [v for v in producer.inputs if v is not None and uniform(v) is None]
            shift = next((c for v in producer.inputs if (c := uniform(v)) is not None), None)
            if len(operands) == 1 and shift is not None and shift.size > 1:
                above = operands[0].producer()
                scaled = above is not None and any(constant(v) is not None for v in above.inputs)
                if above is None or not (is_standard_layer(above) or (is_op(above, "Mul") and scaled)):
                    return f"{formula(value, {operands[0]: 'x'}, 't')}, learned threshold"
        text = formula(value, {leaf: "x"}, "t")
        return f"{text}, learned threshold" if re.search(r"\bt\b", text) else text

    def _padded_by(self, seen: CanonicalLayer) -> str | None:
        """Which node pads, as the float graph has it: in the canonical one a Pad always stands behind the sign."""
        before = any(is_op(self.order[self.place[name]], "Pad") for name in seen.sign if name in self.place)
        return f"{seen.padded_by} before the sign" if before and "Pad" in (seen.padded_by or "") else seen.padded_by

    def _parts(self, final: ir.Node, without: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The operators of the float graph that passes made part of a node, in order; all of a sign's are "sign".

        Args:
            final: a node of the converted graph.
            without: names of nodes of the float graph to leave out.
        """
        names = set(parts(final)).difference(without)
        labels: list[str] = []
        for place in sorted(self.place[name] for name in names if name in self.place):
            node = self.order[place]
            name = display_name(node)
            if is_standard_layer(node):
                continue
            if name not in self.canonical.signs:
                labels.append(_label(node))
            elif "sign" not in labels:
                labels.append("sign")
        return tuple(labels)

    def _binarisation(self, final: ir.Node, seen: CanonicalLayer) -> tuple[str, ...]:
        """The operators, but for the layer's sign, that became part of the binarisation of its input from floats."""
        current = final.inputs[0].producer() if is_binary_layer(final) and final.inputs[0] is not None else None
        while current is not None and (is_op(current, "Unsqueeze") or is_binary_op(current, "BinaryMaxPool")):
            current = None if current.inputs[0] is None else current.inputs[0].producer()
        row = None if current is None else operator_of(current)
        if current is None or row is None or row.threshold is None or row.is_binary_layer:
            return ()
        return self._parts(current, seen.sign)

    def _is_last(self, node: ir.Node) -> bool:
        """Whether no other layer depends on this one."""
        reached: set[ir.Value | None] = set(node.outputs)
        for other in self.order:
            if reached.intersection(other.inputs):
                if is_standard_layer(other):
                    return False
                reached.update(other.outputs)
        return True


def _label(node: ir.Node) -> str:
    if is_op(node, "Add") and all(constant(value) is None for value in node.inputs):
        return "residual Add"
    return _NAMES.get(node.op_type, node.op_type)


def _levels(final: ir.Node) -> str | None:
    """The numbers that the levels in front of a layer stand for; None if it reads none."""
    producer = None if final.inputs[0] is None else final.inputs[0].producer()
    while producer is not None and (levels := read_levels(producer.metadata_props)) is None:
        if is_op(producer, "Concat"):  # one plane for each threshold
            makers = [None if plane is None else plane.producer() for plane in producer.inputs]
            planes = [None if node is None else read_levels(node.metadata_props) for node in makers]
            steps = [plane.values for plane in planes if plane is not None]
            return _levels_text([steps[0][0], *(step[-1] for step in steps)]) if len(steps) == len(planes) else None
        if not is_op(producer, *MOVING_OPERATORS) or producer.inputs[0] is None:
            return None
        producer = producer.inputs[0].producer()
    if producer is None or levels is None:
        return None
    if levels.values:
        return _levels_text(levels.values)
    return f"levels 0 to {len(levels.thresholds)}, times {levels.step:.3g}"


def _levels_text(values: Sequence[float]) -> str:
    """Levels that are not evenly spaced from 0 up, for a report."""
    return f"levels {', '.join(f'{value:.3g}' for value in values)}"


def _status(final: ir.Node) -> str:
    row = operator_of(final)
    if row is not None and row.status is not None:
        return row.status.format(**{key: attribute.value for key, attribute in final.attributes.items()})
    maker = final.inputs[1].producer() if len(final.inputs) > 1 and final.inputs[1] is not None else None
    if maker is not None and is_op(maker, "Transpose") and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    row = None if maker is None else operator_of(maker)
    return FLOAT if row is None or row.weights_status is None else row.weights_status


def _equal_values(graph: ir.Graph) -> dict[ir.Value, int]:
    """Number the values of a graph such that those which are computed alike have the same number."""
    numbers: dict[ir.Value, int] = {}
    known: dict[Any, int] = {}

    def number(value: ir.Value | None) -> int:
        if value is None:
            return -1
        if value not in numbers:
            array = constant(value)
            key = (value.name,) if array is None else (array.dtype.str, array.shape, array.tobytes())
            numbers[value] = known.setdefault(key, len(known))
        return numbers[value]

    for node in graph:
        attributes = tuple(sorted((name, str(attribute.value)) for name, attribute in node.attributes.items()))
        inputs = tuple(number(value) for value in node.inputs)
        for i, output in enumerate(node.outputs):
            key = (node.domain, node.op_type, attributes, inputs, i)
            numbers[output] = known.setdefault(key, len(known))
    return numbers
