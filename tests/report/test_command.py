"""The files that the report is written to, and what the command line prints of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from bnn_deploy.cli import main
from bnn_deploy.conversion import convert
from bnn_deploy.errors import BnnDeployError, InputError
from support.converted import Converted
from support.graphs import batch_norm, eighths, parse, weights
from support.reports import SIGN_CONV, W, with_weight


def small() -> ir.Model:
    """A binary layer, and one that reads a sign with real-valued weights."""
    return parse("s = Sign(x)\nc = Conv(s, w)\nt = Sign(c)\ny = Conv(t, u)", w=W, u=eighths(3, 8, 1, 1) + 2)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_report_is_what_the_command_prints_as_json(tmp_path: Path) -> None:
    ir.save(small(), tmp_path / "f.onnx")
    arguments = ["convert", tmp_path / "f.onnx", "-o", tmp_path / "m.onnx", "--weights", "as-is"]
    result = run(*arguments, "--report", tmp_path / "r.json", "--json")
    assert result.exit_code == 0, result.output
    written, printed = json.loads((tmp_path / "r.json").read_text()), json.loads(result.stdout)
    assert (written["format"], written["version"]) == ("bnn-deploy conversion", 1)
    assert written["source"] == str(tmp_path / "f.onnx")
    assert written["counts"] == {"binary": 1, "float": 1}
    assert {key: printed[key] for key in written} == written
    result = run(*arguments, "--report", tmp_path / "r.json")
    assert f"and {tmp_path}/r.json" in result.stdout.splitlines()[-1]
    assert "-> if they are latent, say by which recipe" in result.stdout
    assert "WARNING: 1 layer reads a sign but stays float, see above: y" in result.stdout


def test_latent_weights_are_named_with_their_zeros(tmp_path: Path) -> None:
    latent = with_weight(0, source=W * (eighths(8, 4, 3, 3, seed=5) + np.float32(2)))
    model = parse("s = Sign(x)\ny = Conv(s, w)", w=latent)
    (layer,) = convert(model, tmp_path / "m.onnx", weights="xnor-centred").layers
    assert (layer.weights, layer.latent_zeros, layer.zeros) == ("latent, binarised by xnor-centred", 1, 0)
    (layer,) = convert(parse("s = Sign(x)\ny = Conv(s, w)", w=latent + 4), tmp_path / "m.onnx", weights="xnor").layers
    assert (layer.weights, layer.latent_zeros) == ("latent, binarised by xnor", 0)


def test_the_advice_for_latent_weights_works(tmp_path: Path) -> None:
    latent = np.random.default_rng(5).standard_normal((3, 8, 3, 3), np.float32)
    model = parse("s = Sign(x)\nc = Conv(s, w)\nt = Sign(c)\ny = Conv(t, u)", w=W, u=latent)
    before = convert(model, tmp_path / "m.onnx", weights="as-is", float_output=tmp_path / "f.onnx").layers[1]
    assert before.status == "float" and before.advice is not None
    assert "weights='xnor', xnor-centred or sign" in before.advice and "the float model, float_output" in before.advice
    after = convert(tmp_path / "f.onnx", tmp_path / "m.onnx", weights="xnor").layers[1]
    assert (after.status, after.weights) == ("binary", "latent, binarised by xnor")


def test_channels_that_never_change_are_named_by_their_layer(tmp_path: Path) -> None:
    norm = batch_norm(4, gamma=[1, 0, 1, 1])
    text = (
        "n = BatchNormalization(x, g, b, m, v)\ns = Sign(n)\nc = Conv(s, w)\nd = Add(c, t)\ne = Sign(d)\ny = Conv(e, u)"
    )
    shift = np.zeros((8, 1, 1), np.float32)
    shift[2], shift[5] = 100, -100
    model = parse(text, w=W, u=weights(3, 8, 1, 1), t=shift, **norm)
    result = convert(model, tmp_path / "m.onnx")
    assert result.constant_channels == (("the input of c", 1, 4), ("the output of c", 2, 8))
    unchanged = parse(text, w=W, u=weights(3, 8, 1, 1), t=np.full((8, 1, 1), 1 / 16, np.float32), **batch_norm(4))
    assert convert(unchanged, tmp_path / "m.onnx").constant_channels == ()


def test_channels_of_a_residual_block_that_never_change_are_named(tmp_path: Path) -> None:
    """BatchNorm with gamma 0 behind the shortcut: no sum reaches the threshold, or every one does."""
    text = (
        "s = Sign(x)\nc = Conv <pads=[1,1,1,1]> (s, w)\na = Add(c, x)\nn = BatchNormalization(a, g, b, m, v)\n"
        "t = Sign(n)\nd = Conv <pads=[1,1,1,1]> (t, u)\ny = Add(d, a)"
    )
    constants = {"w": weights(8, 8, 3, 3), "u": weights(8, 8, 3, 3, seed=1)}
    for gamma, expected in ((1, ()), (0, (("the output of c", 1, 8),))):
        norm = batch_norm(8, gamma=[1, 1, gamma, 1, 1, 1, 1, 1])
        result = convert(parse(text, ("N", 8, 6, 6), **constants, **norm), tmp_path / "m.onnx")
        assert result.layers[0].becomes == "BinaryConvResidual"
        assert result.constant_channels == expected


def test_strict_writes_the_report_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(
        BnnDeployError,
        match=r"strict=True: 1 layer whose input is a sign or has few levels stays float: .*; see .*r\.json$",
    ):
        convert(small(), tmp_path / "m.onnx", weights="as-is", strict=True, report=tmp_path / "r.json")
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    rng = np.random.default_rng(0)
    many = rng.choice(rng.standard_normal(9, np.float32), W.shape)
    two = parse("s = Sign(x)\na = Conv(s, u)\nb = Conv(s, v)\ny = Add(a, b)", u=many, v=-many)
    with pytest.raises(BnnDeployError, match=r"2 layers .* stay float: Conv 'a', Conv 'b': filter 0 has 9 values"):
        convert(two, tmp_path / "m.onnx", strict=True)
    layers = json.loads((tmp_path / "r.json").read_text())["layers"]
    assert [layer["binary_in_training"] for layer in layers] == [False, True]
    convert(parse(SIGN_CONV, w=W), tmp_path / "m.onnx", strict=True)


def test_the_report_says_why_no_layer_is_binary(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no layer of the model is binary: .*; see "):
        convert(parse("y = Conv(x, w)", w=W), tmp_path / "m.onnx", report=tmp_path / "r.json")
    (layer,) = json.loads((tmp_path / "r.json").read_text())["layers"]
    assert (layer["status"], layer["weights"]) == ("float", "constant, two-valued")


@pytest.mark.parametrize(
    ("report", "text"),
    [
        ("f.onnx", "is the model itself"),
        ("m.onnx", "asked for twice, for the binary model and for the report"),
        ("no/r.json", "does not exist"),
    ],
)
def test_refused_reports(report: str, text: str, tmp_path: Path) -> None:
    ir.save(small(), tmp_path / "f.onnx")
    before = (tmp_path / "f.onnx").read_bytes()
    result = run("convert", tmp_path / "f.onnx", "-o", tmp_path / "m.onnx", "--report", tmp_path / report)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert text in line
    assert [path.name for path in tmp_path.iterdir()] == ["f.onnx"]
    assert (tmp_path / "f.onnx").read_bytes() == before


def test_printed_at_100_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nin: Converted) -> None:
    """No line is longer, and no layer's name is broken."""
    from bnn_deploy.cli import console
    from bnn_deploy.cli.layer_table import print_layers
    from bnn_deploy.inspection import inspect_model

    printed: list[str] = []
    monkeypatch.setattr(console.click, "echo", lambda text, **_: printed.append(text))
    monkeypatch.setattr(console.out, "_force_terminal", True)
    monkeypatch.setattr(console.out, "_width", 100)
    monkeypatch.setattr(console.out, "_height", 50)
    print_layers(nin.conversion.report, inspect_model(nin.float_model), inspect_model(nin.model))
    lines = "\n".join(printed).splitlines()
    assert max(map(len, lines)) <= 100
    for layer in nin.conversion.layers:
        assert any(line.startswith(f"{layer.name} ") for line in lines)
    assert sum("as in the papers, whose first layers stay float" in line for line in lines) == 1


def test_what_is_the_same_in_all_layers_is_no_table(tmp_path: Path) -> None:
    nodes = "s = Sign (x)\na = Conv (s, v)\nb = Conv (s, w)"
    model = parse(nodes, outputs=("a", "b"), v=weights(5, 4, 3, 3), w=weights(6, 4, 3, 3, seed=1))
    ir.save(model, tmp_path / "f.onnx")
    result = run("convert", tmp_path / "f.onnx", "-o", tmp_path / "m.onnx")
    assert result.exit_code == 0, result.output
    (line,) = (line for line in result.stdout.splitlines() if "made of" in line)
    assert "What all 2 layers are made of: activation: Sign(x); sign(0): 0, here +1; weights: constant, two-" in line
