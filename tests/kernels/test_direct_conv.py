"""DirectConv and DirectConvThreshold to the last bit: the order of summation that the operators state."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from support.direct_conv import CASES, image
from support.kernels import ISAS, only_runs, pack


@pytest.mark.parametrize("isa", ISAS)
def test_floats_and_bits_are_those_of_the_stated_order(isa):
    for case in CASES:
        tensors, expected = case.tensors(), case.expected(isa)
        column = tensors["threshold"].reshape(1, -1, *[1] * len(case.kernel))
        with only_runs(isa):
            (floats,) = case.session("DirectConv", isa).run(None, {"X": tensors["X"]})
            (bits,) = case.session("DirectConvThreshold", isa).run(None, {"X": tensors["X"]})
        assert floats.tobytes() == np.ascontiguousarray(expected).tobytes(), case
        assert bits.tobytes() == pack(np.where(expected >= column, 1, -1), 1).tobytes(), case
        # A weight that is off by a bit, and thresholds at the very next number, show.
        weights = np.nextafter(tensors["W"], np.float32(2))
        (moved,) = case.session("DirectConv", isa, W=weights).run(None, {"X": tensors["X"]})
        assert moved.tobytes() != floats.tobytes(), case
        reached = np.ascontiguousarray(expected[(0, slice(None), *[0] * len(case.kernel))])
        for threshold, bit in ((reached, True), (np.nextafter(reached, np.float32(np.inf)), False)):
            (edge,) = case.session("DirectConvThreshold", isa, threshold=threshold).run(None, {"X": tensors["X"]})
            first = np.unpackbits(edge[(0, *[0] * len(case.kernel))].view(np.uint8), bitorder="little")
            assert (first[: case.outputs] == bit).all() and not first[case.outputs :].any(), case


@pytest.mark.parametrize("isa", ISAS)
def test_threads_and_batches_change_nothing(isa):
    for case in (
        image(33, size=(130, 120), channels=3, kernel=5, pool=(3, 3), pool_strides=(2, 2)),
        image(40, size=(90, 100), channels=3, kernel=5, batch=3),
    ):
        x = case.tensors()["X"]
        for operator in ("DirectConv", "DirectConvThreshold"):
            (together,) = case.session(operator, isa, threads=3).run(None, {"X": x})
            one = case.session(operator, isa)
            alone = np.concatenate([one.run(None, {"X": x[i : i + 1]})[0] for i in range(case.batch)])
            assert together.tobytes() == alone.tobytes(), (case, operator)


@pytest.mark.parametrize("isa", ISAS)
def test_special_numbers(isa):
    """NaN gives bit 0, infinite thresholds are constant bits, and padding hides no infinity."""
    case = image(10, size=(5, 5))
    x = case.tensors()["X"]
    x[0, 0, 0, 0], x[1, 1, 4, 4] = np.nan, np.inf
    threshold = np.array([-np.inf, np.inf, np.nan, *[0] * 7], np.float32)
    with np.errstate(invalid="ignore"):
        (floats,) = case.session("DirectConv", isa).run(None, {"X": x})
    assert np.isnan(floats[0, :, :2, :2]).all() and np.isfinite(floats[0, :, 2:, 2:]).all()
    assert np.isinf(floats[1, :, 3:, 3:]).all()
    (bits,) = case.session("DirectConvThreshold", isa, threshold=threshold).run(None, {"X": x})
    assert bits.tobytes() == pack(np.where(floats >= threshold.reshape(1, -1, 1, 1), 1, -1), 1).tobytes()
    assert not (bits[0, :2, :2] != 0).any()


def test_an_empty_batch_gives_an_empty_output():
    case = image(10)
    for operator, shape in (("DirectConv", (0, 10, 9, 11)), ("DirectConvThreshold", (0, 9, 11, 1))):
        (got,) = case.session(operator, ISAS[0]).run(None, {"X": np.zeros((0, 2, 9, 11), np.float32)})
        assert got.shape == shape


def test_pads_and_dilations_beyond_all_memory_are_refused():
    far = 2**29
    case = dataclasses.replace(image(10), dilations=(far, 1), pads=(far, 1, far, 1))
    with pytest.raises(Exception, match=r"attribute pads makes \d+ elements of input X"):
        case.session("DirectConv", ISAS[0]).run(None, {"X": case.tensors()["X"]})


ERRORS = [
    ({"kernel": (3, 3, 3), "strides": (1,) * 3, "pads": (0,) * 6, "dilations": (1,) * 3}, "kernel_shape has 3 values"),
    ({"pool": (17, 1)}, "pool_shape"),
    ({"pool_pads": (1, 0, 0, 0)}, "pool_pads must be below pool_shape = 1 in dimension 0"),
    ({"pool_strides": (0, 1)}, "pool_strides"),
]


@pytest.mark.parametrize(("changes", "message"), ERRORS)
def test_wrong_attributes_are_named(changes, message):
    with pytest.raises(Exception, match=message):
        dataclasses.replace(image(10), **changes).session("DirectConv", ISAS[0])


def test_wrong_tensors_are_named():
    case = image(10)
    with pytest.raises(Exception, match=r"input bias has shape \[9\].* needs \[10\]"):
        case.session("DirectConv", ISAS[0], bias=np.zeros(9, np.float32))
    with pytest.raises(Exception, match=r"input W has shape \[10, 2, 3\]"):
        case.session("DirectConv", ISAS[0], W=np.zeros((10, 2, 3), np.float32))
    with pytest.raises(Exception, match=r"input X has shape \[1, 3, 9, 11\], but it must be \[N, 2, H, W\]"):
        case.session("DirectConv", ISAS[0]).run(None, {"X": np.zeros((1, 3, 9, 11), np.float32)})
    with pytest.raises(Exception, match="less than one window of the pool, 16"):
        image(10, pool=(16, 1)).session("DirectConv", ISAS[0]).run(None, {"X": case.tensors()["X"]})
