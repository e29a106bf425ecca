"""The conversion report: what became of each convolution and linear layer, from what, and what a user could change.

It is made of three graphs. The float graph says which layers there are; in the canonical one (see
`conversion.canonicalize`) the signs, pads and weights have one form each, so they are read there; the converted one
says what the layers became. What was fused into a layer is what stands in the float graph between the layer's own
output and the tensor that the converted layer's output stands for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.advice import advice
from bnn_deploy.expressions import formula
from bnn_deploy.passes.audit_leftovers import LAYER_OPERATORS, nearest_sign
from bnn_deploy.passes.canonicalize_sign import uniform
from bnn_deploy.passes.graph import (
    BEFORE,
    LEVELS,
    SOURCE,
    Decline,
    auto_pad,
    constant,
    display_name,
    ints,
    is_binary_op,
    is_op,
    output_key,
    static_shape,
    zero_value,
)
from bnn_deploy.passes.hoist_pad import read_pad
from bnn_deploy.passes.lower_binary_conv import MAX_SPREAD, SignInput, sign_input
from bnn_deploy.passes.sink_sign import MOVING_OPERATORS

FORMAT = 1
"""Version of the JSON form."""

BINARY = "binary"
WEIGHTS_ONLY = "binary weights only"
FLOAT = "float"
INT8 = "int8"
REMOVED = "removed"

OPERATORS = {
    "BinaryConv": BINARY,
    "BinaryConvThreshold": BINARY,
    "BinaryConvResidual": BINARY,
    "BinaryConvScaled": BINARY,
    "BinaryConvLevels": "binary, {bits}-bit activations",
}
"""Operators of the domain bnn_deploy that are a layer, and the status that they give it, with its attributes."""

WEIGHT_OPERATORS: dict[str, str] = {
    "UnpackWeights": WEIGHTS_ONLY,
}
"""Operators of the domain bnn_deploy that make the weights of a standard layer, and the status that they give it."""

_FORM = "bnn_deploy.weight_form"
"""Key of `Node.meta`, which is not written to files: the `WeightForm` of a layer before its constants were folded."""

_NAMES = {"BatchNormalization": "BatchNorm", "Relu": "ReLU", "LeakyRelu": "LeakyReLU", "PRelu": "PReLU"}

_UNMENTIONED = ("Shape", "Expand", "ConstantOfShape", "Identity")


@dataclass(frozen=True)
class WeightForm:
    """How the float graph computes a layer's weights.

    Attributes:
        text: a formula of W; "W" if they are a constant.
        tensor: the name of W.
        zeros: exact zeros in W.
    """

    text: str
    tensor: str
    zeros: int


@dataclass(frozen=True)
class LayerReport:
    """What became of one convolution or linear layer of the float graph; in JSON, an object with these keys.

    Attributes:
        name: of its node in the float graph, and of what became of it.
        operator: Conv, ConvTranspose, Gemm or MatMul.
        kind: "convolution" or "linear".
        kernel: sizes of the kernel; [] of a linear layer.
        inputs: input channels or features; null if its weights are not constant.
        outputs: output channels or features; null likewise.
        strides: of a convolution, one per spatial dimension; [] of a linear layer.
        dilations: likewise.
        group: number of groups.
        status: "binary", "binary weights only", "float", "int8" (float, quantised by --edges int8), or "removed" (what
            it computes cancels out); with activations of k bits, 0/1 among them, "binary, k-bit activations".
        becomes: its operator in the converted model; null if it was removed.
        same_as: the equal layer that is computed in its place; null, as a rule.
        activation: how the float graph writes the sign that the layer reads, as a formula of x, such as
            "2 * Cast(x >= 0) - 1"; "t" is a constant with one number per channel; or the levels that it reads, as
            "levels 0 to 3, times 0.333"; null if it reads neither.
        sign_of_zero: what that sign gives at 0: -1, 0 or 1; null likewise.
        converted_sign_of_zero: what it gives in the converted model: where the float graph has 0, one bit has +1.
        weights: where the weights come from and what they look like, such as "Sign(W), folded" or "latent, binarised by
            xnor-centred".
        spread: largest difference of |w| within a filter, relative to its largest |w|; 0 for exactly two values, null
            if the weights are not constant.
        zeros: number of weights that are exactly 0, as they are used.
        latent_zeros: the same of the latent weights, before they were binarised; null if there are none.
        scale: smallest and largest alpha of the filters, [1, 1] if there is none to multiply with; null if the weights
            are not two-valued.
        padding: "none", "zero", "+1", "-1", another number, "mixed" (zeros and ±1) or the rule of auto_pad.
        pads: rows and columns that are padded, begins and then ends.
        padded_by: "Conv", "Pad", "Conv and Pad", "Pad before the sign" or "Conv and Pad before the sign"; null without
            padding.
        binarisation: what was fused into the binarisation of its input, in order.
        fused: what was fused into the layer behind its sums, in order; "sign" at the end means that its result is bits,
            made by an integer threshold.
        reason: why it is not binary; null if it is.
        advice: what could be changed so that it gets smaller; null likewise.
        binary_in_training: whether it is not binary, but reads a sign; `--strict` fails then.
    """

    name: str
    operator: str
    kind: str
    kernel: tuple[int, ...]
    inputs: int | None
    outputs: int | None
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int
    status: str
    becomes: str | None
    same_as: str | None
    activation: str | None
    sign_of_zero: int | None
    converted_sign_of_zero: int | None
    weights: str
    spread: float | None
    zeros: int
    latent_zeros: int | None
    scale: tuple[float, float] | None
    padding: str
    pads: tuple[int, ...]
    padded_by: str | None
    binarisation: tuple[str, ...]
    fused: tuple[str, ...]
    reason: str | None
    advice: str | None
    binary_in_training: bool

    @property
    def shape(self) -> str:
        """Kernel, channels, and whatever differs from stride 1, dilation 1 and one group."""
        parts = ["\N{MULTIPLICATION SIGN}".join(map(str, self.kernel))] if self.kernel else []
        if self.inputs is not None:
            parts.append(f"{self.inputs}\N{RIGHTWARDS ARROW}{self.outputs}")
        for letter, values in (("s", self.strides), ("d", self.dilations), ("g", (self.group,))):
            if any(value != 1 for value in values):
                parts.append(letter + ",".join(map(str, values[:1] if len(set(values)) == 1 else values)))
        return " ".join(parts)

    @property
    def asymmetric(self) -> bool:
        """Whether more is padded on one side than on the other."""
        half = len(self.pads) // 2
        return self.pads[:half] != self.pads[half:]


@dataclass(frozen=True)
class Report:
    """The report of a conversion.

    Attributes:
        source: the file, or the name of the module.
        layers: one entry per convolution and linear layer, in the order of the float graph.
        not_fused: what the passes declined to fuse, with the reason.
        constant_channels: for each binarisation with channels whose bit never changes: which, how many, of how many.
    """

    source: str
    layers: tuple[LayerReport, ...]
    not_fused: tuple[Decline, ...]
    constant_channels: tuple[tuple[str, int, int], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain types, for json.dumps; `counts` has the number of layers of each status, `format` is FORMAT."""
        statuses = [layer.status for layer in self.layers]
        counts = {status: statuses.count(status) for status in dict.fromkeys(statuses)}
        return {"format": FORMAT} | asdict(self) | {"counts": counts}


