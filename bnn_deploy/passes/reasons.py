"""Why a layer stays float: one class per reason, with its text, what a user can change, and an example.

Why something is not fused is in `passes.fusion_reasons`.

python -m bnn_deploy.passes.reasons        # prints the table of docs/converting.md
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from bnn_deploy.errors import on_command_line, with_options

EDGES = "{calibration} stores it in 8 bits"


class Reason:
    """Why a pass left a node alone.

    Attributes:
        template: one sentence for the user, with the names of the fields in braces.
        example: a graph for which it is given.
        advice: what to change so that a layer need not stay float, with options as `errors.with_options` takes them; ""
            if the reason is none for which a layer does.
        last_advice: the same for a layer that no other layer comes after; "" if it is `advice`.
        reads_sign: whether the layer's input is a sign or has few levels, so that it looks as if it was meant to be
            binary.
    """

    template: ClassVar[str]
    example: ClassVar[str]
    advice: ClassVar[str] = ""
    last_advice: ClassVar[str] = ""
    reads_sign: ClassVar[bool] = False

    @property
    def text(self) -> str:
        """The sentence for the user."""
        return self.template.format_map(vars(self))

    def __str__(self) -> str:
        return self.text


class LayerReason(Reason):
    """Why a layer whose input is a sign, or has few levels, stays float."""

    reads_sign = True


# The input is real-valued.


@dataclass(frozen=True)
class ModelInput(Reason):
    """A first layer."""

    template = "its input is the model's real-valued input, not the output of a sign"
    example = "Conv(x, w), x the input of the model"
    advice = f"as in the papers, whose first layers stay float; {EDGES}"


@dataclass(frozen=True)
class RealInput(Reason):
    """A layer behind an operator whose output is real-valued."""

    operator: str

    template = "its input is real-valued: the output of {operator}, not of a sign"
    example = "Conv(Relu(x), w)"
    advice = f"if it is to be binary, put a sign in front of it and train again; {EDGES}"
    last_advice = f"as in the papers, whose last layers stay float; {EDGES}"


@dataclass(frozen=True)
class MeanMagnitude(Reason):
    """The filter of XNOR-Net's K."""

    template = "it filters the mean magnitude of a binary layer's input, which scales that layer (K of XNOR-Net)"
    example = "Conv(ReduceMean(Abs(x)), box), where Sign(x) feeds a binary layer"
    advice = "nothing: it has one channel, and costs little"


# The weights and the bias.


@dataclass(frozen=True)
class RealWeights(LayerReason):
    """More than one magnitude in a filter."""

    filter: int
    low: float
    high: float

    template = "its weights are real-valued: filter {filter} has |w| from {low:.3g} to {high:.3g}"
    example = "Conv(Sign(x), w), w of 0.5 and 2"
    advice = (
        "if they are latent, say by which recipe they are binarised: {weights:xnor}, xnor-centred or sign (for a "
        "checkpoint that this does not change, convert the float model, {float_output}); trained real, they stay float"
    )


@dataclass(frozen=True)
class ExactZeros(LayerReason):
    """Weights of ±alpha and 0 that are too few to be told from real-valued ones."""

    filter: int
    count: int

    template = "filter {filter} has {count} weights that are exactly 0, which one bit cannot hold"
    example = "MatMul(Sign(x), w), w of [4, 2], of -1, 0 and 1"
    advice = (
        "train so that no weight is 0: with sign(0) = +1; a few zeros: {zero_weights}; filters of 6 weights and more "
        "may be ternary"
    )


@dataclass(frozen=True)
class ManyWeightValues(LayerReason):
    """Weights of a few values that are no sum of a few ±alpha."""

    filter: int
    values: int
    bases: int

    template = "filter {filter} has {values} values, which are no sums of {bases} or fewer ±alpha"
    example = "Conv(Sign(x), w), w of 9 random numbers"
    advice = f"train with 2 or 3 values per filter, or with sums of ±alpha; {EDGES}"


@dataclass(frozen=True)
class ManyPasses(LayerReason):
    """Levels and weights of too many bits."""

    planes: int
    bases: int
    most: int

    template = (
        "its {planes} bit planes of activations times {bases} of weights take as many binary convolutions; with more "
        "than {most} it is slower than in 8 bits"
    )
    example = "Conv(Round(15 * Clip(x, 0, 1)) / 15, w), w of -1, 0 and 1"
    advice = f"train with fewer bits; {EDGES}"


