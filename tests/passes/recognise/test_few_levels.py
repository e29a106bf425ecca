"""What reading a tensor as levels costs; what it reads is in the tests of LowerLevels."""

from __future__ import annotations

import numpy as np
import pytest

from bnn_deploy.passes.recognise import few_levels
from support.graphs import parse

NORM = {name: np.array([2, -1, 0.5, 3], np.float32) for name in ("gamma", "beta", "mean")}


@pytest.mark.parametrize(
    ("nodes", "searches", "levels"),
    [
        ("y = Sign(x)", 0, None),
        ("n = BatchNormalization(x, gamma, beta, mean, var)\ny = Sign(n)", 0, None),
        ("r = Relu(x)\ny = Sign(r)", 1, [0, 1]),
        ("n = BatchNormalization(x, gamma, beta, mean, var)\nr = Relu(n)\ny = Sign(r)", 1, [0, 1]),
        ("y = Clip(x, low, high)", 1, None),
    ],
)
def test_a_plain_sign_is_known_without_a_search(
    nodes: str, searches: int, levels: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search over all float32 in front of each of thousands of layers took most of their conversion."""
    model = parse(nodes, **NORM, var=np.ones(4, np.float32), low=np.float32(0), high=np.float32(1))
    asked = []
    own = few_levels._discover
    monkeypatch.setattr(few_levels, "_discover", lambda *given: asked.append(given) or own(*given))
    found = few_levels.quantizer(model.graph.outputs[0])
    assert len(asked) == searches
    assert (None if found is None else found.levels.tolist()) == levels
