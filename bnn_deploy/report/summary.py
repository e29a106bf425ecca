"""The report as a whole: its records, its JSON form, and the summaries of a converted model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.json_form import JsonDocument
from bnn_deploy.operators.contract import is_binary_layer, operator_of
from bnn_deploy.passes.graph import constant, is_op
from bnn_deploy.passes.outcome import Decline, display_name
from bnn_deploy.provenance import part_of


def join_reasons(declined: Iterable[Decline]) -> str:
    """Why layers stay float, on one line: each reason once."""
    layers: dict[str, list[str]] = {}
    for decline in declined:
        layers.setdefault(decline.reason, []).append(f"{decline.op_type} '{decline.node}'")
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in layers.items())


def report_bytes(report: Report) -> bytes:
    """The content of a report's file: JSON."""
    return (json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def quantized_layers(model: ir.Model) -> list[str]:
    """The names of the layers of a converted model that have 8-bit weights."""
    return [
        display_name(node)
        for node in model.graph
        if is_op(node, "Conv", "Gemm") and (weight := node.inputs[1]) and is_op(weight.producer(), "DequantizeLinear")
    ]


def constant_channels(model: ir.Model) -> list[tuple[str, int, int]]:
    """The binarisations of a binary model that have channels whose threshold is always, or never, reached.

    A BatchNorm with gamma 0 makes one; a ReLU right before a sign makes all of them so, which is hardly meant.
    """
    found: dict[str, NDArray[np.bool_]] = {}
    for node in model.graph:
        row = operator_of(node)
        if row is None or row.threshold is None:
            continue
        thresholds = constant(node.inputs[row.threshold.input])
        assert thresholds is not None
        # Levels have a row for each threshold: they are constant where all of these are.
        constant_bits = np.isin(thresholds, row.threshold.limits).reshape(-1, thresholds.shape[-1]).all(axis=0)
        name = _bits_name(node)
        # The phases of a transposed convolution have one name, and a channel is constant if it is so in all of them.
        found[name] = np.logical_and(constant_bits, found.get(name, True))
    return [(name, int(constant.sum()), len(constant)) for name, constant in found.items() if constant.any()]


def _bits_name(node: ir.Node) -> str:
    """What to call the bits that a node makes: by the layer, or if it is none, by the layer that reads them."""
    if is_binary_layer(node):
        return f"the output of {part_of(node) or display_name(node)}"
    reader: ir.Node | None = node
    while reader is not None and not is_binary_layer(reader):
        reader = next(iter(reader.outputs[0].consumers()), None)
    reader = node if reader is None else reader
    return f"the input of {part_of(reader) or display_name(reader)}"


def binary_layers(model: ir.Model) -> list[str]:
    """The names of the binary convolutions and linear layers of a converted model."""
    return [node.name or "" for node in model.graph if is_binary_layer(node) and part_of(node) is None]


INT8 = "int8"

REMOVED = "removed"


@dataclass(frozen=True)
class ZeroCount:
    """How often a sign is exactly 0; in JSON, an object with these keys.

    Attributes:
        zeros: the number of zeros.
        values: that of all its values.
        samples: on so many samples.
        inputs: the origin of these.
    """

    zeros: int
    values: int
    samples: int
    inputs: str

    def __str__(self) -> str:
        samples = f"{self.samples:,} sample{'' if self.samples == 1 else 's'}"
        return f"{self.zeros:,} of {self.values:,} values on {samples}"


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
        status: "binary", "binary weights only", "float", "int8" (float, quantised to 8 bits), or "removed" (what
            it computes cancels out); with activations of k bits, 0/1 among them, "binary, k-bit activations".
        becomes: its operator in the converted model; null if it was removed.
        same_as: the equal layer that is computed in its place; null, as a rule.
        activation: how the float graph writes the sign that the layer reads, as a formula of x, such as
            "2 * Cast(x >= 0) - 1"; "t" is a constant with one number per channel; or the levels that it reads, as
            "levels 0 to 3, times 0.333"; null if it reads neither.
        sign_of_zero: what that sign gives at 0: -1, 0 or 1; null likewise.
        converted_sign_of_zero: what it gives in the converted model: where the float graph has 0, one bit has +1.
        zero_cause: why what a sign that gives 0 at 0 is taken of may well be exactly 0, such as "sums of ±alpha"; null
            otherwise.
        exact_zeros: how often such a sign is 0 on some inputs; null if its layer keeps the 0, or nothing was counted.
        weights: where the weights come from and what they look like, such as "Sign(W), folded" or "latent, binarised by
            xnor-centred".
        spread: largest difference of |w| within a filter, relative to its largest |w|; 0 for exactly two values, null
            if the weights are not constant.
        zeros: number of weights that are exactly 0, as they are used.
        filled_zeros: number of these that became ±alpha, by --zero-weights.
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
    zero_cause: str | None
    exact_zeros: ZeroCount | None
    weights: str
    spread: float | None
    zeros: int
    filled_zeros: int
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
class Report(JsonDocument):
    """The report of a conversion.

    Attributes:
        source: the file, or the name of the module.
        layers: one entry per convolution and linear layer, in the order of the float graph.
        not_fused: what the passes declined to fuse, with the reason.
        constant_channels: for each binarisation with channels whose bit never changes: which, how many, of how many.
        notes: what was done to the source before the passes that its user should know, one line each.
        sha256: of the converted model; None if none was written.
    """

    JSON_FORMAT = "conversion"
    JSON_PROPERTIES: ClassVar = ("counts",)

    source: str
    layers: tuple[LayerReport, ...]
    not_fused: tuple[Decline, ...]
    constant_channels: tuple[tuple[str, int, int], ...]
    notes: tuple[str, ...] = ()
    sha256: str | None = None

    @property
    def counts(self) -> dict[str, int]:
        """The number of layers of each status."""
        statuses = [layer.status for layer in self.layers]
        return {status: statuses.count(status) for status in dict.fromkeys(statuses)}


def quantized(layers: Sequence[LayerReport], names: Iterable[str]) -> tuple[LayerReport, ...]:
    """The same report after the layers of these names were quantised to 8 bits."""
    chosen = set(names)
    return tuple(
        replace(layer, status=INT8, advice="nothing: it is stored in 8 bits") if layer.name in chosen else layer
        for layer in layers
    )
