"""Sessions of one ISA, and a convolution against a direct numpy reference, for the tests of the kernels.

The reference works on arrays of -1, 0 and +1 and knows nothing of words, tiles or tables. Each
model holds many independent nodes, so that one session checks many shapes. The ISAs come from
``LibraryInfo``, which lists only those that the machine can run, so no test is skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnxruntime as ort
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
    """Assert that inside the context micro-kernels of this ISA run, and of no other."""
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


SUMS: dict[tuple, np.ndarray] = {}
"""The sums of the latest convolutions, by all that they depend on: the tests of the next ISA need them again."""

MAX_SUMS = 256


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
        # Thresholds near 0, so that both bit values occur; INT32.max never sets a bit, INT32.min always.
        spread = max(1, int(np.sqrt(self.w[0].size)))
        self.threshold = rng.integers(-spread, spread + 1, self.outputs, dtype=np.int32)
        self.threshold[:: max(5, self.outputs // 4)] = INT32.max
        self.threshold[1 :: max(5, self.outputs // 4)] = INT32.min
        self.residual_seed = rng.integers(2**32)
        self._float_threshold: np.ndarray | None = None

    def sums(self) -> np.ndarray:
        """acc, [N, O, spatial...] int32: one tap at a time over the explicitly padded input."""
        content = hashlib.sha256(self.x.tobytes())
        for array in (self.w, self.pad):
            content.update(array.tobytes())
        key = (content.digest(), *(tuple(array.shape) for array in (self.x, self.w, self.pad)))
        key += (tuple(self.strides), tuple(self.pads), tuple(self.dilations), self.group)
        if key not in SUMS:
            if len(SUMS) == MAX_SUMS:
                del SUMS[next(iter(SUMS))]
            SUMS[key] = self._make_sums()
            SUMS[key].flags.writeable = False
        return SUMS[key]

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
            sums = taps @ values.reshape(*values.shape[:3], math.prod(out))
            total += sums.astype(np.int32).reshape(total.shape)
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
        """A residual as large as the convolution's sums, so that both matter; with NaN and infinities."""
        rng = np.random.default_rng(self.residual_seed)
        residual = (rng.standard_normal(shape) * np.sqrt(self.w[0].size)).astype(np.float32)
        special = rng.choice(np.array([np.nan, np.inf, -np.inf], np.float32), shape)
        return np.where(rng.random(shape) < 0.02, special, residual)

    def float_threshold(self, shape: tuple[int, ...]) -> np.ndarray:
        """[O] float32: Y at one pixel, so that equality occurs; some are NaN or infinite."""
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
        """The outputs, with their cases, that differ from the reference in any bit."""
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
    """Whether arrays are equal bit for bit; NaNs equal each other, as the payload of a NaN depends on the processor."""
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
