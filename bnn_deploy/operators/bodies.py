"""The definitions of the operators, as ONNX functions of standard operators; their table is in `operators.contract`."""

from __future__ import annotations

from collections.abc import Callable, Container

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.body import Body
from bnn_deploy.operators.contract import OPERATORS

Definition = Callable[[Body], tuple[ir.Value, ...]]
"""Writes an operator's body, and returns its outputs in the order of `Operator.outputs`."""

_DEFINITIONS: dict[str, Definition] = {}


def _defines(operator: str) -> Callable[[Definition], Definition]:
    """Mark the definition of an operator."""

    def mark(definition: Definition) -> Definition:
        _DEFINITIONS[operator] = definition
        return definition

    return mark


@_defines("Binarize")
def _binarize(body: Body) -> tuple[ir.Value, ...]:
    return (body.binarize(body.inputs["X"]),)


@_defines("BinarizeChannelsLast")
def _binarize_channels_last(body: Body) -> tuple[ir.Value, ...]:
    return (body.binarize_last(body.inputs["X"]),)


@_defines("BinarizeQuantized")
def _binarize_quantized(body: Body) -> tuple[ir.Value, ...]:
    integers = body.op("Cast", body.inputs["X"], to=ir.DataType.INT32.value)
    return (body.binarize_last(integers),)


@_defines("BinarizeAbsMean")
def _binarize_abs_mean(body: Body) -> tuple[ir.Value, ...]:
    x = body.inputs["X"]
    bits = body.binarize(x)
    scaled = body.per_channel("Mul", body.flat(x), body.inputs["scale"])
    terms = body.op("Abs", body.per_channel("Add", scaled, body.inputs["shift"]))
    # In float64, so that the float32 mean is right to the last bit, in whatever order a runtime adds.
    exact = body.op("Cast", terms, to=ir.DataType.DOUBLE.value)
    mean = body.op("ReduceMean", exact, body.const([1]), keepdims=1)
    mean = body.op("Cast", mean, to=ir.DataType.FLOAT.value)
    return bits, body.reshape(mean, body.shape(x, end=1), body.const([1]), body.shape(x, 2))


@_defines("BinaryConv")
def _binary_conv(body: Body) -> tuple[ir.Value, ...]:
    return (body.scaled_sum(body.accumulate()),)


@_defines("BinaryConvScaled")
def _binary_conv_scaled(body: Body) -> tuple[ir.Value, ...]:
    y = body.op("Mul", body.scaled_sum(body.accumulate()), body.inputs["factor"])
    return (y,)


@_defines("BinaryConvResidual")
def _binary_conv_residual(body: Body) -> tuple[ir.Value, ...]:
    y = body.op("Add", body.scaled_sum(body.accumulate()), body.inputs["residual"])
    bits = body.binarize(y)
    return y, bits


@_defines("BinaryConvThreshold")
def _binary_conv_threshold(body: Body) -> tuple[ir.Value, ...]:
    return (body.binarize(body.accumulate()),)


@_defines("BinaryMaxPool")
def _binary_max_pool(body: Body) -> tuple[ir.Value, ...]:
    # Padded with zeros by Pad, not by MaxPool: MaxPool pads with -inf, which is the output of a window wholly in the
    # padding; onnxruntime wants pads below kernel_shape; onnx 1.23's reference evaluator misreads pads at stride 1.
    begins, ends = body.split_pads()
    strides, dilations, one = body.attribute("strides"), body.attribute("dilations"), body.const([1])
    end_padding = body.op("Add", body.shape(body.inputs["X"], 1, -1), begins)
    sizes = body.op("Add", end_padding, ends)
    lacking = body.lacking(sizes, "kernel_shape", "dilations")
    window = body.op("Add", body.op("Mul", body.op("Sub", body.attribute("kernel_shape"), one), dilations), one)
    room = body.op("Sub", body.op("Add", sizes, lacking), window)
    # ceil_mode has a last window that hangs over the end, unless it starts in the end padding; so what it lacks is less
    # than a window, however large the strides are.
    last = body.op("Div", body.op("Add", room, body.op("Sub", strides, one)), strides)
    last_start = body.op("Mul", last, strides)
    inside = body.op("Cast", body.op("Less", last_start, end_padding), to=ir.DataType.INT64.value)
    ceil = body.op("Reshape", body.attribute("ceil_mode"), one)
    hangs_over = body.op("Mul", body.op("Mul", ceil, inside), body.op("Sub", last_start, room))
    pads = body.around_spatial(begins, body.op("Add", body.op("Add", ends, lacking), hangs_over))
    padded = body.op("Pad", body.unpack(body.inputs["X"]), pads)
    pooled = body.op("MaxPool", body.channels_first(padded), refs=["kernel_shape", "strides", "dilations"])
    count = body.op("Shape", pooled, start=2)
    in_ceil_mode = body.op("Add", last, inside)
    kept = body.op("Add", count, body.op("Mul", ceil, body.op("Sub", in_ceil_mode, count)))
    stop = body.concat(body.op("Shape", pooled, end=2), kept)
    kept_windows = body.op("Slice", pooled, body.op("Mul", stop, body.const([0])), stop)
    bits = body.pack(body.op("Cast", kept_windows, to=ir.DataType.BOOL.value))
    return (bits,)


