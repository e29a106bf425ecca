"""The operators of the ONNX domain `bnn_deploy`, version 1: their one definition, as ONNX functions.

Every converted model carries these functions, so it runs on any ONNX runtime; the C++ library registers kernels under
the same names, which onnxruntime then takes instead. A change of an operator's meaning is a new version of the domain.

Bits are uint32 [N, spatial..., ceil(C/32)] (see `bits`).

* `Binarize(X float32 [N, C, spatial...], threshold float32 [C]) -> bits`: bit = X >= threshold[c]; NaN gives 0. No
  attributes.
* `BinarizeChannelsLast(X float32 [N, spatial..., C], threshold float32 [C]) -> bits`: the same for a tensor with
  channels last. No attributes.
* `BinarizeQuantized(X uint8 [N, spatial..., C], threshold int32 [C]) -> bits`: bit = X >= threshold[c], behind a
  quantised layer, whose output stays in 8 bits and channels last. No attributes.
* `BinarizeAbsMean(X float32 [N, C, spatial...], threshold, scale, shift float32 [C])
  -> (bits, A float32 [N, 1, spatial...])`: bits as of Binarize; A is the mean over the channels of |scale[c] * X +
  shift[c]|, a float32 product and a float32 sum. The order in which these terms are added is open: A is within
  min(C, C / 32 + 40) * 2^-24, in relative terms, of their exact mean. K of XNOR-Net is filtered from it. No attributes.
* `BinaryConv(X bits, W bits [O, kernel..., ceil((C/group)/32)], scale float32 [O], bias float32 [O],
  pad_value float32 [1] or [C]) -> float32 [N, O, spatial'...]`: scale[o] * acc + bias[o], a float32 product and then a
  float32 sum; acc is the integer sum of the products of ±1. `pad_value` is what a padded tap holds: 0 (PyTorch's zero
  padding: a padded tap adds nothing), or -1 or +1, for all input channels or per channel. Attributes, all required:
  channels (C), kernel_shape, strides, pads (ONNX order), dilations, group.
* `BinaryConvThreshold(X, W, threshold int32 [O], pad_value) -> bits`, same attributes: bit = acc >= threshold[o].
* `BinaryConvScaled(X, W, scale, bias, pad_value, factor float32 [N, 1, spatial'...]) -> float32 [N, O, spatial'...]`,
  same attributes: (scale[o] * acc + bias[o]) * factor, three roundings in this order. The factor is K of XNOR-Net
  (Rastegari et al., ECCV 2016, equation 11), or any other gate per pixel.
* `BinaryConvResidual(X, W, scale, bias, pad_value, residual float32 [N, O, spatial'...], threshold float32 [O])
  -> (Y float32 [N, O, spatial'...], bits)`, same attributes: Y = (scale[o] * acc + bias[o]) + residual, three
  roundings in this order; bit = Y >= threshold[o]. It is a Bi-Real block.
* `BinaryMaxPool(X bits) -> bits`: the OR over the window; attributes kernel_shape, strides, pads, dilations, ceil_mode.
* `UnpackWeights(W uint32 [O, ceil(n/32)], scale float32 [O]) -> float32`: binary weights of a layer with real inputs.
  The n = prod(shape) bits of a row are one filter, in the order of its elements: weight i of filter o is scale[o] where
  bit i % 32 of word i // 32 is 1, else -scale[o]; the result is [O, *shape]. Attribute, required: shape. The library
  has no kernel for it: onnxruntime inlines the body, folds it into a constant when it makes the session, and runs the
  layer behind it as it runs any other.
* `QuantizeLevels(X float32 [N, C, spatial...], thresholds float32 [2^bits - 1, C]) -> planes
  uint32 [N, spatial..., bits * ceil(C/32)]`: level = the number of thresholds of its channel, which ascend, that an
  element reaches (X >= threshold; NaN gives 0). Plane j, at words j * ceil(C/32) and up, holds bit j of the levels.
  Attribute, required: bits, 1 to 4. These are the activations of DoReFa-Net (Zhou et al. 2016, equation 5) and HWGQ-Net
  (Cai et al. 2017) in units of their step.
* `BinaryConvLevels(X planes, W, scale, bias) -> float32 [N, O, spatial'...]`: attributes of BinaryConv, and bits;
  scale[o] * acc + bias[o], acc being the integer sum of level * ±1. A padded tap holds level 0.

A fully connected layer is a BinaryConv whose kernel covers its input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

DOMAIN = "bnn_deploy"
VERSION = 1
OPSET = 20
"""The version of the standard operators that the bodies are written in."""

MAX_LEVEL_BITS = 4
"""Bits of a level at most."""

MAX_TERMS = 2**24
"""Products per output must be fewer than this: the bodies sum them in float32, which is exact up to there."""

CONV_ATTRIBUTES = {
    "channels": ir.AttributeType.INT,
    "kernel_shape": ir.AttributeType.INTS,
    "strides": ir.AttributeType.INTS,
    "pads": ir.AttributeType.INTS,
    "dilations": ir.AttributeType.INTS,
    "group": ir.AttributeType.INT,
}
POOL_ATTRIBUTES = {
    "kernel_shape": ir.AttributeType.INTS,
    "strides": ir.AttributeType.INTS,
    "pads": ir.AttributeType.INTS,
    "dilations": ir.AttributeType.INTS,
    "ceil_mode": ir.AttributeType.INT,
}
UNPACK_ATTRIBUTES = {"shape": ir.AttributeType.INTS}

WITHOUT_KERNEL = ("UnpackWeights",)
"""The operators that the C++ library has no kernel for: their body is all there is."""


class _Body:
    """A function body under construction: standard operators only, for any number of spatial dimensions."""

    def __init__(self, name: str, inputs: Sequence[str], attributes: dict[str, ir.AttributeType]) -> None:
        self.name = name
        self.inputs = {i: ir.Value(name=i) for i in inputs}
        self.attributes = attributes
        self.nodes: list[ir.Node] = []

    def op(
        self, op_type: str, *inputs: ir.Value, refs: Sequence[str] = (), **attributes: int | str | list[int]
    ) -> ir.Value:
        """Append a node. `refs` are attributes that take the value of the function's attribute of the same name."""
        attrs = ir.convenience.convert_attributes(attributes)
        attrs += [ir.RefAttr(ref, ref, self.attributes[ref]) for ref in refs]
        node = ir.Node("", op_type, inputs, attrs)
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def const(self, value: object, dtype: type[np.generic] = np.int64) -> ir.Value:
        """A constant tensor."""
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(np.asarray(value, dtype=dtype)))])
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def attribute(self, name: str) -> ir.Value:
        """The function's attribute `name` as an int64 tensor: [n] for INTS, a scalar for INT."""
        kind = self.attributes[name]
        target = "value_ints" if kind == ir.AttributeType.INTS else "value_int"
        node = ir.Node("", "Constant", [], [ir.RefAttr(target, name, kind)])
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def concat(self, *parts: ir.Value) -> ir.Value:
        """Join 1-D tensors."""
        return self.op("Concat", *parts, axis=0)

    def lowest_bits(self, bits: ir.Value) -> ir.Value:
        """Bits [..., words] -> uint32 [..., words, 32] of 0 and 1."""
        shifted = self.op(
            "BitShift",
            self.op("Unsqueeze", bits, self.const([-1])),
            self.const(np.arange(32), np.uint32),
            direction="RIGHT",
        )
        return self.op("BitwiseAnd", shifted, self.const([1], np.uint32))

    def unpack(self, bits: ir.Value) -> ir.Value:
        """Bits [A, spatial..., words] -> float32 [A, spatial..., 32 * words] of 0 and 1."""
        unit = self.op("Cast", self.lowest_bits(bits), to=ir.DataType.FLOAT.value)
        width = self.op("Mul", self.op("Shape", bits, start=-1), self.const([32]))
        return self.op("Reshape", unit, self.concat(self.op("Shape", bits, start=0, end=-1), width))

    def unpack_signs(self, bits: ir.Value, channels: ir.Value) -> ir.Value:
        """Bits [A, spatial..., words] -> float32 [A, spatial..., channels] of -1 and +1."""
        unit = self.op("Slice", self.unpack(bits), self.const([0]), channels, self.const([-1]))
        return self.op("Sub", self.op("Mul", unit, self.const(2, np.float32)), self.const(1, np.float32))

    def channels_first(self, x: ir.Value) -> ir.Value:
        """[A, spatial..., C] -> [A, C, spatial...]."""
        batch = self.op("Shape", x, start=0, end=1)
        channels = self.op("Shape", x, start=-1)
        rows = self.op("Reshape", x, self.concat(batch, self.const([-1]), channels))
        planes = self.op("Transpose", rows, perm=[0, 2, 1])
        return self.op("Reshape", planes, self.concat(batch, channels, self.op("Shape", x, start=1, end=-1)))

    def pack(self, x: ir.Value) -> ir.Value:
        """Bool [N, C, spatial...] -> bits [N, spatial..., ceil(C/32)]."""
        flat = self.op("Reshape", x, self.const([0, 0, -1]))
        lead = self.concat(self.op("Shape", x, start=0, end=1), self.op("Shape", x, start=2))
        return self.pack_last(self.op("Transpose", flat, perm=[0, 2, 1]), lead)

    def pack_last(self, x: ir.Value, lead: ir.Value) -> ir.Value:
        """Bool [..., C] -> bits [*lead, ceil(C/32)]."""
        channels = self.op("Shape", x, start=-1)
        rows = self.op("Reshape", x, self.concat(self.const([-1]), channels))
        words = self.op("Div", self.op("Add", channels, self.const([31])), self.const([32]))
        missing = self.op("Sub", self.op("Mul", words, self.const([32])), channels)
        integers = self.op("Cast", rows, to=ir.DataType.INT64.value)
        padded = self.op("Pad", integers, self.concat(self.const([0, 0, 0]), missing))
        split = self.op("Reshape", padded, self.concat(self.const([-1]), words, self.const([32])))
        weighted = self.op("Mul", split, self.const(2 ** np.arange(32, dtype=np.int64)))
        total = self.op("ReduceSum", weighted, self.const([2]), keepdims=0)
        return self.op("Reshape", self.op("Cast", total, to=ir.DataType.UINT32.value), self.concat(lead, words))

    def split_pads(self) -> tuple[ir.Value, ir.Value]:
        """The attribute pads as begins and ends, each int64 [spatial dimensions]."""
        pads = self.op("Reshape", self.attribute("pads"), self.const([2, -1]))
        return self.op("Gather", pads, self.const(0), axis=0), self.op("Gather", pads, self.const(1), axis=0)

    def around_spatial(self, begins: ir.Value, ends: ir.Value) -> ir.Value:
        """Spatial pads as Pad wants them for [A, spatial..., C]."""
        zero = self.const([0])
        return self.concat(zero, begins, zero, zero, ends, zero)

    def accumulate(self) -> ir.Value:
        """X, W, pad_value -> float32 [N, O, spatial'...], the exact integer sum of the products of ±1."""
        channels = self.attribute("channels")
        x = self.unpack_signs(self.inputs["X"], self.op("Reshape", channels, self.const([1])))
        pads = self.around_spatial(*self.split_pads())
        # 1 at the taps that the padding made, 0 inside the input: there, and only there, pad_value is added to zeros.
        one = self.const([1])
        inside_shape = self.concat(one, self.op("Shape", self.inputs["X"], start=1, end=-1), one)
        inside = self.op("Pad", self.op("Expand", self.const(1, np.float32), inside_shape), pads)
        outside = self.op("Sub", self.const(1, np.float32), inside)
        padding = self.op("Mul", outside, self.inputs["pad_value"])
        x = self.op("Add", self.op("Pad", x, pads), padding)
        per_group = self.op("Div", channels, self.attribute("group"))
        w = self.unpack_signs(self.inputs["W"], self.op("Reshape", per_group, self.const([1])))
        return self.op(
            "Conv",
            self.channels_first(x),
            self.channels_first(w),
            refs=["kernel_shape", "strides", "dilations", "group"],
        )

    def per_channel(self, op_type: str, x: ir.Value, parameter: ir.Value) -> ir.Value:
        """Apply a binary operator to x [N, C, S] and parameter [C]."""
        return self.op(op_type, x, self.op("Unsqueeze", parameter, self.const([1])))

    def shifts(self) -> ir.Value:
        """0 .. bits - 1, uint32 [bits]."""
        numbers = self.op("Range", self.const(0), self.attribute("bits"), self.const(1))
        return self.op("Cast", numbers, to=ir.DataType.UINT32.value)

    def accumulate_levels(self) -> ir.Value:
        """Planes X, W -> float32 [N, O, spatial'...], the exact integer sum of level * ±1."""
        channels = self.attribute("channels")
        x, one = self.inputs["X"], self.const([1])
        lead = self.op("Shape", x, start=0, end=-1)
        bits = self.op("Reshape", self.attribute("bits"), one)
        words = self.op("Div", self.op("Shape", x, start=-1), bits)
        unit = self.unpack(self.op("Reshape", x, self.concat(lead, bits, words)))
        used = self.op("Slice", unit, self.const([0]), self.op("Reshape", channels, one), self.const([-1]))
        powers = self.op("BitShift", self.const([1], np.uint32), self.shifts(), direction="LEFT")
        weights = self.op("Unsqueeze", self.op("Cast", powers, to=ir.DataType.FLOAT.value), one)
        levels = self.op("ReduceSum", self.op("Mul", used, weights), self.const([-2]), keepdims=0)
        per_group = self.op("Div", channels, self.attribute("group"))
        w = self.unpack_signs(self.inputs["W"], self.op("Reshape", per_group, one))
        padded = self.op("Pad", levels, self.around_spatial(*self.split_pads()))
        acc = self.op(
            "Conv",
            self.channels_first(padded),
            self.channels_first(w),
            refs=["kernel_shape", "strides", "dilations", "group"],
        )
        # A sum of products 0 * -1 may be -0, which no integer is.
        return self.op("Cast", self.op("Cast", acc, to=ir.DataType.INT32.value), to=ir.DataType.FLOAT.value)

    def binarize(self, x: ir.Value) -> ir.Value:
        """Compare x [N, C, spatial...] with threshold [C] -> bits."""
        flat = self.op("Reshape", x, self.const([0, 0, -1]))
        reached = self.per_channel("GreaterOrEqual", flat, self.inputs["threshold"])
        return self.pack(self.op("Reshape", reached, self.op("Shape", x)))

    def binarize_last(self, x: ir.Value) -> ir.Value:
        """Compare x [N, spatial..., C] with threshold [C] -> bits."""
        reached = self.op("GreaterOrEqual", x, self.inputs["threshold"])
        return self.pack_last(reached, self.op("Shape", x, start=0, end=-1))

    def scaled_sum(self, acc: ir.Value) -> ir.Value:
        """scale[o] * acc + bias[o], float32 [N, O, spatial'...]."""
        # The Reshape also keeps onnxruntime's optimiser from folding scale into the weights: that rounds otherwise.
        flat = self.op("Reshape", acc, self.const([0, 0, -1]))
        scaled = self.per_channel("Mul", flat, self.inputs["scale"])
        shifted = self.per_channel("Add", scaled, self.inputs["bias"])
        return self.op("Reshape", shifted, self.op("Shape", acc))

    def function(self, outputs: Sequence[ir.Value], doc: str, names: Sequence[str] = ("Y", "bits")) -> ir.Function:
        """Finish."""
        for output, name in zip(outputs, names, strict=False):
            output.name = name
        graph = ir.Graph(
            list(self.inputs.values()),
            list(outputs),
            nodes=self.nodes,
            opset_imports={"": OPSET},
            name=self.name,
            doc_string=doc,
        )
        attributes = [ir.Attr(name, kind, None) for name, kind in self.attributes.items()]
        return ir.Function(DOMAIN, self.name, graph=graph, attributes=attributes)


