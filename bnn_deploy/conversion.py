"""checkpoint -> module -> float ONNX -> passes -> binary ONNX; float ONNX of any exporter enters at the third."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from numpy.typing import NDArray
from torch import nn

from bnn_deploy import onnx_source
from bnn_deploy.architectures import ARCHITECTURES, RecipeNetwork
from bnn_deploy.checkpoint import input_shape as module_input_shape
from bnn_deploy.checkpoint import load_module
from bnn_deploy.errors import BnnDeployError, InputError
from bnn_deploy.export import FloatExport, export_float, name_layers, strip_metadata
from bnn_deploy.files import write_file
from bnn_deploy.onnx_source import OnnxSource, is_onnx
from bnn_deploy.operators import DOMAIN, VERSION, functions
from bnn_deploy.passes.audit_leftovers import AuditLeftovers
from bnn_deploy.passes.binarize_weights import BinarizeWeights, Weights, binarize, reads_sign
from bnn_deploy.passes.canonicalize_sign import CanonicalizeSign
from bnn_deploy.passes.commute_max_pool import CommuteMaxPool
from bnn_deploy.passes.expand_sign import ExpandSign
from bnn_deploy.passes.fold_batch_norm import FoldBatchNorm
from bnn_deploy.passes.fold_constants import FoldConstants
from bnn_deploy.passes.fold_threshold import FoldThreshold
from bnn_deploy.passes.fuse_abs_mean import FuseAbsMean
from bnn_deploy.passes.fuse_conv_threshold import ALWAYS, NEVER, FuseConvThreshold
from bnn_deploy.passes.fuse_factor import FuseFactor
from bnn_deploy.passes.fuse_residual import FuseResidual
from bnn_deploy.passes.graph import BEFORE, Decline, constant, display_name, is_binary_op, is_op, source_metadata
from bnn_deploy.passes.hoist_pad import HoistPad
from bnn_deploy.passes.lift_sign import LiftSign
from bnn_deploy.passes.lower_binary_conv import LowerBinaryConv
from bnn_deploy.passes.lower_levels import LowerLevels
from bnn_deploy.passes.lower_quantized import LowerQuantized
from bnn_deploy.passes.pack_weights import PackWeights, packed_layers
from bnn_deploy.passes.prefer_channels_last import PreferChannelsLast
from bnn_deploy.passes.push_transpose import PushTranspose
from bnn_deploy.passes.refuse_step import RefuseStep
from bnn_deploy.passes.resolve_auto_pad import ResolveAutoPad
from bnn_deploy.passes.simplify_broadcast import SimplifyBroadcast
from bnn_deploy.passes.simplify_prelu import SimplifyPRelu
from bnn_deploy.passes.simplify_reshape import SimplifyReshape
from bnn_deploy.passes.simplify_round import SimplifyRound
from bnn_deploy.passes.sink_sign import SinkSign
from bnn_deploy.passes.unfold_stride import UnfoldStride
from bnn_deploy.quantization import quantize_edges
from bnn_deploy.report import OPERATORS, Canonical, LayerReport, Report, layer_reports, note_weights, quantized
from bnn_deploy.training import binarize_weight

IR_VERSION = 10
"""The newest that onnxruntime 1.19 reads, the oldest with metadata on nodes."""

ARCH_KEY = "bnn_deploy.arch"
ARCH_ARGS_KEY = "bnn_deploy.arch_args"
SHAPE_KEY = "bnn_deploy.input_shape"
WEIGHTS_KEY = "bnn_deploy.weights"


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        output: the converted model's file.
        float_output: the float ONNX file, if one was asked for.
        binary_layers: names of the layers that became binary, in order.
        binary_weights: names of the layers whose input is real-valued (or that have no binary form) and whose binary
            weights are stored in one bit each, in order.
        left_float: every other convolution and linear layer that stayed float, with the reason; and those of
            `binary_weights` that have a sign as their input.
        not_fused: what the passes declined to fuse between binary layers, with the reason.
        binarized: the parameters (of an ONNX model, the layers) whose latent weights were binarised.
        constant_channels: for each binarisation with channels whose bit never changes: which, how many, of how many.
        report: what became of each layer, for users: see `layers`.
    """

    output: Path
    float_output: Path | None
    binary_layers: tuple[str, ...]
    binary_weights: tuple[str, ...]
    left_float: tuple[Decline, ...]
    not_fused: tuple[Decline, ...]
    binarized: tuple[str, ...]
    constant_channels: tuple[tuple[str, int, int], ...]
    report: Report

    @property
    def layers(self) -> tuple[LayerReport, ...]:
        """One entry per convolution and linear layer, in the order of the float graph."""
        return self.report.layers

    def to_json(self) -> dict[str, Any]:
        """Plain types, for json.dumps: all that `--report` writes, and more."""
        own = asdict(self)
        del own["report"]
        return (
            self.report.to_json()
            | own
            | {
                "output": str(self.output),
                "float_output": None if self.float_output is None else str(self.float_output),
            }
        )


