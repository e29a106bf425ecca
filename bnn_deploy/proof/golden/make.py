"""Making golden results, where onnx is installed."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bnn_deploy.errors import InputError, reading_metadata
from bnn_deploy.operators.bits import pack_bits
from bnn_deploy.operators.contract import Operator, holds_bits, is_layer, operator_of
from bnn_deploy.preprocessing import Preprocessing
from bnn_deploy.progress import Progress
from bnn_deploy.proof.backends import RunError, run_session
from bnn_deploy.proof.golden.record import (
    GOLDEN_BATCH,
    GOLDEN_PREFIX,
    ORIGIN,
    ZEROS,
    Golden,
    GoldenFloats,
    GoldenTensor,
    GoldenValues,
    checksums,
    feed,
)
from bnn_deploy.proof.margins import magnitudes, relative_margin
from bnn_deploy.proof.pieces import (
    add_body,
    has_kernels,
    load_model,
    model_inputs,
    require_converted,
    split,
    with_outputs,
)
from bnn_deploy.proof.results import Tolerances
from bnn_deploy.proof.rounding import sums_node
from bnn_deploy.runtime.inputs import Data, Inputs, load_data
from bnn_deploy.runtime.machine import cpu_name
from bnn_deploy.runtime.session import library_info, load_session

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


FED = "fed/"
"""Prefix of a tensor's name for its counterpart that is computed from golden bits: "fed/conv2_out"."""

ALONE = "alone/"
"""Prefix of a tensor's name for a binary layer's output from golden bits and a neutral operand (zeros or ones)."""


def make_golden(
    model: str | os.PathLike[str],
    data: Data | None = None,
    samples: int | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    seed: int | None = None,
    tolerances: Tolerances | None = None,
    progress: Progress = lambda step: None,
) -> Golden:
    """Compute golden results with the kernels of this machine's best instruction set and one thread.

    Args:
        model: the converted .onnx file.
        data: inputs, as `bnn_deploy.verify` takes them; None for random normal inputs.
        samples: number of inputs to use, from the first or drawn with `seed`; None for all. All are in memory at once.
        preprocessing: how images become the model's input, as `bnn_deploy.verify` takes it.
        seed: likewise.
        tolerances: the largest differences that count as rounding; None for the defaults.
        progress: called with a line of text before each step.

    Raises:
        InputError: a file cannot be used, or an output or the bits of a layer are not [N, ...].
        SetupError: as `load_session`.
    """
    tolerances = tolerances or Tolerances()
    proto = load_model(model)
    require_converted(proto, model)
    if not has_kernels(proto):
        raise InputError(
            f"{model}: it has binary weights only, and no bits between its layers that a board could get wrong: "
            "copy the file, and run it with onnxruntime alone"
        )
    content = Path(model).read_bytes()
    with reading_metadata(model):
        wanted = model_inputs(proto)
        plan = _Plan(proto)
    found = load_data(data, None, samples, wanted, preprocessing=preprocessing, seed=seed)
    inputs = Inputs(found.part(0, None), found.whole, None, ORIGIN)
    outputs = [info.name for info in proto.graph.output]
    progress(f"computing golden results of {len(inputs)} samples")
    try:
        values = _run(content + plan.free_probe(), [*outputs, *plan.tensors], inputs.part, len(inputs))
        for key, array in values.items():
            if array.shape[:1] != (len(inputs),):
                what = f"the output '{key}'" if key in outputs else f"layer '{plan.tensors[key].layer}'"
                raise InputError(
                    f"{model}: {what} gives {list(array.shape)} for {len(inputs)} samples; golden results compare "
                    "sample by sample: take outputs of [N, ...], such as all boxes before NonMaxSuppression"
                )
        near = plan.near_bits(inputs, tolerances)
        tensors = tuple(replace(tensor, bits=values[key], near=near.get(key)) for key, tensor in plan.tensors.items())
        bits_only = Golden(
            hashlib.sha256(content).hexdigest(),
            inputs,
            tuple(
                GoldenValues(key, plan.renamed.get(key, key), tolerances.relative(key in plan.quantized), values[key])
                for key in outputs
            ),
            tensors,
            (),
            {
                "onnxruntime": ort.__version__,
                "numpy": np.__version__,
                "cpu": cpu_name(),
                "isa": library_info().selected,
            },
            plan.probe(),
        )
        return replace(bits_only, floats=plan.floats(bits_only, content))
    except RunError as error:
        raise InputError(f"{model}: it does not run on these inputs: {error}") from error