def _binarize() -> ir.Function:
    body = _Body("Binarize", ["X", "threshold"], {})
    return body.function([body.binarize(body.inputs["X"])], "bit = X >= threshold[c]; NaN gives 0")


def _binarize_channels_last() -> ir.Function:
    body = _Body("BinarizeChannelsLast", ["X", "threshold"], {})
    return body.function([body.binarize_last(body.inputs["X"])], "bit = X >= threshold[c]; NaN gives 0; channels last")


def _binarize_quantized() -> ir.Function:
    body = _Body("BinarizeQuantized", ["X", "threshold"], {})
    integers = body.op("Cast", body.inputs["X"], to=ir.DataType.INT32.value)
    return body.function([body.binarize_last(integers)], "bit = X >= threshold[c], channels last")


def _binarize_abs_mean() -> ir.Function:
    body = _Body("BinarizeAbsMean", ["X", "threshold", "scale", "shift"], {})
    x = body.inputs["X"]
    bits = body.binarize(x)
    scaled = body.per_channel("Mul", body.op("Reshape", x, body.const([0, 0, -1])), body.inputs["scale"])
    terms = body.op("Abs", body.per_channel("Add", scaled, body.inputs["shift"]))
    # In float64, so that it is right to the last bit, in whatever order a runtime adds.
    exact = body.op("Cast", terms, to=ir.DataType.DOUBLE.value)
    mean = body.op("ReduceMean", exact, body.const([1]), keepdims=1)
    mean = body.op("Cast", mean, to=ir.DataType.FLOAT.value)
    shape = body.concat(body.op("Shape", x, start=0, end=1), body.const([1]), body.op("Shape", x, start=2))
    doc = "bit = X >= threshold[c], NaN gives 0; A = mean over c of |scale[c] * X + shift[c]|"
    return body.function([bits, body.op("Reshape", mean, shape)], doc, names=("bits", "A"))


