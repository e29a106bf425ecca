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

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.body import Body
from bnn_deploy.operators.contract import CONV_ATTRIBUTES, POOL_ATTRIBUTES, UNPACK_ATTRIBUTES


def _binarize() -> ir.Function:
    body = Body("Binarize", ["X", "threshold"], {})
    return body.function([body.binarize(body.inputs["X"])], "bit = X >= threshold[c]; NaN gives 0")


def _binarize_channels_last() -> ir.Function:
    body = Body("BinarizeChannelsLast", ["X", "threshold"], {})
    return body.function([body.binarize_last(body.inputs["X"])], "bit = X >= threshold[c]; NaN gives 0; channels last")


def _binarize_quantized() -> ir.Function:
    body = Body("BinarizeQuantized", ["X", "threshold"], {})
    integers = body.op("Cast", body.inputs["X"], to=ir.DataType.INT32.value)
    return body.function([body.binarize_last(integers)], "bit = X >= threshold[c], channels last")


def _binarize_abs_mean() -> ir.Function:
    body = Body("BinarizeAbsMean", ["X", "threshold", "scale", "shift"], {})
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
    body = Body("BinaryConv", ["X", "W", "scale", "bias", "pad_value"], CONV_ATTRIBUTES)
    return body.function([body.scaled_sum(body.accumulate())], "scale[o] * acc + bias[o]")


def _binary_conv_scaled() -> ir.Function:
    body = Body("BinaryConvScaled", ["X", "W", "scale", "bias", "pad_value", "factor"], CONV_ATTRIBUTES)
    y = body.op("Mul", body.scaled_sum(body.accumulate()), body.inputs["factor"])
    return body.function([y], "(scale[o] * acc + bias[o]) * factor")


def _binary_conv_residual() -> ir.Function:
    inputs = ["X", "W", "scale", "bias", "pad_value", "residual", "threshold"]
    body = Body("BinaryConvResidual", inputs, CONV_ATTRIBUTES)
    y = body.op("Add", body.scaled_sum(body.accumulate()), body.inputs["residual"])
    bits = body.binarize(y)
    return body.function([y, bits], "Y = (scale[o] * acc + bias[o]) + residual; bit = Y >= threshold[o]")


def _binary_conv_threshold() -> ir.Function:
    body = Body("BinaryConvThreshold", ["X", "W", "threshold", "pad_value"], CONV_ATTRIBUTES)
    acc = body.accumulate()
    integer = body.op("Cast", acc, to=ir.DataType.INT32.value)
    return body.function([body.binarize(integer)], "bit = acc >= threshold[o]")


def _binary_max_pool() -> ir.Function:
    body = Body("BinaryMaxPool", ["X"], POOL_ATTRIBUTES)
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
    body = Body("UnpackWeights", ["W", "scale"], UNPACK_ATTRIBUTES)
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
    body = Body("QuantizeLevels", ["X", "thresholds"], {"bits": ir.AttributeType.INT})
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
    body = Body("BinaryConvLevels", ["X", "W", "scale", "bias"], attributes)
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
