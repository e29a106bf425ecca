"""What convert says of torch.sign(0) = 0, where a bit is +1: which layers may see it, and how often they do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from bnn_deploy.cli import main
from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from support.graphs import batch_norm, parse, run_float, weights
from support.reports import report_on

NETWORK = "s = Sign(x)\nc = Conv(s, w)\nt = Sign(c)\ny = Conv(t, u)"
CONSTANTS = {"w": weights(8, 4, 3, 3), "u": weights(3, 8, 1, 1, seed=1)}
SUMS = "sums of \N{PLUS-MINUS SIGN}alpha"


def half_zero() -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 4, 6, 6)).astype(np.float32)
    x[rng.random(x.shape) < 0.5] = 0
    return x


def counts(layers: Any) -> list[tuple[int, int, int] | None]:
    found = [layer.exact_zeros for layer in layers]
    return [None if zeros is None else (zeros.zeros, zeros.values, zeros.samples) for zeros in found]


def test_zeros_are_counted_on_the_data(tmp_path: Path) -> None:
    model, x = parse(NETWORK, outputs=("y", "t"), **CONSTANTS), half_zero()
    signs = run_float(model, x)[1]
    layers = convert(model, tmp_path / "m.onnx", data=x).layers
    assert counts(layers) == [(int((x == 0).sum()), x.size, 12), (int((signs == 0).sum()), signs.size, 12)]
    assert (signs == 0).sum() > 50
    others = convert(model, tmp_path / "m.onnx", data=np.where(x == 0, np.float32(1), x)).layers
    assert counts(others)[0] == (0, x.size, 12), "of other data"
    few = convert(model, tmp_path / "m.onnx", data=x, samples=5).layers
    assert counts(few)[0] == (int((x[:5] == 0).sum()), x[:5].size, 5)


def test_without_data_what_may_be_0_is_counted_on_random_inputs(tmp_path: Path) -> None:
    behind = "n = BatchNormalization(c, g, b, m, v)"
    layers = convert(parse(NETWORK, **CONSTANTS), tmp_path / "m.onnx").layers
    assert [layer.zero_cause for layer in layers] == ["the model's input", SUMS]
    (zeros, values, samples) = counts(layers)[1] or (0, 0, 0)
    assert zeros > 50 and (values, samples) == (8 * 8 * 16, 8)
    model = parse(NETWORK.replace("t = Sign(c)", f"{behind}\nt = Sign(n)"), **CONSTANTS, **batch_norm(8))
    layer = convert(model, tmp_path / "m.onnx").layers[1]
    assert (layer.zero_cause, layer.exact_zeros) == (None, None)


@pytest.mark.parametrize("exact", [True, False])
def test_nothing_is_said_of_signs_that_stay_what_they_are(exact: bool, tmp_path: Path) -> None:
    where = "a = GreaterOrEqual(x, zero)\ns = Where(a, one, minus)\ny = Conv(s, w)"
    numbers = {"zero": np.float32(0), "one": np.float32(1), "minus": np.float32(-1)}
    model = parse(NETWORK, **CONSTANTS) if exact else parse(where, w=CONSTANTS["w"], **numbers)
    result = convert(model, tmp_path / "m.onnx", data=half_zero(), sign_zero="exact" if exact else "plus")
    for layer in result.layers:
        assert layer.sign_of_zero == layer.converted_sign_of_zero == (0 if exact else 1)
        assert layer.exact_zeros is None
    with pytest.raises(InputError, match=r"the inputs have shape \[2, 3\]"):
        convert(model, tmp_path / "m.onnx", data=np.zeros((2, 3), np.float32), sign_zero="exact")


@pytest.mark.parametrize(
    ("nodes", "cause"),
    [
        ("s = Sign(x)\nd = Conv(s, w)\np = MaxPool<kernel_shape=[2,2]>(d)\nq = Mul(p, half)\nz = Neg(q)", SUMS),
        ("s = Sign(x)\nd = Conv(s, w, bias)\nz = Identity(d)", None),
        ("z = Conv(x, w)", None),
        ("n = Conv(x, w)\ng = Gelu(n)\nz = Mul(g, half)", "a Gelu"),
        ("n = Conv(x, w)\ns = Sign(x)\nc = Conv(s, w)\nz = Add(n, c)", None),
        ("s = Sign(x)\nc = Conv(s, w)\nd = Conv(s, v)\nz = Add(c, d)", SUMS),
        ("z = Sub(x, half)", None),
        ("z = Clip(x, minus)", "the model's input"),
    ],
)
def test_causes(nodes: str, cause: str | None) -> None:
    body = f"{nodes}\nt = Sign(z)\ny = Conv(t, u)"
    v, bias, half = weights(8, 4, 3, 3, seed=3), np.ones(8, np.float32), np.float32(0.5)
    shape = weights(3, 4 if "x, half" in nodes or "Clip" in nodes else 8, 1, 1)
    used = {"w": CONSTANTS["w"], "v": v, "bias": bias, "minus": np.float32(-1), "half": half}
    model = parse(body, ("N", 4, 6, 6), u=shape, **{key: array for key, array in used.items() if key in nodes})
    assert report_on(model)[-1].zero_cause == cause


def test_the_command_offers_to_keep_them(tmp_path: Path) -> None:
    onnx.save(ir.to_proto(parse(NETWORK, **CONSTANTS)), tmp_path / "f.onnx")
    np.save(tmp_path / "x.npy", half_zero())
    arguments = ["convert", f"{tmp_path}/f.onnx", "-o", f"{tmp_path}/m.onnx", "--data", f"{tmp_path}/x.npy"]
    text = CliRunner().invoke(main, arguments).stdout
    zeros = int((half_zero() == 0).sum())
    assert f"c      {zeros} of 1,728 values on 12 samples" in text
    assert "--sign-zero exact keeps the 0" in text and f"Counted on {tmp_path}/x.npy." in text
    layers = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)["layers"]
    expected = {"zeros": zeros, "values": 1728, "samples": 12, "inputs": f"{tmp_path}/x.npy"}
    assert layers[0]["exact_zeros"] == expected
    few = json.loads(CliRunner().invoke(main, [*arguments, "--samples", "5", "--json"]).stdout)["layers"]
    assert few[0]["exact_zeros"]["samples"] == 5
    np.save(tmp_path / "x.npy", np.abs(half_zero()) + 1)
    text = CliRunner().invoke(main, arguments).stdout
    assert "c      0 of 1,728 values on 12 samples" in text
    kept = CliRunner().invoke(main, [*arguments, "--sign-zero", "exact"]).stdout
    assert "exact zeros" not in kept and "Counted on" not in kept
