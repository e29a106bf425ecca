"""LowerMatMul: products of two activations of ±1, or of 0/1 and ±1, become BinaryMatMul: binary attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.bits import words
from bnn_deploy.operators.contract import DOMAIN, MAX_TERMS
from bnn_deploy.passes.conditions import constants_folded, shapes_known, signs_canonical
from bnn_deploy.passes.graph import add_initializer, insert_node, is_op, maker, replace_value, static_shape
from bnn_deploy.passes.lower.layer import SMALLEST, SignInput, is_product, sign_input
from bnn_deploy.passes.outcome import Outcome, Pass, display_name, take_in
from bnn_deploy.passes.reasons import ManyProducts, OperandLevels, OperandShapes, RealOperand, Reason
from bnn_deploy.passes.recognise.few_levels import Quantizer, quantizer
from bnn_deploy.provenance import (
    Levels,
    Move,
    Place,
    Take,
    Transpose,
    layer_metadata,
    node_place,
    place,
    place_before,
    zero_value,
)


@dataclass
class _Operand:
    """An operand as bits: `bit` is data >= threshold, and stands for ±factor, or for 0 and factor.

    Attributes:
        value: what is binarised: the output of a Sign, or the 0/1 tensor.
        data: what the threshold applies to.
        threshold: one number for all.
        factor: > 0.
        source: the place of `value`.
        before: the place of the pre-activation.
        levels: the encoding of 0/1; None for ±1.
        shape: of `value`.
    """

    value: ir.Value
    data: ir.Value
    threshold: float
    factor: float
    source: Place
    before: Place
    levels: Levels | None
    shape: list[int | None]


class LowerMatMul(Pass):
    """MatMul(p, Sign(z))  ==>  BinaryMatMul(BinarizeChannelsLast(x), BinarizeChannelsLast(Transpose(z))).

    p is Sign(x), or 0/1 where x is below or above a number. z [..., C, N] is transposed so that C, over which the
    products are summed, is the last dimension, as that of x [..., M, C] is: sign(Q) sign(K)^T of binary attention, and
    0/1 attention maps times sign(V).

    1. The numbers that signs and 0/1 are multiplied by become `scale`.
    2. A Transpose in front of z is taken together with the new one: a K^T that is made of K is not made at all. Where
       they together move the second dimension to the end, as for the V of attention, a Binarize does that with bits.
    3. One BinarizeChannelsLast per operand; one that something float reads, too, stays for that.
    4. z that all heads share, [N, 1, C, S] beside [N, H, M, C], or such a one that an Expand repeats, is taken once:
       all rows of p are multiplied by it, as [N, 1, H * M, C].

    Declines, with the reason: a real-valued operand beside a sign, other levels, operands repeated in another way,
    sizes that are not known, 2^24 or more products per output. A product of real numbers is not looked at.
    """

    needs = (constants_folded, shapes_known, signs_canonical)

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every product that qualifies."""
        result = Outcome(model)
        self._binarized: dict[tuple[ir.Value, bool], ir.Value] = {}
        self._of_data: dict[tuple[ir.Value, str, float, bool], ir.Value] = {}  # by what the threshold applies to
        for node in list(model.graph):
            if not is_product(node):
                continue
            first, second = (_operand(node, index) for index in (0, 1))
            if all(isinstance(found, RealOperand) for found in (first, second)):
                continue
            new = self._lower(node, first, second)
            if isinstance(new, Reason):
                result.decline(node, new)
            else:
                result.rewrote(new, node)
        return result

    def _lower(self, node: ir.Node, first: _Operand | Reason, second: _Operand | Reason) -> ir.Node | Reason:
        if isinstance(first, Reason):
            return first
        if isinstance(second, Reason):
            return second
        if second.levels is not None:
            return OperandLevels("second")
        channels, a, b = first.shape[-1], first.value.shape, second.value.shape
        if a is None or b is None or _shared(a, b) is None or channels is None or second.shape[-2] != channels:
            return OperandShapes(*(str(value.shape) for value in (first.value, second.value)))
        if channels >= MAX_TERMS:
            return ManyProducts(channels)
        output, graph = node.outputs[0], node.graph
        assert isinstance(graph, ir.Graph)
        name, metadata = output.name or "", layer_metadata(node)
        scale = np.array([np.float64(first.factor) * second.factor], np.float32)
        left, right = self._bits(first, channels, transposed=False), self._bits(second, channels, transposed=True)
        assert left.shape is not None and right.shape is not None
        shape, shared = output.shape, _shared(left.shape, right.shape) or 0
        own = len(a) - 2 - shared  # leading dimensions that both have
        if shared:
            rows = [*a[:own], *[1] * shared, _product([*a[own:-1]])]
            target = [*[0] * own, *[1] * shared, -1, words(channels)]
            left = _reshape(node, left, target, [*rows, words(channels)], f"{name}_rows")
            shape = ir.Shape([*rows, b[-1]])
        new = insert_node(
            node,
            "BinaryMatMul",
            [
                left,
                right,
                add_initializer(graph, f"{name}_scale", scale),
            ],
            {"channels": channels, "bits": 1, "signs": int(first.levels is None)},
            f"{name}_of_rows" if shared else f"{name}_new",
            dtype=ir.DataType.FLOAT,
            shape=shape,
            domain=DOMAIN,
            name=display_name(node),
            metadata={} if shared else metadata,
        )
        product = maker(new)
        if shared:
            target = [*[0] * own, *(int(size) for size in a[own:-2]), -1, 0]  # type: ignore[arg-type]
            new = _reshape(node, new, target, list(output.shape or ()), f"{name}_new", metadata)
        replace_value(output, new)
        new.name = name
        return product

    def _bits(self, operand: _Operand, channels: int, transposed: bool) -> ir.Value:
        """The bits of an operand, made once for each."""
        value = operand.value
        producer = value.producer()
        if (value, transposed) in self._binarized:
            return self._binarized[value, transposed]
        assert producer is not None and isinstance(producer.graph, ir.Graph) and value.shape is not None
        rank, shape, data = len(value.shape), list(value.shape), operand.data
        name = f"{value.name}_last"
        # The float graph's tensor with its channels second, as those of other bits are: [N, T, C] -> [N, C, T].
        moves: list[Move] = [Transpose([0, rank - 1, *range(1, rank - 1)])] if rank > 2 else []
        op_type = "BinarizeChannelsLast"
        if transposed:
            swap = [*range(rank - 2), rank - 1, rank - 2]
            moves.insert(0, Transpose(swap))
            shape[-2:] = shape[-1], shape[-2]
            data, perm = _before_transpose(data, swap)
            if rank > 2 and perm == [0, *range(2, rank), 1]:
                op_type = "Binarize"
            elif perm != sorted(perm):
                data = insert_node(
                    producer,
                    "Transpose",
                    [data],
                    {"perm": perm},
                    f"{name}_transposed",
                    dtype=ir.DataType.FLOAT,
                    shape=shape,
                )
            elif (single := _single(data)) is not None:
                sizes = list(single.shape or ())
                moves[:0] = [Take([axis, [0]]) for axis in range(rank - 2) if sizes[axis] != shape[axis]]
                data, shape = single, sizes
            name = f"{value.name}_second_last"
        same = (data, op_type, operand.threshold, operand.levels is None)
        if same in self._of_data:  # sign(X) sign(X)^T
            return self._of_data[same]
        levels = {} if operand.levels is None else operand.levels.as_metadata()
        threshold = np.full(channels, operand.threshold, np.float32)
        bits = insert_node(
            producer,
            op_type,
            [data, add_initializer(producer.graph, f"{name}_threshold", threshold)],
            {},
            f"{name}_bits",
            dtype=ir.DataType.UINT32,
            shape=[*shape[:-1], words(channels)],
            domain=DOMAIN,
            metadata=operand.source.then(*moves).as_source() | operand.before.then(*moves).as_before() | levels,
        )
        take_in(maker(bits), producer)
        self._binarized[value, transposed] = self._of_data[same] = bits
        return bits