@dataclass(frozen=True)
class FewProducts(LayerReason):
    """A sum of binary convolutions of small layers."""

    passes: int
    products: int
    least: int

    template = (
        "it takes {passes} binary convolutions of {products} products per output; with fewer than {least} they are "
        "slower than the layer in float32"
    )
    example = "Conv(Sign(x), w), w of -1, 0 and 1, 3x3 of 16 channels"
    advice = f"weights of ±alpha take one binary convolution; a few that are exactly 0: {{zero_weights}}; {EDGES}"


@dataclass(frozen=True)
class NotFinite(LayerReason):
    """NaN or infinity in the weights."""

    filter: int

    template = "filter {filter} holds NaN or infinity"
    example = "Conv(Sign(x), w), one of w NaN"
    advice = "training diverged, or the file is damaged: take another checkpoint"


_INITIALIZERS = "export with the parameters as initializers, computed from nothing but constants"


@dataclass(frozen=True)
class WeightsNotConstant(LayerReason):
    """Weights that are computed from data."""

    template = "its weights are not constant"
    example = "Conv(Sign(x), Relu(x))"
    advice = _INITIALIZERS


@dataclass(frozen=True)
class BiasNotConstant(LayerReason):
    """A bias that is computed from data."""

    template = "its bias is not constant"
    example = "Conv(Sign(x), w, ReduceMean(x))"
    advice = _INITIALIZERS


@dataclass(frozen=True)
class NotFloat32(LayerReason):
    """Weights of another type."""

    dtype: str

    template = "its weights are {dtype}, not float32"
    example = "Conv(Sign(x), w), all float64"
    advice = "convert the float model to float32 first"


@dataclass(frozen=True)
class IntegerLayer(LayerReason):
    """A layer of an 8-bit model in another form than QDQ."""

    operator: str

    template = "its input is a sign, but it computes in 8-bit integers, as {operator}"
    example = "ConvInteger(DynamicQuantizeLinear(Sign(x)), w)"
    advice = "convert the float model; or quantise that in QDQ form (quant_format=QuantFormat.QDQ), not dynamically"


@dataclass(frozen=True)
class WeightDimensions(LayerReason):
    """A linear layer whose weights are no matrix."""

    dimensions: int

    template = "its weights have {dimensions} dimensions, not 2"
    example = "MatMul(Sign(x), w), w of [1, 4, 5]"
    advice = "reshape its weights to [inputs, outputs], its input to [N, inputs]"


@dataclass(frozen=True)
class EinsumForm(LayerReason):
    """An Einsum that is no MatMul and no convolution."""

    equation: str

    template = (
        "Einsum '{equation}' is no linear layer and no product of two matrices: those have two operands, sum over one "
        "label, and have at most one that only the second operand has"
    )
    example = "Einsum('bthd,hdo->bto', Sign(x), w)"
    advice = "write it as linear layers, [..., inputs] times [inputs, outputs], and reshape around them"


@dataclass(frozen=True)
class GemmFactors(LayerReason):
    """A Gemm that is more than a linear layer."""

    template = "a Gemm with alpha, beta or transA is not a linear layer"
    example = "Gemm<alpha=2>(Sign(x), w)"
    advice = "multiply alpha and beta into the weights and the bias, and leave out transA"


@dataclass(frozen=True)
class BiasShape(LayerReason):
    """A Gemm whose bias has not one value per output."""

    shape: str
    outputs: int

    template = "its bias has shape {shape}, not [{outputs}]"
    example = "Gemm(Sign(x), w, c), w of [4, 5], c of [1, 5]"
    advice = "give it a bias of one value per output"


# The geometry.


@dataclass(frozen=True)
class AutoPad(LayerReason):
    """A padding rule, and sizes that are not known."""

    rule: str

    template = "auto_pad = {rule}: export with explicit pads"
    example = 'Conv<auto_pad="SAME_UPPER">(Sign(x), w), x of unknown height'
    advice = "export with explicit pads, or give the input's size with {input_shape}"


@dataclass(frozen=True)
class OutputShape(LayerReason):
    """A transposed convolution that says its output's size, and not its pads."""

    template = "output_shape gives its pads: export with explicit pads"
    example = "ConvTranspose<output_shape=[8, 8]>(Sign(x), w)"
    advice = "export with explicit pads and output_padding, which PyTorch does"


