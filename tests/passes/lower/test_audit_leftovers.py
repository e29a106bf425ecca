"""AuditLeftovers: no layer stays float without a reason, and those that look binary are marked."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.lower.audit_leftovers import AuditLeftovers
from bnn_deploy.passes.lower.lower_binary_conv import LowerBinaryConv
from bnn_deploy.passes.outcome import Decline
from bnn_deploy.passes.pipeline import to_binary
from support.graphs import copy, eighths, op_types, parse, weights
from support.reports import report_on

W = weights(8, 4, 3, 3)
CHANNELS = np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1)


def audit(model: ir.Model) -> list[Decline]:
    """Lower on a copy, then list what is left."""
    after = copy(model)
    lowered = LowerBinaryConv()(after)
    before = ir.to_proto(after).SerializeToString()
    result = AuditLeftovers(lowered.declined)(after)
    assert result.count == 0
    assert ir.to_proto(after).SerializeToString() == before, "the audit changes nothing"
    return result.declined


def test_lists_a_first_layer() -> None:
    (decline,) = audit(parse("a = Conv(x, u)\ns = Sign(a)\ny = Conv(s, w)", ("N", 3, 9, 9), w=W, u=eighths(4, 3, 3, 3)))
    assert (decline.node, decline.op_type, decline.has_sign_input) == ("a", "Conv", False)
    assert decline.reason == "its input is the model's real-valued input, not the output of a sign"


def test_lists_a_layer_behind_something_real_valued() -> None:
    (decline,) = audit(parse("r = Relu(x)\nf = Flatten(r)\ny = Gemm(f, u)", u=eighths(144, 5)))
    assert (decline.op_type, decline.has_sign_input) == ("Gemm", False)
    assert decline.reason == "its input is real-valued: the output of Relu, not of a sign"


def test_does_not_list_what_is_binary() -> None:
    assert audit(parse("s = Sign(x)\ny = Conv(s, w)", w=W)) == []


def test_marks_a_layer_of_signs_that_was_declined() -> None:
    (decline,) = audit(parse("s = Sign(x)\ny = Conv(s, w)", w=eighths(8, 4, 3, 3)))
    assert decline.has_sign_input
    assert "filter 0 has" in decline.reason or "real-valued" in decline.reason


@pytest.mark.parametrize(
    ("between", "stranger"),
    [
        ("c = Concat <axis=1> (s)\na = Pad(c, pads)", "Pad"),
        ("a = Transpose <perm=[0,1,3,2]> (s)", "Transpose"),
        ("t = Transpose <perm=[0,1,3,2]> (s)\na = Reshape(t, shape)", "Reshape"),
        ("p = Mul(per_channel, s)\na = Pad(p, pads)", "Pad"),
        ("a = Concat <axis=1> (s)", "Concat"),
    ],
)
def test_marks_a_layer_of_signs_behind_an_operator_that_no_pass_knows(between: str, stranger: str) -> None:
    """It looks as if it was meant to be binary, so `--strict` must not let it pass."""
    known = {"pads": PADS, "shape": SHAPE, "per_channel": CHANNELS}
    constants = {name: value for name, value in known.items() if name in between}
    (decline,) = audit(parse(f"s = Sign(x)\n{between}\ny = Conv(a, w)", w=W, **constants))
    assert decline.has_sign_input
    assert decline.reason == f"{stranger} stands between the sign and it, which no pass looks through"


def test_does_not_mark_an_average_of_signs() -> None:
    (decline,) = audit(parse("s = Sign(x)\na = AveragePool <kernel_shape=[2,2]> (s)\ny = Conv(a, w)", w=W))
    assert not decline.has_sign_input
    assert decline.reason == "its input is real-valued: the output of AveragePool, not of a sign"


def test_weights_shared_by_a_binary_and_a_float_layer() -> None:
    (decline,) = audit(parse("s = Sign(x)\ny = Conv(s, w)\nz = Conv(x, w)", outputs=("y", "z"), w=W))
    assert (decline.node, decline.has_sign_input) == ("z", False)


def test_a_sign_that_feeds_two_layers_one_of_which_stays() -> None:
    model = parse("s = Sign(x)\ny = Conv(s, w)\nz = Conv(s, u)", outputs=("y", "z"), w=W, u=eighths(8, 4, 3, 3))
    (decline,) = audit(model)
    assert (decline.node, decline.has_sign_input) == ("z", True)
    _, leftovers, _ = to_binary(model)
    assert leftovers == [decline]


def test_layers_of_the_same_name_keep_their_own_reasons() -> None:
    """Names need not be unique in ONNX."""
    model = parse("s = Sign(x)\ny = Conv(s, u)\nz = Conv(x, u)", outputs=("y", "z"), u=eighths(8, 4, 3, 3))
    for node in model.graph:
        node.name = "layer" if node.op_type == "Conv" else node.name
    _, leftovers, _ = to_binary(model)
    assert [(d.has_sign_input, "model's real-valued input" in d.reason) for d in leftovers] == [
        (True, False),
        (False, True),
    ]
    assert len({d.node for d in leftovers}) == 2


@pytest.mark.parametrize("op_type", ["ConvTranspose", "MatMul"])
def test_lists_every_kind_of_layer(op_type: str) -> None:
    text, u = (
        ("y = ConvTranspose(x, u)", eighths(4, 8, 3, 3))
        if op_type == "ConvTranspose"
        else ("y = MatMul(x, u)", eighths(6, 5))
    )
    (decline,) = audit(parse(text, u=u))
    assert decline.op_type == op_type
    assert op_types(parse(text, u=u)) == [op_type]


PADS = ir.tensor([0, 0, 1, 1, 0, 0, 1, 1]).numpy()
SHAPE = ir.tensor([0, 4, 6, 6]).numpy()


HEADS = weights(2, 12, 24)
ROUND = "c = Clip(x, zero, one)\na = Round(c)"


@pytest.mark.parametrize(
    ("nodes", "reason", "has_sign_input"),
    [
        ('s = Sign(x)\na = Concat<axis=1>(s, s)\ny = Einsum<equation="bthd,hdo->bto">(a, w)', "Einsum 'bthd,h", True),
        ('s = Sign(x)\ny = Einsum<equation="hdo,bthd->bto">(w, s)', "Einsum 'hdo,bthd->bto' is no linear", True),
        (f'{ROUND}\ny = Einsum<equation="bthd,hdo->bto">(a, w)', "Einsum 'bthd,hdo->bto' is no linear", True),
        ('r = Relu(x)\ny = Einsum<equation="bthd,hdo->bto">(r, w)', "its input is real-valued: the output of R", False),
    ],
)
def test_lists_an_einsum(nodes: str, reason: str, has_sign_input: bool) -> None:
    numbers = {name: np.float32(i) for i, name in enumerate(("zero", "one")) if name in nodes}
    _, (decline,), _ = to_binary(parse(nodes, ("N", 5, 2, 12), w=HEADS, **numbers))
    assert decline.reason.startswith(reason) and decline.has_sign_input == has_sign_input
    (layer,) = report_on(parse(nodes, ("N", 5, 2, 12), w=HEADS, **numbers))
    assert (layer.operator, layer.status, layer.inputs, layer.outputs) == ("Einsum", "float", 24, 24)
    assert layer.reason == decline.reason and layer.binary_in_training == has_sign_input


def test_does_not_list_an_einsum_of_one_operand() -> None:
    assert audit(parse('s = Sign(x)\ny = Einsum<equation="bchw->bc">(s)')) == []


@pytest.mark.parametrize(
    ("nodes", "parts"),
    [
        ("n = Neg(x)\nt = Sign(n)\na = Mul(t, half)\nc = Concat<axis=1>(s, a)", "'s' ±1; 'a' ±0.5"),
        ("t = Clip(x, zero, one)\na = Round(t)\nb = Concat<axis=1>(s, a)\nc = Pad(b, pads)", "'s' ±1; 'a' 0, 1"),
        ("t = Clip(x, zero, one)\na = Round(t)\nc = Concat<axis=1>(s, a, s)", "'s' ±1; 'a' 0, 1; 's' ±1"),
    ],
)
def test_names_the_parts_of_a_concat(nodes: str, parts: str) -> None:
    numbers = {"half": 0.5, "zero": 0.0, "one": 1.0, "pads": [0, 0, 1, 1, 0, 0, 1, 1]}
    constants = {name: np.array(number) for name, number in numbers.items() if name in nodes}
    constants = {name: array.astype(np.int64 if name == "pads" else np.float32) for name, array in constants.items()}
    model = parse(f"s = Sign(x)\n{nodes}\ny = Conv(c, w)", w=weights(8, 4 * len(parts.split(";")), 3, 3), **constants)
    _, (decline,), _ = to_binary(model)
    assert decline.reason.startswith(f"its input is a Concat of parts that have different values: {parts}")
    assert decline.has_sign_input


def test_does_not_name_parts_of_which_one_is_real_valued() -> None:
    model = parse("s = Sign(x)\nr = Relu(x)\nc = Concat<axis=1>(s, r)\ny = Conv(c, w)", w=weights(8, 8, 3, 3))
    _, (decline,), _ = to_binary(model)
    assert decline.reason.startswith("its input is real-valued: the output of Concat") and not decline.has_sign_input
