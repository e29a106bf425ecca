"""DirectConv and DirectConvThreshold to the last bit: the order of summation that the operators state."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from support.kernels import DOMAIN, ISAS, make_model, make_session, only_runs, pack

# --- the reference ----------------------------------------------------------------------------


def multiply_add(x: np.ndarray, w: np.ndarray, acc: np.ndarray) -> np.ndarray:
    """x * w + acc of float32, rounded once.

    The product is exact in float64. The sum is rounded to odd there, so that rounding it to float32 is right: its last
    bit is set where something was lost, in float64's 29 bits beyond float32's.
    """
    product, acc = x.astype(np.float64) * w, acc.astype(np.float64)
    total = product + acc
    part = total - product
    lost = (product - (total - part)) + (acc - part)
    even = (total.view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    return np.where((lost != 0) & even, odd, total).astype(np.float32)


def multiply_then_add(x: np.ndarray, w: np.ndarray, acc: np.ndarray) -> np.ndarray:
    """x * w + acc of float32, the product rounded, too: what the scalar unit does."""
    return x * w + acc


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution [outputs, channels, *kernel] of images of a size, and the pool behind it."""

    channels: int
    outputs: int
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    pool: tuple[int, ...]
    pool_strides: tuple[int, ...]
    pool_pads: tuple[int, ...]
    batch: int = 2

    def tensors(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(7)
        shapes = {
            "X": (self.batch, self.channels, *self.size),
            "W": (self.outputs, self.channels, *self.kernel),
            "bias": (self.outputs,),
            "threshold": (self.outputs,),
        }
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    def expected(self, isa: str) -> np.ndarray:
        """Y, float32 [N, O, spatial...]."""
        tensors, rank = self.tensors(), len(self.kernel)
        add = multiply_then_add if isa == "scalar" else multiply_add
        pads = list(zip(self.pads[:rank], self.pads[rank:], strict=True))
        x = np.pad(tensors["X"], [(0, 0), (0, 0), *pads])
        out = [
            (x.shape[2 + i] - (self.kernel[i] - 1) * self.dilations[i] - 1) // self.strides[i] + 1 for i in range(rank)
        ]
        column = (1, -1, *[1] * rank)
        acc = np.broadcast_to(tensors["bias"].reshape(column), (self.batch, self.outputs, *out))
        for c in range(self.channels):
            for tap in itertools.product(*map(range, self.kernel)):
                at = tuple(
                    slice(t * d, t * d + (n - 1) * s + 1, s)
                    for t, d, s, n in zip(tap, self.dilations, self.strides, out, strict=True)
                )
                acc = add(
                    x[(slice(None), slice(c, c + 1), *at)], tensors["W"][(slice(None), c, *tap)].reshape(column), acc
                )
        begins, ends = self.pool_pads[:rank], self.pool_pads[rank:]
        padded = np.pad(acc, [(0, 0), (0, 0), *zip(begins, ends, strict=True)], constant_values=np.float32(-np.inf))
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.pool, axis=tuple(range(2, 2 + rank)))
        steps = (slice(None), slice(None), *(slice(None, None, s) for s in self.pool_strides))
        return windows[steps].max(axis=tuple(range(-rank, 0)))

    def session(self, operator: str, isa: str, threads: int = 1, **changes: np.ndarray) -> ort.InferenceSession:
        names = ["W", "bias"] + (["threshold"] if operator == "DirectConvThreshold" else [])
        node = helper.make_node(
            operator,
            ["X", *names],
            ["Y"],
            domain=DOMAIN,
            kernel_shape=self.kernel,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            pool_shape=self.pool,
            pool_strides=self.pool_strides,
            pool_pads=self.pool_pads,
        )
        shape = [None] * (len(self.kernel) + 2)
        bits = operator == "DirectConvThreshold"
        tensors = self.tensors() | changes
        model = make_model(
            [node],
            [helper.make_tensor_value_info("X", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("Y", TensorProto.UINT32 if bits else TensorProto.FLOAT, shape)],
            {name: tensors[name] for name in names},
        )
        return make_session(model, isa, threads)


def image(outputs: int, kernel: int = 3, size: tuple[int, int] = (9, 11), **changes: object) -> Case:
    """Two channels, stride 1, padding 1, no pool."""
    base = Case(2, outputs, (kernel,) * 2, size, (1, 1), (1, 1, 1, 1), (1, 1), (1, 1), (1, 1), (0, 0, 0, 0))
    return dataclasses.replace(base, **changes)


CASES = [
    # Every number of vectors in the last tile, and every number of pixels up to two tiles.
    *(image(outputs) for outputs in (1, 8, 17, 24, 33, 48, 52, 70)),
    *(image(24 if width % 2 else 40, size=(4, width)) for width in range(2, 27)),
    # More taps than a block of weights.
    image(20, kernel=11, size=(13, 30), channels=3),
    # Strides, dilations, and padding on one side; rows that end before the input does.
    image(33, strides=(2, 2)),
    image(20, kernel=11, size=(27, 31), strides=(4, 4), pads=(2, 2, 2, 2)),
    image(12, strides=(3, 2), dilations=(2, 3), size=(14, 15), pads=(0, 4, 3, 0)),
    image(12, kernel=1, strides=(3, 3), pads=(0, 0, 0, 0)),
    # Pools: with overlap, with padding, with a stride that skips rows, and larger than a band.
    image(33, pool=(2, 2), pool_strides=(2, 2)),
    image(20, strides=(2, 2), size=(30, 33), pool=(3, 3), pool_strides=(2, 2), pool_pads=(1, 1, 1, 1)),
    image(40, size=(70, 40), pool=(2, 3), pool_strides=(5, 4), pool_pads=(1, 0, 0, 2)),
    image(16, size=(17, 19), pool=(16, 16), pool_strides=(1, 1)),
    # Time series.
    Case(1, 20, (5,), (40,), (2,), (2, 1), (1,), (3,), (2,), (1, 0)),
]


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
    with pytest.raises(Exception, match=r"the padded input under a row of windows has \d+ floats, at most"):
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
