"""checkpoint -> module -> float ONNX -> passes -> binary ONNX."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray
from torch import nn

from bnn_deploy.architectures import ARCHITECTURES
from bnn_deploy.checkpoint import input_shape as module_input_shape
from bnn_deploy.checkpoint import load_module
from bnn_deploy.errors import BnnDeployError, InputError
from bnn_deploy.export import Weights, export_float
from bnn_deploy.operators import DOMAIN, VERSION, functions
from bnn_deploy.passes.audit_leftovers import AuditLeftovers
from bnn_deploy.passes.commute_max_pool import CommuteMaxPool
from bnn_deploy.passes.fold_batch_norm import FoldBatchNorm
from bnn_deploy.passes.fold_constants import FoldConstants
from bnn_deploy.passes.fold_threshold import FoldThreshold
from bnn_deploy.passes.fuse_conv_threshold import ALWAYS, NEVER, FuseConvThreshold
from bnn_deploy.passes.fuse_residual import FuseResidual
from bnn_deploy.passes.graph import Decline, constant, display_name, is_binary_op
from bnn_deploy.passes.lower_binary_conv import LowerBinaryConv
from bnn_deploy.passes.lower_quantized import LowerQuantized
from bnn_deploy.passes.prefer_channels_last import PreferChannelsLast
from bnn_deploy.passes.simplify_reshape import SimplifyReshape
from bnn_deploy.passes.unfold_stride import UnfoldStride
from bnn_deploy.quantization import quantize_edges

IR_VERSION = 10
"""The newest that onnxruntime 1.19 reads, the oldest with metadata on nodes."""

ARCH_KEY = "bnn_deploy.arch"
SHAPE_KEY = "bnn_deploy.input_shape"
WEIGHTS_KEY = "bnn_deploy.weights"


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        output: the converted model's file.
        float_output: the float ONNX file, if one was asked for.
        binary_layers: names of the layers that became binary, in order.
        left_float: every convolution and linear layer that stayed float, with the reason.
        not_fused: what the passes declined to fuse between binary layers, with the reason.
        binarized: the parameters whose latent weights were binarised by the recipe.
        constant_channels: for each binarisation with channels whose bit never changes: its name, how many, of how many.
    """

    output: Path
    float_output: Path | None
    binary_layers: tuple[str, ...]
    left_float: tuple[Decline, ...]
    not_fused: tuple[Decline, ...]
    binarized: tuple[str, ...]
    constant_channels: tuple[tuple[str, int, int], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain types, for json.dumps."""
        return asdict(self) | {
            "output": str(self.output),
            "float_output": None if self.float_output is None else str(self.float_output),
        }


def to_binary(model: ir.Model, channels_last: bool = True) -> tuple[ir.Model, list[Decline], list[Decline]]:
    """Run the passes on a float model.

    Args:
        model: float ONNX; it is not changed.
        channels_last: binarise the outputs of float convolutions channels last; not if they are to be quantised.

    Returns:
        The binary model, carrying the operators' functions; what stayed float and why; what was not fused and why.

    Raises:
        InputError: a filter is all zeros.
    """
    model = ir.from_proto(ir.to_proto(model))
    FoldConstants()(model)
    for node in model.graph:  # reports go by name: each node has one, and its own
        node.name = display_name(node)
    common.NameFixPass()(model)
    lowered = LowerBinaryConv()(model)
    common.RemoveUnusedNodesPass()(model)
    not_fused: list[Decline] = []
    while True:
        # Each exposes work for the others: BatchNorm, then the MaxPool behind it, then the ReLU behind that.
        results = [step(model) for step in (FoldThreshold(), CommuteMaxPool(), FuseConvThreshold())]
        if not any(result.modified for result in results):
            not_fused = [decline for result in results for decline in result.declined]
            break
    for late in (FoldBatchNorm(), FuseResidual()):
        not_fused += late(model).declined
    leftovers = AuditLeftovers(lowered.declined)(model).declined
    if channels_last:
        PreferChannelsLast()(model)
    finish(model)
    return model, leftovers, not_fused


def finish(model: ir.Model) -> None:
    """Sort and name the nodes of a binary model, and make it carry the functions of the operators that it uses."""
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


def convert(
    module_or_checkpoint: nn.Module | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    arch: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    float_output: str | os.PathLike[str] | None = None,
    weights: Weights = "auto",
    calibration: NDArray[np.float32] | None = None,
    strict: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Conversion:
    """Convert a trained XNOR network to an ONNX model with binary operators.

    Args:
        module_or_checkpoint: a torch module, or the path of a checkpoint.
        output: the .onnx file to write; replaced only when all went well.
        arch: for a checkpoint: 'lenet5', 'nin', 'alexnet' or FILE.py:CLASS.
        input_shape: one sample without the batch dimension; None takes the module's `input_shape`.
        float_output: also write the float ONNX (with binarised weights) here, to compare against.
        weights: "auto" binarises latent weights by the recipe, "as-is" takes them as they are.
        calibration: real inputs [N, ...] float32; quantise the layers that stay float to 8 bits, with their ranges.
        strict: fail if a layer whose input is a sign stays float.
        progress: called with a line of text before each step.

    Returns:
        What became binary, what stayed float, and why.

    Raises:
        InputError: the checkpoint, architecture or shape cannot be used, or no layer is binary.
        BnnDeployError: `strict`, and a layer whose input is a sign stays float.
    """
    outputs = [Path(output)] if float_output is None else [Path(output), Path(float_output)]
    for path in outputs:
        if (
            isinstance(module_or_checkpoint, str | os.PathLike)
            and path.resolve() == Path(module_or_checkpoint).resolve()
        ):
            raise InputError(f"{path} is the checkpoint itself: choose another name for the output")
        if not path.parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise InputError(f"{output} is asked for twice, for the binary model and for the float one")
    if isinstance(module_or_checkpoint, nn.Module):
        module = module_or_checkpoint
    elif arch is None:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"{os.fspath(module_or_checkpoint)}: say which architecture it is: {known} or FILE.py:CLASS")
    else:
        progress("loading the checkpoint")
        module = load_module(module_or_checkpoint, arch)
    shape = module_input_shape(module, input_shape)
    progress("exporting to float ONNX")
    export = export_float(module, shape, weights)
    FoldConstants()(export.model)
    SimplifyReshape()(export.model)
    if len(export.model.graph.outputs) != 1 or len(export.model.graph.inputs) != 1:
        raise InputError(
            f"{type(module).__name__} has {len(export.model.graph.inputs)} inputs and "
            f"{len(export.model.graph.outputs)} outputs; convert takes networks with one of each"
        )
    progress("running the passes")
    binary, left_float, not_fused = to_binary(export.model, channels_last=calibration is None)
    layers = binary_layers(binary)
    declined = [decline for decline in left_float if decline.has_sign_input]
    if strict and declined:
        reasons = "; ".join(f"{d.op_type} '{d.node}': {d.reason}" for d in declined)
        raise BnnDeployError(f"--strict: {len(declined)} layers whose input is a sign stay float: {reasons}")
    if not layers:
        reasons = "; ".join(f"{d.op_type} '{d.node}': {d.reason}" for d in left_float)
        raise InputError(f"no layer of {type(module).__name__} is binary: {reasons}")
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
    for model in (binary, export.model):
        model.metadata_props[SHAPE_KEY] = ",".join(map(str, shape))
        model.metadata_props[WEIGHTS_KEY] = weights
        if arch in ARCHITECTURES:
            model.metadata_props[ARCH_KEY] = arch
    progress("writing")
    save(zip((binary, export.model), outputs, strict=False))
    return Conversion(
        Path(output),
        None if float_output is None else Path(float_output),
        tuple(layers),
        tuple(left_float),
        tuple(not_fused),
        export.binarized,
        tuple(constant_channels(binary)),
    )


def constant_channels(model: ir.Model) -> list[tuple[str, int, int]]:
    """The binarisations of a binary model that have channels whose threshold is always, or never, reached.

    A BatchNorm with gamma 0 makes one; a ReLU right before a sign makes all of them so, which is hardly meant.
    """
    found = []
    for node in model.graph:
        if is_binary_op(node, "Binarize", "BinarizeChannelsLast", "BinaryConvThreshold"):
            threshold = constant(node.inputs[2 if node.op_type == "BinaryConvThreshold" else 1])
            assert threshold is not None
            limits = (ALWAYS, NEVER) if node.op_type == "BinaryConvThreshold" else (-np.inf, np.inf)
            count = int(np.isin(threshold, limits).sum())
            if count:
                found.append((display_name(node), count, len(threshold)))
    return found


def binary_layers(model: ir.Model) -> list[str]:
    """The names of the binary convolutions and linear layers of a converted model."""
    return [
        node.name or ""
        for node in model.graph
        if is_binary_op(node, "BinaryConv", "BinaryConvThreshold", "BinaryConvResidual")
    ]


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
