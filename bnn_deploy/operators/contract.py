"""The table of the operators of the ONNX domain `bnn_deploy`, version 1: one row each, which everything else reads.

Every converted model carries the operators as ONNX functions (`bodies`), so it runs on any ONNX runtime; the C++
library registers kernels under the same names, which onnxruntime prefers to the functions. Changing an operator's
meaning takes a new version of the domain.

Bits are uint32 [N, spatial..., ceil(C/32)] (see `operators.bits`). All attributes are required. `pad_value` is the
value of a padded tap: 0 (PyTorch's zero padding: a padded tap adds nothing), or -1 or +1, for all input channels or per
channel. A fully connected layer is a BinaryConv whose kernel covers its input.

Where inputs are odd: the unused bits of a last word are ignored in X, A and B, and must be 0 in W. A batch of 0 and
images without pixels give what their shapes say. A window, of a convolution or a pool, that is larger than the padded
input is refused, and a pool of no channels. A sum of no products is 0, never -0. Kernels refuse pads that make more
than 2^26 elements of X and more than 16 times those that it has; bodies take the memory. Every output of a node has a
name in models for bodies; the kernel of BinaryConvResidual may lack one.

    python -m bnn_deploy.operators.contract    # prints what docs/operators.md has of it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from bnn_deploy.operators.shapes import (
    MacRule,
    Shape,
    ShapeRule,
    StandardMacRule,
    averaged,
    binarized,
    binarized_last,
    conv_macs,
    conv_transpose_macs,
    convolved,
    convolved_directly,
    convolved_directly_to_bits,
    convolved_to_bits,
    direct_macs,
    gemm_macs,
    image_convolved,
    image_convolved_to_bits,
    image_macs,
    linear,
    linear_macs,
    linear_of_relu,
    matmul_macs,
    multiplied,
    no_macs,
    pooled,
    standard_conv_macs,
    standard_matmul_macs,
    unpacked,
    weight_macs,
)

DOMAIN = "bnn_deploy"

VERSION = 1

OPSET = 20
"""The version of the standard operators that the bodies are written in."""

MAX_LEVEL_BITS = 4
"""Most bits that a level may have."""

MAX_BASES = 4
"""Most bases that the weights of a BinaryConvBases may have."""

MAX_TERMS = 2**24
"""Upper bound, exclusive, of products per output: the bodies sum them in float32, whose integers are exact below it."""

MAX_SPATIAL = 3
"""Most spatial dimensions of a convolution or pool."""

MAX_POOL = 16
"""Largest window of the pool behind a DirectConv, in each dimension: the kernel keeps so many rows."""

FLOAT_LAYERS: Mapping[str, StandardMacRule] = {
    "Conv": standard_conv_macs,
    "ConvTranspose": conv_transpose_macs,
    "Gemm": gemm_macs,
    "MatMul": standard_matmul_macs,
}
"""The standard operators that are layers: convolutions and linear layers with weights as their second input -> the rule
for their multiply-accumulates."""

ALWAYS, NEVER = int(np.iinfo(np.int32).min), int(np.iinfo(np.int32).max)
"""Integer thresholds: every sum reaches ALWAYS, no sum reaches NEVER."""

BINARY = "binary"
"""The status of a layer with ±1 activations and ±alpha weights."""

WEIGHTS_ONLY = "binary weights only"
"""The status of a layer with real inputs whose weights are stored in one bit each."""

FLOAT = "float"
"""The status of a layer with real inputs and weights."""

Content = Literal["bits", "planes", "floats"]
"""The content of a tensor: sign bits, bit planes of levels, or float32 numbers."""


@dataclass(frozen=True)
class Input:
    """An input of an operator.

    Attributes:
        name: its name in the function.
        dtype: numpy's name of its element type.
        layout: its dimensions.
        neutral: for an operand that is applied after scale and bias, its neutral element: 1 for a factor, 0 for a
            residual; None for other inputs.
    """

    name: str
    dtype: str
    layout: str
    neutral: float | None = None


@dataclass(frozen=True)
class Output:
    """An output of an operator.

    Attributes:
        name: its name in the function.
        content: bits, planes or floats.
        layout: its dimensions.
        tolerance: the relative tolerance between two implementations, from the first input's channels; None for 0.
        channels_last: whether the output channels of floats are the last dimension, instead of the second.
    """

    name: str
    content: Content
    layout: str
    tolerance: Callable[[int], float] | None = None
    channels_last: bool = False


@dataclass(frozen=True)
class Threshold:
    """The thresholds of an operator.

    Attributes:
        input: the index of the input that holds them, [C], or [thresholds, C] of levels.
        limits: the thresholds that every number reaches and that no number reaches: the bit is constant.
        output: the index of the output that holds the bits.
        of_sums: whether the thresholds apply to integer sums, which are exact, instead of floats or 8-bit numbers.
        of_windows: whether they apply to the sums of the windows that the attributes name, instead of single floats.
    """

    input: int
    limits: tuple[float, float] = (-np.inf, np.inf)
    output: int = 0
    of_sums: bool = False
    of_windows: bool = False


@dataclass(frozen=True)
class Operator:
    """A row of the table: everything that the Python code knows about one operator.

    Attributes:
        name: its name in the domain.
        inputs: in order.
        outputs: in order.
        formula: its computation, in a line; also the doc string of the function.
        note: an addition to the formula, for readers.
        contract: requirements beyond formula and layouts.
        shapes: the rule for the shapes of its outputs.
        attributes: name -> "INT" or "INTS".
        status: for a convolution or linear layer: its status in reports, a format string of its attributes; FLOAT for
            one whose inputs and weights are floats.
        weights_status: for an operator that computes the weights of a standard layer: that layer's status.
        threshold: its thresholds; None if it has none.
        channels_last: whether the channels of its first input are the last dimension, as in bits.
        macs: the rule for its multiply-accumulates.
        sums: for sums of products of floats, which every implementation rounds in an order of its own: the operator
            that gives these sums as floats, from as many of the first inputs as it has, and the same attributes;
            itself, if it does. None where all implementations give the same bits, see `Output.tolerance`.
        has_kernel: whether the C++ library has a kernel for it; without one its body runs.
    """

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    formula: str
    note: str
    contract: str
    shapes: ShapeRule
    attributes: Mapping[str, str]
    status: str | None = None
    weights_status: str | None = None
    threshold: Threshold | None = None
    channels_last: bool = False
    macs: MacRule = no_macs
    sums: str | None = None
    has_kernel: bool = True

    @property
    def is_layer(self) -> bool:
        """Whether it is a convolution or linear layer."""
        return self.status is not None

    @property
    def is_binary_layer(self) -> bool:
        """Whether it is a layer whose products are of bits: not a float one."""
        return self.is_layer and self.status != FLOAT

    @property
    def is_affine(self) -> bool:
        """Whether it is a layer with floats = scale * sum + bias, into which a BatchNorm can be folded."""
        names = {given.name for given in self.inputs}
        return self.is_layer and {"scale", "bias"} <= names and self.threshold is None

    @property
    def operand(self) -> int | None:
        """The index of the input that is applied after scale and bias (factor, residual); None if there is none."""
        return next((i for i, given in enumerate(self.inputs) if given.neutral is not None), None)

    @property
    def signature(self) -> str:
        """Such as "Binarize(X, threshold)"."""
        return f"{self.name}({', '.join(given.name for given in self.inputs)})"

    def holds_bits(self, output: int) -> bool:
        """Whether an output holds bits, of signs or of levels."""
        return self.outputs[output].content != "floats"


_WINDOW = dict.fromkeys(("kernel_shape", "strides", "pads", "dilations"), "INTS")
_CONV = {"channels": "INT", **_WINDOW, "group": "INT"}
_POOL = {**_WINDOW, "ceil_mode": "INT"}
_DIRECT = _WINDOW | dict.fromkeys(("pool_shape", "pool_strides", "pool_pads"), "INTS")
_IMAGE = {"channels_last": "INT", **_DIRECT}

_FLOATS = Input("X", "float32", "[N, C, spatial...]")
_BITS = Input("X", "uint32", "[N, spatial..., ceil(C/32)]")
_WEIGHTS = Input("W", "uint32", "[O, kernel..., ceil((C/group)/32)]")
_SCALE = Input("scale", "float32", "[O]")
_BIAS = Input("bias", "float32", "[O]")
_PAD = Input("pad_value", "float32", "[1] or [C]")
_BYTES = Input("X", "uint8", "[N, C, spatial...], or [N, spatial..., C]")
_LEVELS = Input("levels", "float32", "[C, 256]")
_FLOAT_WEIGHTS = Input("W", "float32", "[O, C, kernel...]")
_Y = Output("Y", "floats", "[N, O, spatial'...]")
_Y_BITS = Output("Y", "bits", "[N, spatial..., ceil(C/32)]")


def _mean_tolerance(channels: int) -> float:
    """A kernel is within min(C, C / 32 + 40) * 2^-24 of the exact mean; the function body rounds the mean once."""
    return float((min(channels, channels // 32 + 40) + 1) * 2.0**-24)


_ROWS = (
    Operator(
        name="Binarize",
        inputs=(_FLOATS, Input("threshold", "float32", "[C]")),
        outputs=(_Y_BITS,),
        formula="bit = X >= threshold[c]; NaN gives 0",
        note="",
        contract="",
        shapes=binarized,
        attributes={},
        threshold=Threshold(1),
    ),
    Operator(
        name="BinarizeChannelsLast",
        inputs=(Input("X", "float32", "[N, spatial..., C]"), Input("threshold", "float32", "[C]")),
        outputs=(_Y_BITS,),
        formula="bit = X >= threshold[c]; NaN gives 0; channels last",
        note="",
        contract="",
        shapes=binarized_last,
        attributes={},
        threshold=Threshold(1),
        channels_last=True,
    ),
    Operator(
        name="BinarizeQuantized",
        inputs=(Input("X", "uint8", "[N, spatial..., C]"), Input("threshold", "int32", "[C]")),
        outputs=(_Y_BITS,),
        formula="bit = X >= threshold[c], channels last",
        note="behind an 8-bit layer",
        contract="The output of a quantised layer stays in 8 bits and channels last.",
        shapes=binarized_last,
        attributes={},
        threshold=Threshold(1, limits=(0, 256)),
        channels_last=True,
    ),
    Operator(
        name="BinarizeAbsMean",
        inputs=(_FLOATS, *(Input(name, "float32", "[C]") for name in ("threshold", "scale", "shift"))),
        outputs=(
            Output("bits", "bits", "[N, spatial..., ceil(C/32)]"),
            Output("A", "floats", "[N, 1, spatial...]", _mean_tolerance),
        ),
        formula="bit = X >= threshold[c], NaN gives 0; A = mean over c of |scale[c] * X + shift[c]|",
        note="K of XNOR-Net is filtered from A",
        contract="scale[c] * X + shift[c] is a float32 product and a float32 sum. The order in which the terms of A "
        "are added is open: A is within min(C, C / 32 + 40) * 2^-24, in relative terms, of their exact mean.",
        shapes=binarized,
        attributes={},
        threshold=Threshold(1),
    ),
    Operator(
        name="BinaryConv",
        inputs=(_BITS, _WEIGHTS, _SCALE, _BIAS, _PAD),
        outputs=(_Y,),
        formula="scale[o] * acc + bias[o]",
        note="acc is the exact integer sum of the products of ±1",
        contract="A float32 product and then a float32 sum.",
        shapes=convolved,
        attributes=_CONV,
        status=BINARY,
        macs=conv_macs,
    ),
    Operator(
        name="BinaryConvScaled",
        inputs=(_BITS, _WEIGHTS, _SCALE, _BIAS, _PAD, Input("factor", "float32", "[N, 1, spatial'...]", neutral=1.0)),
        outputs=(_Y,),
        formula="(scale[o] * acc + bias[o]) * factor",
        note="one factor per pixel: K, or a gate",
        contract="Three roundings in this order. The factor is K of XNOR-Net (Rastegari et al., ECCV 2016, equation "
        "11), or any other gate per pixel.",
        shapes=convolved,
        attributes=_CONV,
        status=BINARY,
        macs=conv_macs,
    ),
    Operator(
        name="BinaryConvThreshold",
        inputs=(_BITS, _WEIGHTS, Input("threshold", "int32", "[O]"), _PAD),
        outputs=(Output("Y", "bits", "[N, spatial'..., ceil(O/32)]"),),
        formula="bit = acc >= threshold[o]",
        note="",
        contract="",
        shapes=convolved_to_bits,
        attributes=_CONV,
        status=BINARY,
        threshold=Threshold(2, limits=(ALWAYS, NEVER), of_sums=True),
        macs=conv_macs,
    ),
    Operator(
        name="BinaryConvResidual",
        inputs=(
            *(_BITS, _WEIGHTS, _SCALE, _BIAS, _PAD),
            Input("residual", "float32", "[N, O, spatial'...]", neutral=0.0),
            Input("threshold", "float32", "[O]"),
        ),
        outputs=(_Y, Output("bits", "bits", "[N, spatial'..., ceil(O/32)]")),
        formula="Y = (scale[o] * acc + bias[o]) + residual; bit = Y >= threshold[o]",
        note="",
        contract="Three roundings in this order; a Bi-Real block.",
        shapes=convolved,
        attributes=_CONV,
        status=BINARY,
        threshold=Threshold(6, output=1),
        macs=conv_macs,
    ),
    Operator(
        name="BinaryMaxPool",
        inputs=(_BITS,),
        outputs=(Output("Y", "bits", "[N, spatial'..., ceil(C/32)]"),),
        formula="the OR of the bits in the window; padding adds nothing",
        note="",
        contract="",
        shapes=pooled,
        attributes=_POOL,
    ),
    Operator(
        name="AveragePoolThreshold",
        inputs=(Input("X", "float32", "[N, C, H, W]"), Input("threshold", "float32", "[C]")),
        outputs=(Output("Y", "bits", "[N, H', W', ceil(C/32)]"),),
        formula="bit = the sum of X in the window >= threshold[c], of max(X, 0) if relu is 1; NaN gives 0",
        note="the division of an average is in the threshold",
        contract="A padded tap is 0. In float32 the rows of a window are added from top to bottom, and then these sums "
        "from left to right.",
        shapes=averaged,
        attributes=_WINDOW | {"relu": "INT"},
        threshold=Threshold(1, of_windows=True),
    ),
    Operator(
        name="UnpackWeights",
        inputs=(Input("W", "uint32", "[O, ceil(n/32)]"), _SCALE),
        outputs=(Output("Y", "floats", "[O, *shape]"),),
        formula="scale[o] where the bit is 1, else -scale[o]; [O, *shape]",
        note="weights of a standard layer with real inputs; folded when the session is made",
        contract="The n = prod(shape) bits of a row are one filter, in the order of its elements: weight i of filter o "
        "is scale[o] where bit i % 32 of word i // 32 is 1. onnxruntime inlines the body, folds it into a constant "
        "when it makes the session, and runs the layer behind it as it runs any other.",
        shapes=unpacked,
        attributes={"shape": "INTS"},
        weights_status=WEIGHTS_ONLY,
        has_kernel=False,
    ),
    Operator(
        name="QuantizeLevels",
        inputs=(_FLOATS, Input("thresholds", "float32", "[2^bits - 1, C]")),
        outputs=(Output("Y", "planes", "[N, spatial..., bits * ceil(C/32)]"),),
        formula="level = number of thresholds of its channel that X reaches, as planes of bits",
        note="0 to 2^k - 1, k planes",
        contract="The thresholds of a channel ascend; reached is X >= threshold, NaN gives 0. Plane j, at words j * "
        "ceil(C/32) and up, holds bit j of the levels; bits is 1 to 4. These are the activations of DoReFa-Net (Zhou "
        "et al. 2016, equation 5) and HWGQ-Net (Cai et al. 2017) in units of their step.",
        shapes=binarized,
        attributes={"bits": "INT"},
        threshold=Threshold(1),
    ),
    Operator(
        name="BinaryConvLevels",
        inputs=(Input("X", "uint32", "[N, spatial..., bits * ceil(C/32)]"), _WEIGHTS, _SCALE, _BIAS),
        outputs=(_Y,),
        formula="scale[o] * acc + bias[o], of levels",
        note="acc is the exact integer sum of level * ±1",
        contract="A padded tap holds level 0. scale is 0 or at least 2^-125 in magnitude.",
        shapes=convolved,
        attributes=_CONV | {"bits": "INT"},
        status="binary, {bits}-bit activations",
        macs=conv_macs,
    ),
    Operator(
        name="BinaryConvBases",
        inputs=(
            Input("X", "uint32", "[N, spatial..., planes * ceil(C/32)]"),
            Input("W", "uint32", "[O, kernel..., bases * ceil((C/group)/32)]"),
            Input("scale", "float32", "[planes + 1, bases + 1, O]"),
            _BIAS,
        ),
        outputs=(_Y,),
        formula="bias[o] + the sum over p, q of scale[p, q, o] * acc, of few levels and weights of few values",
        note="acc is the exact integer sum of the products of plane p of X and basis q of W, both ±1; plane 0 and "
        "basis 0 are 1",
        contract="A padded tap adds nothing to any acc. From left to right, each product and each sum rounded to "
        "float32: bias + 0; p = 0 with q = 0, 1, ...; q = 0 with p = 1, 2, ...; then for each q from 1 on all p from 1 "
        "on. So levels b + sum of c_p * s_p times weights beta[o] + sum of alpha_q[o] * B_q take planes * bases binary "
        "convolutions: AdaBin (Tu et al. 2022), TWN (Li et al. 2016), TTQ (Zhu et al. 2017), ABC-Net (Lin et al. 2017) "
        "and LQ-Nets (Zhang et al. 2018).",
        shapes=convolved,
        attributes=_CONV | {"planes": "INT", "bases": "INT"},
        status="binary, {planes} x {bases} bit planes",
        macs=conv_macs,
    ),
    Operator(
        name="BinaryLinear",
        inputs=(
            Input("X", "uint32", "[N, ..., ceil(C/32)]"),
            Input("W", "uint32", "[O, ceil(C/32)]"),
            _SCALE,
            _BIAS,
        ),
        outputs=(Output("Y", "floats", "[N, ..., O]", channels_last=True),),
        formula="scale[o] * acc + bias[o], over the last dimension",
        note="a linear layer on tokens or time steps, [N, T, C] to [N, T, O]",
        contract="acc is the exact integer sum of the products of ±1; a float32 product and then a float32 sum.",
        shapes=linear,
        attributes={"channels": "INT"},
        status=BINARY,
        macs=linear_macs,
    ),
    Operator(
        name="BinaryMatMul",
        inputs=(
            Input("A", "uint32", "[..., M, bits * ceil(C/32)]"),
            Input("B", "uint32", "[..., N, ceil(C/32)]"),
            Input("scale", "float32", "[1]"),
        ),
        outputs=(Output("Y", "floats", "[..., M, N]", channels_last=True),),
        formula="scale * acc, of two activations",
        note="acc is the exact integer sum over c of a[m, c] * b[n, c]: binary attention",
        contract="b is ±1. a is ±1 if signs is 1, and bits then 1; else it is levels of so many planes, as those of "
        "BinaryConvLevels. Both have the same leading dimensions. scale is at least 2^-125.",
        shapes=multiplied,
        attributes={"channels": "INT", "bits": "INT", "signs": "INT"},
        status=BINARY,
        macs=matmul_macs,
    ),
    Operator(
        name="DirectConv",
        inputs=(_FLOATS, _FLOAT_WEIGHTS, _BIAS),
        outputs=(_Y,),
        formula="the largest in the pool's window of bias[o] + the sum of x * w; floats",
        note="a first layer: few channels",
        contract="W and bias are constants. pool_shape, pool_strides and pool_pads are those of a MaxPool without "
        "dilations that rounds down, of at most MAX_POOL in each dimension; each pad is smaller than "
        "pool_shape, and adds nothing to the largest; 1, 1 and 0 are no pool. There are one or two spatial "
        "dimensions. The kernel starts at bias[o] and goes over the channels and in each over the taps in "
        "row-major order: acc = fma(x, w, acc) in float32; without FMA the product is rounded, too. A padded "
        "tap is x = 0. In another order the sum is another one within rounding: two implementations differ by "
        "at most `sum_rounding(n)` of the same sum of the magnitudes, n = C * taps.",
        shapes=convolved_directly,
        attributes=_DIRECT,
        status=FLOAT,
        macs=direct_macs,
        sums="DirectConv",
    ),
    Operator(
        name="DirectConvThreshold",
        inputs=(_FLOATS, _FLOAT_WEIGHTS, _BIAS, Input("threshold", "float32", "[O]")),
        outputs=(Output("Y", "bits", "[N, spatial'..., ceil(O/32)]"),),
        formula="bit = DirectConv(X, W, bias) >= threshold[o]; NaN gives 0",
        note="",
        contract="The bits are pooled: an OR. In another order of the sum a bit may differ where it is so near to the "
        "threshold.",
        shapes=convolved_directly_to_bits,
        attributes=_DIRECT,
        status=FLOAT,
        threshold=Threshold(3),
        macs=direct_macs,
        sums="DirectConv",
    ),
    Operator(
        name="ImageConv",
        inputs=(_BYTES, _FLOAT_WEIGHTS, _BIAS, _LEVELS),
        outputs=(_Y,),
        formula="DirectConv(levels[c, X], W, bias) of an image of bytes; floats",
        note="a first layer behind a camera",
        contract="levels is a constant: the float32 numbers that the bytes of each channel stand for, normalised. X is "
        "[N, spatial..., C] if channels_last is 1, and [N, C, spatial...] if it is 0.",
        shapes=image_convolved,
        attributes=_IMAGE,
        status=FLOAT,
        macs=image_macs,
        sums="ImageConv",
    ),
    Operator(
        name="ImageConvThreshold",
        inputs=(_BYTES, _FLOAT_WEIGHTS, _BIAS, _LEVELS, Input("threshold", "float32", "[O]")),
        outputs=(Output("Y", "bits", "[N, spatial'..., ceil(O/32)]"),),
        formula="bit = ImageConv(X, W, bias, levels) >= threshold[o]; NaN gives 0",
        note="",
        contract="The bits are those of DirectConvThreshold(levels[c, X], ...), all of them, also where a kernel "
        "computes with integers.",
        shapes=image_convolved_to_bits,
        attributes=_IMAGE,
        status=FLOAT,
        threshold=Threshold(4),
        macs=image_macs,
        sums="ImageConv",
    ),
    Operator(
        name="ReluLinear",
        inputs=(
            Input("X", "float32", "[N, ...]"),
            Input("W", "float32", "[C, O]"),
            _BIAS,
        ),
        outputs=(Output("Y", "floats", "[N, O]", channels_last=True),),
        formula="bias[o] + the sum over c of max(X[c], 0) * W[c, o]; floats",
        note="a last layer: the weights of inputs that are 0 are not read",
        contract="X is taken as [N, C]. W and bias are constants, W is finite; a NaN in X makes Y NaN. The kernel "
        "starts at bias[o] and goes over c in its order: acc = fma(x, w, acc) in float32; without FMA the product is "
        "rounded, too. Products with 0 may be left out: the sign of a Y that is 0 is open. Two implementations differ "
        "as those of DirectConv do, n = C.",
        shapes=linear_of_relu,
        attributes={},
        status=FLOAT,
        macs=weight_macs,
        sums="ReluLinear",
    ),
)

OPERATORS: Mapping[str, Operator] = {row.name: row for row in _ROWS}
"""The table."""


class AnyNode(Protocol):
    """A node of a graph: onnx.NodeProto or onnx_ir.Node."""

    @property
    def domain(self) -> str:
        """The operator's domain; empty or "ai.onnx" is standard ONNX."""
        ...

    @property
    def op_type(self) -> str:
        """The operator."""
        ...


