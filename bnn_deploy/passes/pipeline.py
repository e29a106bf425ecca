"""The order of the passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx_ir as ir
import onnx_ir.passes.common as common

from bnn_deploy.operators.bodies import functions
from bnn_deploy.operators.contract import DOMAIN, VERSION
from bnn_deploy.passes.fuse.commute_interleave import CommuteInterleave
from bnn_deploy.passes.fuse.commute_max_pool import CommuteMaxPool
from bnn_deploy.passes.fuse.commute_move import CommuteMove
from bnn_deploy.passes.fuse.fold_batch_norm import FoldBatchNorm
from bnn_deploy.passes.fuse.fold_threshold import FoldThreshold
from bnn_deploy.passes.fuse.fuse_abs_mean import FuseAbsMean
from bnn_deploy.passes.fuse.fuse_average_pool import FuseAveragePool
from bnn_deploy.passes.fuse.fuse_conv_threshold import FuseConvThreshold
from bnn_deploy.passes.fuse.fuse_factor import FuseFactor
from bnn_deploy.passes.fuse.fuse_residual import FuseResidual
from bnn_deploy.passes.graph import is_op, without_logs
from bnn_deploy.passes.layout.convolve_directly import ConvolveDirectly
from bnn_deploy.passes.layout.convolve_images import ConvolveImages
from bnn_deploy.passes.layout.prefer_channels_last import PreferChannelsLast
from bnn_deploy.passes.layout.skip_zeros import SkipZeros
from bnn_deploy.passes.lower.audit_leftovers import AuditLeftovers
from bnn_deploy.passes.lower.convolve_tokens import ConvolveTokens
from bnn_deploy.passes.lower.expand_sign import ExpandSign
from bnn_deploy.passes.lower.few_values import name_few_values
from bnn_deploy.passes.lower.lower_binary_conv import LowerBinaryConv
from bnn_deploy.passes.lower.lower_levels import LowerLevels
from bnn_deploy.passes.lower.lower_linear import LowerLinear
from bnn_deploy.passes.lower.lower_matmul import LowerMatMul
from bnn_deploy.passes.lower.pack_weights import PackWeights
from bnn_deploy.passes.lower.restore_quantized import RestoreQuantized
from bnn_deploy.passes.lower.split_zeros import SplitZeros
from bnn_deploy.passes.normalise.dequantize_parameters import DequantizeParameters
from bnn_deploy.passes.normalise.drop_zero_bias import DropZeroBias
from bnn_deploy.passes.normalise.fold_constants import FoldConstants
from bnn_deploy.passes.normalise.push_transpose import PushTranspose
from bnn_deploy.passes.normalise.resolve_auto_pad import ResolveAutoPad
from bnn_deploy.passes.normalise.simplify_broadcast import SimplifyBroadcast
from bnn_deploy.passes.normalise.simplify_gather import SimplifyGather
from bnn_deploy.passes.normalise.simplify_prelu import SimplifyPRelu
from bnn_deploy.passes.normalise.simplify_products import SimplifyProducts
from bnn_deploy.passes.normalise.simplify_reshape import SimplifyReshape
from bnn_deploy.passes.normalise.simplify_round import SimplifyRound
from bnn_deploy.passes.normalise.simplify_scatter import SimplifyScatter
from bnn_deploy.passes.outcome import PARTS, Decline, Pass, display_name
from bnn_deploy.passes.recognise.canonicalize_sign import CanonicalizeSign
from bnn_deploy.passes.recognise.combine_signs import CombineSigns
from bnn_deploy.passes.recognise.delay_scale import DelayScale
from bnn_deploy.passes.recognise.hoist_pad import HoistPad
from bnn_deploy.passes.recognise.lift_sign import LiftSign
from bnn_deploy.passes.recognise.refuse_step import RefuseStep
from bnn_deploy.passes.recognise.sink_levels import SinkLevels
from bnn_deploy.passes.recognise.sink_sign import SinkSign
from bnn_deploy.provenance import BEFORE, SOURCE, source_metadata, zero_value

IR_VERSION = 10
"""The newest that onnxruntime 1.19 reads, the oldest with metadata on nodes."""


SIGNS = (CanonicalizeSign, CombineSigns, SinkSign, LiftSign, HoistPad)
"""Bring signs into one form next to their layers; until nothing changes."""

LOWER = (LowerMatMul, ConvolveTokens, LowerLevels, LowerLinear, LowerBinaryConv)
"""Levels before layers of signs: Sign(Relu(x)) is 0 or 1, not ±1."""

BITS = (FoldThreshold, FuseAbsMean, CommuteMaxPool, CommuteInterleave, CommuteMove, FuseConvThreshold)
"""Each exposes work for the others: BatchNorm, then the MaxPool behind it, then the ReLU behind that."""

FLOATS = (FoldBatchNorm, FuseFactor)
"""A BatchNorm or alpha may stand before or behind a factor; after BITS, which is exact."""


def until_stable(
    model: ir.Model, group: Sequence[type[Pass]], between: Callable[[ir.Model], None] = lambda model: None
) -> list[Decline]:
    """Run a group of passes until none changes anything, and return what they then decline.

    Args:
        model: changed in place.
        group: in order.
        between: called before each repetition.
    """
    while True:
        results = [step()(model) for step in group]
        if not any(result.modified for result in results):
            return [decline for result in results for decline in result.declined]
        between(model)


def to_binary(
    model: ir.Model,
    float_edges: bool = True,
    look: Callable[[ir.Model], None] = lambda canonical: None,
    kept_zeros: set[str] | None = None,
) -> tuple[ir.Model, list[Decline], list[Decline]]:
    """Run the passes on a float model.

    Args:
        model: float ONNX; it is not changed.
        float_edges: give float convolutions the forms and layouts in which they are fastest; not if they are to be
            quantised.
        look: called with the model in the forms that LowerBinaryConv matches, before it runs.
        kept_zeros: None makes signs that are 0 at 0 +1 there; to a set, the layers that keep the 0 are added, see
            SplitZeros.

    Returns:
        The binary model, carrying the operators' functions; what stayed float and why; what was not fused and why.

    Raises:
        InputError: a filter is all zeros.
    """
    original, model = model, model.clone()
    names = {value.name or "" for node in model.graph for value in node.outputs}
    fold(model)
    canonicalize(model)
    look(model)
    zeros = {source_of(node) for node in model.graph if is_op(node, "Sign") and not zero_value(node)}
    declined = [decline for step in LOWER for decline in step()(model).declined]
    if kept_zeros is not None:
        kept_zeros.update(rewrite.node for rewrite in SplitZeros(zeros)(model).rewrites)
    common.RemoveUnusedNodesPass()(model)
    not_fused = until_stable(model, BITS) + until_stable(model, FLOATS) + FuseResidual()(model).declined
    FuseAveragePool()(model)
    leftovers = name_few_values(original, AuditLeftovers(declined)(model).declined)
    RestoreQuantized()(model)
    unpacked = {decline.node: decline.why for decline in PackWeights(names)(model).declined}
    leftovers = [
        replace(left, unpacked=unpacked[left.node]) if unpacked.get(left.node, left.why) != left.why else left
        for left in leftovers
    ]
    if float_edges:
        ConvolveDirectly(names)(model)
        ConvolveImages()(model)
        PreferChannelsLast()(model)
        SkipZeros(names)(model)
    finish(model)
    return model, leftovers, not_fused


def to_web(model: ir.Model) -> ir.Model:
    """A float model with the binary weights of its layers in one bit each, for runtimes that take no operator library.

    Those of browsers and of Node.js would run a binary layer by its function body, which takes longer than the float
    layer. So each layer stays the float model's own; UnpackWeights makes its weights when the session is made.

    Args:
        model: float ONNX; it is not changed.
    """
    names = {value.name or "" for node in model.graph for value in node.outputs}
    model = model.clone()
    fold(model)
    PackWeights(names)(model)
    finish(model)
    return model


def source_of(sign: ir.Node) -> str:
    """The source's tensor that a Sign stands for."""
    return sign.metadata_props.get(SOURCE) or sign.outputs[0].name or ""