def to_binary(
    model: ir.Model, channels_last: bool = True, look: Callable[[ir.Model], None] = lambda canonical: None
) -> tuple[ir.Model, list[Decline], list[Decline]]:
    """Run the passes on a float model.

    Args:
        model: float ONNX; it is not changed.
        channels_last: binarise the outputs of float convolutions channels last; not if they are to be quantised.
        look: called with the model in the forms that LowerBinaryConv matches, before it runs.

    Returns:
        The binary model, carrying the operators' functions; what stayed float and why; what was not fused and why.

    Raises:
        InputError: a filter is all zeros.
    """
    model = ir.from_proto(ir.to_proto(model))
    names = {value.name or "" for node in model.graph for value in node.outputs}
    fold(model)
    canonicalize(model)
    look(model)
    # Levels first: Sign(Relu(x)) is 0 or 1, not ±1.
    declined = LowerLevels()(model).declined + LowerBinaryConv()(model).declined
    common.RemoveUnusedNodesPass()(model)
    not_fused: list[Decline] = []
    while True:
        # Each exposes work for the others: BatchNorm, then the MaxPool behind it, then the ReLU behind that.
        results = [step(model) for step in (FoldThreshold(), FuseAbsMean(), CommuteMaxPool(), FuseConvThreshold())]
        if not any(result.modified for result in results):
            not_fused = [decline for result in results for decline in result.declined]
            break
    while True:
        # A BatchNorm or alpha may stand before or behind a factor.
        results = [step(model) for step in (FoldBatchNorm(), FuseFactor())]
        if not any(result.modified for result in results):
            not_fused += [decline for result in results for decline in result.declined]
            break
    not_fused += FuseResidual()(model).declined
    leftovers = AuditLeftovers(declined)(model).declined
    unpacked = {decline.node: decline.reason for decline in PackWeights(names)(model).declined}
    leftovers = [
        replace(left, reason=f"{left.reason}; its weights are not stored as bits: {unpacked[left.node]}")
        if left.node in unpacked and unpacked[left.node] not in left.reason
        else left
        for left in leftovers
    ]
    if channels_last:
        PreferChannelsLast()(model)
    finish(model)
    return model, leftovers, not_fused


def canonicalize(model: ir.Model) -> None:
    """Bring a float model whose constants are folded into the forms that LowerBinaryConv matches."""
    # The straight-through trick may compute its clamp twice, each with constants of its own.
    common.DeduplicateInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    SimplifyBroadcast()(model)
    ResolveAutoPad()(model)
    SimplifyRound()(model)
    CanonicalizeSign()(model)
    infer_shapes(model)
    if PushTranspose()(model).modified:
        SimplifyBroadcast()(model)  # now that the channels are the second dimension
    SimplifyPRelu()(model)
    while sum(step(model).modified for step in (CanonicalizeSign(), SinkSign(), LiftSign(), HoistPad())):
        infer_shapes(model)
    RefuseStep()(model)
    common.RemoveUnusedNodesPass()(model)


