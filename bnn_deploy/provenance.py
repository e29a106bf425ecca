"""Provenance: metadata that links a tensor of the converted model to the float graph's tensor that it stands for.

This module alone writes, reads and applies that metadata. It needs numpy only: passes give it nodes of onnx_ir, and
`verify` gives it nodes of onnx.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

VERSION_KEY = "bnn_deploy.version"
"""Model metadata: the version of bnn-deploy that converted the model."""

SOURCE_FILE_KEY = "bnn_deploy.source_file"
"""Model metadata: the file that the model was converted from, as JSON: {"name": "net.pth", "sha256": "..."}."""

ARCH_KEY = "bnn_deploy.arch"
"""Model metadata: the name in ARCHITECTURES that the model was converted from, if it was one of them."""

ARCH_FILE_KEY = "bnn_deploy.arch_file"
"""Model metadata: what it was converted from, if its architecture is none of ARCHITECTURES, as JSON: {"arch":
"net.py:Net", "sha256": "..."}; without "sha256" for a file that holds its program. It tells a reader what to give: code
is never run because of it, since the model may come from anyone."""

ARCH_ARGS_KEY = "bnn_deploy.arch_args"
"""Model metadata: the architecture's keyword arguments, if there are any, as JSON: {"width": 64}."""

SHAPE_KEY = "bnn_deploy.input_shape"
"""Model metadata: the input's shape without the batch, such as "3,32,32"; of several inputs as JSON: {"x": [3, 32]}."""

WEIGHTS_KEY = "bnn_deploy.weights"
"""Model metadata: how the source's weights were binarised, as `convert` takes it: "auto", "as-is", ..."""

CHECKPOINT_KEY = "bnn_deploy.checkpoint"
"""Model metadata: where the network's weights are in a checkpoint, if its user said it, as JSON: {"key": "ema.model",
"prefix": "student"}."""

CLASSES_KEY = "bnn_deploy.classes"
"""Model metadata: the names of the classes, if its user gave them, as JSON, in the order of the output's numbers."""

ACCURACY_KEY = "bnn_deploy.accuracy"
"""Model metadata: what the checkpoint says of its accuracy beside its weights, as JSON: {"best_acc": 99.3}. It is the
claim of the training: nothing here has measured it."""

ZERO_WEIGHTS_KEY = "bnn_deploy.zero_weights"
"""Model metadata: what weights of the source that are exactly 0 have become, "plus" or "minus", if they have."""

IMAGE_KEY = "bnn_deploy.image"
"""Model metadata: how the bytes of its input are normalised, if it takes images of bytes, as JSON: see `ImageInput`."""

PREPROCESSING_KEY = "bnn_deploy.preprocessing"
"""Model metadata: how images become its input, as JSON: see `Preprocessing`."""

SOURCE = "bnn_deploy.source"
"""Node metadata: the tensor of the float graph that the node's output stands for (for bits: the output of the Sign)."""

COMPLEMENTED = "bnn_deploy.complemented"
"""Node metadata: comma-separated channels whose bits are stored complemented: "3,17"."""

BEFORE = "bnn_deploy.before"
"""Metadata of bits whose source is no plain Sign: the Place of their pre-activation, as JSON.

For example ["conv1_out", ["transpose", [0, 3, 1, 2]], ["subtract", 0.5]]. While the passes run, values carry their
Place under this key, too.
"""

MOVES = "bnn_deploy.moves"
"""Metadata of a node whose output is a transposed, reshaped or cropped SOURCE: the moves, as JSON.

For example [["crop", [0, 0, 1, 1, 0, 0, 1, 1]]].
"""

LEVELS = "bnn_deploy.levels"
"""Metadata of planes of levels: Levels, as JSON: {"bits": 2, "step": 0.5, "thresholds": [[0.25], [0.75], [1.25]]}.

The thresholds apply to the tensor that BEFORE names. Levels with other values than i * step have them, too:
"values": [-1.2, -0.4, 0.4, 1.2].
"""

PART_OF = "bnn_deploy.part_of"
"""Node metadata: the name of the layer that the node computes a further part of: a transposed convolution's phases."""

