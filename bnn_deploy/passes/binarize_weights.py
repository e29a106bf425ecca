"""BinarizeWeights: latent weights of layers whose input is a sign are binarised, by the scheme that the user names."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.errors import InputError
from bnn_deploy.passes.graph import PassResult, add_initializer, constant, display_name, is_op
from bnn_deploy.passes.levels import LevelsInput, levels_input
from bnn_deploy.passes.lower_binary_conv import MAX_SPREAD, sign_input

Weights = Literal["auto", "xnor", "xnor-centred", "sign", "as-is"]
"""What to do with real-valued weights of layers whose input is a sign.

* xnor: mean |W| * sign(W) per filter, the XNOR-Net paper's (equation 6);
* xnor-centred: centre W over its input channels and clamp it to [-1, 1] first, the XNOR-Net-PyTorch recipe;
* sign: sign(W), BinaryNet's;
* as-is: leave them real, and the layer float;
* auto: the recipe where it is known that it was used, else refuse to guess.
"""


class BinarizeWeights:
    """Conv | Gemm | MatMul of a sign or few levels, with real-valued weights W  ==>  the same with alpha * sign(W).

    1. W is constant, and not two-valued within 1e-3 per filter: binarising twice would shrink alpha.
    2. The layer gets a tensor of its own; another that shares W keeps W.
    3. "auto" raises InputError where there is such a layer, with what its values look like: nothing in the graph says
       whether its weights are latent, or by which recipe.

    Args:
        scheme: see Weights; "as-is" does nothing.

    Declines: weights with exact zeros and else one magnitude per filter, which are no latent ones.

    The model is a float one in the forms of `conversion.canonicalize`; what is rewritten is told by node names, in
    `binarized`, so that the float graph that it was made from can be given the same weights with `apply`.
    """

    def __init__(self, scheme: Weights) -> None:
        self.scheme = scheme
        self.binarized: dict[str, NDArray[np.float32]] = {}

    def __call__(self, model: ir.Model) -> PassResult:
        """Binarise every layer that qualifies, or refuse."""
        result = PassResult()
        if self.scheme == "as-is":
            return result
        latent = {}
        for node in model.graph:
            if is_op(node, "Conv", "Gemm", "MatMul") and _has_few_levels(node):
                weight = constant(node.inputs[1])
                if weight is None or weight.dtype != np.float32 or weight.ndim < 2:
                    continue
                filters = _filters(node, weight)
                if _has_one_magnitude(filters):
                    if (filters == 0).any():
                        result.decline(node, "its weights have one magnitude per filter, but for exact zeros")
                    continue
                latent[node] = filters
        if latent and self.scheme == "auto":
            node, filters = next(iter(latent.items()))
            what = "is a sign" if sign_input(node) is not None else "has few levels"
            more = f" (and {len(latent) - 1} more)" if len(latent) > 1 else ""
            raise InputError(
                f"{node.op_type} '{display_name(node)}'{more}: its input {what}, but its weights are real-valued: "
                f"{evidence(filters)}. Are they latent? Say how the network was trained: --weights xnor (mean |W| "
                "times sign), xnor-centred (the same after centring and clamping), sign, or as-is (they stay real)"
            )
        for node, filters in latent.items():
            try:
                binary = binarize(filters, self.scheme)
            except InputError as error:
                raise InputError(f"{node.op_type} '{display_name(node)}': {error}") from error
            self.binarized[display_name(node)] = binary
        self.apply(model)
        result.modified = len(self.binarized)
        return result

    def apply(self, model: ir.Model) -> None:
        """Give the layers that were found in another form of this model the same weights, by the names of nodes."""
        for node in model.graph:
            binary = self.binarized.get(display_name(node))
            if binary is not None:
                weight = np.ascontiguousarray(_filters(node, binary))
                value = add_initializer(model.graph, f"{node.outputs[0].name}_binary_weight", weight)
                node.replace_input_with(1, value)


def _has_few_levels(node: ir.Node) -> bool:
    """Whether a layer's input is a sign, or has few levels."""
    return sign_input(node) is not None or isinstance(levels_input(node), LevelsInput)


def _filters(node: ir.Node, weight: NDArray[Any]) -> NDArray[Any]:
    """The weight as [O, ...]; of such a one, the weight as `node` takes it."""
    if is_op(node, "Conv") or ("transB" in node.attributes and node.attributes["transB"].as_int()):
        return weight
    return np.swapaxes(weight, 0, -1)


def _has_one_magnitude(filters: NDArray[np.float32]) -> bool:
    """Whether the weights of each filter that are not 0 are ±alpha, up to rounding."""
    magnitude = np.abs(filters.reshape(len(filters), -1).astype(np.float64))
    high = magnitude.max(axis=1)
    low = np.where(magnitude == 0, np.inf, magnitude).min(axis=1)
    return bool((high - low <= MAX_SPREAD * high).all())


def evidence(filters: NDArray[np.float32]) -> str:
    """What real-valued weights [O, I, ...] look like, for the one who has to say what they are."""
    magnitude = np.abs(filters)
    centred = bool(np.abs(filters.mean(axis=1)).max() <= 1e-3 * magnitude.max())
    parts = [f"|w| from {magnitude.min():.3g} to {magnitude.max():.3g}"]
    at_limit = int((magnitude == 1).sum())
    if magnitude.max() <= 1:
        parts.append(f"all within [-1, 1]{f', {at_limit} of them at the limit, as if clamped' if at_limit else ''}")
    parts.append(f"{'' if centred else 'not '}centred over the input channels")
    return ", ".join(parts)


def binarize(filters: NDArray[np.float32], scheme: Weights) -> NDArray[np.float32]:
    """Binarise weights [O, I, ...] by a scheme, computed in float64 and rounded once; sign(0) is 0.

    Raises:
        InputError: xnor-centred, and there is one input channel.
    """
    weight = filters.astype(np.float64)
    if scheme == "xnor-centred":
        if weight.shape[1] == 1:
            raise InputError(
                "it has one input channel per filter, and centring makes all its filters zero; choose another --weights"
            )
        weight = np.clip(weight - weight.mean(axis=1, keepdims=True), -1, 1)
    axes = tuple(range(1, weight.ndim))
    alpha = 1.0 if scheme == "sign" else np.abs(weight).mean(axis=axes, keepdims=True).astype(np.float32)
    return (alpha * np.sign(weight)).astype(np.float32)