def _run(
    model: bytes, names: list[str], feed: Callable[[int, int], dict[str, NDArray[Any]]], samples: int
) -> dict[str, NDArray[Any]]:
    """The named outputs of a model for all samples, batch by batch.

    Raises:
        RunError: it does not run.
    """
    if not names:
        return {}
    session = load_session(model, threads=1)
    wanted = {info.name for info in session.get_inputs()}
    parts = []
    for start in range(0, samples, GOLDEN_BATCH):
        fed = feed(start, min(start + GOLDEN_BATCH, samples))
        parts.append(run_session(session, names, {name: array for name, array in fed.items() if name in wanted}))
    return {name: np.concatenate([np.atleast_1d(part[i]) for part in parts]) for i, name in enumerate(names)}


def _near(row: Operator, values: NDArray[Any], threshold: NDArray[Any], margin: float) -> NDArray[np.uint32]:
    """Mask of the bits that may flip if their floats are rounded differently, in the packing of the bits.

    Args:
        row: the operator that compares them.
        values: [N, C, spatial...], or [N, spatial..., C] for the operators with channels last.
        threshold: [C], or for QuantizeLevels [thresholds, C]. A threshold that no value can cross makes its channel
            constant, and none of its bits near.
        margin: in units of the root mean square of a channel's distances from the threshold. An 8-bit value is near
            if adding or subtracting 1 crosses the threshold.
    """
    if row.channels_last:
        values = np.moveaxis(values, -1, 1)
    shape = (-1, *[1] * (values.ndim - 2))
    if threshold.ndim == 2:
        # Crossing threshold i, counted from 1, flips the bits of each plane j for which 2**j divides i.
        each = [_near(row, values, one, margin) for one in threshold]
        planes = [each[2**j - 1 :: 2**j] for j in range(len(each).bit_length())]
        return np.concatenate([np.bitwise_or.reduce(plane) for plane in planes], axis=-1)
    if row.inputs[0].dtype == "uint8":
        levels = threshold.reshape(shape)
        near = (levels > 0) & (levels < 256) & ((values == levels) | (values == levels - 1))
    else:
        crossed = np.isfinite(threshold)
        shifted = values - np.where(crossed, threshold, 0).reshape(shape)
        near = relative_margin(shifted, magnitudes(shifted).rms()) <= margin
        near &= crossed.reshape(shape)
    return pack_bits(np.moveaxis(near, 1, -1))


def _window_sums(node: NodeProto, output: str) -> list[NodeProto]:
    """Standard nodes that give what thresholds of windows are compared with: within rounding, the windows' sums."""
    from onnx import helper

    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    window = {name: attributes[name] for name in ("kernel_shape", "strides", "pads")}
    if set(attributes["dilations"]) != {1}:  # only newer versions of AveragePool have them
        window["dilations"] = attributes["dilations"]
    data, taps, average = node.input[0], f"{output}/taps", f"{output}/average"
    nodes = [helper.make_node("Constant", [], [taps], value_float=float(math.prod(window["kernel_shape"])))]
    if attributes["relu"]:
        nodes.append(helper.make_node("Relu", [data], [f"{output}/relu"]))
        data = f"{output}/relu"
    nodes.append(helper.make_node("AveragePool", [data], [average], count_include_pad=1, **window))
    nodes.append(helper.make_node("Mul", [average, taps], [output]))
    return nodes