def operator_of(node: AnyNode) -> Operator | None:
    """The row of a node's operator; None if the operator is not in the domain."""
    return OPERATORS.get(node.op_type) if node.domain == DOMAIN else None


def is_binary_layer(node: AnyNode | None) -> bool:
    """Whether a node is a convolution or linear layer of the domain with products of bits."""
    row = None if node is None else operator_of(node)
    return row is not None and row.is_binary_layer


def is_layer(node: AnyNode) -> bool:
    """Whether a node is a convolution or linear layer, of the domain or of standard ONNX."""
    row = operator_of(node)
    return row.is_layer if row is not None else node.domain in ("", "ai.onnx") and node.op_type in FLOAT_LAYERS


def standard_macs(op_type: str, data: Shape | None, weights: Shape | None, output: Shape | None) -> int | None:
    """Products of floats per sample of a standard operator: 0 if it is no layer; None if a shape is unknown."""
    rule = FLOAT_LAYERS.get(op_type)
    if rule is None:
        return 0
    return None if data is None or weights is None or output is None else rule(data, weights, output)


def holds_bits(node: AnyNode, output: int) -> bool:
    """Whether an output of a node holds bits."""
    row = operator_of(node)
    return row is not None and row.holds_bits(output)


def relative_tolerance(node: AnyNode, output: int, channels: int) -> float:
    """The relative tolerance between two implementations of a node's output, from its input channels; mostly 0."""
    row = operator_of(node)
    tolerance = None if row is None else row.outputs[output].tolerance
    return 0.0 if tolerance is None else tolerance(channels)


