"""Why something between layers is not fused: one class per reason, with its text and an example."""

from __future__ import annotations

from dataclasses import dataclass

from bnn_deploy.passes.reasons import PoolForm, Reason


@dataclass(frozen=True)
class UsedElsewhere(Reason):
    """A tensor that has to be made anyway; `what` is its name and the verb, such as "'x' is"."""

    what: str

    template = "{what} used elsewhere too"
    example = "b = Binarize(BatchNormalization(x)), where BatchNormalization(x) is an output, too"


@dataclass(frozen=True)
class ClipAttributes(Reason):
    """A Clip as old opsets have it."""

    template = "the bounds of Clip are attributes, as before opset 11: convert the model to a newer opset"
    example = "Binarize(Clip<max=1>(x))"


@dataclass(frozen=True)
class ClipBounds(Reason):
    """A Clip whose bounds are computed from data."""

    template = "the bounds of Clip are not constant"
    example = "Binarize(Clip(x, 0, ReduceMax(x)))"


@dataclass(frozen=True)
class NegativeSlope(Reason):
    """A PReLU or LeakyReLU that falls and rises."""

    channel: int
    operator: str
    value: str

    template = "channel {channel} of {operator} '{value}' has a negative slope, so it is not monotone"
    example = "Binarize(PRelu(x, c)), c < 0"


@dataclass(frozen=True)
class NormParameters(Reason):
    """A BatchNorm whose parameters are computed from data."""

    template = "the parameters of BatchNormalization are not constant"
    example = "Binarize(BatchNormalization(x, ReduceMean(x), b, m, v))"


@dataclass(frozen=True)
class NormTrains(Reason):
    """A BatchNorm that takes the statistics of the batch."""

    template = "BatchNormalization is in training mode: export the model in eval mode"
    example = "Binarize(BatchNormalization<training_mode=1>(x, g, b, m, v))"


@dataclass(frozen=True)
class DividesByData(Reason):
    """A constant over the data."""

    template = "it divides by data, which is not monotone"
    example = "Binarize(Div(c, x))"


@dataclass(frozen=True)
class DividedByZero(Reason):
    """A channel that is infinite everywhere, and NaN at 0."""

    channel: int

    template = "channel {channel} is divided by 0"
    example = "Binarize(Div(x, c)), c of 0 and 1"


@dataclass(frozen=True)
class OperandUnknown(Reason):
    """A slope that is computed from data, or data of unknown shape."""

    operator: str
    value: str

    template = "the operand of {operator} '{value}' is not constant, or its shape is unknown"
    example = "Binarize(PRelu(x, ReduceMean(x)))"


@dataclass(frozen=True)
class OperandDimensions(Reason):
    """A constant that gives the data more dimensions."""

    operator: str
    value: str

    template = "the operand of {operator} '{value}' has more dimensions than the data"
    example = "Binarize(Add(x, c)), x of [N, C, T], c of [1, 1, C, 1]"


@dataclass(frozen=True)
class DataBroadcast(Reason):
    """A constant that gives the data more channels."""

    operator: str
    value: str

    template = "{operator} '{value}' broadcasts its data to more channels, or their number is unknown"
    example = "Binarize(Add(x, c)), x of [N, 1, H, W], c of [8, 1, 1]"


@dataclass(frozen=True)
class OperandShape(Reason):
    """A constant that differs within a channel."""

    operator: str
    value: str
    shape: str

    template = "the operand of {operator} '{value}' has shape {shape}, which is not one value per channel"
    example = "Binarize(Add(x, c)), c of [1, C, H, W]"


@dataclass(frozen=True)
class Falls(Reason):
    """A channel whose bits would be complemented, and cannot be."""

    channel: int
    operator: str
    value: str
    consumer: Reason

    template = "channel {channel} of {operator} '{value}' falls: {consumer}"
    example = "BinaryMaxPool(Binarize(Mul(x, -1)))"


@dataclass(frozen=True)
class BitsAreOutput(Reason):
    """Bits that a user reads."""

    template = "its bits are an output of the model"
    example = "Binarize(Mul(x, -1)), the output of the model"


@dataclass(frozen=True)
class BitsFeed(Reason):
    """Bits that an operator reads which is no binary convolution."""

    operator: str
    value: str

    template = "its bits feed {operator} '{value}', which cannot take them complemented"
    example = "BinaryMaxPool(Binarize(Mul(x, -1)))"


@dataclass(frozen=True)
class PoolStays(Reason):
    """A MaxPool that cannot be one of bits."""

    pool: str

    template = PoolForm.template
    example = "Binarize(MaxPool<auto_pad=...>(x)), x of unknown height"


@dataclass(frozen=True)
class LinearBits(Reason):
    """Bits of a linear layer that no binary layer reads."""

    template = "the bits of a linear layer feed something that is no binary layer"
    example = "Binarize(Flatten(BinaryConv(...))), the output of the model"


@dataclass(frozen=True)
class ThresholdPerPosition(Reason):
    """A binarisation of a flattened map."""

    template = "it flattens positions, each with a threshold of its own"
    example = "Binarize(Flatten(BinaryConv(...)), t), t of channels x height x width"


@dataclass(frozen=True)
class FactorShape(Reason):
    """A factor that is no map of one channel."""

    factor: str

    template = "its factor '{factor}' has not one value per pixel, or an unknown shape"
    example = "BinaryConv(...) * GlobalAveragePool(x)"


@dataclass(frozen=True)
class FactorLayer(Reason):
    """A factor behind a binary layer that is not BinaryConv, or is moved first."""

    factor: str
    operator: str

    template = "its factor '{factor}' stays behind {operator}: only a BinaryConv whose map it multiplies takes one"
    example = "BinaryConvLevels(...) * GlobalAveragePool(x)"


@dataclass(frozen=True)
class ResidualShape(Reason):
    """A shortcut of another shape."""

    value: str

    template = "its operand '{value}' is broadcast, or of unknown shape"
    example = "Sign(BinaryConv(...) + GlobalAveragePool(x))"


@dataclass(frozen=True)
class NoSignReads(Reason):
    """A sum that stays float."""

    template = "no sign reads it"
    example = "BinaryConv(...) + x, the output of the model"


@dataclass(frozen=True)
class FoldedAlready(Reason):
    """A second BatchNorm in front of A of XNOR-Net."""

    template = "it stands before a BatchNorm that was folded already"
    example = "BinarizeAbsMean(BatchNormalization(BatchNormalization(x)))"


@dataclass(frozen=True)
class UnknownChannels(Reason):
    """A mean over channels whose number is not known."""

    template = "the number of channels is unknown"
    example = "ReduceMean(Abs(x)) next to Binarize(x), x of unknown channels"


@dataclass(frozen=True)
class SumNotDivided(Reason):
    """A sum of magnitudes that is no mean."""

    channels: int

    template = "the sum is not divided by the number of channels, {channels}"
    example = "ReduceSum(Abs(x)) next to Binarize(x)"


@dataclass(frozen=True)
class ChannelsDropped(Reason):
    """A mean without the dimension of the channels."""

    template = "it drops the dimension of the channels, and no Unsqueeze puts it back"
    example = "ReduceMean<keepdims=0>(Abs(x)) next to Binarize(x)"