def _binary_conv() -> ir.Function:
    body = _Body("BinaryConv", ["X", "W", "scale", "bias", "pad_value"], CONV_ATTRIBUTES)
    return body.function([body.scaled_sum(body.accumulate())], "scale[o] * acc + bias[o]")


def _binary_conv_scaled() -> ir.Function:
    body = _Body("BinaryConvScaled", ["X", "W", "scale", "bias", "pad_value", "factor"], CONV_ATTRIBUTES)
    y = body.op("Mul", body.scaled_sum(body.accumulate()), body.inputs["factor"])
    return body.function([y], "(scale[o] * acc + bias[o]) * factor")


def _binary_conv_residual() -> ir.Function:
    inputs = ["X", "W", "scale", "bias", "pad_value", "residual", "threshold"]
    body = _Body("BinaryConvResidual", inputs, CONV_ATTRIBUTES)
    y = body.op("Add", body.scaled_sum(body.accumulate()), body.inputs["residual"])
    bits = body.binarize(y)
    return body.function([y, bits], "Y = (scale[o] * acc + bias[o]) + residual; bit = Y >= threshold[o]")


def _binary_conv_threshold() -> ir.Function:
    body = _Body("BinaryConvThreshold", ["X", "W", "threshold", "pad_value"], CONV_ATTRIBUTES)
    acc = body.accumulate()
    integer = body.op("Cast", acc, to=ir.DataType.INT32.value)
    return body.function([body.binarize(integer)], "bit = acc >= threshold[o]")


