"""What a float layer that could be binary reads: signs or levels, two-valued weights, a bias, pads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.errors import InputError
from bnn_deploy.operators.bits import words
from bnn_deploy.operators.contract import DOMAIN, MAX_LEVEL_BITS, MAX_SPATIAL, MAX_TERMS
from bnn_deploy.operators.shapes import beyond
from bnn_deploy.passes.graph import (
    add_initializer,
    auto_pad,
    constant,
    group_of,
    insert_node,
    ints,
    is_op,
    maker,
    read_pad,
    replace_value,
    static_shape,
    swap_filters,
)
from bnn_deploy.passes.lower.transposed import replace_transposed
from bnn_deploy.passes.outcome import display_name
from bnn_deploy.passes.reasons import (
    AutoPad,
    BiasNotConstant,
    BiasShape,
    Channels,
    ExactZeros,
    Features,
    FlattenedDimensions,
    GemmFactors,
    InputDimensions,
    LargeWindow,
    LevelsPad,
    ManyProducts,
    NotFinite,
    NotFloat32,
    OutputShape,
    PadMode,
    PadPlace,
    PoolForm,
    RealWeights,
    Reason,
    SpatialDimensions,
    WeightDimensions,
    WeightsNotConstant,
)
from bnn_deploy.passes.recognise.few_levels import Quantizer, dequantized, quantizer, requantize
from bnn_deploy.provenance import REFUSED, SOURCE, layer_metadata

MOST_PLANES = 2**MAX_LEVEL_BITS
"""Planes of bits that an input has at most: one for each threshold of its levels."""


@dataclass
class LevelsInput:
    """Where a layer's levels come from: quantiser -> MaxPool* -> (Pad | Flatten).

    Attributes:
        quantizer: what makes the levels.
        value: the tensor behind the pools.
        pools: the MaxPools, in order.
        flattened: the shape [C, spatial...] that a Flatten or Reshape made flat, or None.
        pads: what Pad nodes add to each spatial dimension (begins, then ends), or None.
        pad_value: the value that they add.
        levels: the values that the layer reads: those of the quantiser, or what a QuantizeLinear and a DequantizeLinear
            behind pools or a Flatten make of them.
    """

    quantizer: Quantizer
    value: ir.Value
    pools: list[ir.Node]
    flattened: list[int] | None
    pads: list[int] | None
    pad_value: float
    levels: NDArray[np.float64]


def levels_input(
    node: ir.Node, find: Callable[..., Quantizer | Reason | None] = quantizer
) -> LevelsInput | Reason | None:
    """Walk up from a layer's first input to a quantiser.

    Args:
        node: the layer.
        find: `quantizer`, or one that remembers what it gave.

    Returns:
        What is between; a reason if that is nothing that a layer of levels can have before it, or the levels are none
        that can be had; None if there is no quantiser.
    """
    pools: list[ir.Node] = []
    flattened, pads, pad_value = None, None, 0.0
    problem: Reason | None = None
    value, behind = node.inputs[0], node.inputs[0]
    rounded: list[ir.Value] = []  # by a QuantizeLinear and a DequantizeLinear, the last first
    while value is not None and behind is not None and (producer := value.producer()) is not None:
        data = producer.inputs[0] if producer.inputs else None
        if is_op(producer, "MaxPool"):
            if len(producer.outputs) > 1 or auto_pad(producer):
                problem = PoolForm(value.name or "")
            pools.append(producer)
            value = data
        elif is_op(producer, "Pad") and is_op(node, "Conv") and not pools and pads is None:
            read = read_pad(producer)
            rank = 0 if read is None else len(read[0]) // 2
            if read is None or any(read[0][i] or read[0][i + rank] for i in (0, 1)):
                problem = LevelsPad(value.name or "")
            else:
                pads = [*read[0][2:rank], *read[0][rank + 2 :]]
                pad_value = float(_requantized(rounded, np.array(read[1])))
            value = behind = data
        elif is_op(producer, "Flatten", "Reshape") and not is_op(node, "Conv") and flattened is None and not pools:
            shape_in, shape_out = (None if v is None else static_shape(v) for v in (data, value))
            if shape_in is None or shape_out is None or len(shape_in) < 2 or len(shape_out) != 2:
                return None
            features = [d for d in shape_in[1:] if d is not None]
            if len(features) != len(shape_in) - 1 or shape_out[1] != math.prod(features):
                return None
            flattened = features
            value = behind = data
        else:
            last = is_op(node, "MatMul") and flattened is None and not pools
            found = find(value, signs=bool(rounded), axis=-1 if last else 1)
            if isinstance(found, Quantizer):
                levels = _requantized(rounded, found.levels)
                if (np.diff(levels) <= 0).any():
                    return None
                return problem or LevelsInput(found, behind, pools[::-1], flattened, pads, pad_value, levels)
            if pools or (data := dequantized(value)) is None:
                return found
            rounded.append(value)
            value = behind = data
    return None


def _requantized(rounded: list[ir.Value], points: NDArray[np.float64]) -> NDArray[np.float64]:
    for value in reversed(rounded):
        points = requantize(value, points)
    return points


SMALLEST = np.nextafter(np.float32(0), np.float32(1))
"""The smallest float32 above 0: x >= this is x > 0."""

MAX_SPREAD = 1e-3
"""Largest relative spread of |w| within a filter that still counts as one magnitude.