# The float graph, before its constants are folded.


def note_weights(graph: ir.Graph) -> None:
    """Note on each layer how its weights are computed (in memory only), before folding leaves nothing but values."""
    for node in graph:
        if is_op(node, *LAYER_OPERATORS) and _FORM not in node.meta and (form := _weight_form(node)):
            node.meta[_FORM] = form


def _weight_form(node: ir.Node) -> WeightForm | None:
    value = node.inputs[1]
    leaves: dict[ir.Value, NDArray[Any]] = {}
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        if current is None:
            continue
        array, producer = constant(current), current.producer()
        if array is not None:
            leaves[current] = array
        elif producer is None:
            return None  # not constant
        else:
            pending += [v for v in producer.inputs if v not in seen]
            seen.update(producer.inputs)
    if value is None or not leaves:
        return None
    latent = max(leaves, key=lambda leaf: leaves[leaf].size)
    return WeightForm(formula(value, {latent: "W"}, "c"), latent.name or "", int((leaves[latent] == 0).sum()))


# The canonical graph.


@dataclass(frozen=True)
class _Seen:
    """A layer in the canonical graph.

    Attributes:
        source: the tensor of the float graph that the sign's output stands for; None if the layer reads no sign.
        leaf: the tensor of the float graph that its sign is taken of; None likewise.
        zero: what the sign gives at 0.
        factor: what the ±1 are multiplied by.
        padding: see LayerReport.
        pads: likewise.
        padded_by: likewise.
    """

    source: str | None
    leaf: str | None
    zero: int | None
    factor: float
    padding: str
    pads: tuple[int, ...]
    padded_by: str | None


