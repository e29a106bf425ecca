"""What the report says of signs, weights, padding, and what follows, in all the forms of the catalogue."""

from __future__ import annotations

import pytest

from support.dialects import BRANCHES, PADDINGS, SIGNS, WEIGHTS, matrix
from support.graphs import eighths, parse, weights
from support.reports import report_on

ACTIVATIONS = {
    "A1 Sign": "Sign(x)",
    "A2 Sign, Add, Sign": "Sign(Sign(x) + 0.1)",
    "A3 Where(x > 0)": "Where(x > 0, 1, -1)",
    "A3 2 * Cast(x >= 0) - 1": "Cast(x >= 0) * 2 - 1",
    "A3 the same times a number": "(Cast(x > 0) * 2 - 1) * 0.25",
    "A3 1 - 2 * Cast(x < 0)": "1 - Cast(x < 0) * 2",
    "A3 Where(0 < x), ones of x's shape": "Where(0 < x, 1, -1)",
    "A4 (Sign - Clip) + Clip, computed twice": "straight-through trick over Sign(x)",
    "A4 x + (Sign - x)": "straight-through trick over Sign(x)",
    "A4 with Bi-Real Net's polynomial": "straight-through trick over Sign(x)",
    "A4 over A3": "straight-through trick over Where(x >= 0, 1, -1)",
    "A5 channels last": "Where(x >= 0, 1, -1)",
    "A6 Add [1, C, 1, 1]": "Sign(x + t), learned threshold",
    "A6 Sub Expand": "Where(x - t > 0, 1, -1), learned threshold",
    "A6 compared with [1, C, 1, 1]": "Where(x >= t, 1, -1), learned threshold",
    "A7 BipolarQuant": "BipolarQuant(x) * 0.25",
}


@pytest.mark.parametrize("sign", ACTIVATIONS)
def test_signs(sign: str) -> None:
    layers = report_on(matrix(sign, "W1 constant", 1 / 16))
    zero = SIGNS[sign][1]
    for layer in layers[::2]:  # the first convolution of each branch
        assert layer.activation is not None
        assert layer.activation.replace("Pad(x)", "x") == ACTIVATIONS[sign]
        assert (layer.sign_of_zero, layer.converted_sign_of_zero) == (zero, zero or 1)
        assert layer.status == "binary"


def test_a_linear_layers_bias_is_no_learned_threshold() -> None:
    model = parse(
        "s = Sign(x)\na = MatMul(s, u)\nb = Add(a, t)\nr = Sign(b)\ny = MatMul(r, v)",
        ("N", 4),
        u=weights(4, 8),
        v=weights(8, 3),
        t=eighths(8),
    )
    assert [layer.activation for layer in report_on(model)] == ["Sign(x)", "Sign(x)"]


WEIGHT_TEXTS = {
    "W1 constant": "constant, two-valued",
    "W2 Sign": "Sign(W), folded",
    "W2 compared": "Where(W >= 0, 1, -1), folded",
    "W3 mean": "Sign(W) * mean|W|, folded",
    "W3 learned": "Sign(W) * c, folded",
    "W4 straight through": "straight-through trick over mean|W| * Sign(W), folded",
    "W5 transposed": "Sign(W), folded",
    "W7 BipolarQuant": "BipolarQuant(W) * c, folded",
}


def test_weights() -> None:
    assert set(WEIGHT_TEXTS) == set(WEIGHTS)
    for weight, text in WEIGHT_TEXTS.items():
        layer = report_on(matrix("A1 Sign", weight, 1 / 16))[0]
        assert layer.weights == text
        assert layer.latent_zeros == (None if weight == "W1 constant" else 0)


EXPECTED_PADDINGS = {
    "none": ("none", (0, 0, 0, 0), None),
    "zero": ("zero", (1, 1, 1, 1), "Conv"),
    "zero, asymmetric": ("zero", (0, 0, 1, 2), "Conv"),
    "Pad 0, and zero": ("zero", (1, 2, 2, 1), "Conv and Pad"),
    "Pad -1": ("-1", (1, 1, 1, 1), "Pad"),
    "Pad +1, asymmetric": ("+1", (0, 1, 2, 1), "Pad"),
}
FUSED = {
    "bias": ("bias", "sign"),
    "BatchNorm, some gammas negative": ("bias", "BatchNorm", "sign"),
    "ReLU": ("bias", "ReLU", "Sub", "sign"),
    "PReLU": ("bias", "PReLU", "Add", "sign"),
    "MaxPool": ("bias", "MaxPool", "sign"),
}


@pytest.mark.parametrize(
    ("sign", "border"), [("A1 Sign", "zero"), ("A3 Where(x >= 0)", "+1"), ("A3 Where(x > 0)", "-1")]
)
def test_padding_and_what_follows(sign: str, border: str) -> None:
    expected = EXPECTED_PADDINGS | {"Pad before the sign": (border, (1, 1, 1, 1), "Pad before the sign")}
    assert set(expected) == set(PADDINGS)
    layers = report_on(matrix(sign, "W1 constant", 1 / 16))[::2]
    for (padding, follower), layer in zip(BRANCHES, layers, strict=True):
        assert (layer.padding, layer.pads, layer.padded_by) == expected[padding]
        assert layer.asymmetric == (padding in ("zero, asymmetric", "Pad 0, and zero", "Pad +1, asymmetric"))
        assert layer.fused == FUSED[follower], (padding, follower)
