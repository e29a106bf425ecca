"""A builder of function bodies from standard ONNX operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.contract import DOMAIN, OPERATORS, OPSET


class Body:
    """A function body under construction: standard operators only, for any number of spatial dimensions."""

    def __init__(self, operator: str) -> None:
        self.row = OPERATORS[operator]
        self.inputs = {given.name: ir.Value(name=given.name) for given in self.row.inputs}
        self.attributes = {name: ir.AttributeType[kind] for name, kind in self.row.attributes.items()}
        self.nodes: list[ir.Node] = []

    def op(
        self,
        op_type: str,
        *inputs: ir.Value,
        refs: Sequence[str] | Mapping[str, str] = (),
        **attributes: int | str | list[int],
    ) -> ir.Value:
        """Append a node. `refs` are attributes bound to the function's: of the same name, or name -> the function's."""
        attrs = ir.convenience.convert_attributes(attributes)
        bound = refs if isinstance(refs, Mapping) else dict(zip(refs, refs, strict=True))
        attrs += [ir.RefAttr(name, ref, self.attributes[ref]) for name, ref in bound.items()]
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

    def reshape(self, x: ir.Value, *parts: ir.Value) -> ir.Value:
        """Reshape x to the joined 1-D tensors. No size is -1, which no runtime can infer for an empty tensor."""
        shape = parts[0] if len(parts) == 1 else self.concat(*parts)
        return self.op("Reshape", x, shape, allowzero=1)

    def shape(self, x: ir.Value, start: int = 0, end: int | None = None) -> ir.Value:
        """Some sizes of x, int64 [n]."""
        if end is None:
            return self.op("Shape", x, start=start)
        return self.op("Shape", x, start=start, end=end)

    def size(self, x: ir.Value, start: int = 0, end: int | None = None) -> ir.Value:
        """The product of some sizes of x, int64 [1]."""
        return self.op("ReduceProd", self.shape(x, start, end), keepdims=1)

    def flat(self, x: ir.Value) -> ir.Value:
        """[N, C, spatial...] -> [N, C, pixels]."""
        return self.reshape(x, self.shape(x, end=2), self.size(x, 2))

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
        return self.reshape(unit, self.shape(bits, end=-1), width)

    def unpack_signs(self, bits: ir.Value, channels: ir.Value) -> ir.Value:
        """Bits [A, spatial..., words] -> float32 [A, spatial..., channels] of -1 and +1."""
        unit = self.op("Slice", self.unpack(bits), self.const([0]), channels, self.const([-1]))
        return self.op("Sub", self.op("Mul", unit, self.const(2, np.float32)), self.const(1, np.float32))

    def channels_first(self, x: ir.Value) -> ir.Value:
        """[A, spatial..., C] -> [A, C, spatial...]."""
        batch, channels = self.shape(x, end=1), self.shape(x, -1)
        rows = self.reshape(x, batch, self.size(x, 1, -1), channels)
        planes = self.op("Transpose", rows, perm=[0, 2, 1])
        return self.reshape(planes, batch, channels, self.shape(x, 1, -1))

    def pack(self, x: ir.Value) -> ir.Value:
        """Bool [N, C, spatial...] -> bits [N, spatial..., ceil(C/32)]."""
        lead = self.concat(self.shape(x, end=1), self.shape(x, 2))
        return self.pack_last(self.op("Transpose", self.flat(x), perm=[0, 2, 1]), lead)

    def pack_last(self, x: ir.Value, lead: ir.Value) -> ir.Value:
        """Bool [..., C] -> bits [*lead, ceil(C/32)]."""
        channels, count = self.shape(x, -1), self.size(x, end=-1)
        rows = self.reshape(x, count, channels)
        words = self.op("Div", self.op("Add", channels, self.const([31])), self.const([32]))
        missing = self.op("Sub", self.op("Mul", words, self.const([32])), channels)
        integers = self.op("Cast", rows, to=ir.DataType.INT64.value)
        padded = self.op("Pad", integers, self.concat(self.const([0, 0, 0]), missing))
        split = self.reshape(padded, count, words, self.const([32]))
        weighted = self.op("Mul", split, self.const(2 ** np.arange(32, dtype=np.int64)))
        total = self.op("ReduceSum", weighted, self.const([2]), keepdims=0)
        return self.reshape(self.op("Cast", total, to=ir.DataType.UINT32.value), lead, words)

    def split_pads(self, name: str = "pads") -> tuple[ir.Value, ir.Value]:
        """The attribute pads, or another of its form, as begins and ends, each int64 [spatial dimensions]."""
        pads = self.op("Reshape", self.attribute(name), self.const([2, -1]))
        return self.op("Gather", pads, self.const(0), axis=0), self.op("Gather", pads, self.const(1), axis=0)

    def around_spatial(self, begins: ir.Value, ends: ir.Value) -> ir.Value:
        """Spatial pads as Pad's input for [A, spatial..., C]: [0, begins..., 0, 0, ends..., 0]."""
        zero = self.const([0])
        return self.concat(zero, begins, zero, zero, ends, zero)

    def accumulate(self) -> ir.Value:
        """X, W, pad_value -> int32 [N, O, spatial'...], the exact integer sum of the products of ±1."""
        channels = self.attribute("channels")
        x = self.unpack_signs(self.inputs["X"], self.op("Reshape", channels, self.const([1])))
        pads = self.around_spatial(*self.split_pads())
        # 1 in the padding, 0 inside the input: pad_value is added to the zeros of the padding only.
        one = self.const([1])
        inside_shape = self.concat(one, self.op("Shape", self.inputs["X"], start=1, end=-1), one)
        inside = self.op("Pad", self.op("Expand", self.const(1, np.float32), inside_shape), pads)
        outside = self.op("Sub", self.const(1, np.float32), inside)
        padding = self.op("Mul", outside, self.inputs["pad_value"])
        x = self.op("Add", self.op("Pad", x, pads), padding)
        per_group = self.op("Div", channels, self.attribute("group"))
        w = self.unpack_signs(self.inputs["W"], self.op("Reshape", per_group, self.const([1])))
        return self.convolve_integers(x, w)

    def convolve_integers(self, x: ir.Value, w: ir.Value) -> ir.Value:
        """Padded x [N, spatial..., C] and w [O, kernel..., C/group] of integers -> int32 [N, O, spatial'...]."""
        acc = self.op(
            "Conv",
            self.channels_first(x),
            self.channels_first(w),
            refs=["kernel_shape", "strides", "dilations", "group"],
        )
        return self.op("Cast", acc, to=ir.DataType.INT32.value)

    def per_channel(self, op_type: str, x: ir.Value, parameter: ir.Value) -> ir.Value:
        """Apply a binary operator to x [N, C, S] and parameter [C]."""
        return self.op(op_type, x, self.op("Unsqueeze", parameter, self.const([1])))

    def shifts(self) -> ir.Value:
        """0 .. bits - 1, uint32 [bits]."""
        numbers = self.op("Range", self.const(0), self.attribute("bits"), self.const(1))
        return self.op("Cast", numbers, to=ir.DataType.UINT32.value)

    def levels(self, x: ir.Value, channels: ir.Value, one: ir.Value) -> ir.Value:
        """Planes [A, ..., bits * words] -> float32 [A, ..., channels] of levels; channels is a scalar, `one` is [1]."""
        lead = self.op("Shape", x, start=0, end=-1)
        bits = self.op("Reshape", self.attribute("bits"), one)
        words = self.op("Div", self.op("Shape", x, start=-1), bits)
        unit = self.unpack(self.reshape(x, lead, bits, words))
        used = self.op("Slice", unit, self.const([0]), self.op("Reshape", channels, one), self.const([-1]))
        powers = self.op("BitShift", self.const([1], np.uint32), self.shifts(), direction="LEFT")
        weights = self.op("Unsqueeze", self.op("Cast", powers, to=ir.DataType.FLOAT.value), one)
        level = self.op("ReduceSum", self.op("Mul", used, weights), self.const([-2]))
        # Not by keepdims=0: onnxruntime keeps the dimension if there is no element.
        return self.reshape(level, lead, self.shape(used, -1))

    def matrices(self, x: ir.Value) -> ir.Value:
        """[..., rows, columns] -> [A, rows, columns]."""
        return self.reshape(x, self.size(x, end=-2), self.shape(x, -2))

    def accumulate_levels(self) -> ir.Value:
        """Planes X, W -> int32 [N, O, spatial'...], the exact integer sum of level * ±1."""
        channels = self.attribute("channels")
        x, one = self.inputs["X"], self.const([1])
        levels = self.levels(x, channels, one)
        per_group = self.op("Div", channels, self.attribute("group"))
        w = self.unpack_signs(self.inputs["W"], self.op("Reshape", per_group, one))
        padded = self.op("Pad", levels, self.around_spatial(*self.split_pads()))
        return self.convolve_integers(padded, w)

    def with_ones(self, planes: ir.Value, count: ir.Value, channels: ir.Value) -> ir.Value:
        """Planes [A, spatial..., count * words] -> ±1 [A, spatial..., 1 + count, channels], the first all 1."""
        one = self.const([1])
        lead, number = self.op("Shape", planes, start=0, end=-1), self.op("Reshape", count, one)
        words = self.op("Div", self.op("Shape", planes, start=-1), number)
        signs = self.unpack_signs(self.reshape(planes, lead, number, words), channels)
        ones = self.op("Expand", self.const(1, np.float32), self.concat(lead, one, channels))
        return self.op("Concat", ones, signs, axis=-2)

    def parts_first(self, x: ir.Value) -> ir.Value:
        """[A, spatial..., parts, C] -> [A * parts, C, spatial...]."""
        merged = self.reshape(x, self.shape(x, end=-2), self.size(x, -2))
        images = self.op("Mul", self.shape(x, end=1), self.shape(x, -2, -1))
        return self.reshape(self.channels_first(merged), images, self.shape(x, -1), self.shape(x, 1, -2))

    def reached(self, x: ir.Value) -> ir.Value:
        """Compare x [N, C, spatial...] with threshold [C] -> bool, shaped as x."""
        reached = self.per_channel("GreaterOrEqual", self.flat(x), self.inputs["threshold"])
        return self.reshape(reached, self.shape(x))

    def binarize(self, x: ir.Value) -> ir.Value:
        """Compare x [N, C, spatial...] with threshold [C] -> bits."""
        return self.pack(self.reached(x))

    def convolve_directly(self, x: ir.Value) -> ir.Value:
        """X [N, C, spatial...] float32, W, bias -> float32 [N, O, spatial'...], before the pool."""
        window = ["kernel_shape", "strides", "pads", "dilations"]
        return self.op("Conv", x, self.inputs["W"], self.inputs["bias"], refs=window)

    def image(self) -> ir.Value:
        """X uint8 [N, C, spatial...], or [N, spatial..., C], and levels [C, 256] -> float32 [N, C, spatial...]."""
        x, levels, zero, one = self.inputs["X"], self.inputs["levels"], self.const(0), self.const(1)
        last, shape = self.attribute("channels_last"), self.op("Shape", self.inputs["X"])
        begin, rank = self.op("Sub", self.const([2]), last), self.op("Shape", shape)
        spatial = self.op("Slice", shape, begin, self.op("Sub", rank, last))
        # Both layouts by their indices: element (c, p) of an image is at c * pixels + p, or at p * channels + c.
        channels = self.op("Gather", self.op("Shape", levels), zero)
        pixels = self.op("ReduceProd", spatial, keepdims=0)
        c = self.op("Unsqueeze", self.op("Range", zero, channels, one), self.const([1]))
        p = self.op("Range", zero, pixels, one)
        c_step = self.op("Add", pixels, self.op("Mul", last, self.op("Sub", one, pixels)))
        p_step = self.op("Add", one, self.op("Mul", last, self.op("Sub", channels, one)))
        places = self.op("Add", self.op("Mul", c, c_step), self.op("Mul", p, p_step))
        rows = self.reshape(x, self.shape(x, end=1), self.size(x, 1))
        values = self.op("Cast", self.op("Gather", rows, places, axis=1), to=ir.DataType.INT64.value)
        table = self.op("Reshape", levels, self.const([-1]))
        numbers = self.op("Gather", table, self.op("Add", values, self.op("Mul", c, self.const(256))))
        lead = self.op("Shape", numbers, start=0, end=2)
        return self.reshape(numbers, lead, spatial)

    def lacking(self, sizes: ir.Value, kernel: str, dilations: str | None = None) -> ir.Value:
        """What sizes [n], padded, lack for a window of the attribute `kernel`: zeros, for the runtime fails otherwise.

        onnxruntime ends its process on a MaxPool whose window is larger than its input, even while it loads a model.
        So no input is: it is padded by what it lacks, and then the element after the only one is asked for.
        """
        one, last = self.const([1]), self.op("Sub", self.attribute(kernel), self.const([1]))
        window = self.op("Add", last if dilations is None else self.op("Mul", last, self.attribute(dilations)), one)
        lack = self.op("Max", self.op("Sub", window, sizes), self.const([0]))
        most = self.op("ReduceMax", lack, keepdims=1)
        index = self.op("Min", most, one)
        return self.op("Add", lack, self.op("Gather", self.const([0]), index))

    def max_pool(self, x: ir.Value, least: float) -> ir.Value:
        """Pool x [N, C, spatial...] float32, none of which is below `least`, with the attributes pool_..."""
        # Padded by Pad, since onnx 1.23's reference evaluator misreads the pads of MaxPool at stride 1.
        zeros, (begins, ends) = self.const([0, 0]), self.split_pads("pool_pads")
        sizes = self.op("Add", self.op("Add", self.shape(x, 2), begins), ends)
        ends = self.op("Add", ends, self.lacking(sizes, "pool_shape"))
        padded = self.op("Pad", x, self.concat(zeros, begins, zeros, ends), self.const(least, np.float32))
        return self.op("MaxPool", padded, refs={"kernel_shape": "pool_shape", "strides": "pool_strides"})

    def add_in_turn(self, x: ir.Value, dimension: int) -> ir.Value:
        """Sum each window of x [N, C, H, W] along a spatial dimension, 0 or 1, in the order of its taps."""
        axis, one = 2 + dimension, self.const([1])

        def of(name: str) -> ir.Value:
            return self.op("Gather", self.attribute(name), self.const(dimension), axis=0)

        taps = self.op("Mul", self.op("Range", self.const(0), of("kernel_shape"), self.const(1)), of("dilations"))
        last = self.op("Mul", self.op("Sub", of("kernel_shape"), self.const(1)), of("dilations"))
        end = self.op("Sub", self.op("Squeeze", self.shape(x, axis, axis + 1), self.const([0])), last)
        starts = self.op("Range", self.const(0), end, of("strides"))
        # The first start is 0. Where there is none, the window is larger than x, and this Gather refuses it.
        starts = self.op("Sub", starts, self.op("Gather", starts, self.const(0)))
        places = self.op("Add", self.op("Unsqueeze", starts, one), taps)
        windows = self.op("Gather", x, places, axis=axis)  # [.., starts, taps, ..]
        sums = self.op("CumSum", windows, self.const(axis + 1))  # adds one after the other
        return self.op("Gather", sums, self.const(-1), axis=axis + 1)

    def binarize_last(self, x: ir.Value) -> ir.Value:
        """Compare x [N, spatial..., C] with threshold [C] -> bits."""
        reached = self.op("GreaterOrEqual", x, self.inputs["threshold"])
        return self.pack_last(reached, self.op("Shape", x, start=0, end=-1))

    def scaled_sum(self, acc: ir.Value) -> ir.Value:
        """scale[o] * acc + bias[o], float32 [N, O, spatial'...], of int32 acc."""
        # The casts to int32 and back make 0 of a -0, which products 0 * -1 sum to, and keep onnxruntime's optimiser
        # from folding scale into the weights, which rounds differently.
        flat = self.flat(self.op("Cast", acc, to=ir.DataType.FLOAT.value))
        scaled = self.per_channel("Mul", flat, self.inputs["scale"])
        shifted = self.per_channel("Add", scaled, self.inputs["bias"])
        return self.reshape(shifted, self.shape(acc))

    def function(self, *outputs: ir.Value) -> ir.Function:
        """Return the function, with its outputs in the order of `Operator.outputs`."""
        for output, declared in zip(outputs, self.row.outputs, strict=True):
            output.name = declared.name
        graph = ir.Graph(
            list(self.inputs.values()),
            list(outputs),
            nodes=self.nodes,
            opset_imports={"": OPSET},
            name=self.row.name,
            doc_string=self.row.formula,
        )
        attributes = [ir.Attr(name, kind, None) for name, kind in self.attributes.items()]
        return ir.Function(DOMAIN, self.row.name, graph=graph, attributes=attributes)
