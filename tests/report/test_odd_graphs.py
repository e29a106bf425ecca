"""Less usual graphs: exact, or with a reason."""

from __future__ import annotations

import numpy as np
import pytest

from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.quantities import TIMES
from support.graphs import assert_same, batch_norm, equal, parse, run_binary, run_float, samples, weights
from support.reports import W, report_on


@pytest.mark.parametrize("pads", [0, 1])
@pytest.mark.parametrize(("group", "dilation"), [(1, 2), (2, 1), (4, 2)])
def test_grouped_and_dilated_convolutions(group: int, dilation: int, pads: int) -> None:
    text = (
        f"s = Sign(x)\nc = Conv<group={group}, dilations=[{dilation},{dilation}], pads=[{pads},{pads},{pads},{pads}]>"
        "(s, w)\nn = BatchNormalization(c, g, b, m, v)\nt = Sign(n)\ny = Conv(t, last)"
    )
    model = parse(
        text,
        ("N", 4, 9, 9),
        w=weights(8, 4 // group, 3, 3),
        last=weights(3, 8, 1, 1),
        **batch_norm(8, gamma=[1, -1] * 4),
    )
    assert_same(model, to_binary(model)[0])
    layer = report_on(model)[0]
    assert (layer.group, layer.dilations, layer.status) == (group, (dilation, dilation), "binary")
    assert layer.shape == f"3{TIMES}3 4→8" + f" d{dilation}" * (dilation > 1) + f" g{group}" * (group > 1)


CONCAT = {
    "of signs": "s = Sign(x)\nb = Neg(x)\nt = Sign(b)\na = Concat<axis=1>(s, t)",
    "of two magnitudes": "s = Sign(x)\nb = Neg(x)\nt = Sign(b)\nm = Mul(t, two)\na = Concat<axis=1>(s, m)",
    "behind the advice": "b = Neg(x)\nc = Concat<axis=1>(x, b)\na = Sign(c)",
    "of a sign and something real": "s = Sign(x)\nb = Neg(x)\na = Concat<axis=1>(s, b)",
}


def test_a_concat_of_signs() -> None:
    """It is the sign of the Concat; that of two magnitudes is declined, and so is one of a sign and something real."""
    # The bias keeps sums away from exact zeros.
    constants = {"w": weights(8, 8, 3, 3), "k": np.full(8, 1 / 16, np.float32), "u": weights(3, 8, 1, 1)}
    models = [
        parse(
            f"{text}\nd = Conv(a, w, k)\ne = Sign(d)\ny = Conv(e, u)",
            **constants,
            **({"two": np.float32(2)} if "two" in text else {}),
        )
        for text in CONCAT.values()
    ]
    signs, scaled, advised, mixed = (report_on(model)[0] for model in models)
    assert (signs.status, signs.activation) == ("binary", "Sign(x)")
    assert (scaled.status, scaled.binary_in_training) == ("float", True)
    assert scaled.reason == "its input is a Concat of parts that have different values: 's' ±1; 'm' ±2"
    assert scaled.advice is not None and "a layer of its own" in scaled.advice
    assert (mixed.status, mixed.binary_in_training, mixed.activation) == ("float", False, None)
    assert mixed.reason == "its input is real-valued: the output of Concat, not of a sign"
    assert advised.status == "binary"
    assert equal(run_float(models[0], samples(models[0])), run_float(models[2], samples(models[2])))
    for model in models:
        x = samples(model)
        assert equal(run_binary(to_binary(model)[0], x, True), run_float(model, x))


def test_one_sign_to_many_consumers() -> None:
    text = (
        "s = Sign(x)\na = Conv(s, w)\nb = Conv(s, u)\nf = Flatten(s)\nc = MatMul(f, v)\n"
        "y = Add(a, b)\nz = ReduceMean<keepdims=0>(s, axis)"
    )
    model = parse(
        text,
        outputs=("y", "z", "c"),
        w=W,
        u=weights(8, 4, 3, 3, seed=1),
        v=weights(144, 5),
        axis=np.array([2, 3]),
    )
    assert_same(model, to_binary(model)[0])
    assert [layer.status for layer in report_on(model)] == ["binary"] * 3


def test_an_average_pool_behind_a_binary_layer() -> None:
    pool = "AveragePool<kernel_shape=[2,2],strides=[2,2]>"
    text = f"s = Sign(x)\na = Conv(s, w, c)\np = {pool}(a)\nt = Sign(p)\ny = Conv(t, u)"
    # The bias keeps averages away from exact zeros.
    model = parse(text, w=W, u=weights(3, 8, 1, 1), c=np.full(8, 1 / 16, np.float32))
    assert_same(model, to_binary(model)[0])
    first, second = report_on(model)
    assert (first.becomes, first.fused, second.status) == ("BinaryConv", ("bias",), "binary")
    assert second.binarisation == ("AveragePool",)
