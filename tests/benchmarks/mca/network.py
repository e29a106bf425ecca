"""A converted network as the operations that a model of a CPU prices."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import onnx
from onnx import helper

from bnn_deploy.errors import InputError
from mca.layers import Window

FREE = {"Flatten", "Reshape", "Unsqueeze"}
"""Other shapes of the same numbers."""

FUSED = ("Transpose", "Binarize", "BinarizeChannelsLast", "BinaryMaxPool", "MaxPool")
"""What a direct convolution does besides, if it alone reads the tensor."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Its shape has batch 1; `bits` holds for packed signs, uint32 words with the channels last; `item`: in bytes."""

    shape: tuple[int, ...]
    bits: bool
    constant: bool
    item: int = 4

    @property
    def number(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """In bytes."""
        return self.item * self.number


@dataclasses.dataclass(frozen=True)
class Node:
    """`inputs` and `outputs` are names of tensors."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, object]

    def ints(self, name: str) -> tuple[int, ...]:
        return tuple(self.attributes[name])  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Network:
    name: str
    nodes: list[Node]
    tensors: dict[str, Tensor]

    def of(self, names: tuple[str, ...]) -> list[Tensor]:
        return [self.tensors[name] for name in names if name]

    @property
    def constant_bytes(self) -> int:
        return sum(tensor.size for tensor in self.tensors.values() if tensor.constant)


@dataclasses.dataclass(frozen=True)
class First:
    """A first layer: a convolution of few channels, max pool, bits. `nodes` do that in the file; `taps`: of the pool.

    One DirectConv or DirectConvThreshold, one ImageConv or ImageConvThreshold of bytes, or a Conv and the nodes that
    these operators would take in.
    """

    nodes: list[Node]
    window: Window
    taps: int
    made: Tensor


def read_network(path: Path) -> Network:
    """Read a converted model, as `convert` writes it, with its tensors' shapes."""
    graph = onnx.load(path).graph
    tensors = {t.name: Tensor(tuple(t.dims), t.data_type == onnx.TensorProto.UINT32, True) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        sizes = tuple(d.dim_value if d.HasField("dim_value") else 1 for d in kind.shape.dim)
        item = 1 if kind.elem_type == onnx.TensorProto.UINT8 else 4
        tensors.setdefault(value.name, Tensor(sizes, kind.elem_type == onnx.TensorProto.UINT32, False, item))
    nodes = []
    for node in graph.node:
        missing = [name for name in (*node.input, *node.output) if name and name not in tensors]
        if missing:
            raise InputError(f"{path}: node '{node.name}': no shape of the tensor '{missing[0]}' in the file")
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        nodes.append(Node(node.op_type, tuple(node.input), tuple(node.output), attributes))
    return Network(path.stem, nodes, tensors)


def window(network: Network, node: Node) -> Window:
    """The sizes of a convolution of bits, or of floats without a pool."""
    x, weight, y = (network.tensors[name] for name in (*node.inputs[:2], node.outputs[0]))
    if node.attributes.get("group", 1) != 1:
        raise InputError(f"{network.name}: {node.op} '{node.outputs[0]}': only group = 1 is modelled")
    kernel = weight.shape[1:-1] if x.bits else weight.shape[2:]
    channels = node.attributes["channels"] if x.bits else weight.shape[1]
    assert isinstance(channels, int)
    made = y.number // y.shape[-1 if y.bits else 1]
    return Window(channels, weight.shape[0], two(kernel), x.number // x.shape[-1 if x.bits else 1], made)


def two(sizes: tuple[int, ...]) -> tuple[int, int]:
    """A kernel of one dimension as a row."""
    height, width = (1, *sizes)[-2:]
    return height, width


def first_layer(network: Network) -> First:
    """The first convolution, with all that one direct convolution does."""
    direct = next((node for node in network.nodes if node.op.startswith(("DirectConv", "ImageConv"))), None)
    if direct is not None:
        x, weight, y = (network.tensors[name] for name in (*direct.inputs[:2], direct.outputs[0]))
        kernel, strides, pads = (direct.ints(name) for name in ("kernel_shape", "strides", "pads"))
        rank = len(kernel)
        image = x.shape[1:-1] if direct.attributes.get("channels_last") else x.shape[2:]
        made = math.prod(
            (size + pads[i] + pads[i + rank] - kernel[i]) // strides[i] + 1 for i, size in enumerate(image)
        )
        sizes = Window(weight.shape[1], weight.shape[0], two(kernel), math.prod(image), made)
        return First([direct], sizes, math.prod(direct.ints("pool_shape")), y)
    taken = [next(node for node in network.nodes if node.op == "Conv")]
    taps = 1
    while True:
        (output,) = taken[-1].outputs
        readers = [node for node in network.nodes if output in node.inputs]
        if len(readers) != 1 or readers[0].op not in FUSED or taken[-1].op == "MaxPool":
            return First(taken, window(network, taken[0]), taps, network.tensors[output])
        taken.append(readers[0])
        if "Pool" in readers[0].op:
            taps *= math.prod(readers[0].ints("kernel_shape"))