def canonicalize(model: ir.Model) -> None:
    """Bring a float model whose constants are folded into the forms that LowerBinaryConv matches."""
    DequantizeParameters()(model)
    # The straight-through trick may compute its clamp twice, each with constants of its own.
    common.DeduplicateInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    SimplifyBroadcast()(model)
    SimplifyGather()(model)
    SimplifyScatter()(model)
    SimplifyProducts()(model)
    ResolveAutoPad()(model)
    SimplifyRound()(model)
    CanonicalizeSign()(model)
    infer_shapes(model)
    if PushTranspose()(model).modified:
        SimplifyBroadcast()(model)  # now that the channels are the second dimension
    SimplifyPRelu()(model)
    until_stable(model, SIGNS, infer_shapes)
    DelayScale()(model)
    RefuseStep()(model)
    SinkLevels()(model)
    common.RemoveUnusedNodesPass()(model)


def finish(model: ir.Model) -> None:
    """Sort and name the nodes of a binary model, and make it carry the functions of the operators that it uses."""
    ExpandSign()(model)
    for node in model.graph:
        for value in node.outputs:
            if BEFORE in value.metadata_props and node.domain != DOMAIN and len(list(value.uses())) > 1:
                node.metadata_props.update(source_metadata(value))  # a cut for verify, as the original would be
            value.metadata_props.clear()
        for constant in node.inputs if node.domain == DOMAIN else ():
            # onnxruntime's quantiser takes what is called "t_scale" for the quantisation scale of tensor t.
            if constant is not None and constant.is_initializer() and (constant.name or "").endswith("_scale"):
                constant.name = f"{constant.name}s"
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    common.NameFixPass()(model)
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    if used:
        model.opset_imports[DOMAIN] = VERSION
    for function in functions(used):
        model.functions[function.identifier()] = function
    model.ir_version = IR_VERSION
    model.graph.name = "binary"
    model.producer_name, model.producer_version = "bnn-deploy", None


def fold(model: ir.Model) -> None:
    """Fold all constants, and give each node a name of its own, by which reports and the records of passes go."""
    FoldConstants()(model)
    DropZeroBias()(model)
    SimplifyReshape()(model)
    for node in model.graph:
        node.name = display_name(node)
    common.NameFixPass()(model)
    for node in model.graph:
        node.meta[PARTS] = (display_name(node),)


def infer_shapes(model: ir.Model) -> None:
    """Infer shapes that are not known, until no more Reshape is simple: what was rewritten lets more be known."""
    open_sizes = [dim for value in model.graph.inputs for dim in value.shape or () if not isinstance(dim, int)]
    while True:
        unknown = [
            value
            for node in model.graph
            for value in node.outputs
            if value.shape is None or any(not isinstance(dim, int) and dim not in open_sizes for dim in value.shape)
        ]
        for value in unknown:
            if not value.is_graph_output():
                value.shape = None
        if unknown:
            with without_logs():
                common.ShapeInferencePass()(model)
        if not SimplifyReshape()(model).modified:
            return