class Canonical:
    """What the report takes from the canonical graph.

    Attributes:
        layers: by name.
        leaves: for each sign, the tensor of the float graph that it stands for -> the one that it is taken of.
    """

    def __init__(self) -> None:
        self.layers: dict[str, _Seen] = {}
        self.leaves: dict[str, str] = {}

    def look(self, model: ir.Model) -> None:
        """Read a canonical model, before its layers are lowered."""
        self.layers = {display_name(node): _seen(node) for node in model.graph if is_op(node, *LAYER_OPERATORS)}
        self.leaves = dict(_sign_place(node) for node in model.graph if is_op(node, "Sign"))


def _sign_place(sign: ir.Node) -> tuple[str, str]:
    """The tensors of the float graph that a Sign of the canonical graph gives and takes."""
    data = sign.inputs[0]
    assert data is not None
    before = sign.metadata_props.get(BEFORE) or data.metadata_props.get(BEFORE)
    leaf: str = json.loads(before)[0] if before else data.name or ""
    return sign.metadata_props.get(SOURCE, sign.outputs[0].name or ""), leaf


def _seen(node: ir.Node) -> _Seen:
    source = sign_input(node)
    sign = source.sign if isinstance(source, SignInput) else nearest_sign(node)
    place = None if sign is None else _sign_place(sign)
    padding, pads, padded_by = _padding(node, source if isinstance(source, SignInput) else None)
    return _Seen(
        None if place is None else place[0],
        None if place is None else place[1],
        None if sign is None else zero_value(sign),
        source.factor if isinstance(source, SignInput) else 1.0,
        padding,
        pads,
        padded_by,
    )


def _padding(node: ir.Node, source: SignInput | None) -> tuple[str, tuple[int, ...], str | None]:
    """Padding, pads and padded_by of a layer."""
    if is_op(node, "Gemm", "MatMul"):
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


# The report.