def _shared(a: ir.Shape, b: ir.Shape) -> int | None:
    """How many of the leading dimensions of b, the last of them, are 1 for all of a's; None if others differ."""
    if len(a) != len(b) or len(a) < 2:
        return None
    leading = range(len(a) - 2)
    first = next((i for i in leading if a[i] != b[i]), len(leading))
    fit = all(b[i] == 1 and isinstance(a[i], int) for i in leading[first:])
    return len(leading) - first if fit else None


def _single(value: ir.Value) -> ir.Value | None:
    """What an Expand repeats for all heads to make `value`; None if nothing does."""
    node = value.producer()
    data = node.inputs[0] if node is not None and is_op(node, "Expand") else None
    if data is None or data.shape is None or value.shape is None or list(data.shape[-2:]) != list(value.shape[-2:]):
        return None
    return data if _shared(value.shape, data.shape) else None


def _product(sizes: Sequence[object]) -> int | None:
    """The product of sizes; None if one is not known."""
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None


def _reshape(
    before: ir.Node,
    data: ir.Value,
    target: list[int],
    shape: Sequence[object],
    name: str,
    metadata: Mapping[str, str] | None = None,
) -> ir.Value:
    """Insert a Reshape to `target`, whose result has the shape `shape`."""
    assert isinstance(before.graph, ir.Graph) and data.dtype is not None
    sizes = add_initializer(before.graph, f"{name}_shape", np.array(target, np.int64))
    return insert_node(before, "Reshape", [data, sizes], {}, name, dtype=data.dtype, shape=shape, metadata=metadata)


