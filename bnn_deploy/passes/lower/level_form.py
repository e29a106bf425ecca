"""What becomes of a layer of levels: BinaryConvLevels or BinaryConvBases, with which constants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnn_deploy.operators.bits import pack_bits
from bnn_deploy.operators.contract import MAX_TERMS
from bnn_deploy.passes.lower.bases import plane_sums, sum_of_bases
from bnn_deploy.passes.lower.layer import FloatLayer, LevelsInput, NotTwoValuedError, two_valued
from bnn_deploy.passes.monotone import Floats
from bnn_deploy.passes.reasons import LargeSums, LevelsPad, Reason, UnevenLevels
from bnn_deploy.passes.recognise.few_levels import even_step


@dataclass(frozen=True)
class LevelForm:
    """What becomes of a layer: an operator, its constants, and its attributes but for the window and the channels.

    `binary_code` says whether it reads the bits of the levels' indices, and not one plane for each threshold.
    """

    op_type: str
    constants: dict[str, NDArray[Any]]
    attributes: dict[str, int]
    binary_code: bool = True


def level_form(
    node: ir.Node, source: LevelsInput, layer: FloatLayer, weight: Floats, bias: Floats
) -> LevelForm | Reason:
    """What becomes of a layer, or why it cannot be binary.

    Args:
        node: the layer.
        source: where its levels come from.
        layer: what `read_layer` read.
        weight: [O, C/group, kernel...], as `fit_weight` gives it.
        bias: [O].

    Raises:
        NotTwoValuedError: the weights of a filter are neither ±alpha nor of a few values.
        InputError: a filter is all zeros.
    """
    try:
        filters = two_valued(weight)
    except NotTwoValuedError:
        form = _sum(node, source, layer, weight, bias)
        if form is None:
            raise
        return form
    form = _even_levels(source, layer, filters, bias) or _sum(node, source, layer, weight, bias)
    assert form is not None  # two values are few
    return form


def _even_levels(
    source: LevelsInput, layer: FloatLayer, filters: tuple[NDArray[np.bool_], Floats], bias: Floats
) -> LevelForm | Reason | None:
    """The BinaryConvLevels of evenly spaced levels and ±alpha; None if a padded tap is not the lowest level."""
    signs, alpha = filters
    quantizer, terms = source.quantizer, math.prod(signs.shape[1:])
    low, highest = float(source.levels[0]), 2**quantizer.bits - 1
    step = even_step(source.levels)
    if step is None or not _padding(source, layer) <= {low}:
        return None
    if highest * terms >= MAX_TERMS:
        return LargeSums(terms, highest)
    if low:
        sums = 2.0 * signs.reshape(len(signs), -1).sum(axis=1) - terms
        bias = (bias + low * alpha.astype(np.float64) * sums).astype(np.float32)
    constants = {
        "weight_bits": pack_bits(np.moveaxis(signs, 1, -1)),
        "scale": (alpha.astype(np.float64) * step).astype(np.float32),
        "bias": bias,
    }
    return LevelForm("BinaryConvLevels", constants, {"bits": quantizer.bits})


def _sum(
    node: ir.Node, source: LevelsInput, layer: FloatLayer, weight: Floats, bias: Floats
) -> LevelForm | Reason | None:
    """The BinaryConvBases of levels and weights of few values; None if these have many."""
    levels = source.levels
    planes = plane_sums(levels)
    if planes is None:
        return UnevenLevels(len(levels), levels[0], levels[-1], ", ".join(f"{level:.4g}" for level in levels))
    if not _padding(source, layer) <= {0.0}:
        return LevelsPad((node.inputs[0] or source.value).name or "")
    sums = sum_of_bases(planes, weight)
    if sums is None or isinstance(sums, Reason):
        return sums
    constants, attributes = sums
    return LevelForm("BinaryConvBases", constants | {"bias": bias}, attributes, planes.is_binary_code)


def _padding(source: LevelsInput, layer: FloatLayer) -> set[float]:
    """The values of padded taps."""
    own = {0.0} if any(layer.pads) else set()
    return own | ({source.pad_value} if source.pads is not None and any(source.pads) else set())