def layer_reports(
    model: ir.Model,
    canonical: Canonical,
    binary: ir.Model,
    left_float: Iterable[Decline],
    scheme: str,
    binarized: Mapping[str, int | None],
) -> tuple[LayerReport, ...]:
    """Report on every layer of a float model.

    Args:
        model: the float model, folded, with the notes of `note_weights`.
        canonical: what it looked like in the forms that LowerBinaryConv matches.
        binary: the converted model, before 8-bit edges are made.
        left_float: the layers that stayed float, with the reason.
        scheme: by which latent weights were binarised.
        binarized: the parameters or layers whose latent weights were, with the number of their zeros if that is known.

    Returns:
        One entry per layer, in the order of the float graph.
    """
    builder = _Builder(model, canonical, binary, {decline.node: decline for decline in left_float})
    nodes = [node for node in model.graph if is_op(node, *LAYER_OPERATORS)]
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
        self, model: ir.Model, canonical: Canonical, binary: ir.Model, left_float: Mapping[str, Decline]
    ) -> None:
        self.canonical = canonical
        self.left_float = left_float
        self.order = list(model.graph)
        self.values = {v.name: v for v in model.graph.inputs if v.name}
        self.values |= {v.name: v for node in self.order for v in node.outputs if v.name}
        self.binary = {
            display_name(node): node
            for node in binary.graph
            if is_op(node, *LAYER_OPERATORS) or is_binary_op(node, *OPERATORS)
        }

    def report(self, node: ir.Node, scheme: str, binarized: Mapping[str, int | None]) -> LayerReport:
        """Report on a layer that the canonical graph has, too."""
        name = display_name(node)
        seen, final, decline = self.canonical.layers[name], self.binary[name], self.left_float.get(name)
        status = _status(final)
        is_binary = is_binary_op(final, *OPERATORS)
        if is_binary and status != BINARY:
            seen = replace(seen, source=None, zero=None)  # it reads something else than a sign
        zero = seen.zero
        plain = self._plain(node, scheme, binarized)
        if decline is not None and status == WEIGHTS_ONLY and not decline.has_sign_input:
            decline = None  # all that can be stored as bits is
        fused = self._fused(node, final)
        if is_binary and len(node.inputs) > 2 and (bias := constant(node.inputs[2])) is not None and bias.any():
            fused = ("bias", *fused)
        return replace(
            plain,
            status=status,
            becomes=final.op_type,
            activation=_levels(final) or self._activation(seen),
            sign_of_zero=zero,
            converted_sign_of_zero=zero if zero is None or not is_binary else -1 if zero < 0 else 1,
            scale=None if plain.scale is None else (plain.scale[0] * seen.factor, plain.scale[1] * seen.factor),
            padding=seen.padding,
            pads=seen.pads,
            padded_by=self._padded_by(seen),
            binarisation=self._binarisation(node, final),
            fused=fused,
            reason=None if decline is None else decline.reason,
            advice=None if decline is None else advice(decline.reason, self._is_last(node)),
            binary_in_training=decline is not None and decline.has_sign_input,
        )

    def removed(self, node: ir.Node, scheme: str, binarized: Mapping[str, int | None]) -> LayerReport:
        """Report on a layer whose output nothing in the converted model depends on."""
        return replace(
            self._plain(node, scheme, binarized),
            reason="its output cancels out, as in (a - S) + S of the straight-through trick",
            advice="nothing: it has no effect, and is not computed",
        )

    def _plain(self, node: ir.Node, scheme: str, binarized: Mapping[str, int | None]) -> LayerReport:
        """What the float graph alone says."""
        filters = _filters(node)
        linear = is_op(node, "Gemm", "MatMul")
        group = node.attributes.get("group")
        groups = 1 if group is None else group.as_int()
        kernel = () if filters is None or linear else tuple(filters.shape[2:])
        inputs = outputs = None
        if filters is not None:
            transposed = is_op(node, "ConvTranspose")  # [I, O/group, kernel...]
            inputs = filters.shape[0] if transposed else filters.shape[1] * groups
            outputs = filters.shape[1] * groups if transposed else filters.shape[0]
        form = node.meta.get(_FORM)
        latent = next((key for key in (display_name(node), form and form.tensor) if key in binarized), None)
        text, spread, zeros, scale = _weights(filters, form, scheme if latent is not None else None)
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
            weights=text,
            spread=spread,
            zeros=zeros,
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

    def _activation(self, seen: _Seen) -> str | None:
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
                if above is None or not (is_op(above, *LAYER_OPERATORS) or (is_op(above, "Mul") and scaled)):
                    return f"{formula(value, {operands[0]: 'x'}, 't')}, learned threshold"
        text = formula(value, {leaf: "x"}, "t")
        return f"{text}, learned threshold" if re.search(r"\bt\b", text) else text

    def _padded_by(self, seen: _Seen) -> str | None:
        """What pads, as the float graph has it: in the canonical one a Pad always stands behind the sign."""
        leaf, sign = self.values.get(seen.leaf or ""), self.values.get(seen.source or "")
        if seen.padded_by is None or "Pad" not in seen.padded_by or leaf is None or sign is None:
            return seen.padded_by
        before = any(is_op(node, "Pad") for node in self._path(leaf, sign))
        return f"{seen.padded_by} before the sign" if before else seen.padded_by

    def _fused(self, node: ir.Node, final: ir.Node) -> tuple[str, ...]:
        """What stands between the layer's float output and the last tensor that the converted layer's stands for."""
        ends = []
        for i, output in enumerate(final.outputs):
            source = final.metadata_props.get(output_key(SOURCE, i))
            follower: ir.Value | None = output
            while source is None and follower is not None and is_binary_op(final, *OPERATORS):
                # Bits without a name of their own: the pool that they go through has it.
                reader = next(iter(follower.consumers()), None)
                follower = None if reader is None else reader.outputs[0]
                source = None if reader is None else reader.metadata_props.get(SOURCE)
            ends.append(output.name if source is None and not is_binary_op(final, *OPERATORS) else source)
        found: dict[str, None] = {}
        for end in ends:
            value = self.values.get(end or "")
            if value is not None:
                found |= dict.fromkeys(self._between(node.outputs[0], value))
        before = final.inputs[0]
        if (
            not is_binary_op(final, *OPERATORS)
            and before is not None
            and node.inputs[0] is not None
            and before.name in self.values
        ):
            found = dict.fromkeys(self._between(self.values[before.name], node.inputs[0])) | found
        return tuple(found)

    def _binarisation(self, node: ir.Node, final: ir.Node) -> tuple[str, ...]:
        """What was fused into the binarisation of the layer's input, if it is one of floats."""
        current = (
            final.inputs[0].producer() if is_binary_op(final, *OPERATORS) and final.inputs[0] is not None else None
        )
        while current is not None and (is_op(current, "Unsqueeze") or is_binary_op(current, "BinaryMaxPool")):
            current = None if current.inputs[0] is None else current.inputs[0].producer()
        if current is None or not current.op_type.startswith("Binarize") or current.inputs[0] is None:
            return ()
        data = current.inputs[0]
        above = data.producer()
        if data.name not in self.values and above is not None and above.inputs[0] is not None:
            data = above.inputs[0]  # through the Transpose to channels last
        seen = self.canonical.layers[display_name(node)]
        start, end = self.values.get(data.name or ""), self.values.get(seen.leaf or "")
        return () if start is None or end is None else tuple(self._between(start, end))

    def _path(self, start: ir.Value, end: ir.Value) -> list[ir.Node]:
        """The nodes of the float graph on the ways from `start` to `end` that pass no layer."""
        reached: set[ir.Value | None] = {start}
        path = []
        for node in self.order:
            if reached.intersection(node.inputs) and not is_op(node, *LAYER_OPERATORS):
                reached.update(node.outputs)
                path.append(node)
        needed: set[ir.Value | None] = {end}
        used = []
        for node in reversed(path):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
                used.append(node)
        return used[::-1]

    def _between(self, start: ir.Value, end: ir.Value) -> list[str]:
        """The operators on the ways from `start` to `end`; those that make up a sign as "sign"."""
        labels: list[str] = []
        leaves = {leaf for source, leaf in self.canonical.leaves.items() if source == end.name}
        in_sign = False
        for node in self._path(start, end):
            label = (
                "sign" if in_sign or leaves.intersection(v.name for v in node.inputs if v is not None) else _label(node)
            )
            in_sign = label == "sign"
            if label and (label != "sign" or label not in labels):
                labels.append(label)
        return labels

    def _is_last(self, node: ir.Node) -> bool:
        """Whether no other layer depends on this one."""
        reached: set[ir.Value | None] = set(node.outputs)
        for other in self.order:
            if reached.intersection(other.inputs):
                if is_op(other, *LAYER_OPERATORS):
                    return False
                reached.update(other.outputs)
        return True