def _before_transpose(data: ir.Value, perm: list[int]) -> tuple[ir.Value, list[int]]:
    """What a Transpose of `data` by `perm` is the Transpose of, with the one that makes `data` taken into it."""
    first = data.producer()
    if first is not None and is_op(first, "Transpose") and "perm" in first.attributes and first.inputs[0] is not None:
        own = list(first.attributes["perm"].as_ints())
        return first.inputs[0], [own[axis] for axis in perm]
    return data, perm


def _operand(node: ir.Node, index: int) -> _Operand | Reason:
    """An operand of a product as bits, or why it is none."""
    value, which = node.inputs[index], ("first", "second")[index]
    assert value is not None
    signs = sign_input(node, index)
    if isinstance(signs, SignInput) and not signs.pools and signs.flattened is None:
        sign = signs.sign
        output, data = sign.outputs[0], sign.inputs[0]
        assert data is not None
        threshold = float(SMALLEST) if zero_value(sign) < 0 else 0.0
        places = node_place(sign, output), place_before(sign)
        return _Operand(output, data, threshold, signs.factor, *places, None, static_shape(output) or [])
    if isinstance(signs, Reason):
        return signs
    levels = quantizer(value)
    producer = value.producer()
    assert producer is not None
    if levels is None:
        return RealOperand(which, producer.op_type)
    if isinstance(levels, Reason) or levels.perm or levels.before_perm or not _is_one_step(levels):
        return OperandLevels(which)
    step = float(levels.levels[-1])
    encoding = Levels(1, step, levels.before_thresholds[:, :1])
    places = node_place(producer, value), place(levels.before)
    threshold = float(levels.thresholds[0, 0])
    return _Operand(value, levels.data, threshold, step, *places, encoding, static_shape(value) or [])


def _is_one_step(levels: Quantizer) -> bool:
    """Whether there are two levels, 0 and another, with one threshold for all channels."""
    return levels.levels[0] == 0 and all(
        len(found) == 1 and (found == found[0, 0]).all() for found in (levels.thresholds, levels.before_thresholds)
    )
