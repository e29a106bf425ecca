"""BinaryMatMul: its body and kernels against plain numpy, exactly; what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnn_deploy.operators.bits import pack_bits
from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.runtime.session import library_info, load_session
from support.bodies import Array, equal, make_model, run_everywhere

SCALE = np.array([0.3], np.float32)


def matmul_model(a: Array, b: Array, channels: int, bits: int = 1, signs: int = 1, scale: Array = SCALE) -> bytes:
    attributes = {"channels": channels, "bits": bits, "signs": signs}
    node = helper.make_node("BinaryMatMul", ["X", "B", "scale"], ["Y"], "product", domain=DOMAIN, **attributes)
    return make_model([node], a, {"B": b, "scale": scale}, {"Y": TensorProto.FLOAT}, a.ndim)


def on_kernels(model: bytes, a: Array, threads: int = 1) -> dict[str, Array]:
    """On each instruction set of this machine."""
    results = {}
    for isa in library_info().isas:
        before = library_info().calls[isa]
        results[isa] = load_session(model, threads, isa=isa).run(None, {"X": a})[0]
        assert library_info().calls[isa] > before or not results[isa].size
    return results


def levels_of(lead: tuple[int, ...], channels: int, bits: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Random levels [..., channels], and their planes."""
    levels = rng.integers(0, 2**bits, (*lead, channels))
    return levels, np.concatenate([pack_bits(levels >> plane & 1 == 1) for plane in range(bits)], axis=-1)


# Leading dimensions, M, N, C; what a holds.
CASES = [
    ((), 3, 37, 40, 1, 1),
    ((2,), 5, 64, 31, 1, 1),
    ((2, 3), 1, 1, 64, 1, 1),
    ((1, 2), 65, 70, 33, 1, 1),
    ((2, 1, 2), 4, 9, 300, 1, 1),
    ((2, 2), 7, 33, 50, 1, 0),
    ((3,), 66, 5, 128, 1, 0),
    ((2,), 3, 40, 35, 3, 0),
]


@pytest.mark.parametrize(("lead", "rows", "columns", "channels", "bits", "signs"), CASES, ids=str)
def test_against_numpy(
    lead: tuple[int, ...], rows: int, columns: int, channels: int, bits: int, signs: int, rng: np.random.Generator
) -> None:
    levels, a = levels_of((*lead, rows), channels, bits, rng)
    positive = rng.random((*lead, columns, channels)) < 0.5
    b = pack_bits(positive)
    left = 2 * levels - 1 if signs else levels
    acc = left @ np.where(positive, 1, -1).swapaxes(-1, -2)
    expected = SCALE * acc.astype(np.float32)
    model = matmul_model(a, b, channels, bits, signs)
    results = on_kernels(model, a) | {place: outputs[0] for place, outputs in run_everywhere(model, a).items()}
    for place, got in results.items():
        assert equal(got, expected), place
    wrong = b.copy()
    wrong[..., -1, (channels - 1) // 32] ^= np.uint32(1) << np.uint32((channels - 1) % 32)
    for place, got in on_kernels(matmul_model(a, wrong, channels, bits, signs), a).items():
        assert not equal(got, expected) or not left[..., -1].any(), place


def test_with_threads(rng: np.random.Generator) -> None:
    signs = rng.random((3, 200, 64)) < 0.5
    a, b = pack_bits(signs), pack_bits(signs[:, ::-1])
    model = matmul_model(a, b, 64)
    for isa, got in on_kernels(model, a, threads=2).items():
        assert equal(got, load_session(model, 1, isa=isa).run(None, {"X": a})[0])


@pytest.mark.parametrize(("a", "b"), [((0, 2, 3, 1), (0, 2, 4, 1)), ((2, 0, 1), (2, 4, 1)), ((2, 3, 1), (2, 0, 1))])
def test_empty(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    model = matmul_model(np.zeros((1, *a[1:]), np.uint32), np.zeros(b, np.uint32), 32)
    (got,) = load_session(model).run(None, {"X": np.zeros(a, np.uint32)})
    assert got.shape == (*a[:-1], b[-2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 65}, "input A has shape [2,3,2],but it must be [...,M,3]"),
        ({"bits": 2}, "attribute bits = 2 must be 1 where signs = 1"),
        ({"bits": 2, "signs": 0}, "input A has shape [2,3,2],but it must be [...,M,4]"),
        ({"b": np.zeros((3, 4, 2), np.uint32)}, "input B has shape [3,4,2],but A has [2,3,2]"),
        ({"b": np.zeros((4, 2), np.uint32)}, "input B has shape [4,2],but A has [2,3,2]"),
        ({"scale": np.zeros(1, np.float32)}, "input scale is 0.000000: it must be at least 2^-125"),
        ({"scale": np.ones(2, np.float32)}, "input scale has shape [2],but it must be [1]"),
    ],
    ids=str,
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    a = np.zeros((2, 3, 2), np.uint32)
    sound = matmul_model(a, np.zeros((2, 4, 2), np.uint32), 64)
    assert load_session(sound).run(None, {"X": a})[0].shape == (2, 3, 4)
    model = onnx.load_from_string(sound)
    for attribute in model.graph.node[0].attribute:
        attribute.i = change.get(attribute.name, attribute.i)
    for tensor in model.graph.initializer:
        array = change.get(tensor.name.lower())
        if array is not None:
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(Exception) as error:  # onnxruntime's exception types are not public
        load_session(model.SerializeToString()).run(None, {"X": a})
    assert message in str(error.value).replace(", ", ",") and "product" in str(error.value)
