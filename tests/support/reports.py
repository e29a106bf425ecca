"""Builds the report on a small float model."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import onnx_ir as ir

from bnn_deploy.passes.graph import is_standard_layer
from bnn_deploy.passes.pipeline import fold, to_binary
from bnn_deploy.report.canonical import Canonical
from bnn_deploy.report.layers import layer_reports
from bnn_deploy.report.summary import LayerReport
from bnn_deploy.source.weight_form import note_weights
from support.graphs import Array, parse, weights

W = weights(8, 4, 3, 3)


def report_on(model: ir.Model) -> tuple[LayerReport, ...]:
    """The report's layers for a float model; asserts one per layer of the model."""
    note_weights(model.graph)
    fold(model)
    seen = Canonical()
    binary, left, _ = to_binary(model, look=seen.look)
    layers = layer_reports(model, seen, binary, left, "as-is", {})
    names = [node.name for node in model.graph if is_standard_layer(node)]
    assert [layer.name for layer in layers] == names
    for layer in layers:
        assert (layer.reason is None) == (layer.status not in ("float", "removed"))
        assert (layer.reason is None) == (layer.advice is None)
    json.dumps([asdict(layer) for layer in layers], allow_nan=False)
    return layers


def only_layer(nodes: str, x: Any = ("N", 4, 6, 6), **constants: Array) -> LayerReport:
    """The report on a model with one layer."""
    (layer,) = report_on(parse(nodes, x, **constants))
    return layer


SIGN_CONV = "s = Sign(x)\ny = Conv<pads=[1,1,1,1]>(s, w)"


def with_weight(value: float, index: tuple[int, ...] = (2, 1, 0, 0), source: Array = W) -> Array:
    """A copy of the weights with one value changed."""
    changed = source.copy()
    changed[index] = value
    return changed
