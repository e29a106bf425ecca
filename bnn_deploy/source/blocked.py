"""The blocks of channels in which onnxruntime's last level of optimisation stores tensors and weights, taken apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnn_deploy.errors import InputError
from bnn_deploy.source.expansion import Expansion, attributes_of
from bnn_deploy.source.optimised import write_conv, write_node

NCHWC = "com.microsoft.nchwc"

BLOCKS = (8, 16)
"""Channels in a block: what the CPU that optimised the model has in a vector register."""

_Weights = NDArray[np.float32]


def expand_blocked(model: ModelProto, name: str) -> tuple[str, ...]:
    """Replace the operators of the domain com.microsoft.nchwc by those that they were made of.

    Their tensors and weights hold blocks of channels, the last one filled with zeros. How many are in a block the file
    does not say: it must fit the shapes, and leave nothing but zeros where the filling is. If several do, it is taken
    for that of this CPU, as onnxruntime does.

    Args:
        model: changed in place.
        name: the model's name in errors.

    Returns:
        Notes for the user.

    Raises:
        InputError: no size of a block fits, or only the CPU that optimised the model knows which one does.
    """
    if not any(node.domain == NCHWC for node in model.graph.node):
        return ()
    blocked = _Blocked(model, name)
    fitting = [block for block in BLOCKS if blocked.fits(block)]
    if not fitting:
        raise InputError(f"{name}: its blocks of channels fit no known layout: {_BEFORE}")
    notes: tuple[str, ...] = ()
    block = fitting[0]
    if len(fitting) > 1:
        block = block_here()
        if block not in fitting:
            raise InputError(
                f"{name}: its weights are in blocks of channels as only the CPU that wrote it has: {_BEFORE}"
            )
        notes = (
            f"its weights are in blocks of channels, and nothing in it says of how many: read as blocks of {block}, as "
            "onnxruntime does on this CPU; if another kind of CPU wrote it, give the model as it was before",
        )
    blocked.expand(block)
    return notes


_BEFORE = "give the model as it was before onnxruntime optimised it for one CPU"


def block_here() -> int:
    """The channels in a block of onnxruntime on this CPU; 0 if it has no blocks here."""
    count = 2 * BLOCKS[-1]
    weight = np.arange(2 * count, dtype=np.float32).reshape(count, 2, 1, 1)
    ends = [
        helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [1, channels, 1, 1])
        for tensor, channels in (("x", 2), ("y", count))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["blocks"], domain=NCHWC),
        helper.make_node("ReorderOutput", ["blocks"], ["y"], domain=NCHWC, channels=count),
    ]
    graph = helper.make_graph(nodes, "block", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    domains = [helper.make_opsetid("", 13), helper.make_opsetid(NCHWC, 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime's exception types are not public
        return 0
    first = session.run(None, {"x": np.array([1, 0], np.float32).reshape(1, 2, 1, 1)})[0].reshape(-1)
    # Channel 0 of the inputs meets weight o of the first block's filters o, and only of theirs.
    return int(np.argmax(first != np.arange(count)))


def in_blocks(weight: _Weights, block: int, inputs: bool) -> _Weights:
    """Weights [O, I, H, W] as they lie in blocks of output channels, and, if `inputs`, of input channels.

    Args:
        weight: O, and with `inputs` I, are multiples of `block`.
        block: channels in a block.
        inputs: whether the layer reads blocks.

    Returns:
        The same shape, in the order [O/b, I/b, H, W, b of I, b of O], or [O/b, I, H, W, b].
    """
    out, into, *window = weight.shape
    if inputs:
        parts = weight.reshape(out // block, block, into // block, block, *window)
        return np.ascontiguousarray(parts.transpose(0, 2, 4, 5, 3, 1)).reshape(weight.shape)
    parts = weight.reshape(out // block, block, into, *window)
    return np.ascontiguousarray(parts.transpose(0, 2, 3, 4, 1)).reshape(weight.shape)


def _from_blocks(weight: _Weights, block: int, inputs: bool) -> _Weights:
    """The inverse of `in_blocks`."""
    order = in_blocks(np.arange(weight.size).reshape(weight.shape).astype(np.int64), block, inputs)
    plain = np.empty(weight.size, weight.dtype)
    plain[order.reshape(-1)] = weight.reshape(-1)
    return plain.reshape(weight.shape)


class _Blocked:
    """The blocked part of a graph.

    Tensors with the same channels are in one class, named by one of them: those before and behind an elementwise
    operator, a pool or a depthwise convolution.
    """

    def __init__(self, model: ModelProto, name: str) -> None:
        self.to = Expansion(model, name)
        self.parent: dict[str, str] = {}  # of blocked tensors; a class is a tree
        for node in model.graph.node:
            self._read(node)

    def _class(self, tensor: str) -> str:
        while self.parent[tensor] != tensor:
            tensor = self.parent[tensor]
        return tensor

    def _join(self, *tensors: str) -> None:
        first, *others = tensors
        self.parent.setdefault(first, first)
        for other in others:
            self.parent.setdefault(other, other)
            self.parent[self._class(other)] = self._class(first)

    def _read(self, node: NodeProto) -> None:
        reads = [tensor for tensor in node.input if tensor in self.parent]
        own = node.domain == NCHWC
        if not own and not reads:
            return
        if own and node.op_type == "ReorderOutput":
            return
        if not own and node.op_type == "Concat":
            self._join(node.output[0])
        elif not own or node.op_type not in ("Conv", "ReorderInput"):
            self._join(*node.output, *reads)
        elif node.op_type == "ReorderInput" or not self._is_depthwise(node):
            self._join(node.output[0], *node.input[3:])  # what is added has the same channels
        else:
            self._join(node.output[0], node.input[0], *node.input[3:])

    def _is_depthwise(self, node: NodeProto) -> bool:
        shape = self._weight(node).shape
        return node.input[0] in self.parent and shape[1] == 1 and attributes_of(node).get("group", 1) == shape[0]

    def _has_groups(self, node: NodeProto) -> bool:
        """Whether a node is a convolution in groups of several channels."""
        own = node.domain == NCHWC and node.op_type == "Conv"
        return own and attributes_of(node).get("group", 1) > 1 and not self._is_depthwise(node)

    def _weight(self, node: NodeProto) -> _Weights:
        weight = self.to.constants.get(node.input[1])
        if weight is None or weight.ndim != 4:
            raise InputError(
                f"{self.to.name}: Conv '{node.name or node.output[0]}' in blocks of channels has no constant weights "
                f"of 4 dimensions: {_BEFORE}"
            )
        return weight

    def _weights_plain(self, node: NodeProto, block: int) -> _Weights:
        """The weights of a Conv as of before, but for the filling, which is 0."""
        reads_blocks = node.input[0] in self.parent and not self._is_depthwise(node)
        return _from_blocks(self._weight(node), block, reads_blocks)

    def _parameters(self, block: int) -> dict[str, list[NDArray[Any]]]:
        """By class: all that convolutions have for its channels, which is the first dimension."""
        found: dict[str, list[NDArray[Any]]] = {}
        for node in self.to.model.graph.node:
            if node.domain != NCHWC or node.op_type != "Conv":
                continue
            weight, bias = self._weights_plain(node, block), self.to.constants.get(next(iter(node.input[2:]), ""))
            found.setdefault(self._class(node.output[0]), []).extend([weight] if bias is None else [weight, bias])
            if node.input[0] in self.parent and attributes_of(node).get("group", 1) == 1:
                found.setdefault(self._class(node.input[0]), []).append(weight.swapaxes(0, 1))
        return found

    def _known(self) -> dict[str, int]:
        """By class: the channels that are no filling, where a ReorderOutput says it."""
        return {
            self._class(node.input[0]): attributes_of(node)["channels"]
            for node in self.to.model.graph.node
            if node.domain == NCHWC and node.op_type == "ReorderOutput" and node.input[0] in self.parent
        }

    def fits(self, block: int) -> bool:
        """Whether blocks of this size agree with the shapes, and leave zeros in the filling."""
        for node in self.to.model.graph.node:
            if node.domain == NCHWC and node.op_type == "Conv":
                out, into = self._weight(node).shape[:2]
                if not self._is_depthwise(node) and (into % block == 0) != (node.input[0] in self.parent):
                    return False
                if out % block or (node.input[0] not in self.parent and into > block):
                    return False
        known = self._known()
        for channels, arrays in self._parameters(block).items():
            count = known.get(channels, len(arrays[0]))
            if any(len(array) != -(-count // block) * block or array[count:].any() for array in arrays):
                return False
        return True

    def expand(self, block: int) -> None:
        """Write the graph without blocks."""
        to, known = self.to, self._known()
        self.counts = {**self._unfilled(block), **known}
        plain = {
            node.input[0]: node.output[0]
            for node in reversed(to.model.graph.node)
            if node.domain == NCHWC and node.op_type == "ReorderOutput" and not attributes_of(node).get("channels_last")
        }
        for node in to.model.graph.node:
            inputs = [plain.get(tensor, tensor) for tensor in node.input]
            outputs = [plain.get(tensor, tensor) for tensor in node.output]
            attributes, name = attributes_of(node), node.name.removesuffix("_nchwc")
            if node.domain != NCHWC:
                kept = NodeProto()
                kept.CopyFrom(node)
                kept.input[:], kept.output[:] = inputs, outputs
                write_node(to, kept)  # fused ones written out, too: their shapes are asked for
            elif node.op_type == "ReorderInput":
                self._take_in(node, inputs[0], block, known, plain)
            elif node.op_type == "ReorderOutput":
                if attributes.get("channels_last"):
                    to.write("Transpose", inputs, outputs[0], name, perm=[0, 2, 3, 1])
                elif inputs != outputs:
                    to.write("Identity", inputs, outputs[0], name)
            elif node.op_type == "Upsample":
                self._resize(inputs[0], outputs[0], name, attributes)
            elif node.op_type == "Conv":
                self._convolve(node, inputs, outputs[0], block)
            else:
                to.write(node.op_type, inputs, outputs[0], name, **attributes)
        to.finish()
        to.drop_domains()

    def _unfilled(self, block: int) -> dict[str, int]:
        """By class: the channels without those last ones for which all that convolutions have is 0.

        A channel that nothing fills or reads is nothing, whether it was there or not; but onnxruntime concatenates full
        blocks alone, and so are those of a convolution in groups.
        """
        ends = [
            tensor
            for node in self.to.model.graph.node
            if node.op_type == "Concat" or self._has_groups(node)
            for tensor in (*node.input, *node.output)
        ]
        full = {self._class(tensor) for tensor in ends if tensor in self.parent}
        counts = {}
        for channels, arrays in self._parameters(block).items():
            used = [np.flatnonzero(array.reshape(len(array), -1).any(axis=1)) for array in arrays]
            last = max(int(found[-1]) if len(found) else 0 for found in used)
            counts[channels] = len(arrays[0]) if channels in full else last + 1
        return counts

    def _take_in(self, node: NodeProto, data: str, block: int, known: dict[str, int], plain: dict[str, str]) -> None:
        """Let what reads the blocks of a ReorderInput read its input."""
        (output,) = node.output
        channels, last = self._class(output), bool(attributes_of(node).get("channels_last"))
        if channels not in known and self.counts.get(channels, block) % block:
            shape = self.to.shape(data)
            count = None if shape is None else shape[-1 if last else 1]
            if count is None:
                raise InputError(f"{self.to.name}: the channels of '{data}' are not known: {_BEFORE}")
            self.counts[channels] = count
        if last:
            self.to.write("Transpose", [data], plain.get(output, output), node.name, perm=[0, 3, 1, 2])
        elif output in plain:
            self.to.write("Identity", [data], plain[output], node.name)
        else:
            plain[output] = data

    def _convolve(self, node: NodeProto, inputs: list[str], output: str, block: int) -> None:
        """Write a Conv with its weights as they were, what it adds, and its activation."""
        to, attributes = self.to, attributes_of(node)
        weight = self._weights_plain(node, block)[: self.counts[self._class(node.output[0])]]
        if self._is_depthwise(node):
            attributes["group"] = len(weight)
        elif node.input[0] in self.parent and attributes.get("group", 1) == 1:
            weight = weight[:, : self.counts[self._class(node.input[0])]]
        inputs[1] = to.constant(weight, f"{output}_weight")
        if len(inputs) > 2 and inputs[2]:
            bias = to.constants.get(inputs[2])
            if bias is None:
                raise InputError(f"{to.name}: the bias of Conv '{node.name or output}' is not constant: {_BEFORE}")
            inputs[2] = to.constant(bias[: len(weight)], f"{output}_bias")
        write_conv(to, inputs, output, node.name.removesuffix("_nchwc"), attributes)

    def _resize(self, data: str, output: str, name: str, attributes: dict[str, Any]) -> None:
        """Write an Upsample as the Resize that it was."""
        to = self.to
        scales = to.constant(np.array(attributes["scales"], np.float32), f"{output}_scales")
        mode = attributes.get("mode", b"nearest").decode()
        grid = attributes.get("coordinate_transformation_mode", b"asymmetric").decode()
        nearest = {"nearest_mode": "floor"} if mode == "nearest" else {}
        to.write("Resize", [data, "", scales], output, name, mode=mode, coordinate_transformation_mode=grid, **nearest)