def _label(node: ir.Node) -> str:
    if is_op(node, *_UNMENTIONED):
        return ""
    if is_op(node, "Add") and all(constant(value) is None for value in node.inputs):
        return "residual Add"
    return _NAMES.get(node.op_type, node.op_type)


def _levels(final: ir.Node) -> str | None:
    """What the levels that a layer reads stand for; None if it reads none."""
    producer = None if final.inputs[0] is None else final.inputs[0].producer()
    while producer is not None and LEVELS not in producer.metadata_props:
        if not is_op(producer, *MOVING_OPERATORS) or producer.inputs[0] is None:
            return None
        producer = producer.inputs[0].producer()
    if producer is None:
        return None
    levels = json.loads(producer.metadata_props[LEVELS])
    return f"levels 0 to {len(levels['thresholds'])}, times {levels['step']:.3g}"


def _status(final: ir.Node) -> str:
    if is_binary_op(final, *OPERATORS):
        return OPERATORS[final.op_type].format(**{key: attribute.value for key, attribute in final.attributes.items()})
    maker = final.inputs[1].producer() if len(final.inputs) > 1 and final.inputs[1] is not None else None
    if maker is not None and is_op(maker, "Transpose") and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    if maker is not None and is_binary_op(maker, *WEIGHT_OPERATORS):
        return WEIGHT_OPERATORS[maker.op_type]
    return FLOAT