def _binary_max_pool() -> ir.Function:
    body = _Body("BinaryMaxPool", ["X"], POOL_ATTRIBUTES)
    # The padding is made of zeros here, not by MaxPool: MaxPool fills it with -inf, which a window that sees nothing
    # else gives; onnxruntime wants pads below kernel_shape; onnx 1.23's reference evaluator misreads pads at stride 1.
    begins, ends = body.split_pads()
    strides, one = body.attribute("strides"), body.const([1])
    ceil = body.op("Reshape", body.attribute("ceil_mode"), one)
    rounding = body.op("Mul", ceil, body.op("Sub", strides, one))
    pads = body.around_spatial(begins, body.op("Add", ends, rounding))
    padded = body.op("Pad", body.unpack(body.inputs["X"]), pads)
    pooled = body.op("MaxPool", body.channels_first(padded), refs=["kernel_shape", "strides", "dilations"])
    # With ceil_mode the last window goes if it starts in the end padding.
    count = body.op("Shape", pooled, start=2)
    last_start = body.op("Mul", body.op("Sub", count, one), strides)
    end_padding = body.op("Add", body.op("Shape", body.inputs["X"], start=1, end=-1), begins)
    outside = body.op("Cast", body.op("GreaterOrEqual", last_start, end_padding), to=ir.DataType.INT64.value)
    kept = body.op("Sub", count, body.op("Mul", ceil, outside))
    stop = body.concat(body.op("Shape", pooled, end=2), kept)
    kept_windows = body.op("Slice", pooled, body.op("Mul", stop, body.const([0])), stop)
    bits = body.pack(body.op("Cast", kept_windows, to=ir.DataType.BOOL.value))
    return body.function([bits], "the OR of the bits in the window; padding adds nothing")


