"""The Python API as a notebook and an editor see it: its names, its types, and what its results show."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bnn_deploy
from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.notebook import SHOWN_ROWS, NotebookResult
from bnn_deploy.proof.golden.check import GoldenVerification
from bnn_deploy.proof.results import LayerResult, Tolerances, Verification
from bnn_deploy.runtime.inputs import InputSpec, load_data
from support.converted import Converted


def test_dir_shows_what_is_public_alone() -> None:
    code = "import bnn_deploy; bnn_deploy.convert; print(*dir(bnn_deploy))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert shown == sorted(bnn_deploy.__all__)
    assert {"convert", "verify", "profile", "load_session"} <= set(shown)
    assert not {"annotations", "importlib", "errors", "TYPE_CHECKING", "version"} & set(shown)
    assert all(getattr(bnn_deploy, name) is not None for name in shown)


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(bnn_deploy.__file__).parent / "py.typed").is_file()


def verification(passed: bool = True, **more: Any) -> Verification:
    layers = [LayerResult("<conv>", "conv_out", "bits", values=100, passed=passed, margin=0.0 if passed else 2.0)]
    return Verification("m.onnx", "PyTorch", "random", 32, 0, [], Tolerances(), layers=layers, **more)


def test_a_failed_proof_is_false() -> None:
    assert verification() and not verification(passed=False)
    golden = GoldenVerification("m.onnx", "g.npz", 1, 0, [], 1e-4, {})
    assert golden and not replace(golden, errors=["the kernels did not run"])


def test_results_are_short_in_a_notebook(lenet5: Converted) -> None:
    passed, failed = verification(), verification(passed=False)
    assert repr(passed) == "<Verification: m.onnx PASSED against PyTorch, 32 samples, 1 layers>"
    assert "FAILED" in repr(failed) and "FAILED" in failed._repr_html_()
    profiled = bnn_deploy.profile(lenet5.model, runs=1)
    for result in (lenet5.conversion, profiled):
        assert isinstance(result, NotebookResult)
        assert result.headline() in repr(result) and len(repr(result)) < 300 and "\n" not in repr(result)
        assert result._repr_html_().count("<tr>") == min(len(result.rows()), SHOWN_ROWS) + 1


def test_html_is_escaped_and_long_tables_are_cut() -> None:
    text = verification(notes=["<script>alert(1)</script>"])._repr_html_()
    assert "&lt;conv&gt;" in text and "&lt;script&gt;" in text
    assert "<conv>" not in text and "<script>" not in text
    many = verification()
    many.layers *= SHOWN_ROWS + 3
    assert "and 3 more rows" in many._repr_html_() and many._repr_html_().count("<tr>") == SHOWN_ROWS + 1


def test_results_as_data_frames(lenet5: Converted) -> None:
    import pandas

    frame = lenet5.conversion.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["name"]) == [layer.name for layer in lenet5.conversion.layers]
    outputs_only = verification()
    outputs_only.layers = []
    assert len(outputs_only.to_dataframe()) == 0 and list(verification().to_dataframe()["layer"]) == ["<conv>"]


def test_without_pandas_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SetupError, match="needs the package pandas"):
        verification().to_dataframe()


X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)

TAKEN: dict[str, tuple[str, Any]] = {
    "a tensor": ("float32", torch.from_numpy(X)),
    "one with a gradient": ("float32", torch.from_numpy(X).requires_grad_()),
    "one by name": ("float32", {"x": torch.from_numpy(X)}),
    "float64": ("float32", X.astype(np.float64)),
    "float16": ("float32", X.astype(np.float16)),
    "bfloat16": ("float32", torch.from_numpy(X).bfloat16()),
    "lists": ("float32", X.tolist()),
    "int64 as bytes": ("uint8", np.full((4, 3), 255)),
    "bytes as int64": ("int64", np.full((4, 3), 255, np.uint8)),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_taken_for_an_array(case: str) -> None:
    dtype, data = TAKEN[case]
    (got,) = load_data(data, torch.arange(4), None, [InputSpec("x", dtype, ("N", 3))]).arrays.values()
    expected = data["x"] if isinstance(data, dict) else data
    expected = expected.detach().float().numpy() if isinstance(expected, torch.Tensor) else np.asarray(expected)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, expected.astype(dtype))


REFUSED: dict[str, tuple[str, Any, str]] = {
    "bytes for floats": (
        "float32",
        np.zeros((4, 3), np.uint8),
        "the inputs are uint8; the network needs float32",
    ),
    "integers for floats": ("float32", np.zeros((4, 3), np.int64), "the inputs are int64; the network needs float32"),
    "floats for bytes": ("uint8", X, "the inputs are float32; the network needs uint8: images as they are"),
    "integers beyond a byte": ("uint8", np.full((4, 3), 256), "the inputs hold numbers beyond the range of uint8"),
    "integers below 0": ("uint8", np.full((4, 3), -1), "the inputs hold numbers beyond the range of uint8"),
    "float64 beyond float32": ("float32", np.full((4, 3), 1e300), "hold numbers beyond the range of float32"),
    "objects": ("float32", np.array([[{}] * 3] * 4), "ndarray is no array of numbers"),
    "texts": ("float32", [["a"] * 3] * 4, "list is no array of numbers"),
    "ragged lists": ("float32", [[1.0], [1.0, 2.0]], "list is no array"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_mean_something_else_is_refused(case: str) -> None:
    dtype, data, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        load_data(data, None, None, [InputSpec("x", dtype, ("N", 3))])
