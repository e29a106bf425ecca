"""A network as a list of simple steps, from which the peers build their graphs.

Plans are read from float ONNX and stored as JSON and .npz, so that a peer's process needs no onnx. Every tensor is
[N, C, H, W]; a binary fully connected layer is a convolution over all pixels of its input. The steps and their arrays:

    conv          weight [O, I/group, kh, kw], bias [O]; strides, pads (top, left, bottom, right), group
    binary_conv   as conv, with weight ±1, and alpha [O]: y = alpha * conv(x, weight) + bias; x is the output of a sign
    dense         weight [O, C], bias [O]; on [N, C, 1, 1]
    affine        scale [C], shift [C]: y = scale * x + shift (BatchNorm, folded)
    sign          y = +1 where x >= 0, else -1
    relu
    prelu         slope [C]
    max_pool      kernel, strides, pads; a padded pixel never wins
    average_pool  kernel, strides, pads; a padded pixel counts as 0
    flatten       [N, C, H, W] -> [N, C*H*W, 1, 1], in that order
    add           of two tensors of the same shape
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

Arrays = dict[str, NDArray[Any]]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Step:
    """One operation. `shape` is the shape of its output, (C, H, W)."""

    op: str
    inputs: list[str]
    output: str
    shape: Shape
    attributes: dict[str, Any] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A network with the input "input" of shape (C, H, W) and the last step's output as its output."""

    shape: Shape
    steps: list[Step]

    def consumers(self, name: str) -> list[Step]:
        """The steps that read a tensor."""
        return [step for step in self.steps if name in step.inputs]

    def producer(self, name: str) -> Step | None:
        """The step that makes a tensor; None for the network's input."""
        return next((step for step in self.steps if step.output == name), None)

    def save(self, path: Path) -> Path:
        """Write the steps to `path` (JSON), and their arrays to an .npz file beside it."""
        steps = [
            {"op": s.op, "inputs": s.inputs, "output": s.output, "shape": s.shape, "attributes": s.attributes}
            for s in self.steps
        ]
        path.write_text(json.dumps({"shape": self.shape, "steps": steps}))
        arrays = {f"{i}.{name}": array for i, s in enumerate(self.steps) for name, array in s.arrays.items()}
        np.savez(path.with_suffix(".npz"), **arrays)
        return path


def load_plan(path: Path) -> Plan:
    """Read a plan that `Plan.save` wrote."""
    content = json.loads(path.read_text())
    steps = [Step(s["op"], s["inputs"], s["output"], tuple(s["shape"]), s["attributes"]) for s in content["steps"]]
    with np.load(path.with_suffix(".npz")) as arrays:
        for key in arrays.files:
            index, name = key.split(".")
            steps[int(index)].arrays[name] = arrays[key]
    return Plan(tuple(content["shape"]), steps)


