"""ReluLinear to the last bit: the order of summation that the operator states, with zeros left out or not."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from support.direct_conv import multiply_add, multiply_then_add
from support.kernels import DOMAIN, ISAS, make_model, make_session, only_runs

CHANNELS = 70  # a block of weights has fewer, with many outputs

SIZES = [
    # Outputs: every number of vectors, with and without a rest; batches: with and without whole tiles of images.
    *((batch, outputs) for outputs in (1, 4, 10, 16, 17, 24, 33, 63, 70) for batch in (1, 5)),
    (9, 40),
    (70, 20),
    (1, 2100),
    (6, 2100),
]


def tensors(batch: int, outputs: int, channels: int = CHANNELS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch + outputs)
    shapes = {"X": (batch, channels), "W": (channels, outputs), "bias": (outputs,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def expected(x: np.ndarray, w: np.ndarray, bias: np.ndarray, isa: str) -> np.ndarray:
    add = multiply_then_add if isa == "scalar" else multiply_add
    acc = np.broadcast_to(bias, (len(x), len(bias)))
    for c in range(len(w)):
        acc = add(np.maximum(x[:, c : c + 1], np.float32(0)), w[c], acc)
    return acc


def session(given: dict[str, np.ndarray], isa: str, threads: int = 1) -> ort.InferenceSession:
    model = make_model(
        [helper.make_node("ReluLinear", ["X", "W", "bias"], ["Y"], name="last", domain=DOMAIN)],
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None] * given["X"].ndim)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None, None])],
        {name: given[name] for name in ("W", "bias")},
    )
    return make_session(model, isa, threads)


@pytest.mark.parametrize("isa", ISAS)
def test_floats_are_those_of_the_stated_order(isa: str) -> None:
    for batch, outputs in SIZES:
        given = tensors(batch, outputs)
        want = expected(given["X"], given["W"], given["bias"], isa)
        with only_runs(isa):
            (got,) = session(given, isa).run(None, {"X": given["X"]})
        assert got.tobytes() == np.ascontiguousarray(want).tobytes(), (batch, outputs)
        # Another order, and a weight that is off by a bit, show.
        backwards = expected(given["X"][:, ::-1], given["W"][::-1], given["bias"], isa)
        assert backwards.tobytes() != got.tobytes(), (batch, outputs)
        moved = given | {"W": np.nextafter(given["W"], np.float32(2))}
        assert session(moved, isa).run(None, {"X": given["X"]})[0].tobytes() != got.tobytes(), (batch, outputs)


@pytest.mark.parametrize("isa", ISAS)
def test_two_threads_and_images_of_several_dimensions(isa: str) -> None:
    for batch, outputs, channels in ((1, 2100, 1100), (80, 30, 1200)):
        given = tensors(batch, outputs, channels)
        (one,) = session(given, isa).run(None, {"X": given["X"]})
        (two,) = session(given, isa, threads=2).run(None, {"X": given["X"]})
        assert one.tobytes() == two.tobytes()
        images = given | {"X": given["X"].reshape(batch, channels // 10, 5, 2)}
        assert session(images, isa).run(None, {"X": images["X"]})[0].tobytes() == one.tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_no_number(isa: str) -> None:
    """A NaN counts; nothing that is not positive does."""
    for batch in (1, 8):
        given = tensors(batch, 40)
        x = given["X"]
        (y,) = session(given, isa).run(None, {"X": x})
        x = np.where(x > 0, x, np.resize(np.float32([0, -0.0, -np.inf, -1]), x.shape))
        assert session(given, isa).run(None, {"X": x})[0].tobytes() == y.tobytes()
        x[0, 3] = np.nan
        (y_nan,) = session(given, isa).run(None, {"X": x})
        assert np.isnan(y_nan[0]).all() and y_nan[1:].tobytes() == y[1:].tobytes()


def test_empty_batch() -> None:
    given = tensors(1, 40)
    for isa in ISAS:
        assert session(given, isa).run(None, {"X": given["X"][:0]})[0].shape == (0, 40)


def test_errors() -> None:
    given = tensors(1, 40)

    def message(**changes: np.ndarray) -> str:
        changed = given | changes
        with pytest.raises(Exception) as error:  # onnxruntime's exception types are not public
            session(changed, ISAS[0]).run(None, {"X": changed["X"]})
        return str(error.value)

    assert "ReluLinear 'last': input X has shape [1, 69], but W has 70 input channels" in message(X=given["X"][:, :69])
    assert "input X has shape [70]" in message(X=given["X"][0])
    assert "input bias has shape [39], but W has 40 output channels and needs [40]" in message(bias=given["bias"][:39])
    assert "input W has shape [2800], but it must be" in message(W=given["W"].reshape(-1))
    for value in (np.nan, -np.inf):
        weights = given["W"].copy()
        weights[69, 39] = value
        assert "input W holds NaN or infinity" in message(W=weights)