class _Plan:
    """The bit tensors to record of a model, and the nodes of its probe.

    Attributes:
        tensors: bit tensor -> its entry in the golden file, still without bits.
        renamed: tensor -> its name in the probe, for bit tensors and all tensors computed from them.
        quantized: the float tensors that come from a layer with 8-bit activations.
    """

    def __init__(self, proto: ModelProto) -> None:
        self.proto = proto
        self.tensors: dict[str, GoldenTensor] = {}
        self.renamed: dict[str, str] = {}
        self.quantized: set[str] = set()
        self._nodes: list[NodeProto] = []
        self._exact: dict[str, tuple[str, str]] = {}  # floats of golden bits -> layer, its bit output or ""
        self._makers: dict[str, NodeProto] = {}
        self._bits_above: dict[str, GoldenTensor] = {}  # bits, moved or not -> the golden ones that they come from
        self._constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        names = {piece.output.tensor: piece.name for piece in split(proto)}
        layers: dict[str, str] = {}  # float tensor -> the layer that it comes from
        for node in proto.graph.node:
            fed = any(name in self.renamed for name in node.input)
            row = operator_of(node)
            threshold = None if row is None else row.threshold
            from_floats = threshold is not None and not threshold.of_sums
            layer = node.name if is_layer(node) else next(filter(None, map(layers.get, node.input)), "")
            rounded = node.op_type == "QuantizeLinear" or any(name in self.quantized for name in node.input)
            for i, tensor in enumerate(node.output):
                if not tensor:
                    continue
                if holds_bits(node, i):
                    if from_floats:
                        self._makers[tensor] = node
                    binarises = threshold is not None and not is_layer(node)
                    own = names.get(tensor) or layer if binarises else node.name
                    self.tensors[tensor] = GoldenTensor(
                        tensor,
                        FED + tensor if fed else tensor,
                        own or tensor,
                        self._channels(node),
                        self._planes(node),
                        rounded and from_floats,
                        np.empty(0, np.uint32),
                        None,
                    )
                    self._bits_above[tensor] = self.tensors[tensor]
                    continue
                above = next((self._bits_above[name] for name in node.input if name in self._bits_above), None)
                if row is None and above is not None:
                    self._bits_above[tensor] = above
                layers[tensor] = layer
                if rounded:
                    self.quantized.add(tensor)
            if fed:
                self._nodes.append(self._fed(node))
            if row is not None and row.is_binary_layer and not row.holds_bits(0):
                if row.operand is None:
                    self._exact[FED + node.output[0]] = node.name, ""
                elif row.inputs[row.operand].neutral == 0:
                    self._nodes.append(self._alone(node, row.operand))
                    self._exact[ALONE + node.output[-1]] = node.name, node.output[-1]
                else:
                    self._nodes += self._times_one(node, row.operand)
                    self._exact[ALONE + node.output[0]] = node.name, ""
            for i, tensor in enumerate(node.output):
                if tensor and holds_bits(node, i):
                    self.renamed[tensor] = GOLDEN_PREFIX + tensor
                elif tensor and fed:
                    self.renamed[tensor] = FED + tensor

    def _channels(self, node: NodeProto) -> int:
        """The number of channels of a node's bit output: one per threshold, or as many as its input has."""
        threshold = self._threshold(node)
        return self._bits_above[node.input[0]].channels if threshold is None else int(threshold.shape[-1])

    def _planes(self, node: NodeProto) -> int:
        """The number of bit planes of a node's output: 3 thresholds (levels 0 to 3) need 2."""
        threshold = self._threshold(node)
        return 1 if threshold is None or threshold.ndim == 1 else len(threshold).bit_length()

    def _threshold(self, node: NodeProto) -> NDArray[Any] | None:
        """The thresholds of a node: [C], or [thresholds, C] for levels; None if it has none."""
        from onnx import numpy_helper

        row = operator_of(node)
        if row is None or row.threshold is None:
            return None
        threshold: NDArray[Any] = numpy_helper.to_array(self._constants[node.input[row.threshold.input]])
        return threshold

    def _fed(self, node: NodeProto) -> NodeProto:
        """A copy of a node that reads golden bits."""
        from onnx import NodeProto

        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = FED + node.name
        copy.input[:] = [self.renamed.get(name, name) for name in node.input]
        copy.output[:] = [FED + name if name else "" for name in node.output]
        del copy.metadata_props[:]
        return copy

    def _alone(self, node: NodeProto, operand: int) -> NodeProto:
        """A copy of a layer that reads golden bits and adds zeros in place of its input `operand`."""
        copy = self._fed(node)
        copy.name = ALONE + node.name
        copy.input[operand] = ZEROS + node.output[-1]
        # Name both outputs: onnxruntime's type inference of the function body needs them.
        copy.output[:] = [ALONE + node.output[-1], f"{ALONE}{node.output[-1]}/bits"]
        return copy

    def _times_one(self, node: NodeProto, operand: int) -> list[NodeProto]:
        """A copy of a layer that reads golden bits and multiplies by ones, not by `operand`, and the nodes of the ones.

        Cast(Equal(factor, factor)) gives ones of the factor's shape, which may depend on the shape of the input.
        """
        from onnx import TensorProto, helper

        copy = self._fed(node)
        copy.name = copy.output[0] = ALONE + node.output[0]
        equal, one = f"{copy.name}/equal", f"{copy.name}/one"
        factor, copy.input[operand] = copy.input[operand], one
        return [
            helper.make_node("Equal", [factor, factor], [equal], name=equal),
            helper.make_node("Cast", [equal], [one], name=one, to=TensorProto.FLOAT),
            copy,
        ]

    def floats(self, golden: Golden, model: bytes) -> tuple[GoldenFloats, ...]:
        """The golden checksums of the floats that binary layers compute from golden bits.

        Raises:
            RunError: the model does not run.
        """
        by_name = {tensor.tensor: tensor for tensor in golden.tensors}
        made = []
        for tensor, (layer, bits) in self._exact.items():
            shape = (by_name[bits].channels, *by_name[bits].bits.shape[1:-1]) if bits else ()
            made.append(GoldenFloats(tensor, layer, shape, ZEROS + bits if bits else "", np.empty(0, np.uint32)))
        fed = replace(golden, floats=tuple(made))
        values = _run(
            model + golden.probe,
            [floats.tensor for floats in made],
            lambda start, stop: feed(fed, start, stop),
            len(golden.inputs),
        )
        return tuple(replace(f, shape=values[f.tensor].shape[1:], checksums=checksums(values[f.tensor])) for f in made)

    def free_probe(self) -> bytes:
        """The probe that only makes the bit tensors outputs."""
        from onnx import TensorProto

        return self._serialised([], dict.fromkeys(self.tensors, TensorProto.UINT32))

    def probe(self) -> bytes:
        """The probe that makes the bit tensors outputs, and adds the layers fed with golden bits and their outputs."""
        from onnx import TensorProto

        bits = (name for tensor in self.tensors.values() for name in (tensor.tensor, tensor.fed))
        outputs: dict[str, int] = dict.fromkeys(bits, TensorProto.UINT32)
        outputs |= dict.fromkeys(self._exact, TensorProto.FLOAT)
        for info in self.proto.graph.output:
            if info.name in self.renamed:
                outputs[self.renamed[info.name]] = info.type.tensor_type.elem_type
        return self._serialised(self._nodes, outputs)

    def _serialised(self, nodes: Sequence[NodeProto], outputs: Mapping[str, int]) -> bytes:
        """A ModelProto of nodes, of the golden bits that they read, and of outputs with their element types."""
        from onnx import ModelProto, TensorProto, helper

        probe = ModelProto()
        probe.graph.node.extend(nodes)
        read = {name: None for node in nodes for name in node.input if name.startswith((GOLDEN_PREFIX, ZEROS))}
        probe.graph.input.extend(
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT if name.startswith(ZEROS) else TensorProto.UINT32, None
            )
            for name in read
        )
        probe.graph.output.extend(
            helper.make_tensor_value_info(name, element, None) for name, element in outputs.items()
        )
        made = {name for node in nodes for name in node.output}
        for info in self.proto.graph.value_info:  # onnxruntime's optimiser needs the shapes of floats
            if FED + info.name in made and FED + info.name not in outputs:
                entry = probe.graph.value_info.add()
                entry.CopyFrom(info)
                entry.name = FED + info.name
        content: bytes = probe.SerializeToString(deterministic=True)
        return content

    def near_bits(self, inputs: Inputs, tolerances: Tolerances) -> dict[str, NDArray[np.uint32]]:
        """For each bit tensor made from floats, the mask of the bits whose float is within the threshold's flip margin.

        Raises:
            RunError: the model does not run.
        """
        from onnx import ModelProto

        copy = ModelProto()
        copy.CopyFrom(self.proto)
        floats: dict[str, str] = {}
        for node in list(copy.graph.node):
            row = operator_of(node)
            tensor = next((tensor for tensor in node.output if tensor in self._makers), None)
            if row is None or tensor is None:
                continue
            if row.sums is not None:
                floats[tensor] = f"{tensor}/sums"
                copy.graph.node.append(sums_node(node, floats[tensor]))
                add_body(copy, row.sums)
            elif row.threshold is not None and row.threshold.of_windows:
                floats[tensor] = f"{tensor}/sums"
                copy.graph.node.extend(_window_sums(node, floats[tensor]))
            elif not row.is_layer:
                floats[tensor] = node.input[0]
            else:
                node.output[0] = node.output[0] or f"{tensor}_before"  # an output that is left out has no name
                floats[tensor] = node.output[0]
        names = list(dict.fromkeys(name for name in floats.values() if name not in inputs.arrays))
        model = with_outputs(copy, names)
        values = inputs.part(0, None) | _run(model, names, inputs.part, len(inputs))
        near = {}
        for tensor, name in floats.items():
            row, threshold = operator_of(self._makers[tensor]), self._threshold(self._makers[tensor])
            assert row is not None and threshold is not None
            near[tensor] = _near(row, values[name], threshold, tolerances.margin(self.tensors[tensor].quantized))
        return near