@dataclass(frozen=True)
class SpatialDimensions(LayerReason):
    """A convolution over more than three dimensions."""

    dimensions: int

    template = "it has {dimensions} spatial dimensions; BinaryConv has 1 to 3"
    example = "Conv(Sign(x), w), x of [N, C, T, D, H, W]"
    advice = "write it as convolutions or a linear layer of at most 3 dimensions"


@dataclass(frozen=True)
class InputShape(LayerReason):
    """Channels that are not known."""

    template = "the shape of its input is unknown: export with static channels"
    example = "Conv(Sign(x), w), x of unknown shape"
    advice = "export with fixed sizes besides the batch, or give {input_shape}"


@dataclass(frozen=True)
class PoolForm(LayerReason):
    """A MaxPool between sign and layer that no BinaryMaxPool computes."""

    pool: str

    template = "MaxPool '{pool}' has an index output, auto_pad, or pads or strides beyond what the operators take"
    example = "Conv(MaxPool<auto_pad=...>(Sign(x)), w), x of unknown height"
    advice = "export the MaxPool with explicit pads within its kernel and without its index output"


@dataclass(frozen=True)
class InputDimensions(LayerReason):
    """A linear layer over the last of several dimensions, behind pools."""

    dimensions: int

    template = "its input has {dimensions} dimensions; a linear layer's has 2"
    example = "MatMul(MaxPool(Sign(x)), w), x of [N, C, T]"
    advice = "take the sign behind the MaxPool, right in front of the layer, which computes the same"


_CONTRADICTION = "the sizes contradict each other: export again with the right input shape"


@dataclass(frozen=True)
class Features(LayerReason):
    """A linear layer whose weights are for another number of inputs."""

    features: int
    weight: int

    template = "its input has {features} features, its weight {weight}"
    example = "MatMul(Flatten(Sign(x)), w), x of [N, 4, 6, 6], w of [100, 5]"
    advice = _CONTRADICTION


@dataclass(frozen=True)
class Channels(LayerReason):
    """A convolution whose weights are for another number of channels."""

    channels: int
    weight: int

    template = "its input has {channels} channels, its weight is for {weight}"
    example = "Conv(Sign(x), w), x of [N, 4, 6, 6], w of [8, 3, 3, 3]"
    advice = _CONTRADICTION


@dataclass(frozen=True)
class FlattenedDimensions(LayerReason):
    """A linear layer behind a map of more than three dimensions."""

    dimensions: int

    template = "it flattens {dimensions} spatial dimensions; BinaryConv has 1 to 3"
    example = "MatMul(Flatten(Sign(x)), w), x of [N, C, T, D, H, W]"
    advice = "flatten maps of at most 3 spatial dimensions in front of the layer"


_SPLIT = "split the layer along its input channels into several that are added"


@dataclass(frozen=True)
class ManyProducts(LayerReason):
    """Sums of ±1 that float32 does not hold exactly."""

    products: int

    template = "each output sums {products} products; exact sums need fewer than 2^24"
    example = "MatMul(Sign(x), w), w of [16777216, 1]"
    advice = _SPLIT


@dataclass(frozen=True)
class LargeSums(LayerReason):
    """Sums of levels that float32 does not hold exactly."""

    products: int
    highest: int

    template = "each output sums {products} products of up to {highest}; exact sums need fewer than 2^24 / {highest}"
    example = "MatMul(Round(3 * Clip(x, 0, 1)) / 3, w), w of [5592406, 1]"
    advice = _SPLIT


# The padding.


@dataclass(frozen=True)
class PadValue(LayerReason):
    """Padding with another number than 0 and the signs' own."""

    value: float

    template = "it is padded with {value:g} times the magnitude of the signs; only 0, -1 and 1 can be"
    example = "Conv(Pad(Sign(x), pads, 2), w)"
    advice = "pad with 0, or with plus or minus the magnitude of the signs"


@dataclass(frozen=True)
class MixedPads(LayerReason):
    """Padding with ±1 and around it with 0."""

    value: float

    template = "it is padded with {value:g} by a Pad and with 0 by its own pads, which cannot be mixed"
    example = "Conv<pads=[1, 1, 1, 1]>(Pad(Sign(x), pads, 1), w)"
    advice = "pad in one place: in the convolution with 0, or by a Pad with one value"


