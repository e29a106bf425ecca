"""Cut a converted model where the float graph has the same tensor, so that each piece can be run and judged alone.

A cut is a tensor that stands for one of the float graph: the node that makes it carries that tensor's name in its
metadata. A segment is everything between the cuts that it reads and the one that it makes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from bnn_deploy.operators.bits import pack_bits, unpack_bits
from bnn_deploy.operators.contract import DOMAIN, OPSET, holds_bits
from bnn_deploy.provenance import BEFORE, COMPLEMENTED, LEVELS, MOVES, SOURCE, output_key
from bnn_deploy.runtime.session import load_session


@dataclass(frozen=True)
class Levels:
    """What planes of bits stand for.

    Attributes:
        bits: of a level.
        step: what a level counts in the float graph.
        thresholds: of the pre-activation, [levels - 1, C or 1] float32.
    """

    bits: int
    step: float
    thresholds: NDArray[np.float32]

    def encode(self, value: NDArray[Any]) -> NDArray[np.int64]:
        """The levels of the reference's quantised tensor."""
        return np.rint(value.astype(np.float64) / self.step).astype(np.int64)

    def columns(self, rank: int) -> NDArray[np.float32]:
        """The thresholds, each [1, C or 1, 1, ...] as a tensor [N, C, spatial...] of this rank wants them."""
        return self.thresholds.reshape(len(self.thresholds), 1, -1, *[1] * (rank - 2))