def same_pads(size: tuple[int, int], kernel: list[int], strides: list[int]) -> list[int]:
    """TensorFlow's padding "same" for an input of `size` (H, W), as top, left, bottom, right."""
    totals = [
        max((-(-n // stride) - 1) * stride + k - n, 0) for n, k, stride in zip(size, kernel, strides, strict=True)
    ]
    return [total // 2 for total in totals] + [total - total // 2 for total in totals]


def use_tensorflow_padding(model: onnx.ModelProto, shape: tuple[int, ...]) -> bool:
    """Replace the padding of convolutions by TensorFlow's "same"; return whether any changed.

    It differs for strides above 1: "same" pads a 3x3 convolution with stride 2 and an even size below and to the right.
    An explicit Pad before the convolution does not help: no bit adds 0, and Larq's converter (0.16) turns a float Pad
    and Conv into "same" even if the padding differs.
    """
    from onnx import helper

    plan = read_onnx(model, shape)
    nodes = {node.output[0]: node for node in model.graph.node}
    moved = False
    for step in plan.steps:
        if step.op not in ("conv", "binary_conv") or not any(step.attributes["pads"]):
            continue
        before = plan.producer(step.inputs[0])
        size = (plan.shape if before is None else before.shape)[1:]
        pads = same_pads(size, list(step.arrays["weight"].shape[2:]), step.attributes["strides"])
        if pads != step.attributes["pads"]:
            node = nodes[step.output]
            (attribute,) = (a for a in node.attribute if a.name == "pads")
            attribute.CopyFrom(helper.make_attribute("pads", pads))
            moved = True
    return moved


def fold_affine_into_sign(plan: Plan) -> Plan:
    """Fold an affine whose only reader is a sign into the sign, as its arrays `threshold` and `below` [C].

    The sign is then +1 where x >= threshold, or, where `below` is true (scale < 0), where x <= threshold. A channel
    with scale 0 is constant: its threshold is infinite.
    """
    steps: list[Step] = []
    folded: dict[str, Step] = {}
    for step in plan.steps:
        readers = plan.consumers(step.output)
        if step.op == "affine" and len(readers) == 1 and readers[0].op == "sign":
            folded[step.output] = step
            continue
        if step.op != "sign":
            steps.append(step)
            continue
        affine = folded.get(step.inputs[0])
        channels = step.shape[0]
        if affine is None:
            inputs, threshold, below = step.inputs, np.zeros(channels, np.float32), np.zeros(channels, bool)
        else:
            scale, shift = (affine.arrays[name].astype(np.float64) for name in ("scale", "shift"))
            constant = np.where(shift >= 0, -np.inf, np.inf)
            with np.errstate(divide="ignore", invalid="ignore"):
                threshold = np.where(scale == 0, constant, -shift / scale).astype(np.float32)
            inputs, below = affine.inputs, scale < 0
        steps.append(
            Step("sign", inputs, step.output, step.shape, step.attributes, {"threshold": threshold, "below": below})
        )
    return Plan(plan.shape, steps)


def read_onnx(model: onnx.ModelProto, shape: tuple[int, ...]) -> Plan:
    """Read a float ONNX model as `convert` writes it, or one layer of the same operators.

    Args:
        model: with one input.
        shape: one sample of the input, (C, H, W).

    Raises:
        ValueError: an operator, or a form of it, that no step covers.
    """
    return _Reader(model, shape).plan()


class _Reader:
    """Builds the steps. `tensors` maps each data tensor of the ONNX graph to its name in the plan."""

    def __init__(self, model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
        from onnx import numpy_helper

        self.model = model
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        channels, height, width = shape
        self.shapes: dict[str, Shape] = {"input": (channels, height, width)}
        self.tensors = {model.graph.input[0].name: "input"}
        self.steps: list[Step] = []

    def plan(self) -> Plan:
        from onnx import helper

        for node in self.model.graph.node:
            if node.op_type == "Constant":
                value = helper.get_attribute_value(node.attribute[0])
                self.constants[node.output[0]] = np.asarray(value) if isinstance(value, list) else np.array([])
            elif node.op_type != "Shape" and node.input[0] in self.tensors:
                read = getattr(self, f"_{node.op_type.lower()}", None)
                if read is None:
                    raise ValueError(f"{node.op_type} '{node.name}': no step for this operator")
                attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
                read(node, attributes)
        plan = Plan(self.shapes["input"], self.steps)
        used = {self.tensors[self.model.graph.output[0].name]}
        kept: list[Step] = []
        for step in reversed(plan.steps):  # a flatten that was merged into a binary layer has no reader left
            if step.output in used:
                kept.insert(0, step)
                used.update(step.inputs)
        return Plan(plan.shape, kept)

    def _add_step(
        self, node: onnx.NodeProto, op: str, inputs: list[str], shape: Shape, attributes: Any = None, arrays: Any = None
    ) -> None:
        output = node.output[0]
        self.steps.append(Step(op, inputs, output, shape, attributes or {}, arrays or {}))
        self.tensors[output] = output
        self.shapes[output] = shape

    def _pool_shape(self, name: str, channels: int, kernel: list[int], strides: list[int], pads: list[int]) -> Shape:
        _, height, width = self.shapes[name]
        return (
            channels,
            (height + pads[0] + pads[2] - kernel[0]) // strides[0] + 1,
            (width + pads[1] + pads[3] - kernel[1]) // strides[1] + 1,
        )

    def _is_sign(self, name: str) -> bool:
        return any(step.output == name and step.op == "sign" for step in self.steps)

    def _conv(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
        weight = self.constants[node.input[1]]
        bias = self.constants[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight), np.float32)
        if any(d != 1 for d in attributes.get("dilations", [])):
            raise ValueError(f"Conv '{node.name}': dilations {attributes['dilations']}: only 1 is covered")
        self._layer(node, self.tensors[node.input[0]], weight, bias, attributes)

    def _layer(
        self, node: onnx.NodeProto, source: str, weight: NDArray[Any], bias: NDArray[Any], given: dict[str, Any]
    ) -> None:
        attributes = {
            "strides": given.get("strides", [1, 1]),
            "pads": given.get("pads", [0] * 4),
            "group": given.get("group", 1),
        }
        kernel = list(weight.shape[2:])
        shape = self._pool_shape(source, len(weight), kernel, attributes["strides"], attributes["pads"])
        alpha = np.abs(weight).reshape(len(weight), -1).max(axis=1)
        two_valued = np.allclose(np.abs(weight), alpha.reshape(-1, 1, 1, 1), rtol=1e-5)
        if self._is_sign(source) and two_valued:
            arrays = {"weight": np.where(weight > 0, 1, -1).astype(np.float32), "alpha": alpha, "bias": bias}
            self._add_step(node, "binary_conv", [source], shape, attributes, arrays)
        else:
            self._add_step(node, "conv", [source], shape, attributes, {"weight": weight, "bias": bias})

    def _gemm(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
        if (attributes.get("transB"), attributes.get("alpha", 1.0), attributes.get("beta", 1.0)) != (1, 1.0, 1.0):
            raise ValueError(f"Gemm '{node.name}': only transB = 1, alpha = beta = 1 is covered")
        source = self.tensors[node.input[0]]
        weight, bias = self.constants[node.input[1]], self.constants[node.input[2]]
        flatten = next((s for s in self.steps if s.output == source and s.op == "flatten"), None)
        if flatten is not None and self._is_sign(flatten.inputs[0]):
            source = flatten.inputs[0]
        if self._is_sign(source):
            self._layer(node, source, weight.reshape(len(weight), *self.shapes[source]), bias, {})
        else:
            self._add_step(node, "dense", [source], (len(weight), 1, 1), {}, {"weight": weight, "bias": bias})

    def _batchnormalization(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
        gamma, beta, mean, variance = (self.constants[name].astype(np.float64) for name in node.input[1:])
        scale = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        arrays = {"scale": scale.astype(np.float32), "shift": (beta - mean * scale).astype(np.float32)}
        source = self.tensors[node.input[0]]
        self._add_step(node, "affine", [source], self.shapes[source], {}, arrays)

    def _relu(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        source = self.tensors[node.input[0]]
        self._add_step(node, "relu", [source], self.shapes[source])

    def _prelu(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        source = self.tensors[node.input[0]]
        channels = self.shapes[source][0]
        slope = np.broadcast_to(self.constants[node.input[1]].reshape(-1), channels).copy()
        self._add_step(node, "prelu", [source], self.shapes[source], {}, {"slope": slope})

    def _sign(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        source = self.tensors[node.input[0]]
        self._add_step(node, "sign", [source], self.shapes[source])

    def _maxpool(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
        self._pool(node, "max_pool", attributes)

    def _averagepool(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
        if any(attributes.get("pads", [])) and not attributes.get("count_include_pad"):
            raise ValueError(f"AveragePool '{node.name}': padding that does not count is not covered")
        self._pool(node, "average_pool", attributes)

    def _pool(self, node: onnx.NodeProto, op: str, given: dict[str, Any]) -> None:
        if given.get("ceil_mode") or any(d != 1 for d in given.get("dilations", [])):
            raise ValueError(f"{node.op_type} '{node.name}': ceil_mode and dilations are not covered")
        source, kernel = self.tensors[node.input[0]], given["kernel_shape"]
        attributes = {
            "kernel": kernel,
            "strides": given.get("strides", [1, 1]),
            "pads": given.get("pads", [0] * 4),
        }
        shape = self._pool_shape(source, self.shapes[source][0], kernel, attributes["strides"], attributes["pads"])
        self._add_step(node, op, [source], shape, attributes)

    def _globalaveragepool(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        source = self.tensors[node.input[0]]
        channels, height, width = self.shapes[source]
        attributes = {"kernel": [height, width], "strides": [1, 1], "pads": [0] * 4}
        self._add_step(node, "average_pool", [source], (channels, 1, 1), attributes)

    def _reducemean(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> None:
        axes = attributes.get("axes") or self.constants[node.input[1]].tolist()
        if sorted(axis % 4 for axis in axes) != [2, 3]:
            raise ValueError(f"ReduceMean '{node.name}': axes {axes}: only the two spatial ones are covered")
        self._globalaveragepool(node, attributes)

    def _reshape(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        """The exporter's view(batch, -1): to [N, features], regardless of its shape input."""
        source = self.tensors[node.input[0]]
        channels, height, width = self.shapes[source]
        if height * width == 1:
            self.tensors[node.output[0]] = source
        else:
            self._add_step(node, "flatten", [source], (channels * height * width, 1, 1))

    _flatten = _reshape

    def _add(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        sources = [self.tensors[name] for name in node.input]
        self._add_step(node, "add", sources, self.shapes[sources[0]])
