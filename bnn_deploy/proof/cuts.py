"""Cut a converted model at tensors that the float graph has too, so that each segment can be run and compared alone.

A cut is a tensor that stands for a tensor of the float graph: the metadata of its producer names the float tensor, or
both have the same name, or both are the output. A segment is the subgraph between its input cuts and its output cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from bnn_deploy.operators.bits import WORD, pack_bits, unpack_bits
from bnn_deploy.operators.contract import DOMAIN, holds_bits
from bnn_deploy.provenance import (
    Levels,
    Place,
    properties,
    read_before,
    read_complemented,
    read_levels,
    source_place,
)

_FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class Cut:
    """A tensor of the converted model that stands for a tensor of the float graph.

    Attributes:
        tensor: its name in the converted model.
        place: the tensor of the float graph, and the moves that turn it into this tensor.
        is_bits: True for bits (`place` is then the place of the output of a Sign), False for floats.
        complemented: channels whose bits are stored complemented.
        rank: its number of dimensions; None if unknown.
        dtype: its element type, of onnx.TensorProto.DataType: UINT32 for bits.
        before: for bits, the place of the pre-activation; None if `Reference.before_sign` finds it.
        levels: for bit planes of levels, their encoding; `place` is then the place of the quantised tensor.
    """

    tensor: str
    place: Place
    is_bits: bool
    complemented: tuple[int, ...]
    rank: int | None
    dtype: int
    before: Place | None = None
    levels: Levels | None = None

    @property
    def is_float(self) -> bool:
        """Whether it holds floats: not bits, nor integers such as the output of an ArgMax."""
        return self.dtype == _FLOAT

    @property
    def has_signs(self) -> bool:
        """Whether it holds signs: bits, but no levels."""
        return self.is_bits and self.levels is None

    @property
    def source(self) -> str:
        """The name of the tensor of the float graph."""
        return self.place.tensor

    def pre_activation(self, values: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> NDArray[Any]:
        """The input of the Sign minus the threshold, reshaped to `shape`, [N, C, spatial...]."""
        assert self.before is not None
        return self.before.read(values).reshape(shape)

    def encode(self, value: NDArray[Any]) -> NDArray[Any]:
        """The reference's value [N, C, spatial...] as the converted model stores it.

        Bits of [N, 40, 7, 7] become uint32 [N, 7, 7, 2], levels of k bits k times as many words.
        """
        if not self.is_bits:
            return self._reshape(value.astype(helper.tensor_dtype_to_np_dtype(self.dtype)), axis=len(value.shape))
        if self.levels is not None:
            last = np.moveaxis(self.levels.encode(value), 1, -1)
            planes = [pack_bits(last >> plane & 1 == 1) for plane in range(self.levels.bits)]
            return self._reshape(np.concatenate(planes, axis=-1), axis=1)
        signs = np.moveaxis(value >= 0, 1, -1)
        signs[..., list(self.complemented)] ^= True
        return self._reshape(pack_bits(signs), axis=1)

    def _reshape(self, array: NDArray[Any], axis: int) -> NDArray[Any]:
        """Insert at `axis` the unit dimensions that only the converted model has: [N, C] -> [N, C, 1, 1]."""
        missing = 0 if self.rank is None else self.rank - array.ndim
        return array.reshape(array.shape[:axis] + (1,) * missing + array.shape[axis:])

    def flips(self, bits: NDArray[np.uint32], value: NDArray[Any]) -> tuple[NDArray[np.intp], ...]:
        """The places [N, C, spatial...] where stored bits are not the signs of the reference's value.

        Raises:
            ValueError: the bits are not of the value's shape.
        """
        wanted = self.encode(value)
        if bits.size != wanted.size or bits.dtype != wanted.dtype or bits.shape[-1] != wanted.shape[-1]:
            raise ValueError(f"bits {bits.dtype} {list(bits.shape)} instead of {wanted.dtype} {list(wanted.shape)}")
        # Mostly no word differs, and the few that do are unpacked alone.
        differing = (bits.reshape(wanted.shape) ^ wanted).reshape(len(value), *value.shape[2:], wanted.shape[-1])
        found = np.nonzero(differing)
        *places, word = found
        which, bit = np.nonzero(unpack_bits(differing[found][:, np.newaxis], WORD))
        channel = word[which] * WORD + bit
        used = channel < value.shape[1]
        first, *spatial = (axis[which][used] for axis in places)
        axes = (first, channel[used], *spatial)
        order = np.lexsort(axes[::-1])
        return tuple(axis[order] for axis in axes)

    def decode_levels(self, planes: NDArray[np.uint32], shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Unpack bit planes into the reference's layout: levels of the given shape [N, C, spatial...]."""
        assert self.levels is not None
        parts = np.split(planes, self.levels.bits, axis=-1)
        found = sum(unpack_bits(part, shape[1]).astype(np.int64) << j for j, part in enumerate(parts))
        return np.moveaxis(np.asarray(found).reshape(shape[0], *shape[2:], shape[1]), -1, 1)


def cuts(model: ModelProto, names: Collection[str] = ()) -> list[Cut]:
    """All cuts, in the order of the graph.

    Args:
        model: the converted model.
        names: the reference's tensors. A float tensor among them that is used more than once is a cut, too, so that a
            residual path does not tie all layers into one segment; and one that a node rounds, or turns into integers
            or bools, so that an error within the tolerance does not become another number, index or mask. The model's
            outputs are always cuts.
    """
    infos = {info.name: info.type.tensor_type for info in (*model.graph.value_info, *model.graph.output)}
    ranks = {name: len(info.shape.dim) for name, info in infos.items() if info.HasField("shape")}
    dtypes = {name: info.elem_type for name, info in infos.items() if info.elem_type}
    found = []
    outputs = {info.name for info in model.graph.output}
    uses = Counter(name for node in model.graph.node for name in node.input)
    decided = {name for node in model.graph.node if _decides(node, dtypes) for name in node.input}
    for node in model.graph.node:
        metadata = properties(node)
        for i, tensor in enumerate(node.output):
            place = source_place(metadata, i)
            if tensor and place is not None:
                bits = holds_bits(node, i) or dtypes.get(tensor) == TensorProto.UINT32  # made, or moved
                channels = read_complemented(metadata, i)
                before, levels = read_before(metadata, i), read_levels(metadata, i)
                dtype = TensorProto.UINT32 if bits else dtypes.get(tensor, _FLOAT)
                found.append(Cut(tensor, place, bits, channels, ranks.get(tensor), dtype, before, levels))
                continue
            dtype = dtypes.get(tensor, _FLOAT)
            shared = node.domain != DOMAIN and (uses[tensor] > 1 or tensor in decided)
            if tensor in outputs or (shared and tensor in names and dtype == _FLOAT):
                found.append(Cut(tensor, Place(tensor), False, (), ranks.get(tensor), dtype))
    return found


def _decides(node: NodeProto, dtypes: Mapping[str, int]) -> bool:
    """Whether a standard node is a step function of its floats: a small error becomes a large one, or none."""
    if node.domain == DOMAIN:
        return False
    steps = node.op_type in ("Sign", "Round", "Floor", "Ceil")
    return steps or any(dtypes.get(tensor, _FLOAT) != _FLOAT for tensor in node.output)
