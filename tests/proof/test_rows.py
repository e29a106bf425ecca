"""The proof of networks with tensors whose first dimension is not the batch: [N * T, C], [T, N, C]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from bnn_deploy import convert, verify
from bnn_deploy.proof.margins import rows_of
from support.damage import Damage, flip_weight_bit
from support.graphs import parse, weights

NETWORK = """
a = MatMul(x, w0)
f = Reshape(a, rows)
s = Sign(f)
b = MatMul(s, w1)
v = Reshape(b, back)
p = Transpose <perm=[1, 0, 2]> (v)
t = Sign(p)
e = MatMul(t, w2)
g = Add(e, bias)
y = ReduceMean <keepdims=0> (g, axes)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    rng = np.random.default_rng(7)
    model = parse(
        NETWORK,
        ("N", 5, 24),
        w0=rng.standard_normal((24, 41)).astype(np.float32),
        w1=weights(41, 33),  # sums of an odd number of ±1 are never 0
        w2=weights(33, 10, seed=2),
        bias=rng.standard_normal(10).astype(np.float32),
        rows=np.array([-1, 41]),
        back=np.array([-1, 5, 33]),
        axes=np.array([0]),
    )
    folder = tmp_path_factory.mktemp("rows")
    paths = folder / "m.onnx", folder / "f.onnx"
    conversion = convert(model, paths[0], float_output=paths[1])
    assert conversion.binary_layers == ("b", "e")
    return paths


@pytest.mark.parametrize(("samples", "few"), [(5, 2), (7, 3), (4, 4)])  # 5 samples of 5 rows: no size tells them apart
def test_passes(files: tuple[Path, Path], samples: int, few: int) -> None:
    x = np.random.default_rng(1).standard_normal((samples, 5, 24)).astype(np.float32)
    result = verify(*files, data=x, reference_samples=few)
    assert result.passed, result.failures
    assert {layer.layer: layer.values for layer in result.layers}["b"] == samples * 5 * 33


@pytest.mark.parametrize("layer", ["b", "e"])
def test_fails_with_a_flipped_weight(files: tuple[Path, Path], tmp_path: Path, layer: str) -> None:
    wrong = onnx.load(files[0])
    flip_weight_bit(Damage(wrong), layer)
    onnx.save(wrong, tmp_path / "wrong.onnx")
    x = np.random.default_rng(1).standard_normal((7, 5, 24)).astype(np.float32)
    result = verify(tmp_path / "wrong.onnx", files[1], data=x, reference_samples=2)
    assert not result.passed and any(f"'{layer}'" in line for line in result.failures)


def test_rows_of() -> None:
    assert rows_of(1, 4, 4) == slice(1, 2)
    assert rows_of(1, 4, 20) == slice(5, 10)  # [N * T, C]
    assert rows_of(7, 20, 4) == slice(1, 2)  # outputs [N * T, classes], a tensor [N, ...]
    assert rows_of(1, 4, 7) == slice(0, 7)