def _unpack_weights() -> ir.Function:
    body = _Body("UnpackWeights", ["W", "scale"], UNPACK_ATTRIBUTES)
    # Where, on booleans: fewer and smaller tensors while the session is made than with 2 * bit - 1.
    signs = body.op(
        "Reshape", body.op("Cast", body.lowest_bits(body.inputs["W"]), to=ir.DataType.BOOL.value), body.const([0, -1])
    )
    shape = body.attribute("shape")
    signs = body.op("Slice", signs, body.const([0]), body.op("ReduceProd", shape, keepdims=1), body.const([1]))
    scale = body.op("Unsqueeze", body.inputs["scale"], body.const([1]))
    weights = body.op("Where", signs, scale, body.op("Neg", scale))
    output = body.op("Reshape", weights, body.concat(body.op("Shape", body.inputs["scale"]), shape))
    return body.function([output], "scale[o] where the bit is 1, else -scale[o]; [O, *shape]")


def _quantize_levels() -> ir.Function:
    body = _Body("QuantizeLevels", ["X", "thresholds"], {"bits": ir.AttributeType.INT})
    x, one = body.inputs["X"], body.const([1])
    # [N, 1, C, pixels] against [thresholds, C, 1].
    flat = body.op("Unsqueeze", body.op("Reshape", x, body.const([0, 0, -1])), one)
    reached = body.op("GreaterOrEqual", flat, body.op("Unsqueeze", body.inputs["thresholds"], body.const([-1])))
    level = body.op("ReduceSum", body.op("Cast", reached, to=ir.DataType.INT64.value), one)
    shifts = body.op("Unsqueeze", body.shifts(), body.const([1, 2]))
    integers = body.op("Cast", level, to=ir.DataType.UINT32.value)
    bit = body.op(
        "BitwiseAnd", body.op("BitShift", integers, shifts, direction="RIGHT"), body.const([1], np.uint32)
    )  # [N, bits, C, pixels]
    rows = body.op("Transpose", body.op("Cast", bit, to=ir.DataType.BOOL.value), perm=[0, 3, 1, 2])
    pixels = body.concat(body.op("Shape", x, start=0, end=1), body.op("Shape", x, start=2))
    bits = body.op("Reshape", body.attribute("bits"), one)
    planes = body.pack_last(rows, body.concat(pixels, bits))
    words = body.op("Mul", bits, body.op("Shape", planes, start=-1))
    result = body.op("Reshape", planes, body.concat(pixels, words))
    return body.function([result], "level = number of thresholds of its channel that X reaches, as planes of bits")


def _binary_conv_levels() -> ir.Function:
    attributes = CONV_ATTRIBUTES | {"bits": ir.AttributeType.INT}
    body = _Body("BinaryConvLevels", ["X", "W", "scale", "bias"], attributes)
    return body.function([body.scaled_sum(body.accumulate_levels())], "scale[o] * acc + bias[o], of levels")


def functions() -> list[ir.Function]:
    """The functions, made anew: an ir.Function belongs to one model."""
    return [
        _binarize(),
        _binarize_channels_last(),
        _binarize_quantized(),
        _binarize_abs_mean(),
        _binary_conv(),
        _binary_conv_scaled(),
        _binary_conv_threshold(),
        _binary_conv_residual(),
        _binary_max_pool(),
        _unpack_weights(),
        _quantize_levels(),
        _binary_conv_levels(),
    ]