ZERO = "bnn_deploy.zero"
"""Metadata of a Sign that CanonicalizeSign made: its value at 0, "1" or "-1"; without it, 0 as in ONNX."""

NO_PLACE = "bnn_deploy.no_place"
"""Key, in `meta`, of a layer whose output no tensor of the float graph is, because what was in front went behind it."""

REFUSED = "bnn_deploy.refused"
"""Key, in `meta`, of a Sign that cannot become bits: the Reason."""

BIT_KEYS = (SOURCE, COMPLEMENTED, BEFORE, MOVES)
"""The metadata keys of a bit tensor; they follow it if a pass lets another node make it."""

Properties = Mapping[str, str]
"""Metadata of a node, a value or a model."""


@dataclass(frozen=True)
class Move(abc.ABC):
    """A step that turns a tensor of the float graph into its form in the converted model.

    As JSON a move is [kind, argument], such as ["transpose", [0, 2, 3, 1]].
    """

    kind: ClassVar[str]

    def to_json(self) -> list[Any]:
        """[kind, argument], of plain types."""
        (argument,) = fields(self)
        return [self.kind, getattr(self, argument.name)]

    @abc.abstractmethod
    def apply(self, value: NDArray[Any]) -> NDArray[Any]:
        """The moved tensor."""


@dataclass(frozen=True)
class Transpose(Move):
    """x  ==>  x with its dimensions in the order `perm`."""

    kind: ClassVar[str] = "transpose"
    perm: Sequence[int]

    def apply(self, value: NDArray[Any]) -> NDArray[Any]:
        """The transposed tensor."""
        return np.transpose(value, self.perm)


@dataclass(frozen=True)
class Reshape(Move):
    """x  ==>  x in the shape `shape`, in which one dimension may be -1."""

    kind: ClassVar[str] = "reshape"
    shape: Sequence[int]

    def apply(self, value: NDArray[Any]) -> NDArray[Any]:
        """The reshaped tensor."""
        return value.reshape(self.shape)


@dataclass(frozen=True)
class Crop(Move):
    """x  ==>  x without the border that a Pad with `pads`, [begin of each axis, end of each axis], added."""

    kind: ClassVar[str] = "crop"
    pads: Sequence[int]

    def apply(self, value: NDArray[Any]) -> NDArray[Any]:
        """The inside of the tensor."""
        rank = value.ndim
        return value[tuple(slice(self.pads[i], value.shape[i] - self.pads[i + rank]) for i in range(rank))]


@dataclass(frozen=True)
class Take(Move):
    """x  ==>  the slices of x along an axis, in the order of their indices; `picks` is [axis, [index, ...]]."""

    kind: ClassVar[str] = "take"
    picks: Sequence[Any]

    def apply(self, value: NDArray[Any]) -> NDArray[Any]:
        """The slices, such as those of a Slice, a Gather or a nearest Resize."""
        axis, indices = self.picks
        return np.asarray(value.take(indices, axis=axis))


