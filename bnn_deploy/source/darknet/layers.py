"""Darknet's layers in standard ONNX operators, one function each: they add the layer and return its output."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.source.darknet.builder import Builder, FeatureMap
from bnn_deploy.source.darknet.cfg import Section

_EPSILON = 1e-5

ACTIVATIONS = ("linear", "leaky", "relu", "logistic", "mish", "swish")
"""The activations that are converted; leaky has the slope 0.1."""


def binarised(filters: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights [O, ...] as Darknet binarises them: +alpha where they are > 0, else -alpha; alpha is the mean of |w|."""
    alpha = np.abs(filters.astype(np.float64)).mean(axis=tuple(range(1, filters.ndim)), keepdims=True)
    binary: NDArray[np.float32] = np.where(filters > 0, alpha, -alpha).astype(np.float32)
    return binary


def convolutional(section: Section, to: Builder) -> FeatureMap:
    """A convolution, BatchNorm or bias, and an activation.

    With xnor=1 its input is binarised, and its weights are; with binary=1 alone, the weights are. In Darknet's
    inference an xnor layer with bin_output=1 has no activation, unless a route or shortcut reads it: what is meant to
    follow reads no more than its sign.
    """
    image = to.image(section)
    filters, size = section.integer("filters", 1, 1), section.integer("size", 1, 1)
    stride = section.integer("stride", 1, 1)
    strides = [section.integer(key, stride, 1) for key in ("stride_y", "stride_x")]
    dilation = section.integer("dilation", 1, 1) if size > 1 else 1
    pad = size // 2 if section.integer("pad", 0, 0) else section.integer("padding", 0, 0)
    xnor, binary = (bool(section.integer(key, 0, 0)) for key in ("xnor", "binary"))
    groups = 1 if xnor else section.integer("groups", 1, 1)
    normalised = section.integer("batch_normalize", 0, 0) or section.integer("cbn", 0, 0)
    if image.channels % groups or filters % groups:
        raise section.error(f"it does not divide {image.channels} channels and {filters} filters", "groups")
    height, width = (
        _positions(section, extent, 2 * pad, size, step)
        for extent, step in zip((image.height, image.width), strides, strict=True)
    )
    if 2 * pad * dilation - dilation * (size - 1) != 2 * pad - (size - 1):
        raise section.error(
            f"with size={size} and padding {pad}, Darknet itself computes no image of its size", "dilation"
        )
    if size == 1 and pad and strides == [1, 1]:
        raise section.error(f"Darknet itself does not pad a 1x1 convolution of stride 1, here by {pad}", "padding")

    bias = to.constant("biases", to.weights.take(section, "biases", filters))
    norm = _norm(section, to, filters) if normalised else []
    weights = to.weights.take(section, "weights", filters, image.channels // groups, size, size)
    data, border = image.tensor, pad * dilation
    if xnor:
        data = to.sign(data)
        if to.padding and border:
            pads = to.constant("pads", np.array([0, 0, border, border] * 2, np.int64))
            value = to.shared("xnor_padding", np.array(to.padding, np.float32))
            data, border = to.add("Pad", [data, pads, value], "padded"), 0
    activation = "linear" if section.index in to.raw_sums else section.text("activation", "logistic")
    weight = to.constant("weights", binarised(weights) if xnor or binary else weights)
    last = activation == "linear"
    tensor = to.add(
        "Conv",
        [data, weight] + ([] if norm else [bias]),
        "sums" if norm or not last else "",
        kernel_shape=[size] * 2,
        strides=strides,
        dilations=[dilation] * 2,
        pads=[border] * 4,
        group=groups,
    )
    if norm:
        tensor = _normalise(to, tensor, bias, norm, last)
    return FeatureMap(_activate(section, to, tensor, activation), filters, height, width)


def connected(section: Section, to: Builder) -> FeatureMap:
    """A linear layer of the flattened input, BatchNorm or bias, and an activation."""
    data, outputs = to.flat(), section.integer("output", 1, 1)
    bias = to.constant("biases", to.weights.take(section, "biases", outputs))
    shape = (data.channels, outputs) if to.weights.transposed else (outputs, data.channels)
    weights = to.weights.take(section, "weights", *shape)
    weight = to.constant("weights", np.ascontiguousarray(weights.T) if to.weights.transposed else weights)
    norm = _norm(section, to, outputs) if section.integer("batch_normalize", 0, 0) else []
    activation = section.text("activation", "logistic")
    last = activation == "linear"
    what = "sums" if norm or not last else ""
    tensor = to.add("Gemm", [data.tensor, weight] + ([] if norm else [bias]), what, transB=1)
    if norm:
        tensor = _normalise(to, tensor, bias, norm, last)
    return FeatureMap(_activate(section, to, tensor, activation), outputs, flat=True)


def maxpool(section: Section, to: Builder) -> FeatureMap:
    """The maximum of each window; `padding` is the sum of both sides, whose smaller half is in front."""
    image = to.image(section)
    stride = section.integer("stride", 1, 1)
    strides = [section.integer(key, stride, 1) for key in ("stride_y", "stride_x")]
    size = section.integer("size", stride, 1)
    padding = section.integer("padding", size - 1, 0)
    front = padding // 2
    if padding - front >= size:
        raise section.error(f"windows of size {size} would lie in the padding, {padding} in all", "padding")
    height, width = (
        _positions(section, extent, padding, size, step)
        for extent, step in zip((image.height, image.width), strides, strict=True)
    )
    pads = [front, front, padding - front, padding - front]
    tensor = to.add("MaxPool", [image.tensor], kernel_shape=[size] * 2, strides=strides, pads=pads)
    return FeatureMap(tensor, image.channels, height, width)


def avgpool(section: Section, to: Builder) -> FeatureMap:
    """The mean over the whole image, [N, C, 1, 1]."""
    image = to.image(section)
    return FeatureMap(to.add("GlobalAveragePool", [image.tensor]), image.channels)


def route(section: Section, to: Builder) -> FeatureMap:
    """Earlier layers' outputs, concatenated along the channels; with `groups`, one group of the channels of each."""
    images = [to.image(section, to.layers[index]) for index in earlier(section, "layers")]
    groups = section.integer("groups", 1, 1)
    group = section.integer("group_id", 0, 0)
    if group >= groups:
        raise section.error(f"there are {groups} groups, the first is 0", "group_id")
    first = images[0]
    parts = []
    for place, image in enumerate(images):
        if (image.height, image.width) != (first.height, first.width):
            raise section.error(f"the layers have different sizes, {first.shape} and {image.shape}", "layers")
        if image.channels % groups:
            raise section.error(f"it does not divide {image.channels} channels", "groups")
        part = image.channels // groups
        if groups == 1:
            parts.append(image.tensor)
            continue
        start, end, axis = (
            to.shared(f"index_{value}", np.array([value], np.int64)) for value in (group * part, (group + 1) * part, 1)
        )
        parts.append(to.add("Slice", [image.tensor, start, end, axis], f"part{place}" if len(images) > 1 else ""))
    tensor = to.add("Concat", parts, axis=1) if len(parts) > 1 else parts[0]
    channels = sum(image.channels // groups for image in images)
    return FeatureMap(tensor, channels, first.height, first.width)


def shortcut(section: Section, to: Builder) -> FeatureMap:
    """The sum of the layer before and earlier ones of the same shape, and an activation."""
    if section.text("weights_type", "none") != "none":
        raise section.error("weighted shortcuts are not converted", "weights_type")
    image = to.image(section)
    activation = section.text("activation", "linear")
    others = [to.image(section, to.layers[index]) for index in earlier(section, "from")]
    tensor = image.tensor
    for place, other in enumerate(others):
        if other.shape != image.shape:
            raise section.error(f"that layer's output is {other.shape}, the layer before has {image.shape}", "from")
        last = activation == "linear" and place == len(others) - 1
        tensor = to.add("Add", [tensor, other.tensor], "" if last else f"sum{place}")
    return FeatureMap(_activate(section, to, tensor, activation), image.channels, image.height, image.width)


def upsample(section: Section, to: Builder) -> FeatureMap:
    """Each pixel `stride` times in both directions, times `scale`."""
    image = to.image(section)
    stride, scale = section.integer("stride", 2, 1), section.number("scale", 1)
    factors = to.constant("factors", np.array([1, 1, stride, stride], np.float32))
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    tensor = to.add("Resize", [image.tensor, "", factors], "" if scale == 1 else "repeated", **how)
    if scale != 1:
        tensor = to.add("Mul", [tensor, to.constant("scale", np.array(scale, np.float32))])
    return FeatureMap(tensor, image.channels, stride * image.height, stride * image.width)


def softmax(section: Section, to: Builder) -> FeatureMap:
    """The softmax of the flattened input, or of each of `groups` equal parts, of x / temperature."""
    data = to.flat()
    groups, temperature = section.integer("groups", 1, 1), section.number("temperature", 1)
    if data.channels % groups:
        raise section.error(f"it does not divide {data.channels} features", "groups")
    if temperature <= 0:
        raise section.error("it has to be above 0", "temperature")
    tensor = data.tensor
    if temperature != 1:
        tensor = to.add("Div", [tensor, to.constant("temperature", np.array(temperature, np.float32))], "divided")
    if groups > 1:
        tensor = to.reshape(tensor, [groups, data.channels // groups], "groups")
    tensor = to.add("Softmax", [tensor], "of_groups" if groups > 1 else "", axis=-1)
    if groups > 1:
        tensor = to.reshape(tensor, [data.channels], "")
    return FeatureMap(tensor, data.channels, flat=True)


def nothing(section: Section, to: Builder) -> FeatureMap:
    """A layer of training, [dropout] or [cost]: its input."""
    return to.feature


def earlier(section: Section, key: str) -> list[int]:
    """The indices of the layers that a section names: from 0, or negative, relative to itself.

    Raises:
        InputError: there are none, or one is not an earlier layer.
    """
    indices = section.integers(key)
    if not indices:
        raise section.error(f"it needs {key}=, the layers that it reads")
    found = [index if index >= 0 else section.index + index for index in indices]
    for index, own in zip(indices, found, strict=True):
        if not 0 <= own < section.index:
            raise section.error(f"{index} is none of the {section.index} layers before", key)
    return found


def _positions(section: Section, extent: int, padding: int, size: int, stride: int) -> int:
    """How many windows fit into `extent` rows or columns, with the padding of both sides."""
    if extent + padding < size:
        raise section.error(f"its window is larger than its input, {extent} with {padding} of padding", "size")
    return (extent + padding - size) // stride + 1


def _norm(section: Section, to: Builder, channels: int) -> list[str]:
    """A BatchNorm's scale, mean and variance; its shift is the layer's bias."""
    names = ("scales", "rolling_mean", "rolling_variance")
    return [to.constant(name, to.weights.take(section, name.replace("_", " "), channels)) for name in names]


def _normalise(to: Builder, tensor: str, bias: str, norm: list[str], last: bool) -> str:
    scale, mean, variance = norm
    inputs = [tensor, scale, bias, mean, variance]
    return to.add("BatchNormalization", inputs, "" if last else "normalised", epsilon=_EPSILON)


def _activate(section: Section, to: Builder, tensor: str, activation: str) -> str:
    """Apply an activation; "linear" is none."""
    if activation == "linear":
        return tensor
    if activation == "leaky":
        return to.add("LeakyRelu", [tensor], alpha=0.1)
    if activation == "swish":
        return to.add("Mul", [tensor, to.add("Sigmoid", [tensor], "gate")])
    operators = {"relu": "Relu", "logistic": "Sigmoid", "mish": "Mish"}
    if activation not in operators:
        raise section.error(f"the activation {activation} is not converted; {', '.join(ACTIVATIONS)} are", "activation")
    return to.add(operators[activation], [tensor])