@_defines("AveragePoolThreshold")
def _average_pool_threshold(body: Body) -> tuple[ir.Value, ...]:
    x, zero, zeros = body.inputs["X"], body.const(0, np.float32), body.const([0, 0])
    # Not Relu: what it makes of NaN, runtimes do not agree on.
    relu = body.op("Cast", body.attribute("relu"), to=ir.DataType.BOOL.value)
    raised = body.op("Where", body.op("And", relu, body.op("LessOrEqual", x, zero)), zero, x)
    begins, ends = body.split_pads()
    padded = body.op("Pad", raised, body.concat(zeros, begins, zeros, ends))
    sums = body.add_in_turn(body.add_in_turn(padded, 0), 1)
    return (body.binarize(sums),)


@_defines("UnpackWeights")
def _unpack_weights(body: Body) -> tuple[ir.Value, ...]:
    # Where, on booleans: needs fewer and smaller tensors than 2 * bit - 1 while the session is created.
    signs = body.op(
        "Reshape", body.op("Cast", body.lowest_bits(body.inputs["W"]), to=ir.DataType.BOOL.value), body.const([0, -1])
    )
    shape = body.attribute("shape")
    signs = body.op("Slice", signs, body.const([0]), body.op("ReduceProd", shape, keepdims=1), body.const([1]))
    scale = body.op("Unsqueeze", body.inputs["scale"], body.const([1]))
    weights = body.op("Where", signs, scale, body.op("Neg", scale))
    output = body.op("Reshape", weights, body.concat(body.op("Shape", body.inputs["scale"]), shape))
    return (output,)


@_defines("QuantizeLevels")
def _quantize_levels(body: Body) -> tuple[ir.Value, ...]:
    x, one = body.inputs["X"], body.const([1])
    # [N, 1, C, pixels] against [thresholds, C, 1].
    flat = body.op("Unsqueeze", body.flat(x), one)
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
    return (body.reshape(planes, pixels, words),)


@_defines("BinaryConvLevels")
def _binary_conv_levels(body: Body) -> tuple[ir.Value, ...]:
    return (body.scaled_sum(body.accumulate_levels()),)


@_defines("BinaryConvBases")
def _binary_conv_bases(body: Body) -> tuple[ir.Value, ...]:
    # acc of all planes and bases, in one Conv of N * planes images and O * bases filters.
    one, group = body.const([1]), body.attribute("group")
    channels = body.op("Reshape", body.attribute("channels"), one)
    planes, bases = (body.op("Add", body.op("Reshape", body.attribute(n), one), one) for n in ("planes", "bases"))
    x = body.with_ones(body.inputs["X"], body.attribute("planes"), channels)
    w = body.with_ones(body.inputs["W"], body.attribute("bases"), body.op("Div", channels, group))
    begins, ends = body.split_pads()
    zero, zeros = body.const([0]), body.const([0, 0])
    x = body.op("Pad", x, body.concat(zero, begins, zeros, zero, ends, zeros))
    conv = body.op(
        "Conv", body.parts_first(x), body.parts_first(w), refs=["kernel_shape", "strides", "dilations", "group"]
    )
    pixels = body.op("Shape", conv, start=2)
    batch, outputs = body.op("Shape", x, start=0, end=1), body.op("Shape", body.inputs["bias"])
    acc = body.reshape(conv, batch, planes, outputs, bases, body.size(conv, 2))
    acc = body.op("Transpose", acc, perm=[3, 1, 0, 2, 4])  # [bases + 1, planes + 1, N, O, pixels]
    scale = body.op("Unsqueeze", body.op("Transpose", body.inputs["scale"], perm=[1, 0, 2]), body.const([2, 4]))
    terms = body.op("Mul", acc, scale)

    def part(starts: list[int], ends: list[int]) -> ir.Value:
        """The terms of these bases and planes, in that order, [terms, N, O, pixels]."""
        chosen = body.op("Slice", terms, body.const(starts), body.const(ends), body.const([0, 1]))
        return body.reshape(chosen, body.size(chosen, end=2), body.shape(chosen, 2))

    every = 2**31 - 1
    parts = (part([0, 0], [every, 1]), part([0, 1], [1, every]), part([1, 1], [every, every]))
    bias = body.op("Add", body.inputs["bias"], body.const(0, np.float32))  # 0 for -0
    image = body.op("Shape", parts[0], start=1)
    start = body.op("Expand", body.op("Unsqueeze", bias, body.const([0, 1, 3])), body.concat(one, image))
    sums = body.op("CumSum", body.op("Concat", start, *parts, axis=0), body.const(0))  # adds one after the other
    last = body.op("Gather", sums, body.const(-1), axis=0)
    return (body.reshape(last, batch, outputs, pixels),)