def _filters(node: ir.Node) -> NDArray[Any] | None:
    """A layer's constant weights as [O, ...] (those of ConvTranspose as they are); None if they are not constant."""
    weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is None or weight.ndim < 2:
        return None
    if is_op(node, "MatMul") or (
        is_op(node, "Gemm") and not ("transB" in node.attributes and node.attributes["transB"].as_int())
    ):
        return np.swapaxes(weight, 0, -1)
    return weight


def _weights(
    filters: NDArray[Any] | None, form: WeightForm | None, scheme: str | None
) -> tuple[str, float | None, int, tuple[float, float] | None]:
    """Text, spread, zeros and scale of a layer's weights [O, ...]."""
    if filters is None:
        return "not constant", None, 0, None
    if scheme is not None:
        origin = f"latent, binarised by {scheme}"
    elif form is None or form.text == "W":
        origin = "constant"
    else:
        origin = f"{form.text}, folded"
    magnitudes = np.abs(filters.reshape(len(filters), -1))
    counts = np.count_nonzero(magnitudes, axis=1)
    zeros = magnitudes.size - int(counts.sum())
    high = magnitudes.max(axis=1).astype(np.float64)
    if not np.isfinite(high).all():
        return f"{origin}, with NaN or infinity", None, zeros, None
    low = magnitudes.min(axis=1) if zeros == 0 else np.where(magnitudes == 0, np.inf, magnitudes).min(axis=1)
    alive = high > 0
    spread = float(((high - low)[alive] / high[alive]).max(initial=0.0))
    parts = [origin]
    if spread > MAX_SPREAD:
        parts.append("real-valued")
    elif origin == "constant":
        parts.append("two-valued")
    if zeros:
        parts[-1] += f" but for {zeros} exact {'zeros' if zeros > 1 else 'zero'}"
    if spread > MAX_SPREAD:
        return ", ".join(parts), spread, zeros, None
    if spread:
        parts.append(f"spread {spread:.0e}")
    # As LowerBinaryConv takes it: one magnitude to the last bit, or the mean.
    means = magnitudes.sum(axis=1, dtype=np.float64) / np.maximum(counts, 1)
    alpha = np.where(high == low, high, means)
    return ", ".join(parts), spread, zeros, (float(np.float32(alpha.min())), float(np.float32(alpha.max())))


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


def quantized(layers: Sequence[LayerReport], names: Iterable[str]) -> tuple[LayerReport, ...]:
    """The same report after the layers of these names were quantised to 8 bits."""
    chosen = set(names)
    return tuple(
        replace(layer, status=INT8, advice="nothing: --edges int8 has stored it in 8 bits")
        if layer.name in chosen
        else layer
        for layer in layers
    )