def sum_rounding(terms: int) -> float:
    """By how much two float32 sums of `terms` products and a bias may differ, relative to that of their magnitudes.

    Each is within (n + 1) * 2^-24, to first order, of the exact sum, whatever its order (Higham, Accuracy and Stability
    of Numerical Algorithms, section 3.1); one more is for the sum of the magnitudes, which is rounded, too.
    """
    return float(2 * (terms + 2) * 2.0**-24)


def table(rows: Sequence[Operator] = _ROWS) -> str:
    """The operators and what they compute, as a table in Markdown."""
    lines = [f"| operator (domain `{DOMAIN}`, version {VERSION}) | what it computes |", "|---|---|"]
    for row in rows:
        text = "; ".join(part for part in (row.formula, row.note) if part).replace("|", "\\|")
        lines.append(f"| `{row.signature}` | {text} |")
    return "\n".join(lines)


def section(row: Operator) -> str:
    """All of an operator's row, in Markdown."""
    text = "; ".join(part for part in (row.formula, row.note) if part).replace("*", "\\*")
    lines = [f"## {row.name}", "", f"{text}.", "", "| | name | type | dimensions |", "|---|---|---|---|"]
    lines += [f"| input | `{given.name}` | {given.dtype} | `{given.layout}` |" for given in row.inputs]
    types = {"bits": "uint32, bits", "planes": "uint32, planes of bits", "floats": "float32"}
    lines += [f"| output | `{made.name}` | {types[made.content]} | `{made.layout}` |" for made in row.outputs]
    lines += [f"| attribute | `{name}` | {kind} | |" for name, kind in row.attributes.items()]
    if row.contract:
        lines += ["", row.contract.replace("*", "\\*")]
    return "\n".join(lines)


def reference() -> str:
    """The generated part of docs/operators.md."""
    return "\n\n".join([table(), *map(section, _ROWS)])


if __name__ == "__main__":
    print(reference())
