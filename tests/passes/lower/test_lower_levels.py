"""LowerLevels: quantisers of few levels are told by their values, whatever they are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from numpy.typing import NDArray

from bnn_deploy.errors import InputError
from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.lower.lower_levels import LowerLevels
from bnn_deploy.passes.outcome import Decline
from bnn_deploy.passes.pipeline import fold, to_binary
from bnn_deploy.passes.recognise.binarize_weights import BinarizeWeights
from bnn_deploy.passes.recognise.few_levels import Quantizer, quantizer
from support.graphs import batch_norm, copy, eighths, only, op_types, parse, run_binary, run_float, weights

pytestmark = pytest.mark.usefixtures("small_sums_pay")

Array = NDArray[Any]
NUMBERS = {
    "zero": 0.0,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "half": 0.5,
    "quarter": 0.25,
    "fifteen": 15.0,
    "third": 1 / 3,
    "step": 0.538,
    "t2": 1.1,
    "t3": 1.7,
}

DOREFA = "c = Clip(x, zero, one)\nm = Mul(c, three)\nr = Round(m)\nq = Div(r, three)"


def model(quantiser: str, layer: str = "y = Conv <pads=[1,1,1,1]> (q, w)", **constants: Array) -> ir.Model:
    """x -> quantiser -> layer, with the named numbers as constants."""
    x = constants.pop("shape", ("N", 4, 6, 6))
    used = {name: np.float32(value) for name, value in NUMBERS.items() if name in f"{quantiser}\n{layer}"}
    given = {"w": weights(8, 4, 3, 3)} | used | constants
    return parse(f"{quantiser}\n{layer}", x, **given)


def samples(model: ir.Model, seed: int = 1) -> NDArray[np.float32]:
    """Normal inputs, many of them just where something happens: multiples of 1/12, and their neighbours."""
    shape = [size if isinstance(size, int) else 6 for size in model.graph.inputs[0].shape or ()]
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    ties = (rng.integers(-12, 25, shape) / 12).astype(np.float32)
    choice = [x, ties, np.nextafter(ties, np.float32(-np.inf)), np.nextafter(ties, np.float32(np.inf))]
    return np.choose(rng.integers(0, 4, shape), choice).astype(np.float32)


def lower(model: ir.Model) -> tuple[ir.Model, list[Decline], int]:
    """Run the pass on a copy and remove what it left dead."""
    after = copy(model)
    result = LowerLevels()(after)
    common.RemoveUnusedNodesPass()(after)
    return after, result.declined, result.count


def same(before: ir.Model, after: ir.Model) -> bool:
    """Whether bodies and kernels give what the float graph gives, but for the rounding of its sums."""
    x = samples(before)
    expected = run_float(before, x)
    for kernels in (False, True):
        got = run_binary(after, x, kernels)
        if not all(np.abs(a - b).max() <= 1e-5 * np.abs(b).max() for a, b in zip(got, expected, strict=True)):
            return False
    return True


def corruptions(model: ir.Model) -> list[ir.Model]:
    """A copy with one weight bit flipped, and one whose channel 0 never leaves level 0."""
    found = []
    for of_layer in (True, False):
        wrong = copy(model)
        target = next(
            node
            for node in wrong.graph
            if (node.op_type.startswith("BinaryConv") if of_layer else node.op_type == "QuantizeLevels")
        ).inputs[1]
        assert target is not None
        array = np.array(constant(target))
        if of_layer:
            array.flat[0] ^= 1
        else:
            array[:, 0] = np.inf
        target.const_value = ir.tensor(array, name=target.name)
        found.append(wrong)
    return found


def fires(model: ir.Model, *expected: str, count: int = 1) -> ir.Model:
    """Check that the pass lowers `count` layers, leaves these operators, and keeps the result; damage does not."""
    after, declined, modified = lower(model)
    assert (modified, declined) == (count, [])
    assert op_types(after) == list(expected)
    assert same(model, after)
    assert not any(same(model, wrong) for wrong in corruptions(after))
    return after


def declines(model: ir.Model, reason: str) -> None:
    after, declined, modified = lower(model)
    assert modified == 0
    assert [reason in decline.reason for decline in declined] == [True], declined
    assert op_types(after) == op_types(model)


def ignored(model: ir.Model) -> None:
    after, declined, modified = lower(model)
    assert (modified, declined) == (0, [])
    assert op_types(after) == op_types(model)


# --- what is recognised -----------------------------------------------------------------------------------------

FORMS: dict[str, tuple[str, int]] = {
    "DoReFa": (DOREFA, 4),
    "DoReFa, 4 bits": (DOREFA.replace("three", "fifteen"), 16),
    "DoReFa as Max, Min and Mul": (
        "a = Max(x, zero)\nc = Min(one, a)\nm = Mul(three, c)\nr = Round(m)\nq = Mul(r, third)",
        4,
    ),
    "clip after rounding": ("m = Div(x, step)\nr = Round(m)\nc = Clip(r, zero, three)\nq = Mul(c, step)", 4),
    "three levels": ("r = Round(x)\nq = Clip(r, zero, two)", 3),
    "HardSigmoid": ("h = HardSigmoid <alpha=0.5> (x)\nm = Mul(h, three)\nr = Round(m)\nq = Mul(r, third)", 4),
    "Floor": ("s = Add(x, half)\nf = Floor(s)\nq = Clip(f, zero, three)", 4),
    "Ceil": ("s = Sub(x, half)\nf = Ceil(s)\nq = Clip(f, zero, three)", 4),
    "HWGQ as a sum of steps": (
        "a = Greater(x, half)\nb = Greater(x, t2)\nc = GreaterOrEqual(x, t3)\n"
        "d = Cast <to=1> (a)\ne = Cast <to=1> (b)\nf = Cast <to=1> (c)\ng = Add(d, e)\nh = Add(g, f)\nq = Mul(h, step)",
        4,
    ),
    "HWGQ as Where": (
        "a = Greater(x, half)\nb = Greater(x, t2)\nd = Where(a, half, zero)\nq = Where(b, one, d)",
        3,
    ),
    "Relu in front": ("p = Relu(x)\nr = Round(p)\nq = Min(r, three)", 4),
    "integers in between": ("c = Clip(x, zero, three)\ni = Cast <to=6> (c)\nq = Cast <to=1> (i)", 4),
    "QuantizeLinear": (
        "c = Clip(x, zero, one)\ni = QuantizeLinear(c, third, nought)\nq = DequantizeLinear(i, third, nought)",
        4,
    ),
    "straight-through": (f"{DOREFA.replace('q =', 'p =')}\nd = Sub(p, x)\nq = Add(x, d)", 4),
    "straight-through, the other way": (f"{DOREFA.replace('q =', 'p =')}\nd = Add(p, c)\nq = Sub(d, c)", 4),
    "Heaviside": ("a = GreaterOrEqual(x, quarter)\nq = Cast <to=1> (a)", 2),
    "Heaviside of a sign": ("s = Sign(x)\nq = Relu(s)", 2),
    "signed, of a Relu": ("p = Relu(x)\nr = Round(p)\nq = Clip(r, minus, one)", 2),
    "falling, of a falling one": ("n = Neg(x)\na = Less(n, half)\nq = Cast <to=1> (a)", 2),
    "sign of a Relu": ("p = Relu(x)\nq = Sign(p)", 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_quantiser_of_any_form(form: str) -> None:
    text, levels = FORMS[form]
    constants: dict[str, Any] = {"nought": np.uint8(0)} if "nought" in text else {}
    constants |= {"minus": np.float32(-2)} if "minus" in text else {}
    after = fires(model(text, **constants), "QuantizeLevels", "BinaryConvLevels")
    thresholds = constant(only(after, "QuantizeLevels").inputs[1])
    assert thresholds is not None
    bits = (levels - 1).bit_length()
    assert thresholds.shape == (2**bits - 1, 4)
    assert np.isfinite(thresholds[: levels - 1]).all()
    assert np.isposinf(thresholds[levels - 1 :]).all()
    assert only(after, "BinaryConvLevels").attributes["bits"].as_int() == bits


def test_thresholds_are_where_the_float_expression_steps() -> None:
    """Round half to even: 0.5 gives 0, 1.5 gives 2, whatever the product with 3 rounds to."""
    after, _, _ = lower(model(DOREFA))
    thresholds = constant(only(after, "QuantizeLevels").inputs[1])
    assert thresholds is not None
    three = np.float32(3)
    for level, threshold in enumerate(thresholds[:, 0], start=1):
        below = np.nextafter(threshold, np.float32(-np.inf))
        assert np.rint(threshold * three) == level
        assert np.rint(below * three) == level - 1


def test_thresholds_per_channel() -> None:
    t = np.float32([0.1, 0.2, 0.3, 0.4]).reshape(1, 4, 1, 1)
    text = "a = Greater(x, t)\nb = Greater(x, half)\nd = Cast <to=1> (a)\ne = Cast <to=1> (b)\nq = Add(d, e)"
    after = fires(model(text, t=t), "QuantizeLevels", "BinaryConvLevels")
    thresholds = constant(only(after, "QuantizeLevels").inputs[1])
    assert thresholds is not None
    assert (thresholds[0] == np.nextafter(t.reshape(-1), np.float32(np.inf))).all()
    assert (thresholds[1] == np.nextafter(np.float32(0.5), np.float32(1))).all()


# --- what goes into the thresholds, and what is between ---------------------------------------------------------

NORM = "n = BatchNormalization(x, g, b, m0, v)\n" + DOREFA.replace("Clip(x", "Clip(n")


def norm(gamma: list[float] | None = None) -> dict[str, Array]:
    constants = batch_norm(4, gamma=gamma)
    return {"m0": constants.pop("m"), **constants}


def test_a_batch_norm_goes_into_the_thresholds() -> None:
    after = fires(model(NORM, **norm()), "QuantizeLevels", "BinaryConvLevels")
    thresholds = constant(only(after, "QuantizeLevels").inputs[1])
    assert thresholds is not None
    assert len(np.unique(thresholds[0])) == 4


def test_a_constant_channel_has_infinite_thresholds() -> None:
    constants = norm([1, 0, 1, 1]) | {"b": np.float32([0.1, 0.6, 0.1, 0.1])}
    after = fires(model(NORM, **constants), "QuantizeLevels", "BinaryConvLevels")
    thresholds = constant(only(after, "QuantizeLevels").inputs[1])
    assert thresholds is not None
    assert thresholds[:, 1].tolist() == [-np.inf, -np.inf, np.inf]  # 0.6 is level 2


def test_a_negative_gamma_leaves_the_batch_norm() -> None:
    fires(model(NORM, **norm([1, -0.5, 1, 1])), "BatchNormalization", "QuantizeLevels", "BinaryConvLevels")


def test_relu_and_add_and_batch_norm() -> None:
    text = f"s = Add(x, c4)\np = Relu(s)\n{NORM.replace('BatchNormalization(x', 'BatchNormalization(p')}"
    constants = norm() | {"c4": eighths(4, 1, 1)}
    fires(model(text, **constants), "QuantizeLevels", "BinaryConvLevels")


def test_a_max_pool_goes_in_front() -> None:
    layer = "p = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (q)\ny = Conv(p, w)"
    after = fires(model(DOREFA, layer), "MaxPool", "QuantizeLevels", "BinaryConvLevels")
    assert only(after, "MaxPool").inputs[0] is after.graph.inputs[0]


def test_a_pad_with_zero_adds_to_the_pads() -> None:
    constants = {"pads": np.array([0, 0, 1, 2, 0, 0, 0, 1])}
    layer = "p = Pad(q, pads)\ny = Conv <pads=[1,1,1,1]> (p, w)"
    after = fires(model(DOREFA, layer, **constants), "QuantizeLevels", "BinaryConvLevels")
    assert list(only(after, "BinaryConvLevels").attributes["pads"].as_ints()) == [2, 3, 1, 2]


@pytest.mark.parametrize(
    ("layer", "constants"),
    [
        ("f = Flatten(q)\ny = Gemm <transB=1> (f, w, bias)", {"w": weights(5, 4 * 36), "bias": eighths(5)}),
        ("f = Flatten(q)\ny = MatMul(f, w)", {"w": weights(5, 4 * 36).T}),
        ("f = Flatten(q)\ny = Gemm <transB=1> (f, w)", {"w": weights(5, 7), "shape": ("N", 7)}),
    ],
)
def test_linear_layers(layer: str, constants: dict[str, Array]) -> None:
    flat = "shape" in constants
    layer = layer.replace("f = Flatten(q)\n", "").replace("(f", "(q") if flat else layer
    expected = ["QuantizeLevels", *(["Unsqueeze"] if flat else []), "BinaryConvLevels", "Flatten"]
    fires(model(DOREFA, layer, **constants), *expected)


@pytest.mark.parametrize(
    ("layer", "w", "x"),
    [
        ("y = Conv <group=2, pads=[1,1,1,1]> (q, w)", (8, 2, 3, 3), ("N", 4, 6, 6)),
        ("y = Conv <dilations=[2,1], strides=[1,2]> (q, w)", (8, 4, 3, 3), ("N", 4, 6, 6)),
        ("y = Conv <pads=[1,0], strides=[2]> (q, w, bias)", (3, 7, 3), ("N", 7, 9)),
    ],
)
def test_geometries(layer: str, w: tuple[int, ...], x: tuple[int | str, ...]) -> None:
    constants: dict[str, Any] = {"w": weights(*w), "shape": x} | ({"bias": eighths(w[0])} if "bias" in layer else {})
    fires(model(DOREFA, layer, **constants), "QuantizeLevels", "BinaryConvLevels")


def test_transposes_inside_and_around() -> None:
    """As tf2onnx writes it: channels last, moved for the convolution only."""
    text = (
        "c = Clip(x, zero, one)\nm = Mul(c, three)\nt = Transpose <perm=[0,3,1,2]> (m)\nr = Round(t)\n"
        "u = Transpose <perm=[0,2,3,1]> (r)\nd = Div(u, three)\nq = Transpose <perm=[0,3,1,2]> (d)"
    )
    fires(model(text, shape=("N", 6, 6, 4)), "Transpose", "QuantizeLevels", "BinaryConvLevels")
    first = (
        f"k = Transpose <perm=[0,3,1,2]> (x)\nn = Transpose <perm=[0,2,3,1]> (k)\n{text.replace('Clip(x', 'Clip(n')}"
    )
    after, _, _ = lower(model(first, shape=("N", 6, 6, 4)))
    assert op_types(after) == ["Transpose", "QuantizeLevels", "BinaryConvLevels"]


def test_one_quantiser_for_all_layers_that_read_it() -> None:
    layer = "a = Conv(q, w)\nb = Conv(q, w2)\ny = Concat <axis=1> (a, b)"
    fires(
        model(DOREFA, layer, w2=weights(2, 4, 3, 3, seed=1)),
        "QuantizeLevels",
        "BinaryConvLevels",
        "BinaryConvLevels",
        "Concat",
        count=2,
    )


def test_shared_weights() -> None:
    layer = "a = Conv <pads=[1,1,1,1]> (q, w)\nk = Clip(a, zero, one)\nl = Mul(k, three)\no = Round(l)\ny = Conv(o, w)"
    after, declined, modified = lower(model(DOREFA, layer, w=weights(4, 4, 3, 3)))
    assert (modified, declined) == (2, [])
    names = [node.inputs[1].name for node in after.graph if node.op_type == "BinaryConvLevels" and node.inputs[1]]
    assert len(set(names)) == 2


def test_a_float_reader_keeps_the_float_quantiser() -> None:
    layer = "a = Conv <pads=[1,1,1,1]> (q, w)\ny = Add(a, q)"
    before = model(DOREFA, layer, w=weights(4, 4, 3, 3))
    after, declined, modified = lower(before)
    assert (modified, declined) == (1, [])
    assert sorted(op_types(after)) == ["Add", "BinaryConvLevels", "Clip", "Div", "Mul", "QuantizeLevels", "Round"]
    assert same(before, after)
    assert not same(before, corruptions(after)[0])


# --- levels of any values, and weights of a few ------------------------------------------------------------------

ADABIN = "d = Sub(x, step)\ns = Sign(d)\nm = Mul(s, half)\nq = Add(m, third)"
OTHER_LEVELS: dict[str, tuple[str, int]] = {
    "AdaBin": (ADABIN, 1),
    "-1, 0 and 1": ("r = Round(x)\nq = Clip(r, minus, one)", 2),
    "DoReFa in [-1, 1]": (f"{DOREFA.replace('q =', 'h =')}\nk = Mul(h, two)\nq = Sub(k, one)", 2),
    "LQ-Nets": (
        "g = Greater(x, half)\nh = Greater(x, zero)\ni = Greater(x, t2)\nu = Cast <to=1> (g)\nv = Cast <to=1> (h)\n"
        "w0 = Cast <to=1> (i)\na = Mul(v, step)\nb = Sub(u, v)\nc = Mul(b, third)\nd = Mul(w0, step)\n"
        "e = Add(a, u)\nf = Add(e, d)\nq = Sub(f, quarter)",  # -0.25, 0.288, 1.288, 1.826
        2,
    ),
    "uneven": ("a = Greater(x, half)\nb = Greater(x, t2)\nd = Where(a, half, zero)\nq = Where(b, three, d)", 2),
    "below zero": ("a = Greater(x, zero)\nb = Cast <to=1> (a)\nq = Sub(b, one)", 1),
}
VALUES: dict[str, tuple[list[float], int]] = {
    "±alpha": ([-0.5, 0.5], 1),
    "AdaBin": ([-0.3, 0.8], 1),
    "TWN": ([-0.5, 0, 0.5], 2),
    "TTQ": ([-0.4, 0, 0.7], 2),
    "sums of two": ([-1.75, -0.75, 0.75, 1.75], 2),
}


def of_values(values: list[float], shape: tuple[int, ...] = (8, 4, 3, 3)) -> Array:
    """Weights of these values, times another factor for each filter."""
    rng = np.random.default_rng(3)
    factors = rng.uniform(0.5, 1, (shape[0], *[1] * (len(shape) - 1)))
    return (rng.choice(values, shape) * factors).astype(np.float32)


@pytest.mark.parametrize(
    ("form", "values"),
    [*((form, "TTQ") for form in OTHER_LEVELS), *(("AdaBin", name) for name in VALUES), ("DoReFa", "TTQ")],
)
def test_sums_of_planes_and_bases(form: str, values: str) -> None:
    text, planes = (DOREFA, 2) if form == "DoReFa" else OTHER_LEVELS[form]
    numbers, bases = VALUES[values]
    constants = {"minus": np.float32(-1)} if "minus" in text else {}
    layer = "y = Conv <pads=[1,1,1,1], strides=[2,1]> (q, w, bias)"
    before = model(text, layer, w=of_values(numbers), bias=eighths(8), **constants)
    after = fires(before, "QuantizeLevels", "BinaryConvBases")
    attributes = only(after, "BinaryConvBases").attributes
    assert (attributes["planes"].as_int(), attributes["bases"].as_int()) == (planes, bases)


def test_one_plane_for_each_threshold() -> None:
    text = (
        "g = Greater(x, zero)\nh = Greater(x, half)\ni = Greater(x, t2)\na = Where(g, half, zero)\n"
        "b = Where(h, two, a)\nq = Where(i, three, b)"  # 0, 0.5, 2, 3
    )
    layer = "a1 = Conv <pads=[1,1,1,1]> (q, w)\nb1 = Conv <pads=[1,1,1,1]> (q, w)\ny = Add(a1, b1)"
    expected = [*["QuantizeLevels"] * 3, "Concat", *["BinaryConvBases"] * 2, "Add"]
    fires(model(text, layer, w=weights(8, 4, 3, 3)), *expected, count=2)


@pytest.mark.parametrize(
    ("layer", "constants"),
    [
        ("y = Conv <strides=[2,1]> (q, w, bias)", {"bias": eighths(8)}),
        ("p = Pad(q, pads, low)\ny = Conv(p, w)", {"pads": np.array([0, 0, 1, 2, 0, 0, 0, 1])}),
        ("f = Flatten(q)\ny = Gemm <transB=1> (f, w, bias)", {"w": weights(5, 4 * 36), "bias": eighths(5)}),
    ],
)
def test_the_lowest_level_goes_into_the_bias_where_nothing_else_is_padded(
    layer: str, constants: dict[str, Array]
) -> None:
    given = {"low": np.float32(-1)} if "low" in layer else {}
    text, _ = OTHER_LEVELS["-1, 0 and 1"]
    after = model(text, layer, minus=np.float32(-1), **constants, **given)
    fires(after, "QuantizeLevels", "BinaryConvLevels", *(["Flatten"] if "Flatten" in layer else []))


def test_a_linear_layer_of_few_values() -> None:
    constants: dict[str, Any] = {"w": of_values([-0.4, 0, 0.7], (5, 40)), "bias": eighths(5), "shape": ("N", 40)}
    before = model(ADABIN, "y = Gemm <transB=1> (q, w, bias)", **constants)
    fires(before, "QuantizeLevels", "Unsqueeze", "BinaryConvBases", "Flatten")


def test_a_max_pool_in_front_of_other_levels() -> None:
    layer = "p = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (q)\ny = Conv <pads=[1,1,1,1]> (p, w)"
    fires(model(ADABIN, layer), "MaxPool", "QuantizeLevels", "BinaryConvBases")


def test_does_not_take_what_is_slower_than_eight_bits() -> None:
    text = DOREFA.replace("three", "fifteen")
    declines(model(text, w=of_values([-0.5, 0, 0.5])), "its 4 bit planes of activations times 2 of weights")
    fires(model(text, w=of_values([-0.3, 0.8])), "QuantizeLevels", "BinaryConvBases")


# --- what is not --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "r = Clip(x, minus, three)\nf = Round(r)\na = Greater(x, three)\nb = Cast <to=1> (a)\nh = Mul(b, half)\n"
            "q = Add(f, h)",
            "its input has 7 levels from -2 to 3.5 that are neither evenly spaced nor sums of",
        ),
        ("a = Less(x, half)\nq = Cast <to=1> (a)", "'q' has 2 levels, but does not rise with its input"),
    ],
)
def test_does_not_take_other_levels(text: str, reason: str) -> None:
    constants = {"minus": np.float32(-2)} if "minus" in text else {}
    before = model(text, **constants)
    declines(before, reason)
    fold(before)
    _, leftovers, _ = to_binary(before)
    assert [(d.has_sign_input, reason in d.reason) for d in leftovers] == [(True, True)], leftovers


@pytest.mark.parametrize(
    "text",
    [
        "q = Relu(x)",
        "q = Clip(x, zero, one)",
        "r = Round(x)\nq = Clip(r, zero, twenty)",
        "q = Sign(x)",
        "s = Sign(x)\nq = Mul(s, half)",
        "q = Mul(x, x)",
        "r = Round(x)\nk = Clip(r, zero, three)\nz = Sigmoid(x)\nq = Mul(k, z)",
        "q = Softmax <axis=1> (x)",
        "k = Mul(x, zero)\nq = Round(k)",
    ],
)
def test_does_not_look_at_anything_else(text: str) -> None:
    ignored(model(text, **({"twenty": np.float32(20)} if "twenty" in text else {})))


def test_does_not_take_levels_that_are_repeated() -> None:
    """By a constant of another shape, one level per image becomes a map."""
    text = "g = GlobalAveragePool(x)\nb = Greater(g, quarter)\ns = Shape(x)\no = Expand(one, s)\nq = Where(b, o, zero)"
    ignored(model(text))


def test_does_not_take_steps_that_differ_by_channel() -> None:
    scales = {"s4": np.float32([1, 2, 3, 4]).reshape(4, 1, 1)}
    before = model("r = Round(x)\nk = Clip(r, zero, three)\nq = Mul(k, s4)", **scales)
    _, declined, modified = lower(before)
    assert modified == 0
    assert len(declined) == 1


def test_does_not_take_real_weights() -> None:
    real = {"w": np.random.default_rng(0).standard_normal((8, 4, 3, 3)).astype(np.float32)}
    declines(model(DOREFA, **real), "its weights are real-valued: filter 0 has |w| from")
    with pytest.raises(InputError, match="its input has few levels, but its weights are real-valued"):
        BinarizeWeights("auto")(model(DOREFA, **real))
    named = model(DOREFA, **real)
    assert BinarizeWeights("sign")(named).count == 1
    fires(named, "QuantizeLevels", "BinaryConvLevels")


def test_does_not_take_filters_that_are_zero() -> None:
    dead = weights(8, 4, 3, 3)
    dead[3] = 0
    with pytest.raises(InputError, match=r"Conv '.*': filter 3 is all zeros"):
        lower(model(DOREFA, w=dead))


def test_does_not_take_a_padding_of_another_level() -> None:
    layer = "p = Pad(q, pads, one)\ny = Conv(p, w)"
    declines(model(DOREFA, layer, pads=np.array([0, 0, 1, 1, 0, 0, 1, 1])), "Pad 'p' pads with other than 0")


def test_does_not_take_sums_that_are_not_exact() -> None:
    text, layer = DOREFA.replace("three", "fifteen"), "y = Gemm <transB=1> (q, w)"
    declines(
        model(text, layer, w=weights(1, 2**21), shape=("N", 2**21)),
        "each output sums 2097152 products of up to 15; exact sums need fewer than 2^24 / 15",
    )


def test_an_average_pool_is_not_looked_through() -> None:
    ignored(model(DOREFA, "p = AveragePool <kernel_shape=[2,2]> (q)\ny = Conv(p, w)"))


def test_the_quantiser_of_a_tensor() -> None:
    graph = model(NORM, **norm()).graph
    value = next(v for node in graph for v in node.outputs if v.name == "q")
    found = quantizer(value)
    assert isinstance(found, Quantizer)
    assert (found.data.name, found.before.name, found.bits, found.perm) == ("x", "n", 2, ())
    assert found.step == pytest.approx(1 / 3)