def finish(model: ir.Model) -> None:
    """Sort and name the nodes of a binary model, and make it carry the functions of the operators that it uses."""
    ExpandSign()(model)
    for node in model.graph:
        for value in node.outputs:
            if BEFORE in value.metadata_props and node.domain != DOMAIN and len(list(value.uses())) > 1:
                node.metadata_props.update(source_metadata(value))  # a cut for verify, as the original would be
            value.metadata_props.clear()
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    common.NameFixPass()(model)
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    if used:
        model.opset_imports[DOMAIN] = VERSION
    for function in functions():
        if function.name in used:
            model.functions[function.identifier()] = function
    model.ir_version = IR_VERSION
    model.graph.name = "binary"
    model.producer_name, model.producer_version = "bnn-deploy", None


def float_model(source: OnnxSource, sample: tuple[int, ...] | None, weights: Weights) -> tuple[ir.Model, list[str]]:
    """Make a float ONNX model of any exporter what the passes start from.

    Args:
        source: a file, or a model, which is not changed.
        sample: one sample's shape, if the model does not say.
        weights: what to do with real-valued weights of layers whose input is a sign.

    Returns:
        The model with its constants folded, and the names of the nodes whose weights were binarised.

    Raises:
        InputError: see `onnx_source.read` and `BinarizeWeights`.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the model"
    model = ir.from_proto(onnx_source.upgrade(onnx_source.read(source), name, sample))
    name_layers(model)
    strip_metadata(model)
    model.graph.name = "float"
    fold(model)
    infer_shapes(model)
    canonical = ir.from_proto(ir.to_proto(model))
    canonicalize(canonical)
    step = BinarizeWeights(weights)
    try:
        step(canonical)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    step.apply(model)
    return model, list(step.binarized)


def float_module(
    module: nn.Module, shape: tuple[int, ...], weights: Weights = "auto", name: str | None = None
) -> FloatExport:
    """Export a module to float ONNX, and binarise its latent parameters in both the program and the model.

    Args:
        module: in eval mode; it is not changed.
        shape: one sample, without the batch dimension.
        weights: what to do with real-valued weights of layers whose input is a sign. "auto" knows the recipe's own
            architectures, and takes a module that calls torch.sign itself for one of the recipe.
        name: what errors call it; None for its class.

    Raises:
        InputError: see `export_float` and `BinarizeWeights`; or real-valued weights are no parameter, but computed.
    """
    export = export_float(module, shape)
    if weights == "as-is":
        return export
    model = ir.from_proto(ir.to_proto(export.model))
    fold(model)
    infer_shapes(model)
    canonical = ir.from_proto(ir.to_proto(model))
    canonicalize(canonical)
    layers = {display_name(node): node for node in model.graph}
    recipe = {name for name, node in layers.items() if isinstance(module, RecipeNetwork) or reads_sign(node)}
    step = BinarizeWeights(weights, recipe, _as_in_training)
    exported = {node.outputs[0].name: node for node in export.model.graph}
    state = export.program.state_dict
    names = []
    try:
        step(canonical)
        for layer in map(layers.__getitem__, step.binarized):
            weight = constant(layer.inputs[1])
            parameter = _parameter(exported.get(layer.outputs[0].name))
            latent = state.get(parameter or "")
            if parameter in names:
                continue
            if (
                parameter is None
                or latent is None
                or weight is None
                or not _is_transposed_or_equal(latent.detach().numpy(), weight)
            ):
                raise InputError(
                    f"{layer.op_type} '{display_name(layer)}': its input is a sign, but its weights, which forward() "
                    "computes, are real-valued: make them ±alpha in forward(), or leave them real with --weights as-is"
                )
            binary = step.binary(layer, weight)
            binary = np.ascontiguousarray(binary if latent.shape == binary.shape else binary.T)
            state[parameter].data.copy_(torch.from_numpy(binary))
            export.model.graph.initializers[parameter].const_value = ir.tensor(binary, name=parameter)
            names.append(parameter)
    except InputError as error:
        raise InputError(f"{name or type(module).__name__}: {error}") from error
    return replace(export, binarized=tuple(names))


def _as_in_training(filters: NDArray[np.float32], scheme: Weights) -> NDArray[np.float32]:
    """`binarize`, but the recipe in PyTorch's float32: its rounding decides where a weight is near its mean."""
    if scheme != "xnor-centred" or filters.shape[1] == 1:
        return binarize(filters, scheme)
    binary: NDArray[np.float32] = binarize_weight(torch.from_numpy(np.array(filters))).numpy()
    return binary


