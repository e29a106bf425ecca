"""Layers of few values that no pass reads have that as their reason, and fail --strict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.conversion import convert
from bnn_deploy.errors import BnnDeployError
from bnn_deploy.passes.lower import few_values
from bnn_deploy.passes.pipeline import to_binary
from support.graphs import eighths, parse, weights

W = weights(8, 4, 3, 3)
MEAN = "s = Sign(x)\na = Abs(x)\nm = ReduceMean<keepdims=1>(a, axes)\nz = Mul(s, m)\ny = Conv(z, w)"


def reasons(text: str, **constants: Any) -> list[tuple[str, bool]]:
    """Why the layers of a graph stay float, and whether they look as if they were meant to be binary."""
    _, left, _ = to_binary(parse(text, w=W, **constants))
    return [(decline.reason, decline.has_sign_input) for decline in left]


@pytest.mark.parametrize(
    ("text", "constants", "what"),
    [
        ("s = Sign(x)\na = Sin(s)\ny = Conv(a, w)", {}, "2 values (-0.8415, 0.8415)"),
        (
            MEAN.replace("Mul(s,", "Mul(b,").replace("\na", "\nb = Sin(s)\na"),
            {"axes": np.array([1, 2, 3])},
            "one magnitude per sample",
        ),
        (
            "b = Mul(x, large)\na = Clip(b, minus, one)\ny = Conv(a, w)",
            {"large": np.float32(1e9), "minus": np.float32(-1), "one": np.float32(1)},
            "2 values (-1, 1)",
        ),
        (MEAN, {"axes": np.array([2, 3])}, "one magnitude per sample and channel"),
        (MEAN, {"axes": np.array([1])}, "one magnitude per position"),
        (MEAN, {"axes": np.array([0, 2, 3])}, "one magnitude per channel"),
    ],
)
def test_few_values_are_the_reason(text: str, constants: dict[str, Any], what: str) -> None:
    ((reason, has_sign_input),) = reasons(text, **constants)
    assert reason.endswith(f"has only {what} on random inputs, but is no sign that a pass reads")
    assert has_sign_input


@pytest.mark.parametrize(
    "text",
    [
        "a = Sin(x)\ny = Conv(a, w)",
        "s = Sign(x)\nt = Tanh(x)\na = Add(s, t)\ny = Conv(a, w)",
        "s = Sign(x)\na = Mul(s, x)\ny = Conv(a, w)",
        "b = Mul(x, large)\na = Relu(b)\ny = Conv(a, w)",
    ],
)
def test_does_not_name_real_values(text: str) -> None:
    ((reason, has_sign_input),) = reasons(text, **({"large": np.float32(1e9)} if "large" in text else {}))
    assert "real-valued" in reason and not has_sign_input


def test_does_not_run_what_makes_no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_values, "_run", lambda model, wanted: pytest.fail("it is run"))
    ((reason, _),) = reasons("a = Relu(x)\nb = Mul(a, c)\ny = Conv(b, w)", c=eighths(4, 1, 1))
    assert "real-valued" in reason


def test_strict_fails(tmp_path: Path) -> None:
    model = ir.to_proto(
        parse("s = Sign(x)\na = Sin(s)\nb = Conv(a, w)\nt = Sign(b)\ny = Conv(t, u)", w=W, u=weights(3, 8, 1, 1))
    )
    with pytest.raises(
        BnnDeployError, match=r"strict=True: 1 layer .* stays float: .*only 2 values \(-0.8415, 0.8415\)"
    ):
        convert(model, tmp_path / "m.onnx", strict=True, weights="as-is")
    assert list(tmp_path.iterdir()) == []
    assert len(convert(model, tmp_path / "m.onnx", weights="as-is").binary_layers) == 1
