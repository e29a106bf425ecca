"""Every operator kernel against a direct numpy reference, bit for bit, on every ISA of the machine.

The reference works on arrays of -1, 0 and +1 and knows nothing of words, tiles or tables. Each
model holds many independent nodes, so that one session checks many shapes. The ISAs come from
``LibraryInfo``: one that the machine lacks is not in the list, and nothing is skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bnn_deploy.runtime.session import library_path

DOMAIN = "bnn_deploy"
INT32 = np.iinfo(np.int32)


# --- sessions ---------------------------------------------------------------------------------


@contextlib.contextmanager
def isa_environment(isa: str | None) -> Iterator[None]:
    before = os.environ.pop("BNN_DEPLOY_ISA", None)
    if isa is not None:
        os.environ["BNN_DEPLOY_ISA"] = isa
    try:
        yield
    finally:
        os.environ.pop("BNN_DEPLOY_ISA", None)
        if before is not None:
            os.environ["BNN_DEPLOY_ISA"] = before


def make_session(model: onnx.ModelProto, isa: str | None, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    options.intra_op_num_threads = threads
    with isa_environment(isa):
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray],
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "kernels", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def library_info(isa: str | None = None) -> dict:
    node = helper.make_node("LibraryInfo", ["X"], ["Y"], domain=DOMAIN)
    model = make_model(
        [node],
        [helper.make_tensor_value_info("X", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("Y", TensorProto.UINT8, [None])],
        {},
    )
    with isa_environment(isa):
        session = make_session(model, isa)
        # `selected` is what a kernel created now would use, so the variable must still be set.
        with isa_environment(isa):
            (text,) = session.run(None, {"X": np.zeros(1, np.int64)})
    return json.loads(bytes(text).decode())


ISAS = library_info()["isas"]


@contextlib.contextmanager
def only_runs(isa: str) -> Iterator[None]:
    """Asserts that micro-kernels of this ISA are called inside, and none of another."""
    before = library_info()["calls"]
    yield
    after = library_info()["calls"]
    ran = {name for name in after if after[name] > before[name]}
    assert ran == {isa}


# --- the reference ----------------------------------------------------------------------------


def pack(signs: np.ndarray, axis: int) -> np.ndarray:
    """±1 -> uint32 words along a new last axis; channel c is bit c % 32 of word c // 32."""
    bits = np.moveaxis(signs > 0, axis, -1)
    padding = -bits.shape[-1] % 32
    bits = np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, padding)])
    words = bits.reshape(*bits.shape[:-1], bits.shape[-1] // 32, 32).astype(np.uint64)
    return (words << np.arange(32, dtype=np.uint64)).sum(-1).astype(np.uint32)


@dataclasses.dataclass
class ConvCase:
    """One convolution: channels first, ±1 values, ONNX attribute order."""

    channels: int
    outputs: int
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    pads: tuple[int, ...] | None = None
    dilations: tuple[int, ...] | None = None
    group: int = 1
    batch: int = 1
    pad_value: str = "zero"  # zero, one, minus_one or per_channel
    seed: int = 0

    def __post_init__(self) -> None:
        rank = len(self.kernel)
        self.strides = self.strides or (1,) * rank
        self.dilations = self.dilations or (1,) * rank
        self.pads = self.pads or (0,) * 2 * rank
        rng = np.random.default_rng(self.seed)
        signs = np.array([-1, 1], np.int32)
        self.x = rng.choice(signs, (self.batch, self.channels, *self.size))
        self.w = rng.choice(signs, (self.outputs, self.channels // self.group, *self.kernel))
        self.scale = rng.standard_normal(self.outputs).astype(np.float32)
        self.bias = rng.standard_normal(self.outputs).astype(np.float32)
        self.pad = {
            "zero": np.zeros(1, np.float32),
            "one": np.ones(1, np.float32),
            "minus_one": -np.ones(1, np.float32),
            "per_channel": rng.choice(signs, self.channels).astype(np.float32),
        }[self.pad_value]
        # Near the middle of what occurs, so that both bits do; the extremes must never / always set.
        spread = max(1, int(np.sqrt(self.w[0].size)))
        self.threshold = rng.integers(-spread, spread + 1, self.outputs, dtype=np.int32)
        self.threshold[:: max(5, self.outputs // 4)] = INT32.max
        self.threshold[1 :: max(5, self.outputs // 4)] = INT32.min
        self.residual_seed = rng.integers(2**32)
        self._sums: tuple = (None, None)  # what they were made from, and the sums
        self._float_threshold: np.ndarray | None = None

    def sums(self) -> np.ndarray:
        """acc, [N, O, spatial...] int32: one tap at a time over the explicitly padded input."""
        key = (self.pads, self.x.tobytes(), self.w.tobytes())
        if self._sums[0] != key:
            self._sums = (key, self._make_sums())
        return self._sums[1]

    def _make_sums(self) -> np.ndarray:
        rank = len(self.kernel)
        padded_size = [n + self.pads[i] + self.pads[rank + i] for i, n in enumerate(self.size)]
        pad = np.broadcast_to(self.pad.astype(np.int32), self.channels)
        x = np.empty((self.batch, self.channels, *padded_size), np.int32)
        x[:] = pad.reshape(1, -1, *[1] * rank)
        inside = [slice(self.pads[i], self.pads[i] + n) for i, n in enumerate(self.size)]
        x[(slice(None), slice(None), *inside)] = self.x
        out = [
            (n - (k - 1) * d - 1) // s + 1
            for n, k, d, s in zip(padded_size, self.kernel, self.dilations, self.strides, strict=True)
        ]
        x = x.reshape(self.batch, self.group, self.channels // self.group, *padded_size)
        w = self.w.reshape(self.group, -1, *self.w.shape[1:])
        total = np.zeros((self.batch, self.group, w.shape[1], *out), np.int32)
        for tap in itertools.product(*map(range, self.kernel)):
            window = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, self.dilations, out, self.strides, strict=True)
            )
            values = x[(slice(None), slice(None), slice(None), *window)].astype(np.float32)
            taps = w[(slice(None), slice(None), slice(None), *tap)].astype(np.float32)
            # float32 holds these sums of at most 2^24 products of ±1 exactly.
            total += np.einsum("ngc...,goc->ngo...", values, taps, optimize=True).astype(np.int32)
        return total.reshape(self.batch, self.outputs, *out)

    def expected(self) -> list[np.ndarray]:
        """The outputs of BinaryConv, BinaryConvThreshold and BinaryConvResidual."""
        acc = self.sums()
        column = (-1, *[1] * len(self.kernel))
        y = self.scale.reshape(column) * acc.astype(np.float32) + self.bias.reshape(column)
        bits = acc >= self.threshold.reshape(column)
        sums = y + self.residual(acc.shape)
        residual_bits = sums >= self.float_threshold(acc.shape).reshape(column)
        return [y, pack(np.where(bits, 1, -1), 1), sums, pack(np.where(residual_bits, 1, -1), 1)]

    def out_shape(self) -> tuple[int, ...]:
        rank = len(self.kernel)
        spatial = [
            (n + self.pads[i] + self.pads[rank + i] - (k - 1) * d - 1) // s + 1
            for i, (n, k, d, s) in enumerate(zip(self.size, self.kernel, self.dilations, self.strides, strict=True))
        ]
        return (self.batch, self.outputs, *spatial)

    def residual(self, shape: tuple[int, ...]) -> np.ndarray:
        """Of the spread of the convolution, so that no summand drowns the other; with NaN and infinities."""
        rng = np.random.default_rng(self.residual_seed)
        residual = (rng.standard_normal(shape) * np.sqrt(self.w[0].size)).astype(np.float32)
        special = rng.choice(np.array([np.nan, np.inf, -np.inf], np.float32), shape)
        return np.where(rng.random(shape) < 0.02, special, residual)

    def float_threshold(self, shape: tuple[int, ...]) -> np.ndarray:
        """[O] float32: a value that Y has at some pixel, so that equality occurs; also NaN and infinities."""
        if not self.batch:
            return np.zeros(self.outputs, np.float32)
        if self._float_threshold is None:
            column = (-1, *[1] * len(self.kernel))
            y = self.scale.reshape(column) * self.sums().astype(np.float32) + self.bias.reshape(column)
            first = (y + self.residual(shape))[(0, slice(None), *[0] * len(self.kernel))]
            first[5::13] = np.inf
            first[7::13] = -np.inf
            self._float_threshold = np.where(np.isnan(first) & (np.arange(first.size) % 2 == 0), 0, first)
        return self._float_threshold

    def constants(self) -> dict[str, np.ndarray]:
        return {
            "W": pack(self.w, 1),
            "scale": self.scale,
            "bias": self.bias,
            "threshold": self.threshold,
            "pad": self.pad,
            "float_threshold": self.float_threshold(self.out_shape()),
        }


class ConvBatch:
    """A model with the three convolution operators for each case."""

    OUTPUTS = 4  # per case

    def __init__(self, cases: Sequence[ConvCase], constants: Sequence[dict] | None = None) -> None:
        self.cases = cases
        constants = constants or [case.constants() for case in cases]
        nodes, inputs, outputs, initializers = [], [], [], {}
        for i, (case, values) in enumerate(zip(cases, constants, strict=True)):
            attributes = {
                "channels": case.channels,
                "kernel_shape": case.kernel,
                "strides": case.strides,
                "pads": case.pads,
                "dilations": case.dilations,
                "group": case.group,
                "domain": DOMAIN,
            }
            names = {key: f"{key}{i}" for key in values}
            initializers |= {names[key]: value for key, value in values.items()}
            floats = [f"X{i}", names["W"], names["scale"], names["bias"], names["pad"]]
            bits = [f"X{i}", names["W"], names["threshold"], names["pad"]]
            nodes.append(helper.make_node("BinaryConv", floats, [f"Y{i}"], **attributes))
            nodes.append(helper.make_node("BinaryConvThreshold", bits, [f"B{i}"], **attributes))
            residual = [*floats, f"R{i}", names["float_threshold"]]
            nodes.append(helper.make_node("BinaryConvResidual", residual, [f"RY{i}", f"RB{i}"], **attributes))
            shape = [None] * (len(case.kernel) + 2)
            inputs.append(helper.make_tensor_value_info(f"X{i}", TensorProto.UINT32, shape))
            inputs.append(helper.make_tensor_value_info(f"R{i}", TensorProto.FLOAT, shape))
            outputs.append(helper.make_tensor_value_info(f"Y{i}", TensorProto.FLOAT, shape))
            outputs.append(helper.make_tensor_value_info(f"B{i}", TensorProto.UINT32, shape))
            outputs.append(helper.make_tensor_value_info(f"RY{i}", TensorProto.FLOAT, shape))
            outputs.append(helper.make_tensor_value_info(f"RB{i}", TensorProto.UINT32, shape))
        self.model = make_model(nodes, inputs, outputs, initializers)
        self.feeds = {}
        for i, case in enumerate(cases):
            self.feeds |= {f"X{i}": pack(case.x, 1), f"R{i}": case.residual(case.out_shape())}

    def differences(self, isa: str, threads: int = 1) -> list[str]:
        """The cases whose outputs are not those of the reference, bit for bit."""
        got = make_session(self.model, isa, threads).run(None, self.feeds)
        wrong = []
        for i, case in enumerate(self.cases):
            outputs = got[self.OUTPUTS * i : self.OUTPUTS * (i + 1)]
            for number, (actual, expected) in enumerate(zip(outputs, case.expected(), strict=True)):
                assert actual.dtype == expected.dtype
                if not same(actual, expected):
                    wrong.append(f"output {number} of {case}")
        return wrong


def same(actual: np.ndarray, expected: np.ndarray) -> bool:
    """Bit for bit, except that a NaN equals any other: which NaN an addition gives is the processor's choice."""
    if actual.shape != expected.shape:
        return False
    if expected.dtype == np.float32:
        nan = np.isnan(expected)
        if not np.array_equal(nan, np.isnan(actual)):
            return False
        actual, expected = actual[~nan], expected[~nan]
    return actual.tobytes() == expected.tobytes()


def assert_convs(cases: Sequence[ConvCase], isa: str, threads: int = 1) -> None:
    batch = ConvBatch(cases)
    with only_runs(isa):
        wrong = batch.differences(isa, threads)
    assert not wrong, "\n".join(wrong)


# --- convolution: tails, geometry, padding ----------------------------------------------------

CHANNEL_TAILS = [*range(1, 66), 96, 127, 128, 129, 160, 192, 256, 800]
PAD_VALUES = ["zero", "one", "minus_one", "per_channel"]


@pytest.mark.parametrize("isa", ISAS)
def test_every_input_channel_tail(isa: str) -> None:
    cases = [ConvCase(c, 5, (3, 3), (4, 3), pads=(1,) * 4, seed=c, pad_value=PAD_VALUES[c % 4]) for c in CHANNEL_TAILS]
    cases += [ConvCase(c, 17, (1, 1), (3, 3), seed=c) for c in CHANNEL_TAILS]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_every_output_channel_tail(isa: str) -> None:
    # Up to two tiles of 64 channels and one, so past two vectors of every unit.
    outputs = [*range(1, 130), 160, 192, 193, 256]
    cases = [ConvCase(33, o, (3, 3), (4, 5), pads=(1,) * 4, seed=o) for o in outputs]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_every_pixel_tile_tail(isa: str) -> None:
    widths = [*range(1, 18), 63, 64, 65, 127, 128, 129]
    cases = [ConvCase(40, 20, (3, 1), (3, w), seed=w) for w in widths]
    cases += [ConvCase(64, 64, (3, 3), (n, n), pads=(1,) * 4, seed=n) for n in (7, 14, 9)]
    cases += [ConvCase(64, 40, (3, 3), (7, 7), pads=(1,) * 4, batch=b, seed=b) for b in (2, 3, 5)]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pad_value", PAD_VALUES)
def test_large_images(isa: str, pad_value: str) -> None:
    """From 256 pixels on a unit may take pixels, not channels, as the lanes of its vectors."""
    cases = [
        ConvCase(c, o, (3, 3), size, strides, pads, dilations, group, batch=2, pad_value=pad_value, seed=o)
        for c, o, group in ((32, 6, 1), (40, 67, 1), (33, 32, 1), (70, 21, 1), (64, 70, 2), (66, 40, 2), (9, 27, 9))
        for size, strides, pads, dilations in (
            ((16, 16), (1, 1), (1, 1, 1, 1), (1, 1)),
            ((17, 29), (1, 1), (1, 1, 1, 1), (1, 1)),
            ((39, 41), (2, 2), (1, 0, 2, 1), (1, 1)),
            ((19, 67), (1, 3), (0, 3, 0, 1), (2, 3)),
        )
    ]
    # Every number of taps and of words, and more border patterns than a vector has lanes.
    cases += [ConvCase(40, 7, (k, k), (18, 19), pads=(k // 2,) * 4, pad_value=pad_value) for k in range(1, 8)]
    cases += [ConvCase(c, 13, (3, 1), (9, 40), pad_value=pad_value) for c in (1, 95, 96, 129, 1400)]
    cases += [ConvCase(64, 33, (5,), (300,), (1,), (2, 2), pad_value=pad_value)]
    # Every way to split rows into words, rows shorter than a vector, and kernels that are too wide for it.
    sizes = ((9, 40), (66, 5), (13, 23))
    cases += [ConvCase(32 * words, 7, (2, 3), size, pad_value=pad_value) for words in (3, 5, 16, 17) for size in sizes]
    cases += [ConvCase(40, 7, (1, k), (9, 47), pads=(0, 1, 0, 2), pad_value=pad_value) for k in (8, 9)]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_every_tail_of_pixels_in_a_large_image(isa: str) -> None:
    cases = [ConvCase(40, 1 + tail % 13, (1, 3), (1, 258 + tail)) for tail in range(65)]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_every_kernel_size(isa: str) -> None:
    kernels = [(k, k) for k in range(1, 12)] + [(1, 3), (3, 1), (2, 5), (7, 4), (1, 11), (11, 2)]
    cases = [
        ConvCase(36, 18, kernel, (12, 13), pads=tuple(k // 2 for k in kernel * 2), pad_value=value)
        for kernel, value in itertools.product(kernels, ("zero", "per_channel"))
    ]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pad_value", PAD_VALUES)
def test_strides_pads_dilations(isa: str, pad_value: str) -> None:
    cases = [
        ConvCase(c, 35, (3, 3), (9, 8), strides, pads, dilations, batch=2, pad_value=pad_value)
        for c, strides, pads, dilations in itertools.product(
            (20, 64),
            ((1, 1), (2, 2), (3, 1)),
            ((0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 0), (5, 0, 1, 6)),
            ((1, 1), (2, 1), (1, 3), (2, 2)),
        )
    ]
    # A window wholly inside the padding, and windows that leave the image on both sides.
    cases += [
        ConvCase(33, 3, (2, 2), (1, 1), pads=(4,) * 4, pad_value=pad_value),
        ConvCase(33, 3, (5, 7), (2, 2), pads=(4, 6, 4, 6), pad_value=pad_value),
    ]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pad_value", ["zero", "per_channel"])
def test_groups(isa: str, pad_value: str) -> None:
    shapes = [  # channels, outputs, group
        (64, 64, 2),
        (128, 64, 2),
        (64, 128, 2),
        (96, 96, 3),
        (40, 20, 2),
        (40, 70, 5),
        (20, 130, 2),
        (63, 21, 21),
        (130, 66, 2),
        (70, 70, 70),
        (33, 66, 33),
        (256, 256, 4),
    ]
    cases = [
        ConvCase(c, o, (3, 3), (5, 6), pads=pads, dilations=d, group=g, batch=2, pad_value=pad_value)
        for c, o, g in shapes
        for pads, d in (((0,) * 4, (1, 1)), ((1,) * 4, (1, 1)), ((2, 0, 1, 2), (1, 2)))
    ]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_one_dimensional(isa: str) -> None:
    cases = [
        ConvCase(c, 21, (k,), (20,), (s,), (p, q), (d,), g, batch=2, pad_value=value)
        for (c, g), (k, s, p, q, d), value in itertools.product(
            ((30, 1), (64, 1), (64, 1), (66, 3)),
            ((1, 1, 0, 0, 1), (3, 1, 1, 1, 1), (5, 2, 0, 3, 2), (4, 3, 2, 0, 1)),
            PAD_VALUES,
        )
    ]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_fully_connected(isa: str) -> None:
    cases = [
        ConvCase(c, o, (1, 1), (1, 1), batch=b, seed=o)
        for c, o, b in itertools.product((31, 512, 800), (1, 10, 100, 1000), (1, 3, 50))
    ]
    assert_convs(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_sums_larger_than_16_bits(isa: str) -> None:
    case = ConvCase(100_000, 9, (1, 2), (1, 6))
    case.x[:, :, :, ::2] = 1
    case.w[::2] = 1
    case.w[1::2] = -1
    assert np.abs(case.sums()).max() > 2**16
    assert_convs([case], isa)


@pytest.mark.parametrize("isa", ISAS)
def test_empty_batch(isa: str) -> None:
    cases = [ConvCase(40, 33, (3, 3), (5, 5), pads=(1,) * 4, batch=0), ConvCase(9, 2, (3,), (5,), batch=0)]
    assert not ConvBatch(cases).differences(isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("absent", [0, 1, None])
@pytest.mark.parametrize(("size", "group"), [((7, 9), 1), ((17, 19), 1), ((32, 32), 1), ((5, 5), 2), ((17, 16), 2)])
def test_residual_with_an_absent_output(isa: str, absent: int | None, size: tuple[int, int], group: int) -> None:
    case = ConvCase(64, 72, (3, 3), size, pads=(1,) * 4, group=group, batch=2)
    batch = ConvBatch([case])
    node = batch.model.graph.node[2]
    assert node.op_type == "BinaryConvResidual"
    expected = dict(zip(node.output, case.expected()[2:], strict=True))
    if absent is not None:
        del expected[node.output[absent]]
        if absent == 0:
            node.output[0] = ""
        else:
            del node.output[1]
    kept = [output for output in batch.model.graph.output if output.name in expected]
    del batch.model.graph.output[:]
    batch.model.graph.output.extend(kept)
    del batch.model.graph.node[:2]
    with only_runs(isa):
        got = make_session(batch.model, isa).run(list(expected), batch.feeds)
    assert all(same(actual, wanted) for actual, wanted in zip(got, expected.values(), strict=True))


def test_extreme_thresholds_are_never_and_always() -> None:
    case = ConvCase(64, 64, (3, 3), (6, 6), pads=(1,) * 4)
    case.threshold[:32] = INT32.max
    case.threshold[32:] = INT32.min
    for isa in ISAS:
        batch = ConvBatch([case])
        assert not batch.differences(isa)
        bits = make_session(batch.model, isa).run(["B0"], batch.feeds)[0]
        assert (bits == np.array([0, 0xFFFFFFFF], np.uint32)).all()


@st.composite
def random_cases(draw: st.DrawFn) -> ConvCase:
    rank = draw(st.sampled_from([1, 2]))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    dilations = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    pads = tuple(draw(st.integers(0, 4)) for _ in range(2 * rank))
    windows = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    size = tuple(draw(st.integers(max(1, window - pads[i] - pads[rank + i]), 12)) for i, window in enumerate(windows))
    group = draw(st.integers(1, 4))
    return ConvCase(
        channels=group * draw(st.integers(1, 70)),
        outputs=group * draw(st.integers(1, 70)),
        kernel=kernel,
        size=size,
        strides=tuple(draw(st.integers(1, 3)) for _ in range(rank)),
        pads=pads,
        dilations=dilations,
        group=group,
        batch=draw(st.integers(1, 3)),
        pad_value=draw(st.sampled_from(PAD_VALUES)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=random_cases())
def test_random_geometry(isa: str, case: ConvCase) -> None:
    assert not ConvBatch([case]).differences(isa)


# --- the same comparison catches a corruption -------------------------------------------------


def corrupted(case: ConvCase, what: str) -> dict[str, np.ndarray]:
    values = {name: value.copy() for name, value in case.constants().items()}
    if what == "weight bit":
        values["W"][-1, 1, 2, 0] ^= 1 << 3
    elif what == "threshold":
        acc = case.sums()[:, 7]  # a threshold that one sum reaches, moved past it
        values["threshold"][7] = acc.max() + 1
        case.threshold[7] = acc.max()
    elif what == "bias":
        values["bias"][3] = np.nextafter(values["bias"][3] + 1, np.float32(np.inf))
    elif what == "float threshold":  # the threshold is a value of Y: one step up, and its bit is lost
        values["float_threshold"][3] = np.nextafter(values["float_threshold"][3], np.float32(np.inf))
    elif what == "pad value":
        values["pad"] = np.ones(1, np.float32)
    return values


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "what", ["nothing", "weight bit", "threshold", "float threshold", "bias", "residual", "pad value", "pads"]
)
@pytest.mark.parametrize("size", [(6, 7), (20, 17)])
def test_a_corruption_is_caught(isa: str, what: str, size: tuple[int, int]) -> None:
    case = ConvCase(70, 40, (3, 3), size, pads=(1, 1, 1, 1), seed=5)
    batch = ConvBatch([case], [corrupted(case, what)])
    if what == "residual":
        batch.feeds["R0"][0, 39, 5, 6] += 1
    if what == "pads":  # the kernel gets pads (1, 1, 1, 1), the reference (2, 1, 0, 1)
        case.pads = (2, 1, 0, 1)
    assert bool(batch.differences(isa)) == (what != "nothing")


# --- threads ----------------------------------------------------------------------------------

LARGE_CASES = [
    ConvCase(128, 96, (3, 3), (40, 40), pads=(1,) * 4, batch=2),
    ConvCase(128, 128, (3, 3), (20, 20), group=2, pads=(1,) * 4, batch=4),
    ConvCase(120, 120, (3, 3), (20, 20), group=5, pads=(1,) * 4, batch=4),
    ConvCase(512, 512, (3, 3), (7, 7), pads=(1,) * 4, pad_value="one"),
    ConvCase(4096, 1000, (1, 1), (1, 1), batch=8),
    ConvCase(96, 80, (3, 3), (32, 32), pads=(1,) * 4, batch=3),  # planes a multiple of 4096 bytes apart
    ConvCase(40, 36, (1, 1), (64, 32), group=2, batch=2),
]


@pytest.mark.parametrize("isa", ISAS)
def test_one_and_two_threads_give_the_same_bits(isa: str) -> None:
    assert_convs(LARGE_CASES, isa, threads=1)
    assert_convs(LARGE_CASES, isa, threads=2)


@pytest.mark.parametrize("isa", ISAS)
def test_concurrent_runs_on_one_session(isa: str) -> None:
    """Runs with different image sizes at once, so that the plans of the nodes change under them."""
    sizes = [(9, 9), (20, 31), (40, 40), (14, 6)]
    cases = [ConvCase(64, 64, (3, 3), size, pads=(1,) * 4, batch=2) for size in sizes]
    assert len({case.w.tobytes() for case in cases}) == len(cases)
    for case in cases:  # one set of weights, whatever the size
        case.w, case.scale, case.bias = cases[0].w, cases[0].scale, cases[0].bias
        case.threshold = cases[0].threshold
        case._float_threshold = cases[0].float_threshold(cases[0].out_shape())
    session = make_session(ConvBatch(cases[:1]).model, isa, threads=2)
    expected = [case.expected() for case in cases]
    wrong = []

    def work(case: ConvCase, outputs: list[np.ndarray]) -> None:
        feeds = {"X0": pack(case.x, 1), "R0": case.residual(case.out_shape())}
        for _ in range(30):
            got = session.run(None, feeds)
            if not all(same(a, b) for a, b in zip(got, outputs, strict=True)):
                wrong.append(case)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(cases, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- Binarize ---------------------------------------------------------------------------------


def binarize_differences(
    arrays: Sequence[np.ndarray], thresholds: Sequence[np.ndarray], isa: str, threads: int = 1
) -> list[tuple[int, ...]]:
    nodes, inputs, outputs, constants = [], [], [], {}
    for i, (x, threshold) in enumerate(zip(arrays, thresholds, strict=True)):
        nodes.append(helper.make_node("Binarize", [f"X{i}", f"t{i}"], [f"Y{i}"], domain=DOMAIN))
        constants[f"t{i}"] = threshold
        shape = [None] * x.ndim
        inputs.append(helper.make_tensor_value_info(f"X{i}", TensorProto.FLOAT, shape))
        outputs.append(helper.make_tensor_value_info(f"Y{i}", TensorProto.UINT32, shape))
    session = make_session(make_model(nodes, inputs, outputs, constants), isa, threads)
    got = session.run(None, {f"X{i}": x for i, x in enumerate(arrays)})
    wrong = []
    for x, threshold, actual in zip(arrays, thresholds, got, strict=True):
        bits = x >= threshold.reshape(1, -1, *[1] * (x.ndim - 2))
        expected = pack(np.where(bits, 1, -1), 1)
        if actual.shape != expected.shape or actual.tobytes() != expected.tobytes():
            wrong.append(x.shape)
    return wrong


def binarize_inputs(shapes: Sequence[tuple[int, ...]]) -> tuple[list, list]:
    """Small integers, so that many values equal their threshold, with NaN and infinities."""
    rng = np.random.default_rng(3)
    arrays, thresholds = [], []
    for shape in shapes:
        x = rng.integers(-3, 4, shape).astype(np.float32)
        special = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
        x.ravel()[:: max(7, x.size // 50)] = rng.choice(special, x.ravel()[:: max(7, x.size // 50)].size)
        threshold = rng.integers(-2, 3, shape[1]).astype(np.float32)
        threshold[::11] = np.inf
        threshold[3::11] = -np.inf
        threshold[5::11] = np.nan
        arrays.append(x)
        thresholds.append(threshold)
    return arrays, thresholds


@pytest.mark.parametrize("isa", ISAS)
def test_binarize(isa: str) -> None:
    shapes = [(2, c, 3, 3) for c in CHANNEL_TAILS]
    shapes += [(1, 35, 1, w) for w in [*range(1, 34), 63, 64, 65, 80, 127, 128, 129]]
    shapes += [(3, 70), (2, 33, 9), (2, 5, 2, 3, 7), (0, 5, 4, 4), (2, 5, 0, 4), (1, 4096)]
    arrays, thresholds = binarize_inputs(shapes)
    with only_runs(isa):
        assert not binarize_differences(arrays, thresholds, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_threads(isa: str) -> None:
    arrays, thresholds = binarize_inputs([(2, 64, 56, 56), (1, 3, 224, 224), (64, 512, 7, 7)])
    with only_runs(isa):
        assert not binarize_differences(arrays, thresholds, isa, threads=2)


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_a_moved_threshold_is_caught(isa: str) -> None:
    x = np.zeros((1, 40, 5, 5), np.float32)
    x[0, 33, 4, 4] = 1.0

    class Moved(np.ndarray):
        """The reference compares with one more than what the model is given."""

        def reshape(self, *shape: int) -> np.ndarray:
            return np.asarray(self).reshape(*shape) + np.float32(1e-6)

    threshold = np.full(40, 1.0, np.float32)
    assert not binarize_differences([x], [threshold], isa)
    assert binarize_differences([x], [threshold.view(Moved)], isa)


# --- BinarizeChannelsLast ---------------------------------------------------------------------


def channels_last_differences(shapes: Sequence[tuple[int, ...]], isa: str, threads: int = 1, moved: float = 0) -> list:
    """Shapes, channels second, for which the kernel differs; the reference's thresholds are `moved`."""
    arrays, thresholds = binarize_inputs(shapes)
    nodes, inputs, outputs, constants, feeds = [], [], [], {}, {}
    for i, (x, threshold) in enumerate(zip(arrays, thresholds, strict=True)):
        nodes.append(helper.make_node("BinarizeChannelsLast", [f"X{i}", f"t{i}"], [f"Y{i}"], domain=DOMAIN))
        constants[f"t{i}"] = threshold
        inputs.append(helper.make_tensor_value_info(f"X{i}", TensorProto.FLOAT, [None] * x.ndim))
        outputs.append(helper.make_tensor_value_info(f"Y{i}", TensorProto.UINT32, [None] * x.ndim))
        feeds[f"X{i}"] = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    got = make_session(make_model(nodes, inputs, outputs, constants), isa, threads).run(None, feeds)
    wrong = []
    for x, threshold, actual in zip(feeds.values(), thresholds, got, strict=True):
        expected = pack(np.where(x >= threshold + np.float32(moved), 1, -1), -1)
        if actual.shape != expected.shape or actual.tobytes() != expected.tobytes():
            wrong.append(x.shape)
    return wrong


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_channels_last(isa: str) -> None:
    shapes: list[tuple[int, ...]] = [(2, c, 3, 3) for c in CHANNEL_TAILS]
    shapes += [(3, 70), (2, 33, 9), (2, 5, 2, 3, 7), (0, 5, 4, 4), (1, 4096, 1, 1)]
    with only_runs(isa):
        assert not channels_last_differences(shapes, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_channels_last_threads(isa: str) -> None:
    with only_runs(isa):
        assert not channels_last_differences([(2, 64, 56, 56), (1, 33, 112, 112)], isa, threads=2)


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_channels_last_a_moved_threshold_is_caught(isa: str) -> None:
    assert channels_last_differences([(1, 40, 5, 5)], isa, moved=0.5)


# --- BinarizeQuantized ------------------------------------------------------------------------


def quantized_differences(
    arrays: Sequence[np.ndarray],
    thresholds: Sequence[np.ndarray],
    isa: str,
    threads: int = 1,
    moved: int = 0,
) -> list[tuple[int, ...]]:
    """Shapes for which the kernel differs; the reference's thresholds are `moved`."""
    nodes, inputs, outputs, constants = [], [], [], {}
    for i, (x, threshold) in enumerate(zip(arrays, thresholds, strict=True)):
        nodes.append(helper.make_node("BinarizeQuantized", [f"X{i}", f"t{i}"], [f"Y{i}"], domain=DOMAIN))
        constants[f"t{i}"] = threshold
        shape = [None] * x.ndim
        inputs.append(helper.make_tensor_value_info(f"X{i}", TensorProto.UINT8, shape))
        outputs.append(helper.make_tensor_value_info(f"Y{i}", TensorProto.UINT32, shape))
    session = make_session(make_model(nodes, inputs, outputs, constants), isa, threads)
    got = session.run(None, {f"X{i}": x for i, x in enumerate(arrays)})
    wrong = []
    for x, threshold, actual in zip(arrays, thresholds, got, strict=True):
        reached = x.astype(np.int64) >= threshold.astype(np.int64) + moved
        expected = pack(np.where(reached, 1, -1), -1)
        if actual.shape != expected.shape or actual.tobytes() != expected.tobytes():
            wrong.append(x.shape)
    return wrong


def quantized_inputs(shapes: Sequence[tuple[int, ...]]) -> tuple[list, list]:
    """All bytes, and thresholds below, inside and above their range."""
    rng = np.random.default_rng(5)
    arrays = [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
    limits = [np.iinfo(np.int32).min, -1, 0, 1, 254, 255, 256, np.iinfo(np.int32).max]
    thresholds = []
    for shape in shapes:
        threshold = rng.integers(0, 257, shape[-1]).astype(np.int32)
        threshold[::3] = rng.choice(limits, len(threshold[::3]))
        thresholds.append(threshold)
    return arrays, thresholds


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_quantized(isa: str) -> None:
    shapes: list[tuple[int, ...]] = [(2, 3, 5, c) for c in CHANNEL_TAILS]
    shapes += [(3, 70), (2, 9, 33), (2, 2, 3, 7, 5), (0, 4, 4, 5), (1, 1, 1, 4096)]
    arrays, thresholds = quantized_inputs(shapes)
    with only_runs(isa):
        assert not quantized_differences(arrays, thresholds, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_quantized_threads(isa: str) -> None:
    arrays, thresholds = quantized_inputs([(2, 112, 112, 64), (1, 224, 224, 33)])
    with only_runs(isa):
        assert not quantized_differences(arrays, thresholds, isa, threads=2)


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_quantized_a_moved_threshold_is_caught(isa: str) -> None:
    arrays, thresholds = quantized_inputs([(2, 16, 16, 40)])
    thresholds = [np.clip(t, 1, 254) for t in thresholds]
    assert not quantized_differences(arrays, thresholds, isa)
    assert quantized_differences(arrays, thresholds, isa, moved=1)


# --- BinaryMaxPool ----------------------------------------------------------------------------


@dataclasses.dataclass
class PoolCase:
    words: int
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    ceil_mode: int
    batch: int = 2

    def input(self) -> np.ndarray:
        rng = np.random.default_rng(1)
        x = rng.integers(0, 2**32, (self.batch, *self.size, self.words), dtype=np.uint32)
        return x & rng.integers(0, 2**32, x.shape, dtype=np.uint32)

    def expected(self) -> np.ndarray:
        x = self.input()
        rank = len(self.kernel)
        out = []
        for i, n in enumerate(self.size):
            window = (self.kernel[i] - 1) * self.dilations[i] + 1
            slack = n + self.pads[i] + self.pads[rank + i] - window
            starts = range(0, slack + (self.strides[i] if self.ceil_mode else 1), self.strides[i])
            if self.ceil_mode:  # the last window starts inside the input or its begin padding
                starts = [start for start in starts if start < n + self.pads[i]]
            out.append(len(starts))
        y = np.zeros((self.batch, *out, self.words), np.uint32)
        for position in itertools.product(*map(range, out)):
            for tap in itertools.product(*map(range, self.kernel)):
                axes = zip(position, self.strides, self.pads[:rank], tap, self.dilations, strict=True)
                at = tuple(p * s - pad + t * d for p, s, pad, t, d in axes)
                if all(0 <= a < n for a, n in zip(at, self.size, strict=True)):
                    y[(slice(None), *position)] |= x[(slice(None), *at)]
        return y


def pool_differences(cases: Sequence[PoolCase], flip: bool = False) -> list[PoolCase]:
    nodes, inputs, outputs = [], [], []
    for i, case in enumerate(cases):
        attributes = {
            "kernel_shape": case.kernel,
            "strides": case.strides,
            "pads": case.pads,
            "dilations": case.dilations,
            "ceil_mode": case.ceil_mode,
            "domain": DOMAIN,
        }
        nodes.append(helper.make_node("BinaryMaxPool", [f"X{i}"], [f"Y{i}"], **attributes))
        shape = [None] * (len(case.kernel) + 2)
        inputs.append(helper.make_tensor_value_info(f"X{i}", TensorProto.UINT32, shape))
        outputs.append(helper.make_tensor_value_info(f"Y{i}", TensorProto.UINT32, shape))
    session = make_session(make_model(nodes, inputs, outputs, {}), None)
    feeds = {f"X{i}": case.input() for i, case in enumerate(cases)}
    if flip:
        for x in feeds.values():
            x[(0,) * x.ndim] ^= 1 << 9
    got = session.run(None, feeds)
    return [
        case
        for case, actual in zip(cases, got, strict=True)
        if actual.shape != case.expected().shape or actual.tobytes() != case.expected().tobytes()
    ]


POOL_CASES = [
    PoolCase(words, kernel, (7, 6), strides, pads, dilations, ceil_mode)
    for words, kernel, strides, pads, dilations, ceil_mode in itertools.product(
        (1, 3),
        ((2, 2), (3, 3), (1, 2)),
        ((2, 2), (1, 3)),
        ((0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 1, 0)),
        ((1, 1), (2, 1)),
        (0, 1),
    )
] + [
    PoolCase(2, (3,), (8,), (2,), (1, 1), (1,), 0),
    PoolCase(2, (3,), (8,), (3,), (0, 2), (2,), 1),
    PoolCase(1, (2, 2), (4, 4), (2, 2), (0,) * 4, (1, 1), 0, batch=0),
]


def test_max_pool() -> None:
    assert not pool_differences(POOL_CASES)


def test_max_pool_large_enough_for_threads() -> None:
    assert not pool_differences([PoolCase(64, (2, 2), (40, 40), (2, 2), (0,) * 4, (1, 1), 0)])


def test_max_pool_a_flipped_bit_is_caught() -> None:
    # A window of one element, so that no other bit of the window can hide the flip.
    assert pool_differences([PoolCase(1, (1, 1), (4, 4), (1, 1), (0,) * 4, (1, 1), 0)], flip=True)


# --- shapes and LibraryInfo -------------------------------------------------------------------


def test_shape_inference_keeps_the_symbolic_batch() -> None:
    case = ConvCase(40, 50, (3, 3), (8, 9), strides=(2, 1), pads=(1, 1, 1, 1))
    constants = {**case.constants(), "t": np.zeros(40, np.float32)}
    residual = ["bits", "W", "scale", "bias", "pad", "R", "float_threshold"]
    attributes = {
        "channels": 40,
        "kernel_shape": (3, 3),
        "strides": (2, 1),
        "pads": (1, 1, 1, 1),
        "dilations": (1, 1),
        "group": 1,
        "domain": DOMAIN,
    }
    pool = {
        "kernel_shape": (2, 2),
        "strides": (2, 2),
        "pads": (0, 0, 0, 0),
        "dilations": (1, 1),
        "ceil_mode": 0,
        "domain": DOMAIN,
    }
    nodes = [
        helper.make_node("Binarize", ["X", "t"], ["bits"], domain=DOMAIN),
        helper.make_node("BinaryConv", ["bits", "W", "scale", "bias", "pad"], ["Y"], **attributes),
        helper.make_node("BinaryConvThreshold", ["bits", "W", "threshold", "pad"], ["B"], **attributes),
        helper.make_node("BinaryMaxPool", ["B"], ["P"], **pool),
        helper.make_node("BinaryConvResidual", residual, ["RY", "RB"], **attributes),
        helper.make_node("BinaryConvResidual", residual, ["RY2"], **attributes),
        helper.make_node("BinaryConvResidual", residual, ["", "RB2"], **attributes),
    ]
    model = make_model(
        nodes,
        [
            helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch", 40, 8, 9]),
            helper.make_tensor_value_info("R", TensorProto.FLOAT, ["batch", 50, 4, 9]),
        ],
        [helper.make_empty_tensor_value_info(name) for name in ("Y", "B", "P", "RY", "RB", "RY2", "RB2")],
        constants,
    )
    shapes = {output.name: output.shape for output in make_session(model, None).get_outputs()}
    assert shapes == {
        "Y": ["batch", 50, 4, 9],
        "B": ["batch", 4, 9, 2],
        "P": ["batch", 2, 4, 2],
        "RY": ["batch", 50, 4, 9],
        "RB": [],  # unknown: onnxruntime before 1.28 aborts if it is told of RB where a node has only RY
        "RY2": ["batch", 50, 4, 9],
        "RB2": [],
    }


def test_library_info() -> None:
    info = library_info()
    assert info["isas"][-1] == "scalar"
    assert info["selected"] == info["isas"][0]
    assert set(info["calls"]) == set(info["isas"])
    assert info["version"]
    for isa in info["isas"]:
        assert library_info(isa)["selected"] == isa
