"""--zero-weights: weights that are exactly 0 among ±alpha become ±alpha, counted, and judged against the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from bnn_deploy.cli import main
from bnn_deploy.conversion import convert
from bnn_deploy.proof.results import Tolerances
from bnn_deploy.proof.verification import verify
from bnn_deploy.provenance import ZERO_WEIGHTS_KEY
from bnn_deploy.runtime.session import load_session
from bnn_deploy.source.zero_weights import fill_zero_weights
from support.golden_files import BEST
from support.graphs import batch_norm, parse, run_float, weights

NETWORK = "s = Sign(x)\nc = Conv(s, w)\nn = BatchNormalization(c, g, b, m, v)\nt = Sign(n)\ny = Conv(t, u)"


def network(zeros: int) -> onnx.ModelProto:
    """Two binary layers on [N, 16, 4, 4] with calibrated BatchNorm; of the first one's weights, some are 0."""
    w, rng = weights(32, 16, 3, 3), np.random.default_rng(1)
    w.flat[rng.choice(w.size, zeros, replace=False)] = 0
    norm = batch_norm(32)
    (sums,) = run_float(parse("s = Sign(x)\ny = Conv(s, w)", ("N", 16, 4, 4), w=w), data(64, seed=1))
    norm |= {"m": sums.mean((0, 2, 3)), "v": sums.var((0, 2, 3))}
    return ir.to_proto(parse(NETWORK, ("N", 16, 4, 4), w=w, u=weights(5, 32, 2, 2, seed=1), **norm))


def data(count: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 16, 4, 4)).astype(np.float32)


def prove(model: Path, source: Any, **options: Any) -> Any:
    return verify(model, source, data=data(), isas=BEST, reference_samples=0, **options)


@pytest.mark.usefixtures("small_sums_pay")
def test_one_zero_costs_no_second_basis(tmp_path: Path) -> None:
    source = network(zeros=2)
    kept = convert(source, tmp_path / "kept.onnx")
    assert [layer.becomes for layer in kept.layers] == ["BinaryConvBases", "BinaryConv"]
    result = convert(source, tmp_path / "m.onnx", zero_weights="plus")
    assert [layer.becomes for layer in result.layers] == ["BinaryConvThreshold", "BinaryConv"]
    assert [(layer.zeros, layer.filled_zeros) for layer in result.layers] == [(2, 2), (0, 0)]
    assert "weights that are exactly 0 became +alpha: 2 of c" in result.report.notes[-1]
    proof = prove(result.output, source)
    assert proof.passed and proof.filled == {"c": 2}, proof.failures
    assert proof.source[0].agreeing >= 14 and proof.source[0].max_error > 0, "the untouched source beside it"
    # The layers are held against the weights that the model says it has: of the other sign, they differ.
    other = onnx.load(result.output)
    (entry,) = (entry for entry in other.metadata_props if entry.key == ZERO_WEIGHTS_KEY)
    entry.value = "minus"
    onnx.save(other, tmp_path / "other.onnx")
    assert "layer 'c'" in prove(tmp_path / "other.onnx", source).failures[0]


def test_zeros_that_matter_fail_against_the_source(tmp_path: Path) -> None:
    source = network(zeros=1500)
    model = convert(source, tmp_path / "m.onnx", zero_weights="plus").output
    (failure,) = prove(model, source).failures
    assert failure.startswith("with the weights that zero_weights changed, only ")
    assert prove(model, source, tolerances=Tolerances(min_agreement=0)).passed


def test_a_module_that_computes_its_weights(tmp_path: Path) -> None:
    class Net(nn.Module):
        input_shape = (16, 4, 4)

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.weight, self.last = nn.Parameter(torch.randn(32, 16, 3, 3)), nn.Linear(128, 4)
            self.weight.data[3, 2, 1, 0] = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(nn.functional.conv2d(x.sign(), self.weight.sign()).flatten(1))

    module = Net().eval()
    result = convert(module, tmp_path / "m.onnx", zero_weights="minus")
    assert result.layers[0].becomes == "BinaryConv" and result.layers[0].filled_zeros == 1
    proof = prove(result.output, module)
    assert proof.passed and list(proof.filled.values()) == [1]
    assert proof.source[0].backend.startswith("PyTorch") and proof.source[0].close < 16


def test_the_commands_say_it(tmp_path: Path) -> None:
    onnx.save(network(zeros=1), tmp_path / "f.onnx")
    np.save(tmp_path / "x.npy", data())
    paths = [f"{tmp_path}/{name}" for name in ("f.onnx", "m.onnx", "x.npy")]
    made = CliRunner().invoke(main, ["convert", paths[0], "-o", paths[1], "--zero-weights", "plus"]).stdout
    assert "note: --zero-weights plus: weights that are exactly 0 became +alpha: 1 of c; verify" in made
    arguments = ["verify", paths[1], "--against", paths[0], "--data", paths[2], "--isa", BEST[0]]
    said = CliRunner().invoke(main, arguments).stdout
    assert "1 weight of the source that are exactly 0 (1 of c) are \N{PLUS-MINUS SIGN}alpha in reference" in said


def test_without_zeros_nothing_is_done(tmp_path: Path) -> None:
    source = network(zeros=0)
    plain = convert(source, tmp_path / "plain.onnx").output
    result = convert(source, tmp_path / "m.onnx", zero_weights="plus")
    assert result.output.read_bytes() == plain.read_bytes()
    assert result.report.notes == ("zero_weights='plus': no weight of a binary layer is exactly 0",)


def test_which_weights_are_filled() -> None:
    """Of layers with real-valued inputs, only rare zeros; never real weights, nor filters that are all zeros."""
    one = weights(8, 4, 5, 5)
    one[2, 1, 0, 0] = 0
    half = np.where(np.random.default_rng(0).random(one.shape) < 0.5, 0, one).astype(np.float32)
    dead = half.copy()
    dead[4] = 0
    real = one * np.random.default_rng(0).random(one.shape).astype(np.float32)
    for nodes, w, count in (
        ("y = Conv(x, w)", one, 1),
        ("y = Conv(x, w)", half, 0),
        ("s = Sign(x)\ny = Conv(s, w)", half, int((half == 0).sum())),
        ("s = Sign(x)\ny = Conv(s, w)", dead, int((np.delete(dead, 4, 0) == 0).sum())),
        ("s = Sign(x)\ny = Conv(s, w)", real, 0),
    ):
        model = parse(nodes, ("N", 4, 6, 6), w=w)
        assert sum(fill_zero_weights(model, "plus")[1].values()) == count, (nodes, count)


def test_weights_in_8_bits_are_filled(tmp_path: Path) -> None:
    """As a quantiser stores ternary ones; the report reads them, too."""
    w = np.sign(weights(8, 4, 3, 3)).astype(np.int8)
    w[2, 1, 0, :2] = 0
    nodes = "s = Sign(x)\nd = DequantizeLinear(w, scale)\ny = Conv(s, d)"
    source = parse(nodes, ("N", 4, 6, 6), w=w, scale=np.float32(0.5))
    (layer,) = convert(source, tmp_path / "m.onnx", zero_weights="minus").layers
    assert (layer.becomes, layer.kernel, layer.zeros, layer.filled_zeros) == ("BinaryConv", (3, 3), 2, 2)
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
    w[w == 0] = -1
    (expected,) = run_float(parse(nodes, ("N", 4, 6, 6), w=w, scale=np.float32(0.5)), x)
    (got,) = load_session(tmp_path / "m.onnx").run(None, {"x": x})
    assert np.array_equal(got, expected) and not np.array_equal(got, run_float(source, x)[0])