@dataclass(frozen=True)
class Cut:
    """A tensor of the converted model that stands for one of the float graph.

    Attributes:
        tensor: its name in the converted model.
        source: the name of the tensor of the float graph.
        is_bits: whether it holds bits (then `source` is the output of a Sign) or floats.
        complemented: channels whose bits are stored complemented.
        rank: its number of dimensions, if known.
        moves: what makes of `source` the tensor that this one stands for, in the form of `provenance.BEFORE`.
        before: for bits, where the pre-activation is, in the form of `provenance.BEFORE`; () if the reference knows.
        levels: for bits that are planes of levels (then `source` is what was quantised), what these are.
    """

    tensor: str
    source: str
    is_bits: bool
    complemented: tuple[int, ...]
    rank: int | None
    moves: tuple[Any, ...] = ()
    before: tuple[Any, ...] = ()
    levels: Levels | None = None

    def moved(self, value: NDArray[Any]) -> NDArray[Any]:
        """What this tensor stands for: the source's value in this layout, or the inside of it."""
        return reduce(move, self.moves, value)

    def pre_activation(self, values: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> NDArray[Any]:
        """What the sign was taken of, less the threshold, in the layout [N, C, spatial...] `shape` of the bits."""
        return reduce(move, self.before[1:], values[self.before[0]]).reshape(shape)

    def encode(self, value: NDArray[Any]) -> NDArray[Any]:
        """The reference's value [N, C, spatial...] in the form that the converted model holds it in."""
        if not self.is_bits:
            return self._reshape(value.astype(np.float32), axis=len(value.shape))
        if self.levels is not None:
            last = np.moveaxis(self.levels.encode(value), 1, -1)
            planes = [pack_bits(last >> plane & 1 == 1) for plane in range(self.levels.bits)]
            return self._reshape(np.concatenate(planes, axis=-1), axis=1)
        signs = np.moveaxis(value >= 0, 1, -1)
        signs[..., list(self.complemented)] ^= True
        return self._reshape(pack_bits(signs), axis=1)

    def _reshape(self, array: NDArray[Any], axis: int) -> NDArray[Any]:
        """Add the unit dimensions of a linear layer, which the float graph has not, at `axis`."""
        missing = 0 if self.rank is None else self.rank - array.ndim
        return array.reshape(array.shape[:axis] + (1,) * missing + array.shape[axis:])

    def decode(self, bits: NDArray[np.uint32], shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Bits as the reference lays them out: bool of the given shape [N, C, spatial...], True for +1."""
        signs = unpack_bits(bits, shape[1])
        signs[..., list(self.complemented)] ^= True
        spatial = (shape[0], *shape[2:], shape[1])
        return np.moveaxis(signs.reshape(spatial), -1, 1)

    def decode_levels(self, planes: NDArray[np.uint32], shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Planes as the reference lays its tensor out: levels of the given shape [N, C, spatial...]."""
        assert self.levels is not None
        parts = np.split(planes, self.levels.bits, axis=-1)
        found = sum(unpack_bits(part, shape[1]).astype(np.int64) << j for j, part in enumerate(parts))
        return np.moveaxis(np.asarray(found).reshape(shape[0], *shape[2:], shape[1]), -1, 1)


def move(value: NDArray[Any], step: Sequence[Any]) -> NDArray[Any]:
    """Apply one move of `provenance.BEFORE` to a tensor of the float graph."""
    kind, argument = step
    if kind == "transpose":
        return value.transpose(argument)
    if kind == "reshape":
        return value.reshape(argument)
    if kind == "max_pool":
        return _max_pool(value, argument)
    if kind == "subtract":
        return value - np.asarray(argument, dtype=np.float32)
    rank = value.ndim
    return value[tuple(slice(argument[i], value.shape[i] - argument[i + rank]) for i in range(rank))]


def _max_pool(value: NDArray[Any], window: dict[str, Any]) -> NDArray[Any]:
    """ONNX's MaxPool of a tensor [N, C, spatial...]."""
    node = helper.make_node("MaxPool", ["x"], ["y"], **window)
    infos = [value_info(name, False, value.ndim) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph([node], "pool", infos[:1], infos[1:]),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
    )
    return np.asarray(load_session(model.SerializeToString(), kernels=False).run(None, {"x": value})[0])


def cuts(model: ModelProto, names: Collection[str] = ()) -> list[Cut]:
    """All cuts, in the order of the graph.

    Args:
        model: the converted model.
        names: tensors that the reference has: a float tensor with more than one user that is among them is a cut too,
            so that a residual path does not tie all layers into one; and the model's float outputs always are.
    """
    ranks = {
        info.name: len(info.type.tensor_type.shape.dim)
        for info in (*model.graph.value_info, *model.graph.output)
        if info.type.tensor_type.HasField("shape")
    }
    found = []
    outputs = {info.name for info in model.graph.output}
    uses = Counter(name for node in model.graph.node for name in node.input)
    for node in model.graph.node:
        properties = {p.key: p.value for p in node.metadata_props}
        for i, tensor in enumerate(node.output):
            source = properties.get(output_key(SOURCE, i))
            if tensor and source is not None:
                text = properties.get(output_key(COMPLEMENTED, i), "")
                channels = tuple(int(c) for c in text.split(",") if c)
                moves = tuple(json.loads(properties.get(output_key(MOVES, i), "[]")))
                before = tuple(json.loads(properties.get(output_key(BEFORE, i), "[]")))
                levels = _levels(properties.get(output_key(LEVELS, i)))
                bits = holds_bits(node, i)
                found.append(Cut(tensor, source, bits, channels, ranks.get(tensor), moves, before, levels))
            elif tensor in outputs or (node.domain != DOMAIN and uses[tensor] > 1 and tensor in names):
                found.append(Cut(tensor, tensor, False, (), ranks.get(tensor)))
    return found


def _levels(text: str | None) -> Levels | None:
    """Read the metadata LEVELS."""
    if text is None:
        return None
    entry = json.loads(text)
    return Levels(int(entry["bits"]), float(entry["step"]), np.array(entry["thresholds"], np.float32))


def value_info(name: str, is_bits: bool, rank: int | None) -> ValueInfoProto:
    """The declaration of a tensor: uint32 for bits, else float32, of this rank."""
    kind = TensorProto.UINT32 if is_bits else TensorProto.FLOAT
    info: ValueInfoProto = helper.make_tensor_value_info(name, kind, None if rank is None else [None] * rank)
    return info