@_defines("BinaryLinear")
def _binary_linear(body: Body) -> tuple[ir.Value, ...]:
    channels = body.op("Reshape", body.attribute("channels"), body.const([1]))
    x, w = (body.unpack_signs(body.inputs[name], channels) for name in ("X", "W"))
    acc = body.op("MatMul", x, body.op("Transpose", w, perm=[1, 0]))
    # The Reshape keeps onnxruntime's optimiser from folding scale into the weights, which rounds differently.
    rows = body.reshape(acc, body.size(acc, end=-1), body.shape(acc, -1))
    line = body.op("Add", body.op("Mul", rows, body.inputs["scale"]), body.inputs["bias"])
    return (body.reshape(line, body.shape(acc)),)


@_defines("BinaryMatMul")
def _binary_matmul(body: Body) -> tuple[ir.Value, ...]:
    one, channels, a, b = body.const([1]), body.attribute("channels"), body.inputs["A"], body.inputs["B"]
    levels = body.levels(a, channels, one)
    # 2 * level - 1 if they are signs.
    signs = body.op("Cast", body.attribute("signs"), to=ir.DataType.FLOAT.value)
    factor = body.op("Add", signs, body.const(1, np.float32))
    left = body.op("Sub", body.op("Mul", levels, factor), signs)
    right = body.unpack_signs(b, body.op("Reshape", channels, one))
    acc = body.op("MatMul", body.matrices(left), body.op("Transpose", body.matrices(right), perm=[0, 2, 1]))
    # A sum of products 0 * -1 may be -0; the cast to int32 makes it 0.
    exact = body.op("Cast", body.op("Cast", acc, to=ir.DataType.INT32.value), to=ir.DataType.FLOAT.value)
    shape = body.concat(body.op("Shape", a, start=0, end=-1), body.op("Shape", b, start=-2, end=-1))
    return (body.reshape(body.op("Mul", exact, body.inputs["scale"]), shape),)


@_defines("DirectConv")
def _direct_conv(body: Body) -> tuple[ir.Value, ...]:
    return (_largest(body, body.inputs["X"]),)


@_defines("DirectConvThreshold")
def _direct_conv_threshold(body: Body) -> tuple[ir.Value, ...]:
    return (_largest_reaches(body, body.inputs["X"]),)


@_defines("ImageConv")
def _image_conv(body: Body) -> tuple[ir.Value, ...]:
    return (_largest(body, body.image()),)


@_defines("ImageConvThreshold")
def _image_conv_threshold(body: Body) -> tuple[ir.Value, ...]:
    return (_largest_reaches(body, body.image()),)


def _largest(body: Body, x: ir.Value) -> ir.Value:
    """Y of DirectConv, from x [N, C, spatial...] float32."""
    return body.max_pool(body.convolve_directly(x), -np.inf)


def _largest_reaches(body: Body, x: ir.Value) -> ir.Value:
    """Y of DirectConvThreshold, from x [N, C, spatial...] float32."""
    # The bits are pooled, not the floats: what the largest of numbers and a NaN is, runtimes do not agree on.
    reached = body.op("Cast", body.reached(body.convolve_directly(x)), to=ir.DataType.FLOAT.value)
    return body.pack(body.op("Cast", body.max_pool(reached, 0.0), to=ir.DataType.BOOL.value))


@_defines("ReluLinear")
def _relu_linear(body: Body) -> tuple[ir.Value, ...]:
    zero = body.const(0, np.float32)
    rows = body.op("Flatten", body.inputs["X"], axis=1)
    # Not Relu: what it makes of NaN, runtimes do not agree on.
    positive = body.op("Where", body.op("LessOrEqual", rows, zero), zero, rows)
    return (body.op("Gemm", positive, body.inputs["W"], body.inputs["bias"]),)


def functions(operators: Container[str] = OPERATORS) -> list[ir.Function]:
    """New functions of these operators, in the order of the table: an ir.Function belongs to one model."""
    made = []
    for name in filter(operators.__contains__, OPERATORS):
        body = Body(name)
        made.append(body.function(*_DEFINITIONS[name](body)))
    return made
