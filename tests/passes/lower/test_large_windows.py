"""Windows that onnxruntime runs and the operators refuse stay float: no file is written that does not load or run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bnn_deploy.conversion import convert
from bnn_deploy.operators.shapes import MAX_PADDED_RATIO, beyond
from support.graphs import parse, weights

W = weights(8, 4, 3, 3) * np.float32(0.5)
WINDOWS = {
    "pads": "pads=[5000, 5000, 5000, 5000], strides=[4000, 4000]",
    "a pad of 10^8": "pads=[0, 100000000, 0, 0], strides=[1, 100000000]",
    "strides": "strides=[4294967296, 4294967296]",
}
MORE = "s = Sign(x)\na = Conv<pads=[1, 1, 1, 1]>(s, w)\n"
"""A layer that becomes binary, so that there is something to write."""


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("first", ["Sign(x)", "Clip(Round(x), zero, three)", "Relu(x)"])
def test_a_window_beyond_the_operators_stays_float(first: str, window: str, tmp_path: Path) -> None:
    nodes = f"r = Round(x)\nf = {first.replace('Round(x)', 'r')}\ny = Conv<{WINDOWS[window]}>(f, w)"
    model = parse(MORE + nodes, outputs=("a", "y"), w=W, zero=np.float32(0), three=np.float32(3))
    layers = {layer.name: layer for layer in convert(model, tmp_path / "m.onnx").layers}
    layer = next(layer for name, layer in layers.items() if "y" in name)
    assert layer.becomes == "Conv"
    if first != "Relu(x)":
        assert "beyond what the operators take" in (layer.reason or "")


def test_a_pool_beyond_the_operators_stays_float(tmp_path: Path) -> None:
    pool = "MaxPool<kernel_shape=[2, 2], strides=[4294967296, 1]>"
    model = parse(f"{MORE}p = {pool}(s)\ny = Conv(p, u)", outputs=("a", "y"), w=W, u=W[:, :, :1, :1])
    (layer,) = (layer for layer in convert(model, tmp_path / "m.onnx").layers if layer.becomes == "Conv")
    assert "pads or strides beyond" in (layer.reason or "")


def test_pads_that_few_pixels_may_have() -> None:
    unit = {"strides": [1, 1], "dilations": [1, 1]}
    assert beyond(unit | {"pads": [3, 3, 3, 3]}, [1, 1], 10**9) == "pads [3, 3, 3, 3]"
    assert beyond(unit | {"pads": [3, 3, 3, 3]}, [1, 1], 10**3) is None
    assert beyond(unit | {"pads": [(MAX_PADDED_RATIO - 1) * 7, 0, 0, 0]}, [7, 7], 10**9) is None
    assert beyond(unit | {"pads": [0, 2**14 - 1, 0, 0]}, [None, None], 2**12) is None
    assert beyond(unit | {"pads": [0, 2**14 - 1, 0, 0]}, [None, None], 2**13) is not None
