"""BinarizeWeights: latent weights of layers whose input is a sign are binarised, by the scheme that the user names."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.errors import InputError, option
from bnn_deploy.operators.contract import FLOAT_LAYERS
from bnn_deploy.passes.graph import add_initializer, constant, is_op
from bnn_deploy.passes.lower.filter_values import filter_values
from bnn_deploy.passes.lower.layer import MAX_SPREAD, sign_input
from bnn_deploy.passes.outcome import Outcome, Pass, Rewrite, display_name
from bnn_deploy.passes.reasons import OneMagnitude
from bnn_deploy.passes.recognise.layer_weights import filters_of, has_few_levels, has_one_magnitude

Weights = Literal["auto", "xnor", "xnor-centred", "sign", "as-is"]
"""What to do with real-valued weights of layers whose input is a sign.

* xnor: mean |W| * sign(W) per filter, the XNOR-Net paper's (equation 6);
* xnor-centred: centre W over its input channels and clamp it to [-1, 1] first, the XNOR-Net-PyTorch recipe;
* sign: sign(W), BinaryNet's;
* as-is: leave them real, and the layer float;
* auto: the recipe for its own architectures; as-is for a network that binarises other weights itself; else refuse to
  guess.
"""


class BinarizeWeights(Pass):
    """Conv | ConvTranspose | Gemm | MatMul of a sign or few levels, with real W  ==>  the same with alpha * sign(W).

    1. W is constant, and not of a few values per filter, within 1e-3: those are none that somebody has yet to binarise,
       and binarising twice would shrink alpha.
    2. The layer gets a tensor of its own; another that shares W keeps W.
    3. "auto" is "xnor-centred" for the layers of `recipe`. Others stay as they are where the graph itself makes some
       layer's weights two-valued: it says which weights are binary. Where it does not, "auto" raises InputError with
       what the values look like: nothing says whether they are latent, or by which recipe they are binarised.

    Args:
        scheme: see Weights; "as-is" does nothing.
        recipe: names of the nodes that were trained by the XNOR-Net-PyTorch recipe if their weights are latent.
        rule: computes binary weights; see `binarize`.
        computed: names of the nodes whose weights the network computes from others, as alpha * sign(W).

    Declines: weights with exact zeros and else one magnitude per filter, which are no latent ones.

    The model is a float one in the forms of `passes.pipeline.canonicalize`; what is rewritten is told by node names, in
    `binarized`, so that the float graph that it was made from can be given the same weights with `apply`.
    """

    def __init__(
        self,
        scheme: Weights,
        recipe: Container[str] = (),
        rule: Callable[[NDArray[np.float32], Weights], NDArray[np.float32]] | None = None,
        computed: Container[str] = (),
    ) -> None:
        self.scheme = scheme
        self.recipe = recipe
        self.rule = rule or binarize
        self.computed = computed
        self.binarized: dict[str, None] = {}

    def call(self, model: ir.Model) -> Outcome:
        """Binarise every layer that qualifies, or refuse."""
        result = Outcome(model)
        self.find(result)
        self.apply(model)
        result.rewrites += [Rewrite(name) for name in self.binarized]
        return result

    def find(self, result: Outcome) -> None:
        """Note in `binarized` which layers qualify, or refuse; nothing is binarised.

        Args:
            result: of the model; gets what is declined.
        """
        model = result.model
        if self.scheme == "as-is":
            return
        latent = {}
        computed = False  # whether the graph binarises weights itself
        for node in model.graph:
            if is_op(node, *FLOAT_LAYERS) and has_few_levels(node):
                weight = constant(node.inputs[1])
                if weight is None or weight.dtype != np.float32 or weight.ndim < 2:
                    continue
                filters = filters_of(node, weight)
                if has_one_magnitude(filters) or filter_values(filters) is not None:
                    computed |= display_name(node) in self.computed
                    if has_one_magnitude(filters) and (filters == 0).any():
                        result.decline(node, OneMagnitude())
                    continue
                latent[node] = filters
        unknown = [node for node in latent if display_name(node) not in self.recipe]
        if unknown and self.scheme == "auto" and computed:
            latent = {node: filters for node, filters in latent.items() if node not in unknown}
        elif unknown and self.scheme == "auto":
            node, filters = unknown[0], latent[unknown[0]]
            what = "is a sign" if sign_input(node) is not None else "has few levels"
            more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            raise InputError(
                f"{node.op_type} '{display_name(node)}'{more}: its input {what}, but its weights are real-valued: "
                f"{evidence(filters)}. Are they latent? Say how the network was trained: {option('weights', 'xnor')} "
                "(mean |W| times sign), xnor-centred (the same after centring and clamping), sign, or as-is (they stay "
                "real)"
            )
        self.binarized = dict.fromkeys(display_name(node) for node in latent)

    def apply(self, model: ir.Model) -> None:
        """Binarise the layers that were found, in this or another form of the model, by the names of nodes.

        The forms may differ in the order of a linear layer's inputs, so each is binarised for itself.
        """
        for node in model.graph:
            latent = constant(node.inputs[1]) if display_name(node) in self.binarized else None
            if latent is not None:
                value = add_initializer(model.graph, f"{node.outputs[0].name}_binary_weight", self.binary(node, latent))
                node.replace_input_with(1, value)

    def binary(self, node: ir.Node, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """What becomes of the latent weight of a layer, in the layout that the layer reads.

        Raises:
            InputError: names the layer; see `binarize`.
        """
        scheme: Weights = "xnor-centred" if self.scheme == "auto" else self.scheme
        try:
            binary = self.rule(filters_of(node, weight), scheme)
        except InputError as error:
            raise InputError(f"{node.op_type} '{display_name(node)}': {error}") from error
        return np.ascontiguousarray(filters_of(node, binary))


def evidence(filters: NDArray[np.float32]) -> str:
    """What real-valued weights [O, I, ...] look like, for the one who has to say what they are, on one line."""
    magnitude = np.abs(filters.reshape(len(filters), -1))
    high, low = magnitude.max(axis=1), magnitude.min(axis=1)
    two_valued = int((high - low <= MAX_SPREAD * high).sum())
    worst = int((high - low).argmax())
    at_limit = int((magnitude == 1).sum())
    inside = bool(magnitude.max() <= 1)
    centred = bool(np.abs(filters.mean(axis=1)).max() <= 1e-3 * magnitude.max())
    return (
        f"two-valued: {two_valued} of {len(filters)} filters (filter {worst} has |w| from {low[worst]:.3g} to "
        f"{high[worst]:.3g}); latent: {'likely' if inside else 'not clear'}, "
        f"{'all within' if inside else 'not all within'} [-1, 1]; clamped: "
        f"{f'yes, {at_limit} at ±1' if inside and at_limit else 'no, none at ±1' if inside else 'no'}; "
        f"centred over the input channels: {'yes' if centred else 'no'}"
    )


def binarize(filters: NDArray[np.float32], scheme: Weights) -> NDArray[np.float32]:
    """Binarise weights [O, I, ...] by a scheme, computed in float64 and rounded once; sign(0) is 0.

    Raises:
        InputError: xnor-centred, and there is one input channel.
    """
    weight = filters.astype(np.float64)
    if scheme == "xnor-centred":
        if weight.shape[1] == 1:
            raise InputError(
                "it has one input channel per filter, and centring makes all its filters zero; choose another "
                f"{option('weights')}"
            )
        weight = np.clip(weight - weight.mean(axis=1, keepdims=True), -1, 1)
    axes = tuple(range(1, weight.ndim))
    alpha = 1.0 if scheme == "sign" else np.abs(weight).mean(axis=axes, keepdims=True).astype(np.float32)
    return (alpha * np.sign(weight)).astype(np.float32)
