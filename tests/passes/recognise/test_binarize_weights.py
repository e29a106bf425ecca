"""BinarizeWeights: latent weights are binarised as the user says, once, or not at all."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from bnn_deploy.errors import InputError
from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.passes.recognise.binarize_weights import BinarizeWeights, Weights, binarize
from bnn_deploy.training import binarize_weight
from support.graphs import copy, op_types, parse, weights


def latent(*shape: int) -> Any:
    return np.clip(np.random.default_rng(0).standard_normal(shape), -1, 1).astype(np.float32)


def run(model: ir.Model, scheme: Weights) -> tuple[ir.Model, BinarizeWeights]:
    after = copy(model)
    step = BinarizeWeights(scheme)
    step(after)
    return after, step


LAYERS = {
    "Conv": ("s = Sign(x)\ny = Conv(s, w)", ("N", 4, 6, 6), latent(8, 4, 3, 3), latent(8, 4, 3, 3)),
    "Gemm": ("s = Sign(x)\ny = Gemm(s, w)", ("N", 7), latent(7, 5), latent(7, 5).T),
    "Gemm, transB": ("s = Sign(x)\ny = Gemm <transB=1> (s, w)", ("N", 7), latent(5, 7), latent(5, 7)),
    "MatMul": ("s = Sign(x)\ny = MatMul(s, w)", ("N", 7), latent(7, 5), latent(7, 5).T),
}


@pytest.mark.parametrize("scheme", ["xnor", "xnor-centred", "sign"])
@pytest.mark.parametrize("layer", LAYERS)
def test_fires(layer: str, scheme: Weights) -> None:
    text, x, weight, filters = LAYERS[layer]
    after, step = run(parse(text, x, w=weight), scheme)
    (node,) = (node for node in after.graph if node.op_type in ("Conv", "Gemm", "MatMul"))
    got = constant(node.inputs[1])
    assert got is not None
    expected = binarize(np.ascontiguousarray(filters), scheme)
    np.testing.assert_array_equal(got if filters.shape == weight.shape and layer != "MatMul" else got.T, expected)
    assert list(step.binarized) == [node.name or "y"]
    binary, left, _ = to_binary(after)
    assert left == []
    assert "BinaryConv" in op_types(binary)


def test_the_schemes_by_hand() -> None:
    w = np.float32([[[2.0], [-0.5]], [[0.5], [0.25]]])
    np.testing.assert_array_equal(binarize(w, "sign")[..., 0], [[1, -1], [1, 1]])
    np.testing.assert_array_equal(binarize(w, "xnor")[..., 0], [[1.25, -1.25], [0.375, 0.375]])
    # Centred: ±1.25 and ±0.125; clamped: ±1 and ±0.125.
    np.testing.assert_array_equal(binarize(w, "xnor-centred")[..., 0], [[1, -1], [0.125, -0.125]])


def test_the_recipe_is_the_one_of_training() -> None:
    w = latent(8, 4, 3, 3)
    expected = binarize_weight(torch.from_numpy(w)).numpy()
    np.testing.assert_allclose(binarize(w, "xnor-centred"), expected, rtol=1e-6)
    assert not np.allclose(binarize(w, "xnor"), expected, rtol=1e-3)


def test_auto_refuses_to_guess_and_says_what_it_sees() -> None:
    clamped = latent(8, 4, 3, 3)
    model = parse("s = Sign(x)\ny = Conv(s, w)\nz = Conv(s, v)", outputs=("y", "z"), w=clamped, v=3 * clamped)
    with pytest.raises(InputError) as error:
        run(model, "auto")
    text = str(error.value)
    assert "Conv 'y' (and 1 more): its input is a sign, but its weights are real-valued" in text
    at_limit = int((np.abs(clamped) == 1).sum())
    assert (
        f"latent: likely, all within [-1, 1]; clamped: yes, {at_limit} at ±1; centred over the input channels: no. Are"
        in text
    )
    assert re.search(r"two-valued: 0 of 8 filters \(filter \d has \|w\| from 0\.0\S* to 1\); ", text)
    for scheme in ("xnor", "xnor-centred", "sign", "as-is"):
        assert scheme in text
    centred = (clamped - clamped.mean(axis=1, keepdims=True)) / 4
    with pytest.raises(InputError, match=r"clamped: no, none at ±1; centred over the input channels: yes"):
        run(parse("s = Sign(x)\ny = Conv(s, w)", w=centred), "auto")
    half = 3 * clamped
    half[:4] = weights(4, 4, 3, 3)
    with pytest.raises(
        InputError, match=r"two-valued: 4 of 8 filters .* latent: not clear, not all within .* clamped: no;"
    ):
        run(parse("s = Sign(x)\ny = Conv(s, w)", w=half), "auto")


@pytest.mark.parametrize("scheme", ["auto", "xnor", "xnor-centred", "sign", "as-is"])
def test_does_not_binarise_twice(scheme: Weights) -> None:
    model = parse("s = Sign(x)\ny = Conv(s, w)", w=weights(8, 4, 3, 3))
    after, step = run(model, scheme)
    assert step.binarized == {}
    np.testing.assert_array_equal(constant(list(after.graph)[1].inputs[1]), weights(8, 4, 3, 3))


@pytest.mark.usefixtures("small_sums_pay")
@pytest.mark.parametrize("scheme", ["auto", "sign"])
def test_does_not_touch_weights_with_exact_zeros(scheme: Weights) -> None:
    """Three values are no latent weights, but two bases."""
    w = weights(8, 4, 3, 3)
    w[5, 1:3, 0, 0] = 0
    model = parse("s = Sign(x)\ny = Conv(s, w)", w=w)
    after = copy(model)
    assert [decline.node for decline in BinarizeWeights(scheme)(after).declined] == ["y"]
    binary, left, _ = to_binary(after)
    assert left == []
    assert "BinaryConvBases" in op_types(binary)


@pytest.mark.usefixtures("small_sums_pay")
@pytest.mark.parametrize("values", [[-0.3, 0.8], [0, 0.5], [-0.5, 0, 0.25], np.linspace(-1, 1, 8)])
@pytest.mark.parametrize("scheme", ["auto", "xnor"])
def test_does_not_touch_weights_of_a_few_values(scheme: Weights, values: list[float]) -> None:
    """Two that are not symmetric, or eight, are none that somebody has yet to binarise."""
    w = np.random.default_rng(0).choice(np.float32(values), (8, 4, 3, 3))
    model = parse("s = Sign(x)\ny = Conv(s, w)", w=w)
    after, step = run(model, scheme)
    assert step.binarized == {}
    assert "BinaryConvBases" in op_types(to_binary(after)[0])


def test_does_not_touch_layers_of_real_inputs() -> None:
    model = parse("y = Conv(x, w)", w=latent(8, 4, 3, 3))
    assert run(model, "auto")[1].binarized == {}
    assert run(model, "sign")[1].binarized == {}


def test_as_is_leaves_them_real() -> None:
    model = parse("s = Sign(x)\ny = Conv(s, w)", w=latent(8, 4, 3, 3))
    after, step = run(model, "as-is")
    assert step.binarized == {}
    assert to_binary(after)[1][0].has_sign_input


def test_weights_shared_with_a_layer_of_real_inputs() -> None:
    w = latent(8, 4, 3, 3)
    model = parse("s = Sign(x)\ny = Conv(s, w)\nz = Conv(x, w)", outputs=("y", "z"), w=w)
    after, step = run(model, "sign")
    assert list(step.binarized) == ["y"]
    first, second = (node for node in after.graph if node.op_type == "Conv")
    np.testing.assert_array_equal(constant(first.inputs[1]), np.sign(w))
    np.testing.assert_array_equal(constant(second.inputs[1]), w)


def test_weights_shared_by_two_layers_of_one_sign() -> None:
    model = parse(
        "s = Sign(x)\ny = Conv(s, w)\nz = Conv <pads=[1,1,1,1]> (s, w)", outputs=("y", "z"), w=latent(8, 4, 3, 3)
    )
    after, step = run(model, "xnor")
    assert len(step.binarized) == 2
    assert to_binary(after)[1] == []


def test_centring_one_channel_is_an_error() -> None:
    with pytest.raises(InputError, match="Conv 'y': it has one input channel per filter"):
        run(parse("s = Sign(x)\ny = Conv <group=4> (s, w)", w=latent(4, 1, 3, 3)), "xnor-centred")
