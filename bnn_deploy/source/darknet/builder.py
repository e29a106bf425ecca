"""Builds the float ONNX graph of a Darknet network, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnn_deploy.operators.contract import FLOAT_LAYERS, OPSET
from bnn_deploy.source.darknet.cfg import Section
from bnn_deploy.source.darknet.weights import WeightsFile

_IR_VERSION = 10


@dataclass(frozen=True)
class FeatureMap:
    """The output of a layer: [N, channels, height, width] float32, or [N, channels] if it is flat.

    Attributes:
        tensor: its name in the graph.
        channels: channels, or features.
        height: rows; 1 if it is flat.
        width: columns; likewise.
        flat: whether the tensor has two dimensions.
    """

    tensor: str
    channels: int
    height: int = 1
    width: int = 1
    flat: bool = False

    @property
    def size(self) -> int:
        """Numbers per sample."""
        return self.channels * self.height * self.width

    @property
    def shape(self) -> str:
        """For errors: "32x13x13"."""
        return "x".join(map(str, (self.channels, self.height, self.width)))


@dataclass(frozen=True)
class Boxes:
    """The boxes of a detection layer.

    Attributes:
        place: tensor [N, number, 4]: x and y of the centre, width and height, as parts of the network's input.
        scores: tensor [N, number, classes]: objectness times the score of the class.
        number: number of boxes per image.
        classes: number of classes.
    """

    place: str
    scores: str
    number: int
    classes: int


@dataclass
class Builder:
    """The float graph of a network while its layers are added.

    Attributes:
        weights: the parameters, of which each layer takes its own.
        padding: what an xnor layer is padded with, -1 or 0.
        network_size: width and height of the network's input.
        decode: whether the boxes are wanted.
        feature: the output of the layer before, which most layers read.
        layers: the outputs of all layers so far, by index.
        heads: the outputs of the detection layers so far: tensor -> its dimensions but for the batch.
        boxes: what they mean, with `decode`.
        raw_sums: the indices of the xnor layers that leave their activation out; see `layers.convolutional`.
        label: the name of the layer that is being added, such as "conv5"; its nodes are named by it.
    """

    weights: WeightsFile
    padding: int
    network_size: tuple[int, int]
    decode: bool
    feature: FeatureMap
    layers: list[FeatureMap] = field(default_factory=list)
    heads: dict[str, tuple[int, ...]] = field(default_factory=dict)
    boxes: list[Boxes] = field(default_factory=list)
    raw_sums: frozenset[int] = frozenset()
    label: str = ""
    _nodes: list[NodeProto] = field(default_factory=list)
    _constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    _signs: dict[str, str] = field(default_factory=dict)

    def constant(self, what: str, value: NDArray[Any]) -> str:
        """Add a constant of the current layer, and return its name."""
        return self.shared(f"{self.label}.{what}", value)

    def shared(self, name: str, value: NDArray[Any]) -> str:
        """Add a constant that is not the layer's own, or take the one of this name."""
        self._constants.setdefault(name, value)
        return name

    def add(self, operator: str, inputs: list[str], what: str = "", **attributes: Any) -> str:
        """Add a node with one output.

        Args:
            operator: an operator of ONNX.
            inputs: names of tensors.
            what: what it makes; "" if that is the output of the layer.
            attributes: of the node.

        Returns:
            The name of its output.
        """
        return self.add_split(operator, inputs, [what], **attributes)[0]

    def add_split(self, operator: str, inputs: list[str], what: list[str], **attributes: Any) -> list[str]:
        """The same of a node with several outputs."""
        names = [f"{self.label}_{part}" if part else self.label for part in what]
        name = self.label if operator in FLOAT_LAYERS else f"{names[0]}/{operator}"
        self._nodes.append(helper.make_node(operator, inputs, names, name, **attributes))
        return names

    def sign(self, tensor: str) -> str:
        """+1 where a tensor is > 0, else -1; layers that read the same tensor share it."""
        if tensor not in self._signs:
            scalars = {"zero": 0, "plus_one": 1, "minus_one": -1}
            zero, one, minus = (self.shared(name, np.array(value, np.float32)) for name, value in scalars.items())
            positive = self.add("Greater", [tensor, zero], "positive")
            self._signs[tensor] = self.add("Where", [positive, one, minus], "sign")
        return self._signs[tensor]

    def reshape(self, tensor: str, shape: list[int], what: str) -> str:
        """Reshape a tensor to [N, *shape]."""
        # 0 is the batch, whatever it is
        dims = self.shared(f"shape_{'x'.join(map(str, shape))}", np.array([0, *shape], np.int64))
        return self.add("Reshape", [tensor, dims], what)

    def image(self, section: Section, feature: FeatureMap | None = None) -> FeatureMap:
        """A layer's output, by default the one before, with four dimensions."""
        feature = feature or self.feature
        if not feature.flat:
            return feature
        tensor = self.reshape(feature.tensor, [feature.channels, 1, 1], f"{feature.tensor}_image")
        return FeatureMap(tensor, feature.channels)

    def flat(self) -> FeatureMap:
        """The output of the layer before, with two dimensions."""
        if self.feature.flat:
            return self.feature
        tensor = self.add("Flatten", [self.feature.tensor], "flat", axis=1)
        return FeatureMap(tensor, self.feature.size, flat=True)

    def model(self, channels: int, outputs: dict[str, tuple[int, ...]]) -> ModelProto:
        """The graph.

        Args:
            channels: of the network's input.
            outputs: tensor -> its dimensions but for the batch.
        """
        width, height = self.network_size
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims])
            for name, dims in {"input": (channels, height, width), **outputs}.items()
        ]
        graph = helper.make_graph(
            self._nodes,
            "darknet",
            values[:1],
            values[1:],
            [numpy_helper.from_array(value, name) for name, value in self._constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)
