"""The loop that the passes for layers share: lower a layer, or decline it with the reason."""

from __future__ import annotations

import abc
from typing import Generic, TypeVar

import onnx_ir as ir

from bnn_deploy.errors import InputError
from bnn_deploy.operators.contract import FLOAT_LAYERS
from bnn_deploy.passes.graph import is_op
from bnn_deploy.passes.lower.layer import FloatLayer, NotTwoValuedError, is_product, read_layer
from bnn_deploy.passes.outcome import Outcome, Pass, display_name
from bnn_deploy.passes.reasons import Reason

LayerInput = TypeVar("LayerInput")


class EachLayer(Pass, Generic[LayerInput]):
    """Conv | ConvTranspose | Gemm | MatMul  ==>  its binary form, for the inputs that the subclass knows.

    These are of type LayerInput.

    Raises InputError for a filter that is all zeros.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Rewrite every layer that qualifies."""
        result = Outcome(model)
        self._binarized: dict[ir.Value, ir.Value] = {}  # the bits or planes that were made, by the float tensor
        for node in list(model.graph):
            is_layer = is_op(node, *FLOAT_LAYERS) and not is_product(node)
            source = self._source(node) if is_layer else None
            if source is None:
                continue
            try:
                layer = source if isinstance(source, Reason) else read_layer(node)
                new = layer if isinstance(layer, Reason) else self._lower(node, source, layer)  # type: ignore[arg-type]
            except NotTwoValuedError as error:
                new = error.reason
            except InputError as error:
                raise InputError(f"{node.op_type} '{display_name(node)}': {error}") from error
            if isinstance(new, Reason):
                result.decline(node, new)
            else:
                result.rewrote(new, node)
        return result

    @abc.abstractmethod
    def _source(self, node: ir.Node) -> LayerInput | Reason | None:
        """Where the input of a layer comes from; a reason if it cannot be bits; None if the pass is not for it."""

    @abc.abstractmethod
    def _lower(self, node: ir.Node, source: LayerInput, layer: FloatLayer) -> ir.Node | Reason:
        """Insert the binary form of `node`; return it, or the reason if there is none."""