def _parameter(layer: ir.Node | None) -> str | None:
    """The name of the parameter that an exported layer reads as its weight, directly or transposed."""
    value = None if layer is None else layer.inputs[1]
    while value is not None and (producer := value.producer()) is not None:
        value = producer.inputs[0] if is_op(producer, "Identity", "Transpose") else None
    return None if value is None else value.name


def _is_transposed_or_equal(latent: NDArray[Any], weight: NDArray[Any]) -> bool:
    return np.array_equal(latent, weight) or (weight.ndim == 2 and np.array_equal(latent.T, weight))


def fold(model: ir.Model) -> None:
    """Fold all constants, and give each node a name of its own; note how weights were computed, for the report."""
    note_weights(model.graph)
    FoldConstants()(model)
    SimplifyReshape()(model)
    for node in model.graph:  # reports go by name
        node.name = display_name(node)
    common.NameFixPass()(model)


def infer_shapes(model: ir.Model) -> None:
    """Infer shapes that are not known, until no more Reshape is simple: what was rewritten lets more be known."""
    batch = model.graph.inputs[0].shape[0] if model.graph.inputs[0].shape else None
    while True:
        unknown = [
            value
            for node in model.graph
            for value in node.outputs
            if value.shape is None or any(not isinstance(dim, int) and dim != batch for dim in value.shape)
        ]
        for value in unknown:
            if not value.is_graph_output():
                value.shape = None
        if unknown:
            common.ShapeInferencePass()(model)
        if not SimplifyReshape()(model).modified:
            return


@dataclass(frozen=True)
class _Source:
    """What `convert` was given, as float ONNX.

    Attributes:
        model: it.
        name: what errors call it.
        shape: one sample's.
        binarized: the weights that were binarised; with the number of zeros that they had, if the model does not tell.
    """

    model: ir.Model
    name: str
    shape: tuple[int, ...]
    binarized: dict[str, int | None]


def _source(
    source: nn.Module | OnnxSource,
    arch: str | None,
    arch_args: Mapping[str, Any] | None,
    input_shape: tuple[int, ...] | None,
    weights: Weights,
    progress: Callable[[str], None],
) -> _Source:
    """Bring any source to float ONNX."""
    if arch_args and arch is None:
        raise InputError("--arch-args are the arguments of an architecture: give --arch, too")
    if is_onnx(source):
        assert not isinstance(source, nn.Module)
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the model"
        if arch is not None:
            raise InputError(f"{name} is an ONNX model, which says itself what it is: leave out --arch {arch}")
        progress("reading the float model")
        model, binarized = float_model(source, input_shape, weights)
        dims = model.graph.inputs[0].shape
        assert dims is not None
        return _Source(model, name, tuple(dim for dim in dims[1:] if isinstance(dim, int)), dict.fromkeys(binarized))
    if isinstance(source, nn.Module):
        module = source
    else:
        assert isinstance(source, str | os.PathLike)
        if arch is None:
            known = ", ".join(ARCHITECTURES)
            raise InputError(f"{os.fspath(source)}: say which architecture it is: {known} or FILE.py:CLASS")
        progress("loading the checkpoint")
        module = load_module(source, arch, arch_args)
    shape = module_input_shape(module, input_shape)
    progress("exporting to float ONNX")
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else type(module).__name__
    export = float_module(module, shape, weights, name)
    graph = export.model.graph
    if len(graph.outputs) != 1 or len(graph.inputs) != 1:
        raise InputError(
            f"{name} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; "
            "convert takes networks with one of each"
        )
    fold(export.model)
    zeros = {name: int((module.get_parameter(name) == 0).sum()) for name in export.binarized}
    return _Source(export.model, name, shape, dict(zeros))