The straight-through trick left in an exported graph makes weights two-valued only up to rounding: 4e-7 to 1.3e-4 was
observed.
"""

EXACT = 1e-6
"""Numbers that differ by this, relative to the largest, are one number with the rounding of float32."""


class NotTwoValuedError(Exception):
    """The weights are not ±alpha per filter; `reason` says where."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.text)
        self.reason = reason


def two_valued(weight: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Split weights [O, ...] into sign bits (True is +) of the same shape and alpha [O] float32 > 0.

    Raises:
        NotTwoValuedError: some filter has more than one magnitude, or exact zeros.
        InputError: a filter is all zeros, no sign and alpha 0, and no other has zeros.
    """
    flat = np.abs(weight.reshape(len(weight), -1).astype(np.float64))
    zeros = (flat == 0).sum(axis=1)
    dead = np.flatnonzero(zeros == flat.shape[1])
    high, low = flat.max(axis=1), flat.min(axis=1)
    spread = np.flatnonzero((zeros == 0) & ((high - low > MAX_SPREAD * high) | _off_centre(weight, high > low)))
    if not np.isfinite(high).all():
        raise NotTwoValuedError(NotFinite(int(np.flatnonzero(~np.isfinite(high))[0])))
    if len(spread):
        o = int(spread[0])
        raise NotTwoValuedError(RealWeights(o, float(low[o]), float(high[o])))
    if len(dead) == np.count_nonzero(zeros) > 0:
        o = int(dead[0])
        raise InputError(
            f"filter {o}{f' (and {len(dead) - 1} more)' if len(dead) > 1 else ''} is all zeros, so it has no sign and "
            "alpha is 0: the recipe makes a filter zero when all its input channels are equal (or there is only one); "
            "retrain, or remove the filter"
        )
    if zeros.any():
        lowest = np.where(flat == 0, np.inf, flat).min(axis=1)
        pruned = np.flatnonzero((zeros > 0) & (high - lowest > MAX_SPREAD * high))
        if len(pruned):
            raise NotTwoValuedError(RealWeights(int(pruned[0]), 0.0, float(high[pruned[0]])))
        o = int(np.flatnonzero((zeros > 0) & (zeros < flat.shape[1]))[0])
        raise NotTwoValuedError(ExactZeros(o, int(zeros[o])))
    # One magnitude to the last bit keeps that value; one that varies by rounding is replaced by its mean.
    alpha = np.where(high == low, high, flat.mean(axis=1)).astype(np.float32)
    return weight > 0, alpha


def _off_centre(weight: NDArray[np.float32], varied: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the varied filters [O] have values beta - alpha and beta + alpha, by more than rounding: AdaBin."""
    found = np.zeros(len(weight), np.bool_)
    for o in np.flatnonzero(varied):
        row = weight[o].ravel().astype(np.float64)
        above, below = row[row > 0], -row[row < 0]
        if len(above) and len(below):
            noise = max(np.ptp(above), np.ptp(below), EXACT * np.abs(row).max())
            found[o] = abs(above.mean() - below.mean()) > 2 * noise
    return found


@dataclass
class FloatLayer:
    """A candidate: weight [O, C/group, kernel...], bias [O] or None, and the attributes of a convolution.

    `output_padding` is None, but for a transposed convolution, whose taps are in ONNX's order.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    strides: list[int]
    pads: list[int]
    dilations: list[int]
    group: int
    linear: bool
    output_padding: list[int] | None = None


@dataclass
class SignInput:
    """Where a layer's ±1 come from: Sign -> (Mul) -> MaxPool* -> (Pad | Flatten).

    Attributes:
        sign: the node.
        pools: the MaxPools behind it, in order.
        flattened: the shape [C, spatial...] that a Flatten or Reshape made flat, or None.
        factor: what the ±1 are multiplied by, > 0.
        pads: what Pad nodes add to each spatial dimension (begins, then ends), or None.
        pad_value: what they add: 0, -1 or +1 in units of `factor`.
    """

    sign: ir.Node
    pools: list[ir.Node]
    flattened: list[int] | None
    factor: float
    pads: list[int] | None
    pad_value: float


def sign_input(node: ir.Node, index: int = 0) -> SignInput | Reason | None:
    """Walk up from a layer's first input, or another one, to a Sign.

    Returns:
        What is between; a reason if that is nothing that a binary layer can have before it; None if there is no Sign.
    """
    pools: list[ir.Node] = []
    flattened, factor, pads, pad_value = None, 1.0, None, 0.0
    problem: Reason | None = None
    value = node.inputs[index]
    while value is not None and (producer := value.producer()) is not None:
        data = producer.inputs[0]
        if is_op(producer, "Sign"):
            problem = producer.meta.get(REFUSED, problem)
            return problem or SignInput(producer, pools[::-1], flattened, factor, pads, pad_value)
        if is_op(producer, "Mul"):
            sides = [(data, constant(producer.inputs[1])), (producer.inputs[1], constant(data))]
            operand, number = next(((v, c) for v, c in sides if c is not None and c.size == 1), (None, None))
            if operand is None or number is None or not 0 < float(number.reshape(())) < np.inf:
                return None
            # What is padded behind the product was in its units; the product of the factors is the unit of the signs.
            factor *= float(number.reshape(()))
            pad_value /= float(number.reshape(()))
            data = operand
        elif is_op(producer, "MaxPool"):
            pools.append(producer)
        elif is_op(producer, "Pad") and is_op(node, "Conv"):
            read = read_pad(producer)
            every, border = read or ([], 0.0)
            rank = len(every) // 2
            if read is None:
                problem = PadMode(value.name or "")
            elif pools or pads is not None or any(every[i] or every[i + rank] for i in (0, 1)):
                problem = PadPlace(value.name or "")
            else:
                pads, pad_value = [*every[2:rank], *every[rank + 2 :]], border
        elif (
            is_op(producer, "Flatten", "Reshape") and not is_op(node, "Conv") and flattened is None and data is not None
        ):
            shape_in, shape_out = static_shape(data), static_shape(value)
            if shape_in is None or shape_out is None or len(shape_in) < 2 or len(shape_out) != 2:
                return None
            features = [d for d in shape_in[1:] if d is not None]
            if len(features) != len(shape_in) - 1 or shape_out[1] != math.prod(features):
                return None
            flattened = features
        else:
            return None
        value = data
    return None


def is_product(node: ir.Node) -> bool:
    """Whether `node` multiplies two activations, and is no layer with weights."""
    return is_op(node, "MatMul") and all(value is not None and value.producer() is not None for value in node.inputs)


def is_on_rows(source: SignInput | LevelsInput | Reason | None) -> bool:
    """Whether a linear layer reads a tensor of 3 or more dimensions with static channels last, and nothing between."""
    if source is None or isinstance(source, Reason):
        return False
    shape = static_shape(source.value if isinstance(source, LevelsInput) else source.sign.outputs[0])
    plain = not source.pools and source.flattened is None and source.pads is None
    return plain and shape is not None and len(shape) > 2 and shape[-1] is not None


def read_layer(node: ir.Node) -> FloatLayer | Reason:
    """Read the layer's weight, bias and geometry, or say why it cannot be one."""
    weight = constant(node.inputs[1])
    if weight is None:
        return WeightsNotConstant()
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant(bias_value)
    if bias_value is not None and bias is None:
        return BiasNotConstant()
    if weight.dtype != np.float32:
        return NotFloat32(str(weight.dtype))
    if is_op(node, "Conv", "ConvTranspose"):
        if rule := auto_pad(node):
            return AutoPad(rule)
        rank = weight.ndim - 2
        if rank > MAX_SPATIAL:
            return SpatialDimensions(rank)
        if "output_shape" in node.attributes:
            return OutputShape()
        group = group_of(node)
        return FloatLayer(
            swap_filters(weight, group) if is_op(node, "ConvTranspose") else weight,
            bias,
            ints(node, "strides", [1] * rank),
            ints(node, "pads", [0] * (2 * rank)),
            ints(node, "dilations", [1] * rank),
            group,
            linear=False,
            output_padding=ints(node, "output_padding", [0] * rank) if is_op(node, "ConvTranspose") else None,
        )
    if weight.ndim != 2:
        return WeightDimensions(weight.ndim)
    if is_op(node, "Gemm"):
        factors = [node.attributes[name].as_float() for name in ("alpha", "beta") if name in node.attributes]
        transposed = [name in node.attributes and node.attributes[name].as_int() != 0 for name in ("transA", "transB")]
        if any(factor != 1.0 for factor in factors) or transposed[0]:
            return GemmFactors()
        weight = weight if transposed[1] else weight.T
        if bias is not None and bias.shape != (len(weight),):
            return BiasShape(str(list(bias.shape)), len(weight))
    else:
        weight = weight.T
    unit = [1] * MAX_SPATIAL
    return FloatLayer(weight, bias, unit, [0] * (2 * MAX_SPATIAL), unit, 1, linear=True)


def fit_weight(
    layer: FloatLayer, shape: list[int | None], flattened: list[int] | None
) -> tuple[NDArray[np.float32], int] | Reason:
    """The weight [O, C/group, kernel...] of a layer and its input's channels, or why it cannot be a binary one.

    Args:
        layer: a linear layer gets a kernel that covers the flattened map, or else a 1x1 one.
        shape: of its input [N, C, spatial...], before it is flattened.
        flattened: the shape [C, spatial...] that was flattened, or None.
    """
    channels, weight = shape[1], layer.weight
    assert channels is not None
    if layer.linear:
        if flattened is None and len(shape) != 2:
            return InputDimensions(len(shape))
        features = flattened or [channels]
        if math.prod(features) != weight.shape[1]:
            return Features(math.prod(features), weight.shape[1])
        if len(features) > 1 + MAX_SPATIAL:
            return FlattenedDimensions(len(features) - 1)
        kernel = features[1:] if len(features) > 1 else [1, 1]
        weight = weight.reshape(len(weight), features[0], *kernel)
        channels = features[0]
    if weight.shape[1] * layer.group != channels:
        return Channels(channels, weight.shape[1] * layer.group)
    if math.prod(weight.shape[1:]) >= MAX_TERMS:
        return ManyProducts(math.prod(weight.shape[1:]))
    return weight, channels


def large_window(node: ir.Node, layer: FloatLayer, pads: Sequence[int]) -> Reason | None:
    """Why no binary convolution has the window of a layer; None if one has.

    Args:
        node: the layer; what Pad nodes add is part of its input.
        layer: what `read_layer` read.
        pads: of all padding together.
    """
    shape = None if node.inputs[0] is None else static_shape(node.inputs[0])
    if layer.linear or shape is None or shape[1] is None:
        return None
    rank = len(shape) - 2
    if layer.output_padding is not None:  # its phases are padded by as much as its taps reach
        reach = [dilation * (size - 1) for dilation, size in zip(layer.dilations, layer.weight.shape[2:], strict=True)]
        layer = replace(layer, pads=reach * 2)
        pads = layer.pads
    extra = [every - own for every, own in zip(pads, layer.pads, strict=True)]
    sizes = [None if size is None else size - extra[i] - extra[i + rank] for i, size in enumerate(shape[2:])]
    window = {"strides": layer.strides, "pads": list(pads), "dilations": layer.dilations}
    what = beyond(window, sizes, words(shape[1]) * MOST_PLANES)
    return None if what is None else LargeWindow(what)


def replace_layer(
    node: ir.Node,
    op_type: str,
    bits: ir.Value,
    constants: dict[str, NDArray[Any]],
    layer: FloatLayer,
    pads: list[int],
    attributes: dict[str, Any],
) -> ir.Node:
    """Replace a layer by a binary convolution, with what makes a linear layer's [N, C] a map and the map [N, O].

    A transposed convolution becomes one for each phase of its output, see `lower.phases`.

    Args:
        node: the Conv, ConvTranspose, Gemm or MatMul.
        op_type: of the new node.
        bits: its input, [N, words] or [N, spatial..., words].
        constants: its other inputs, in order; their names go into the tensors' names.
        layer: what `read_layer` read.
        pads: of all padding together.
        attributes: its other attributes, kernel_shape among them.

    Returns:
        The binary convolution; of several, the first.
    """
    if layer.output_padding is not None:
        return replace_transposed(node, op_type, bits, constants, layer, attributes)
    output = node.outputs[0]
    name, graph, outputs = output.name or "", node.graph, len(layer.weight)
    assert isinstance(graph, ir.Graph)
    rank = len(attributes["kernel_shape"])
    if layer.linear and bits.shape is not None and len(bits.shape) == 2:
        bits = insert_node(
            node,
            "Unsqueeze",
            [bits, add_initializer(graph, f"{name}_axes", np.array([1, 2], dtype=np.int64))],
            {},
            f"{name}_bits",
            dtype=ir.DataType.UINT32,
            shape=[bits.shape[0], 1, 1, bits.shape[1]],
        )
    window = {
        "strides": layer.strides[:rank] if layer.linear else layer.strides,
        "pads": pads[: 2 * rank] if layer.linear else pads,
        "dilations": layer.dilations[:rank] if layer.linear else layer.dilations,
        "group": layer.group,
    }
    inputs = [bits, *(add_initializer(graph, f"{name}_{key}", array) for key, array in constants.items())]
    batch: Any = None if bits.shape is None else bits.shape[0]
    shape: Any = [batch, outputs, *([1] * rank)] if layer.linear else output.shape
    new = conv = insert_node(
        node,
        op_type,
        inputs,
        attributes | window,
        f"{name}_map" if layer.linear else f"{name}_new",
        dtype=ir.DataType.FLOAT,
        shape=shape,
        domain=DOMAIN,
        name=display_name(node),
        metadata=layer_metadata(node),
    )
    if layer.linear:
        new = insert_node(
            node, "Flatten", [new], {"axis": 1}, f"{name}_new", dtype=ir.DataType.FLOAT, shape=output.shape
        )
    replace_value(output, new)
    new.name = name
    return maker(conv)


def is_plain_pool(pool: ir.Node) -> bool:
    """Whether a MaxPool says all that a BinaryMaxPool needs: explicit pads that it takes, and no index output."""
    if len(pool.outputs) != 1 or auto_pad(pool) is not None:
        return False
    window = pool_window(pool)
    shape = None if pool.inputs[0] is None else static_shape(pool.inputs[0])
    rank = len(window["kernel_shape"])
    sizes, channels = ([None] * rank, 1) if shape is None else (shape[2:], shape[1] or 1)
    return beyond(window, sizes, words(channels) * MOST_PLANES) is None


def pool_window(pool: ir.Node) -> dict[str, Any]:
    """The window of a MaxPool, all attributes."""
    kernel = ints(pool, "kernel_shape", [])
    rank = len(kernel)
    ceil_mode = pool.attributes.get("ceil_mode")
    return {
        "kernel_shape": kernel,
        "strides": ints(pool, "strides", [1] * rank),
        "pads": ints(pool, "pads", [0] * (2 * rank)),
        "dilations": ints(pool, "dilations", [1] * rank),
        "ceil_mode": 0 if ceil_mode is None else ceil_mode.as_int(),
    }


def insert_max_pool(pool: ir.Node, bits: ir.Value, pooled: ir.Value) -> ir.Value:
    """Insert the BinaryMaxPool of `bits` that stands for the MaxPool node `pool` with output `pooled`."""
    shape = None
    if pooled.shape is not None and bits.shape is not None:
        shape = [pooled.shape[0], *pooled.shape[2:], bits.shape[-1]]
    return insert_node(
        pool,
        "BinaryMaxPool",
        [bits],
        pool_window(pool),
        f"{pooled.name}_bits",
        dtype=ir.DataType.UINT32,
        shape=shape,
        domain=DOMAIN,
        metadata={SOURCE: pooled.name or ""},
    )