@dataclass(frozen=True)
class Concat(Move):
    """x  ==>  x between other tensors, along an axis.

    `parts` is [axis, number of tensors before x, [Place of each other tensor as JSON, ...]].
    """

    kind: ClassVar[str] = "concat"
    parts: Sequence[Any]

    @property
    def others(self) -> tuple[Place, ...]:
        """The places of the other tensors, in order."""
        return tuple(Place(tensor, _from_json(moves)) for tensor, *moves in self.parts[2])

    def apply(self, value: NDArray[Any]) -> NDArray[Any]:
        """Not of one tensor alone; see `Place.read`."""
        raise TypeError("a Concat needs its other tensors")

    def join(self, value: NDArray[Any], values: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The tensors one behind the other."""
        axis, before, _ = self.parts
        others = [other.read(values) for other in self.others]
        return np.concatenate([*others[:before], value, *others[before:]], axis=axis)


@dataclass(frozen=True)
class Subtract(Move):
    """x  ==>  x - threshold; the threshold is one number or a nested list that broadcasts to x."""

    kind: ClassVar[str] = "subtract"
    threshold: Any

    def apply(self, value: NDArray[Any]) -> NDArray[Any]:
        """The difference, in float32."""
        return value - np.asarray(self.threshold, dtype=np.float32)


@dataclass(frozen=True)
class MaxPool(Move):
    """x [N, C, spatial...]  ==>  ONNX's MaxPool of x with the attributes `window`."""

    kind: ClassVar[str] = "max_pool"
    window: Mapping[str, Any]

    def apply(self, value: NDArray[Any]) -> NDArray[Any]:
        """The pooled tensor."""
        rank = value.ndim - 2
        kernel, ceil_mode = self.window["kernel_shape"], self.window.get("ceil_mode", 0)
        strides, dilations = (self.window.get(key, [1] * rank) for key in ("strides", "dilations"))
        pads = self.window.get("pads", [0] * (2 * rank))
        spans = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
        # With ceil_mode a last window may reach beyond the padding by less than a stride; it starts inside the input.
        ends = [pads[i + rank] + ceil_mode * (strides[i] - 1) for i in range(rank)]
        around = [(0, 0), (0, 0), *zip(pads[:rank], ends, strict=True)]
        padded = np.pad(value, around, constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, tuple(range(2, value.ndim)))
        starts = [slice(0, pads[i] + value.shape[i + 2], strides[i]) for i in range(rank)]
        taps = [slice(None, None, dilation) for dilation in dilations]
        at = (slice(None), slice(None), *starts, *taps)
        return np.asarray(windows[at].max(axis=tuple(range(-rank, 0))))


_KINDS: dict[str, type[Any]] = {move.kind: move for move in (Transpose, Reshape, Crop, Take, Concat, Subtract, MaxPool)}


@dataclass(frozen=True)
class Place:
    """A tensor of the float graph, and the moves that lead from it to a tensor of the converted model.

    Attributes:
        tensor: its name in the float graph.
        moves: applied in order.
    """

    tensor: str
    moves: tuple[Move, ...] = ()

    def then(self, *moves: Move) -> Place:
        """This place with further moves appended."""
        return replace(self, moves=(*self.moves, *moves))

    def beside(self, before: Sequence[Place], behind: Sequence[Place], axis: int) -> Place:
        """This place between others, concatenated along an axis."""
        return self.then(Concat([axis, len(before), [other.to_json() for other in (*before, *behind)]]))

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of all tensors that `read` needs."""
        joined = [other for move in self.moves if isinstance(move, Concat) for other in move.others]
        return self.tensor, *(name for other in joined for name in other.tensors)

    def read(self, values: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The value at this place, for the values of `tensors`, by name."""
        value = values[self.tensor]
        for move in self.moves:
            value = move.join(value, values) if isinstance(move, Concat) else move.apply(value)
        return value

    def apply(self, value: NDArray[Any]) -> NDArray[Any]:
        """The value at this place, for the value of `tensor`, which is its only tensor."""
        return self.read({self.tensor: value})

    def to_json(self) -> list[Any]:
        """[tensor, move, ...], of plain types."""
        return [self.tensor, *_to_json(self.moves)]

    def as_before(self) -> dict[str, str]:
        """The metadata BEFORE of bits whose pre-activation is at this place."""
        return {BEFORE: json.dumps(self.to_json())}

    def as_source(self) -> dict[str, str]:
        """The metadata SOURCE, and MOVES if there are any, of a node whose output stands for this place."""
        return {SOURCE: self.tensor} | ({MOVES: json.dumps(_to_json(self.moves))} if self.moves else {})


@dataclass(frozen=True)
class Levels:
    """The encoding of a quantised tensor in bit planes: level i stands for one of its values in the float graph.

    Attributes:
        bits: number of bits of a level.
        step: the distance between two neighbouring levels in the float graph, if level i stands for i * step.
        thresholds: the pre-activation's thresholds, [levels - 1, C or 1] float32.
        values: the values of the levels, ascending, if they are others; else ().
    """

    bits: int
    step: float
    thresholds: NDArray[np.float32]
    values: tuple[float, ...] = ()

    def encode(self, value: NDArray[Any]) -> NDArray[np.int64]:
        """The levels of the reference's quantised tensor."""
        if not self.values:
            return np.rint(value.astype(np.float64) / self.step).astype(np.int64)
        middles = (np.array(self.values[:-1]) + self.values[1:]) / 2
        return np.searchsorted(middles, value.astype(np.float64), side="right")

    def columns(self, rank: int) -> NDArray[np.float32]:
        """The thresholds as [levels - 1, 1, C or 1, 1, ...]; each broadcasts to [N, C, spatial...] of this rank."""
        return self.thresholds.reshape(len(self.thresholds), 1, -1, *[1] * (rank - 2))

    def as_metadata(self) -> dict[str, str]:
        """The metadata LEVELS."""
        entry = {"bits": self.bits, "step": self.step, "thresholds": self.thresholds.tolist()}
        return {LEVELS: json.dumps(entry | ({"values": self.values} if self.values else {}))}


def properties(proto: onnx.NodeProto | onnx.ModelProto) -> dict[str, str]:
    """The metadata of a node or a model of onnx."""
    return {entry.key: entry.value for entry in proto.metadata_props}


def output_key(key: str, output: int) -> str:
    """The metadata key for a node's output: `key` itself for output 0, "bnn_deploy.source.1" for output 1."""
    return key if output == 0 else f"{key}.{output}"


def source_place(metadata: Properties, output: int = 0) -> Place | None:
    """The place that a node's output stands for, from SOURCE and MOVES; None if it has no SOURCE."""
    tensor = metadata.get(output_key(SOURCE, output))
    return (
        None if tensor is None else Place(tensor, _from_json(json.loads(metadata.get(output_key(MOVES, output), "[]"))))
    )


def read_before(metadata: Properties, output: int = 0) -> Place | None:
    """The place of the pre-activation of bits, from BEFORE; None if there is none."""
    text = metadata.get(output_key(BEFORE, output))
    if not text:
        return None
    tensor, *moves = json.loads(text)
    if not isinstance(tensor, str):
        raise ValueError(f"{text}: no name of a tensor")
    return Place(tensor, _from_json(moves))


def read_levels(metadata: Properties, output: int = 0) -> Levels | None:
    """The encoding of bit planes, from LEVELS; None if there is none."""
    text = metadata.get(output_key(LEVELS, output))
    if text is None:
        return None
    entry = json.loads(text)
    thresholds = np.array(entry["thresholds"], np.float32)
    return Levels(int(entry["bits"]), float(entry["step"]), thresholds, tuple(entry.get("values", ())))


def read_complemented(metadata: Properties, output: int = 0) -> tuple[int, ...]:
    """The channels whose bits are stored complemented, ascending."""
    text = metadata.get(output_key(COMPLEMENTED, output), "")
    return tuple(int(channel) for channel in text.split(",") if channel)


def place(value: ir.Value) -> Place:
    """The place of a value in the float graph: the place that a pass noted, or else the tensor of the same name."""
    return read_before(value.metadata_props) or Place(value.name or "")


def note_place(value: ir.Value, where: Place) -> None:
    """Note the place of a value that a pass made."""
    value.metadata_props.update(where.as_before())


def node_place(node: ir.Node | None, value: ir.Value) -> Place:
    """The place that `value`, the output of `node`, stands for: from the node's SOURCE, or else `place(value)`."""
    return (None if node is None else source_place(node.metadata_props)) or place(value)


def place_before(sign: ir.Node) -> Place:
    """The place of the input of a Sign: from the Sign's BEFORE, if a pass made it, or else `place` of the input."""
    data = sign.inputs[0]
    assert data is not None
    return read_before(sign.metadata_props) or place(data)


def zero_value(sign: ir.Node) -> int:
    """The value of a Sign at 0."""
    return int(sign.metadata_props.get(ZERO, "0"))


def sign_metadata(source: Place, before: Place, zero: int) -> dict[str, str]:
    """Metadata of a Sign that a pass makes.

    Args:
        source: the place that the Sign stands for.
        before: the place of its input.
        zero: its value at 0: -1, 0 or 1.
    """
    return source.as_source() | before.as_before() | ({ZERO: str(zero)} if zero else {})


def source_metadata(value: ir.Value) -> dict[str, str]:
    """SOURCE and MOVES of a node whose output stands for `value`."""
    return place(value).as_source()


def layer_metadata(node: ir.Node) -> dict[str, str]:
    """SOURCE and MOVES of what a float layer becomes: its own, or its output.

    Empty if a pass moved something behind the layer.
    """
    own = source_place(node.metadata_props) or Place(node.outputs[0].name or "")
    return {} if NO_PLACE in node.meta else own.as_source()


def set_source(node: ir.Node, value: ir.Value) -> None:
    """Note that the output of `node` stands for `value` from now on."""
    for key in (SOURCE, MOVES):
        node.metadata_props.pop(key, None)
    node.metadata_props.update(source_metadata(value))


def bit_metadata(node: ir.Node, output: int = 0) -> dict[str, str]:
    """The bit metadata of the first output of `node`, under the keys of output `output` of another node."""
    own = node.metadata_props
    return {output_key(key, output): own[key] for key in BIT_KEYS if key in own}


def take_bit_metadata(node: ir.Node, other: ir.Node) -> None:
    """Move the bit metadata of `other` to `node`, in place of the metadata that `node` has."""
    for key in BIT_KEYS:
        node.metadata_props.pop(key, None)
    node.metadata_props.update(bit_metadata(other))
    for key in BIT_KEYS:
        other.metadata_props.pop(key, None)


def part_metadata(layer: str | None) -> dict[str, str]:
    """The metadata of a node that computes a further part of `layer`; empty for None."""
    return {} if layer is None else {PART_OF: layer}


def part_of(node: ir.Node) -> str | None:
    """The layer that a node computes a further part of; None if it is none, or the first."""
    return node.metadata_props.get(PART_OF)


def complemented(node: ir.Node) -> set[int]:
    """The channels whose bits `node` stores complemented."""
    return set(read_complemented(node.metadata_props))


def set_complemented(node: ir.Node, channels: set[int]) -> None:
    """Record the channels whose bits `node` stores complemented."""
    if channels:
        node.metadata_props[COMPLEMENTED] = ",".join(map(str, sorted(channels)))
    else:
        node.metadata_props.pop(COMPLEMENTED, None)


@dataclass(frozen=True)
class FileStamp:
    """A file by its name and its content.

    Attributes:
        name: without folders: those of the machine that converted a model are nobody else's business.
        sha256: of its content, in hexadecimal.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class Origin:
    """What a model was converted from, and how.

    Attributes:
        version: of bnn-deploy.
        weights: how its weights were binarised, as `convert` takes it.
        source: its file; None for an object in memory, or one of several files.
        arch: a name of ARCHITECTURES, or of the values of `arch` that stand for a program, or FILE.py:NAME without
            folders; None if it needs none.
        arch_file: FILE.py; None for the others.
        arch_args: keyword arguments of the architecture.
        key: where the network's state dict is in a checkpoint; None if the user did not say it.
        prefix: what its keys begin with; None likewise.
        classes: the names of the classes; empty if unknown.
        accuracy: what the checkpoint says of its accuracy: the key -> the number there.
    """

    version: str
    weights: str
    source: FileStamp | None = None
    arch: str | None = None
    arch_file: FileStamp | None = None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    prefix: str | None = None
    classes: tuple[str, ...] = ()
    accuracy: Mapping[str, float] = field(default_factory=dict)

    def metadata(self, built_in: bool) -> dict[str, str]:
        """Metadata of a model; `built_in` says whether `arch` is a name of ARCHITECTURES."""
        stamp = {} if self.arch_file is None else {"sha256": self.arch_file.sha256}
        place = {name: text for name, text in (("key", self.key), ("prefix", self.prefix)) if text is not None}
        entries = {
            SOURCE_FILE_KEY: None if self.source is None else asdict(self.source),
            ARCH_FILE_KEY: None if self.arch is None or built_in else {"arch": self.arch} | stamp,
            ARCH_ARGS_KEY: dict(self.arch_args),
            CHECKPOINT_KEY: place,
            CLASSES_KEY: self.classes,
            ACCURACY_KEY: dict(self.accuracy),
        }
        own = {VERSION_KEY: self.version, WEIGHTS_KEY: self.weights}
        own |= {ARCH_KEY: self.arch} if built_in and self.arch is not None else {}
        own |= {key: json.dumps(entry, ensure_ascii=False) for key, entry in entries.items() if entry}
        return {key: in_utf8(text) for key, text in own.items()}


def in_utf8(text: str) -> str:
    """A text with what Python keeps of file names that are not UTF-8, which protobuf needs, as escapes of JSON."""
    return text.encode(errors="backslashreplace").decode()


def read_origin(metadata: Properties) -> Origin:
    """What a model's metadata says of its origin: data of a stranger, of which nothing is run.

    Raises:
        ValueError, TypeError, KeyError: the metadata is damaged; readers of files do this within `errors.reading`.
    """
    found = {
        key: json.loads(metadata.get(key, "{}"))
        for key in (SOURCE_FILE_KEY, ARCH_FILE_KEY, ARCH_ARGS_KEY, CHECKPOINT_KEY, ACCURACY_KEY)
    }
    source, program, place = found[SOURCE_FILE_KEY], found[ARCH_FILE_KEY], found[CHECKPOINT_KEY]
    arch = metadata.get(ARCH_KEY) or program.get("arch")
    file = None
    if "sha256" in program:
        file = FileStamp(str(arch).rpartition(":")[0], str(program["sha256"]))
    return Origin(
        metadata.get(VERSION_KEY, ""),
        metadata.get(WEIGHTS_KEY, "auto"),
        FileStamp(str(source["name"]), str(source["sha256"])) if source else None,
        arch,
        file,
        dict(found[ARCH_ARGS_KEY]),
        place.get("key"),
        place.get("prefix"),
        read_classes(metadata),
        {str(name): float(number) for name, number in found[ACCURACY_KEY].items()},
    )


def read_classes(metadata: Properties) -> tuple[str, ...]:
    """The names of a model's classes, in the order of its output's numbers; empty if they are not noted."""
    return tuple(map(str, json.loads(metadata.get(CLASSES_KEY, "[]"))))


def name_outputs(model: ir.Model, original: ir.Model, names: Sequence[str]) -> list[str]:
    """Give the outputs of a converted model, and of its float model, other names.

    A name stays as it is if the new one is that of another tensor, or if other tensors of the converted model are
    described by the output's place in the float graph.

    Args:
        model: the converted model; its outputs stand for those of the float model, in their order.
        original: the float model.
        names: one for each output.

    Returns:
        The names that were not given.
    """
    taken = {name for graph in (model.graph, original.graph) for name in _tensor_names(graph)}
    left = []
    for name, value, source in zip(names, model.graph.outputs, original.graph.outputs, strict=True):
        quoted = json.dumps(source.name)
        described = any(quoted in text for node in model.graph for text in node.metadata_props.values())
        if described or (name in taken and {name} != {value.name, source.name}):
            left.append(name)
            continue
        for node in model.graph:
            for key, text in node.metadata_props.items():
                if key.startswith(SOURCE) and text == source.name:
                    node.metadata_props[key] = name
        value.name = source.name = name
        taken.add(name)
    return left


def _tensor_names(graph: ir.Graph) -> set[str | None]:
    made = (value.name for node in graph for value in node.outputs)
    return {*made, *graph.initializers, *(value.name for value in graph.inputs)}


def shape_metadata(shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Metadata of a model: its inputs' shapes without the batch."""
    several = len(shapes) != 1
    text = json.dumps(shapes) if several else ",".join(str(size) for shape in shapes.values() for size in shape)
    return {SHAPE_KEY: text}


def read_shapes(metadata: Properties, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The shapes without the batch of a model's inputs, by name; empty if none are noted."""
    text = metadata.get(SHAPE_KEY, "")
    if text.startswith("{"):
        return {name: tuple(shape) for name, shape in json.loads(text).items()}
    return {name: tuple(map(int, text.split(","))) for name in names if len(names) == 1 and text}


def _to_json(moves: Sequence[Move]) -> list[list[Any]]:
    return [move.to_json() for move in moves]


def _from_json(moves: Sequence[Sequence[Any]]) -> tuple[Move, ...]:
    return tuple(_KINDS[kind](argument) for kind, argument in moves)