@dataclass(frozen=True)
class PadMode(LayerReason):
    """Padding by how much only the data say, or that crops the map."""

    pad: str

    template = "Pad '{pad}' has pads that are not constant, or negative"
    example = "Conv(Pad(Sign(x), pads), w), pads of -1"
    advice = "pad by constant numbers, none of them negative; crop with a Slice"


@dataclass(frozen=True)
class LargeWindow(LayerReason):
    """Strides, pads or dilations that no operator takes."""

    what: str

    template = "its {what} are beyond what the operators take"
    example = "Conv<pads=[5000, 5000, 5000, 5000]>(Sign(x), w), x of 4 by 4 pixels"
    advice = "pad by no more than the windows reach"


@dataclass(frozen=True)
class PadPlace(LayerReason):
    """Padding that is not right in front of the convolution."""

    pad: str

    template = "Pad '{pad}' pads channels, or stands between the sign and a MaxPool or another Pad"
    example = "Conv(MaxPool(Pad(Sign(x), pads)), w)"
    advice = "pad right in front of the convolution, in height and width alone"


@dataclass(frozen=True)
class PadSigns(LayerReason):
    """Padding in front of the sign, whose sign is not one number."""

    pad: str
    channel: int

    template = "its padding, from Pad '{pad}', is 0 in channel {channel} and ±1 in others"
    example = "Conv(Sign(Add(Pad(x, pads), c)), w), c of 0 and 1"
    advice = "pad behind the sign, or with a sign that gives +1 at 0"


@dataclass(frozen=True)
class LevelsPad(LayerReason):
    """Padding of levels with another number than 0 or the lowest."""

    pad: str

    template = "Pad '{pad}' pads with other than 0 and the lowest level, or channels"
    example = "Conv(Pad(Round(3 * Clip(x, 0, 1)) / 3, pads, 1), w)"
    advice = "pad with 0 or the lowest level, in height and width alone"


# The sign and the levels.


@dataclass(frozen=True)
class StepSign(LayerReason):
    """A sign that is 0 over an interval."""

    operator: str
    value: str

    template = (
        "its input is a Sign that gives 0, too, and not only -1 and 1: {operator} '{value}' before it makes exact "
        "zeros, whose sign is 0"
    )
    example = "Conv(Sign(Mul(Relu(x), c)), w), c of 1 and -1"
    advice = (
        "train with a sign that gives +1 at 0, such as Where(x >= 0, 1, -1); if 0 and 1 are meant, take the sign right "
        "behind the ReLU"
    )


_LEVELS = f"train with evenly spaced levels, or sums of ±numbers; {EDGES}"


@dataclass(frozen=True)
class FallingLevels(LayerReason):
    """Levels that fall, or rise and fall."""

    value: str
    count: int

    template = "'{value}' has {count} levels, but does not rise with its input in all channels"
    example = "Conv(Round(3 * Clip(Mul(x, c), 0, 1)) / 3, w), c of 1 and -1"
    advice = _LEVELS


@dataclass(frozen=True)
class UnevenLevels(LayerReason):
    """Levels that are no sum of a few bit planes."""

    count: int
    low: float
    high: float
    levels: str

    template = (
        "its input has {count} levels from {low:.4g} to {high:.4g} that are neither evenly spaced nor sums of ±numbers "
        "in binary order ({levels})"
    )
    example = "Conv(q(x), w), q(x) of 0, 1, 3, 4.5, 7 and 9"
    advice = _LEVELS


# The product of two activations.


@dataclass(frozen=True)
class RealOperand(LayerReason):
    """A product of bits and real numbers."""

    operand: str
    operator: str

    template = "it multiplies two activations, and the {operand} one is real-valued: the output of {operator}"
    example = "MatMul(Sign(x), Softmax(x))"
    advice = "take the sign of both operands and train again; a real-valued one has no binary form"


@dataclass(frozen=True)
class OperandLevels(LayerReason):
    """A product of levels that are not supported."""

    operand: str

    template = (
        "it multiplies two activations, and the {operand} one has other levels than ±1, or, of the first one, than 0 "
        "and one number for all"
    )
    example = "MatMul(Sign(x), Cast(Greater(x, 0)))"
    advice = "train with signs, or with 0/1 in the first operand"