def convert(
    source: nn.Module | OnnxSource,
    output: str | os.PathLike[str],
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    float_output: str | os.PathLike[str] | None = None,
    weights: Weights = "auto",
    calibration: NDArray[np.float32] | None = None,
    strict: bool = False,
    report: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Conversion:
    """Convert a trained binary network to an ONNX model with binary operators.

    Args:
        source: a torch module, the path of a checkpoint, or a float ONNX model: the path of one (.onnx), an
            onnx.ModelProto or an onnx_ir.Model.
        output: the .onnx file to write; replaced only when all went well.
        arch: for a checkpoint: a name of `architectures.ARCHITECTURES`, or FILE.py:CLASS.
        arch_args: keyword arguments of that class, of plain types; None or empty for none.
        input_shape: one sample without the batch dimension; None takes the module's `input_shape`, or the ONNX model's.
        float_output: also write the float ONNX (with binarised weights) here, to compare against.
        weights: what to do with real-valued weights of layers whose input is a sign, see `Weights`. "auto" binarises
            those of the XNOR-Net-PyTorch recipe's architectures, and of modules that call torch.sign, by that recipe,
            and refuses all others.
        calibration: real inputs [N, ...] float32; quantise the layers that stay float to 8 bits, with their ranges.
        strict: fail if a layer whose input is a sign or has few levels stays float.
        report: also write what became of each layer here, as JSON (see `report.Report`). It is written whenever the
            passes ran, also if `strict` fails or no layer is binary: one wants it most then.
        progress: called with a line of text before each step.

    Returns:
        What became binary, what stayed float, and why.

    Raises:
        InputError: the checkpoint, model, architecture or shape cannot be used, or no layer is binary.
        BnnDeployError: `strict`, and a layer whose input is a sign or has few levels stays float.
    """
    outputs = [Path(output)] if float_output is None else [Path(output), Path(float_output)]
    written = outputs if report is None else [*outputs, Path(report)]
    for path in written:
        if isinstance(source, str | os.PathLike) and path.resolve() == Path(source).resolve():
            kind = "model" if is_onnx(source) else "checkpoint"
            raise InputError(f"{path} is the {kind} itself: choose another name for the output")
        if not path.parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise InputError(f"{output} is asked for twice, for the binary model and for the float one")
    if len({path.resolve() for path in written}) < len(written):
        raise InputError(f"{report} is asked for twice, for the report and for a model")
    original = _source(source, arch, arch_args, input_shape, weights, progress)
    shape = original.shape
    progress("running the passes")
    seen = Canonical()
    try:
        binary, left_float, not_fused = to_binary(original.model, channels_last=calibration is None, look=seen.look)
    except InputError as error:
        raise InputError(f"{original.name}: {error}") from error
    scheme = "xnor-centred" if weights == "auto" else weights
    reports = layer_reports(original.model, seen, binary, left_float, scheme, original.binarized)
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else original.name
    result = Report(name, reports, tuple(not_fused), tuple(constant_channels(binary)))
    layers, packed = binary_layers(binary), packed_layers(binary)
    left_float = [left for left in left_float if left.has_sign_input or left.node not in packed]
    declined = [decline for decline in left_float if decline.has_sign_input]
    failed: BnnDeployError | None = None
    see = "--report FILE.json says what could be changed" if report is None else f"see {os.fspath(report)}"
    if strict and declined:
        what = f"{len(declined)} {'layer' if len(declined) == 1 else 'layers'} whose input is a sign or has few levels"
        stays = "stays" if len(declined) == 1 else "stay"
        failed = BnnDeployError(f"--strict: {what} {stays} float: {_reasons(declined)}; {see}")
    elif not layers and not packed:
        failed = InputError(f"no layer of {original.name} is binary: {_reasons(left_float)}; {see}")
    if failed is not None:
        if report is not None:
            write_report(report, result)
        raise failed
    if calibration is not None:
        if calibration.dtype != np.float32 or calibration.shape[1:] != shape or len(calibration) == 0:
            raise InputError(
                f"the calibration inputs are {calibration.dtype} {list(calibration.shape)}; "
                f"the network needs float32 {['N', *shape]}, N >= 1"
            )
        progress(f"quantising the float layers with {len(calibration)} inputs")
        UnfoldStride()(binary)
        binary = quantize_edges(binary, calibration)
        LowerQuantized()(binary)
        finish(binary)
        result = replace(result, layers=quantized(result.layers, quantized_layers(binary)))
    for model in (binary, original.model):
        model.metadata_props[SHAPE_KEY] = ",".join(map(str, shape))
        model.metadata_props[WEIGHTS_KEY] = weights
        if arch in ARCHITECTURES:
            model.metadata_props[ARCH_KEY] = arch
            if arch_args:
                model.metadata_props[ARCH_ARGS_KEY] = json.dumps(dict(arch_args))
    progress("writing")
    if report is not None:
        write_report(report, result)
    save(zip((binary, original.model), outputs, strict=False))
    return Conversion(
        Path(output),
        None if float_output is None else Path(float_output),
        tuple(layers),
        tuple(packed),
        tuple(left_float),
        result.not_fused,
        tuple(original.binarized),
        result.constant_channels,
        result,
    )


def _reasons(declined: Iterable[Decline]) -> str:
    """Why layers stay float, on one line: each reason once."""
    layers: dict[str, list[str]] = {}
    for decline in declined:
        layers.setdefault(decline.reason, []).append(f"{decline.op_type} '{decline.node}'")
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in layers.items())


