"""The rules for the shapes of the operators' outputs, and for their multiply-accumulates (MACs)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bnn_deploy.operators.bits import words

Dim = int | str | None
"""A dimension: its size, its symbolic name, or None if it is unknown."""

Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class Call:
    """The properties of a node that determine the shapes of its outputs.

    Attributes:
        attributes: name -> values; an INT has one.
        inputs: the shapes of its inputs, None where unknown; the first shape is known.
        channels: the number of channels C of a first input that holds bits; None for floats, or if C is unknown.
    """

    attributes: Mapping[str, tuple[int, ...]]
    inputs: Sequence[Shape | None]
    channels: int | None


@dataclass(frozen=True)
class Made:
    """The shape of an output.

    Attributes:
        shape: the shape of the stored tensor; bits are [N, spatial..., ceil(C/32)], so C = 40 gives 2 words.
        channels: the number of channels C of bits; None for floats, or if C is unknown.
    """

    shape: Shape
    channels: int | None = None


ShapeRule = Callable[[Call], tuple[Made, ...] | None]
"""The outputs of a node; None if a shape they depend on is unknown. ValueError: attributes and shapes do not fit."""

MacRule = Callable[[Call, Made], int | None]
"""Products per sample, of bits or, in a float layer, of floats, from a node and its first output; None if a shape is
unknown."""


def binarized(call: Call) -> tuple[Made, ...] | None:
    """[N, C, spatial...] -> bits [N, spatial..., bits * ceil(C/32)] (attribute, default 1), mean [N, 1, spatial...]."""
    first, threshold = call.inputs[0] or (), call.inputs[1] or (None,)
    batch, channels, *spatial = first
    count = next((size for size in (channels, threshold[-1]) if isinstance(size, int)), None)
    if count is None:
        return None
    (planes,) = call.attributes.get("bits", (1,))
    return Made((batch, *spatial, planes * words(count)), count), Made((batch, 1, *spatial))


def binarized_last(call: Call) -> tuple[Made, ...] | None:
    """[N, spatial..., C] -> bits [N, spatial..., ceil(C/32)]."""
    *lead, count = call.inputs[0] or ()
    return (Made((*lead, words(count)), count),) if isinstance(count, int) else None


def pooled(call: Call) -> tuple[Made, ...] | None:
    """Bits [N, spatial..., words] -> bits [N, spatial'..., words]."""
    batch, *spatial, last = call.inputs[0] or ()
    return (Made((batch, *_window_output(call, spatial), last), call.channels),)


def averaged(call: Call) -> tuple[Made, ...] | None:
    """Floats [N, C, H, W] -> bits [N, H', W', ceil(C/32)]."""
    batch, channels, *spatial = call.inputs[0] or ()
    count = next((size for size in (channels, (call.inputs[1] or (None,))[0]) if isinstance(size, int)), None)
    return None if count is None else (Made((batch, *_window_output(call, spatial), words(count)), count),)


def convolved(call: Call) -> tuple[Made, ...] | None:
    """Bits [N, spatial..., words], W [O, ...] -> floats [N, O, spatial'...] and bits [N, spatial'..., ceil(O/32)]."""
    batch, *spatial, _ = call.inputs[0] or ()
    outputs = (call.inputs[1] or (None,))[0]
    if not isinstance(outputs, int):
        return None
    size = _window_output(call, spatial)
    return Made((batch, outputs, *size)), Made((batch, *size, words(outputs)), outputs)


def convolved_to_bits(call: Call) -> tuple[Made, ...] | None:
    """Bits [N, spatial..., words] and W [O, ...] -> bits [N, spatial'..., ceil(O/32)]."""
    made = convolved(call)
    return None if made is None else made[1:]


def convolved_directly(call: Call) -> tuple[Made, ...] | None:
    """Floats [N, C, spatial...] and W [O, ...] -> floats [N, O, spatial'...] and bits [N, spatial'..., ceil(O/32)]."""
    batch, _, *spatial = call.inputs[0] or ()
    outputs = (call.inputs[1] or (None,))[0]
    if not isinstance(outputs, int):
        return None
    window = {name: call.attributes[f"pool_{name}"] for name in ("shape", "strides", "pads")}
    pool = {"kernel_shape": window.pop("shape"), **window, "dilations": (1,) * len(spatial)}
    size = _window_output(replace(call, attributes=pool), _window_output(call, spatial))
    return Made((batch, outputs, *size)), Made((batch, *size, words(outputs)), outputs)


def convolved_directly_to_bits(call: Call) -> tuple[Made, ...] | None:
    """Floats [N, C, spatial...] and W [O, ...] -> bits [N, spatial'..., ceil(O/32)]."""
    made = convolved_directly(call)
    return None if made is None else made[1:]


def image_convolved(call: Call) -> tuple[Made, ...] | None:
    """Bytes [N, C, spatial...] or [N, spatial..., C] and W [O, ...] -> as `convolved_directly`."""
    return convolved_directly(_channels_first(call))


def image_convolved_to_bits(call: Call) -> tuple[Made, ...] | None:
    """Bytes [N, C, spatial...] or [N, spatial..., C] and W [O, ...] -> bits [N, spatial'..., ceil(O/32)]."""
    return convolved_directly_to_bits(_channels_first(call))


def _channels_first(call: Call) -> Call:
    """The call of an image's operator with the shape of X as [N, C, spatial...]."""
    first = call.inputs[0] or ()
    if call.attributes["channels_last"] != (1,):
        return call
    batch, *spatial, channels = first
    return replace(call, inputs=((batch, channels, *spatial), *call.inputs[1:]))


def linear(call: Call) -> tuple[Made, ...] | None:
    """Bits [N, ..., words] and W [O, words] -> floats [N, ..., O]."""
    *lead, _ = call.inputs[0] or ()
    return (Made((*lead, (call.inputs[1] or (None,))[0])),)


def linear_of_relu(call: Call) -> tuple[Made, ...] | None:
    """Floats [N, ...] and W [C, O] -> floats [N, O]."""
    return (Made(((call.inputs[0] or (None,))[0], (call.inputs[1] or (None, None))[1])),)


def multiplied(call: Call) -> tuple[Made, ...] | None:
    """Bits [..., M, words] and bits [..., N, words] -> floats [..., M, N]."""
    *lead, _ = call.inputs[0] or ()
    return (Made((*lead, (call.inputs[1] or (None, None))[-2])),)


def unpacked(call: Call) -> tuple[Made, ...] | None:
    """Words [O, ceil(n/32)] -> floats [O, *shape]."""
    outputs, *_ = call.inputs[0] or ()
    return (Made((outputs, *call.attributes["shape"])),)


def _window_output(call: Call, sizes: Sequence[Dim]) -> list[Dim]:
    """Spatial output sizes of a convolution or pooling; None where the input size is not a number."""
    kernel, strides, pads, dilations = (call.attributes[k] for k in ("kernel_shape", "strides", "pads", "dilations"))
    rank = len(sizes)
    if [len(kernel), len(strides), len(pads), len(dilations)] != [rank, rank, 2 * rank, rank] or min(
        strides, default=1
    ) < 1:
        raise ValueError(
            f"kernel_shape {kernel}, strides {strides}, pads {pads} and dilations {dilations} do not fit an input with "
            f"{rank} spatial dimensions"
        )
    result: list[Dim] = []
    for i, size in enumerate(sizes):
        if not isinstance(size, int):
            result.append(None)
            continue
        span = size + pads[i] + pads[i + rank] - dilations[i] * (kernel[i] - 1) - 1
        windows = span // strides[i] + 1
        if call.attributes.get("ceil_mode", (0,))[0]:
            windows = -(-span // strides[i]) + 1
            if (windows - 1) * strides[i] >= size + pads[i]:  # as ONNX: the last window starts inside the input
                windows -= 1
        result.append(windows)
    return result


MAX_EXTENT = 2**31 - 1
"""Largest stride, pad and dilation of the operators."""

MAX_PADDED = 2**26
"""Most elements of a padded input, or MAX_PADDED_RATIO times those of the input, whichever is more."""

MAX_PADDED_RATIO = 16


def beyond(window: Mapping[str, Sequence[int]], sizes: Sequence[Dim], pixel: int) -> str | None:
    """What the operators refuse of a window, whatever the batch: the attribute and its values; None if nothing.

    Args:
        window: strides, pads and dilations.
        sizes: the spatial ones of the input; open ones count as 1.
        pixel: the most elements that it may have for each pixel.
    """
    rank = len(sizes)
    for name in ("strides", "pads", "dilations"):
        if any(value > MAX_EXTENT for value in window[name]):
            return f"{name} {list(window[name])}"
    known = [size if isinstance(size, int) else 1 for size in sizes]
    size = pixel * math.prod(known)
    pads = window["pads"]
    padded = pixel * math.prod(known[i] + pads[i] + pads[i + rank] for i in range(rank))
    return f"pads {list(pads)}" if padded > max(MAX_PADDED, MAX_PADDED_RATIO * size) else None


def no_macs(call: Call, made: Made) -> int:
    """0, for an operator without multiplications."""
    return 0


def conv_macs(call: Call, made: Made) -> int | None:
    """Taps times channels per group times output elements, once per plane of levels and basis of weights."""
    (channels,), (group,) = call.attributes["channels"], call.attributes["group"]
    outputs = made.shape[1:] if made.channels is None else (made.channels, *made.shape[1:-1])
    passes = math.prod(call.attributes.get(key, (1,))[0] for key in ("bits", "planes", "bases"))
    return product((*outputs, math.prod(call.attributes["kernel_shape"]) * channels // max(group, 1), passes))


def direct_macs(call: Call, made: Made) -> int | None:
    """Weights times outputs of the convolution, in front of its pool: float products."""
    spatial = (call.inputs[0] or ())[2:]
    return product((*(call.inputs[1] or (None,)), *_window_output(call, spatial)))


def image_macs(call: Call, made: Made) -> int | None:
    """As `direct_macs`, of an image."""
    return direct_macs(_channels_first(call), made)


def linear_macs(call: Call, made: Made) -> int | None:
    """Channels times output elements."""
    return product((*made.shape[1:], *call.attributes["channels"]))


def weight_macs(call: Call, made: Made) -> int | None:
    """The number of weights: each is multiplied once."""
    return product(call.inputs[1] or (None,))


def matmul_macs(call: Call, made: Made) -> int | None:
    """Channels times output elements, once per plane of levels."""
    return product((*made.shape[1:], *call.attributes["channels"], *call.attributes["bits"]))


StandardMacRule = Callable[[Shape, Shape, Shape], int | None]
"""Products of floats per sample of a layer of standard ONNX, from the shapes of its data, weights and output."""


def standard_conv_macs(data: Shape, weights: Shape, output: Shape) -> int | None:
    """Output elements times the weights [O, C/group, kernel...] of each."""
    return product((*output[1:], *weights[1:]))


def conv_transpose_macs(data: Shape, weights: Shape, output: Shape) -> int | None:
    """Input elements times the weights [C, O/group, kernel...] of each."""
    return product((*data[1:], *weights[1:]))


def gemm_macs(data: Shape, weights: Shape, output: Shape) -> int | None:
    """The number of weights: each is multiplied once."""
    return product(weights)


def standard_matmul_macs(data: Shape, weights: Shape, output: Shape) -> int | None:
    """Output elements times the channels of each."""
    return product((*output[1:], data[-1]))


def product(dims: Sequence[Dim]) -> int | None:
    """The product of dimensions; None if one of them is not a number."""
    sizes = [dim for dim in dims if isinstance(dim, int)]
    return math.prod(sizes) if len(sizes) == len(dims) else None