@dataclass(frozen=True)
class OperandShapes(LayerReason):
    """A product whose operands are repeated, or whose sizes are not known."""

    first: str
    second: str

    template = (
        "it multiplies activations {first} and {second}; they need the same leading dimensions, but for heads that "
        "share the second, and the products' sum a known number of terms"
    )
    example = "MatMul(Sign(x), Sign(y)), x of [N, 1, 5, 8], y of [N, 4, 8, 6]"
    advice = "export with fixed sizes besides the batch; repeat an operand that is shared, with Expand"


# The operators around.


@dataclass(frozen=True)
class Stranger(LayerReason):
    """An operator between sign and layer."""

    operator: str

    template = "{operator} stands between the sign and it, which no pass looks through"
    example = "Conv(Pad(Sign(x) * c, pads), w), c of [4, 1, 1]"
    advice = "take the sign right in front of the layer, with one magnitude for all its channels"


@dataclass(frozen=True)
class MixedParts(LayerReason):
    """A Concat of signs and levels of different values; `parts` says which part has which."""

    parts: str

    template = "its input is a Concat of parts that have different values: {parts}"
    example = "Conv(Concat(Sign(x), 0.5 * Sign(Neg(x))), w)"
    advice = (
        "train with the same values in all parts; or give each part a layer of its own, without the others' bias, and "
        "add their outputs, which computes the same"
    )


@dataclass(frozen=True)
class FewValues(LayerReason):
    """A sign or levels in a form of their own; `what` says which values there are."""

    what: str
    operator: str

    template = "its input, the output of {operator}, has only {what} on random inputs, but is no sign that a pass reads"
    example = "Conv(Sin(Sign(x)), w)"
    advice = (
        "write the sign as torch.sign(x), or as where(x >= 0, 1, -1), right in front of the layer, times one number"
    )


@dataclass(frozen=True)
class ChannelFactors(LayerReason):
    """Signs of different magnitudes."""

    template = "its signs are multiplied by a number per channel, which weights of one magnitude per filter cannot hold"
    example = "Conv(Sign(x) * c, w), c of [4, 1, 1]"
    advice = "train with one number for all channels; numbers per channel can stand behind the layer"


@dataclass(frozen=True)
class CancelsOut(Reason):
    """A layer that is added and subtracted."""

    template = "its output cancels out, as in (a - S) + S of the straight-through trick"
    example = "Conv(Sign(x) - S + S, w), S = Conv(x, v): the inner one"
    advice = "nothing: it has no effect, and is not computed"


# Weights that are not stored as bits, in front of a layer that stays float.


@dataclass(frozen=True)
class ZeroFilter(Reason):
    """A filter without a sign."""

    template = "a filter is all zeros"
    example = "Conv(x, w), w of ±1 and one filter of zeros"


@dataclass(frozen=True)
class SmallFilters(Reason):
    """Filters for which bits take no less room."""

    count: int

    template = "each filter has {count} weights, which take a word of 32 bits and a scale"
    example = "Conv<group=512>(x, w), w ±1 of [512, 1, 2, 2]"


@dataclass(frozen=True)
class WeightsReadElsewhere(Reason):
    """Weights that something else than a layer reads; `reader` is its name and the verb, such as "Add 'y' reads"."""

    reader: str

    template = "{reader} its weights, too"
    example = "Conv(x, w) + ReduceMean(w), w of ±1"


@dataclass(frozen=True)
class OneMagnitude(Reason):
    """Ternary weights, which --weights does not binarise."""

    template = "its weights have one magnitude per filter, but for exact zeros"
    example = "Conv(Sign(x), w), w of -1, 0 and 1, with --weights xnor"


def table() -> str:
    """The reasons for which a layer stays float, as a table in Markdown."""
    rows = ["| reason | for instance | what to change |", "|---|---|---|"]
    kinds = [*LayerReason.__subclasses__(), *(kind for kind in Reason.__subclasses__() if kind.advice)]
    for kind in kinds:
        template = re.sub(r"{(\w+)[^}]*}", r"*\1*", kind.template).replace("|w|", "abs(w)")
        rows.append(f"| {template} | `{kind.example}` | {with_options(kind.advice)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    with on_command_line():
        print(table())