def write_report(path: str | os.PathLike[str], report: Report) -> None:
    """Write a report as JSON, whole or not at all."""
    write_file(path, (json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n").encode())


def quantized_layers(model: ir.Model) -> list[str]:
    """The names of the layers of a converted model that have 8-bit weights."""
    return [
        display_name(node)
        for node in model.graph
        if is_op(node, "Conv", "Gemm") and (weight := node.inputs[1]) and is_op(weight.producer(), "DequantizeLinear")
    ]


def constant_channels(model: ir.Model) -> list[tuple[str, int, int]]:
    """The binarisations of a binary model that have channels whose threshold is always, or never, reached.

    A BatchNorm with gamma 0 makes one; a ReLU right before a sign makes all of them so, which is hardly meant.
    """
    found = []
    for node in model.graph:
        if is_binary_op(node, "Binarize", "BinarizeAbsMean", "BinarizeChannelsLast", "BinaryConvThreshold"):
            threshold = constant(node.inputs[2 if node.op_type == "BinaryConvThreshold" else 1])
            assert threshold is not None
            limits = (ALWAYS, NEVER) if node.op_type == "BinaryConvThreshold" else (-np.inf, np.inf)
            count = int(np.isin(threshold, limits).sum())
            if count:
                found.append((_bits_name(node), count, len(threshold)))
        elif is_binary_op(node, "QuantizeLevels"):
            thresholds = constant(node.inputs[1])
            assert thresholds is not None
            count = int(np.isinf(thresholds).all(axis=0).sum())
            if count:
                found.append((_bits_name(node), count, thresholds.shape[1]))
    return found


def _bits_name(node: ir.Node) -> str:
    """What to call the bits that a node makes: by the layer, or if it is none, by the layer that reads them."""
    if is_binary_op(node, "BinaryConvThreshold"):
        return f"the output of {display_name(node)}"
    reader: ir.Node | None = node
    while reader is not None and not is_binary_op(reader, *OPERATORS):
        reader = next(iter(reader.outputs[0].consumers()), None)
    return f"the input of {display_name(node if reader is None else reader)}"


def binary_layers(model: ir.Model) -> list[str]:
    """The names of the binary convolutions and linear layers of a converted model."""
    return [node.name or "" for node in model.graph if is_binary_op(node, *OPERATORS)]


def save(files: Iterable[tuple[ir.Model, Path]]) -> None:
    """Write models to temporary files, and rename them when all are written: no half-written file is ever left."""
    # mkstemp makes private files; give the umask its say.
    umask = os.umask(0)
    os.umask(umask)
    written: list[tuple[Path, Path]] = []
    try:
        for model, path in files:
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            os.close(handle)
            written.append((Path(name), path))
            ir.save(model, name)
            Path(name).chmod(0o666 & ~umask)
        for temporary, path in written:
            temporary.replace(path)
    finally:
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)
