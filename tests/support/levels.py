"""Models of one node, run by its function body and by the kernels of every ISA."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bnn_deploy.operators.bits import pack_bits
from bnn_deploy.operators.contract import OPSET, VERSION
from bnn_deploy.runtime.session import library_info, load_session
from support.bodies import functions_of

ISAS = list(library_info().isas)


def one_node(
    op_type: str,
    x: NDArray[np.generic],
    constants: dict[str, NDArray[np.generic]],
    output: tuple[int, int],
    **attributes: object,
) -> bytes:
    """A checked model of one node; `output` is its element type and rank."""
    node = helper.make_node(op_type, ["X", *constants], ["Y"], name="layer7", domain="bnn_deploy", **attributes)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("X", helper.np_dtype_to_tensor_dtype(x.dtype), ["N", *x.shape[1:]])],
        [helper.make_tensor_value_info("Y", output[0], [None] * output[1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("bnn_deploy", VERSION)]
    model = helper.make_model(graph, opset_imports=imports, functions=functions_of([node]), ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def run_bodies(model: bytes, x: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
    """Name of the runtime -> output."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return {
        "onnxruntime, not optimised": plain.run(None, {"X": x})[0],
        "onnxruntime, optimised": load_session(model, 1, kernels=False).run(None, {"X": x})[0],
        "ReferenceEvaluator": ReferenceEvaluator(onnx.load_from_string(model)).run(None, {"X": x})[0],
    }


def run_kernels(model: bytes, x: NDArray[np.generic], threads: int = 1) -> dict[str, NDArray[np.generic]]:
    """ISA -> output; asserts that only this ISA's kernels ran."""
    results = {}
    for isa in ISAS:
        before = library_info().calls
        results[isa] = load_session(model, threads, isa=isa).run(None, {"X": x})[0]
        after = library_info().calls
        assert {name for name in after if after[name] > before.get(name, 0)} == {isa}
    return results


def check(results: dict[str, NDArray[np.generic]], expected: NDArray[np.generic]) -> None:
    for place, got in results.items():
        assert got.dtype == expected.dtype and got.shape == expected.shape, place
        assert got.tobytes() == expected.tobytes(), f"{place}: {int((got != expected).sum())} of {got.size} differ"


def nowhere_equal(results: dict[str, NDArray[np.generic]], expected: NDArray[np.generic]) -> bool:
    return all(got.tobytes() != expected.tobytes() for got in results.values())


def planes(levels: NDArray[np.int64], bits: int) -> NDArray[np.uint32]:
    """Levels [N, C, spatial...] -> planes [N, spatial..., bits * words]: plane 0's words, then plane 1's and so on."""
    last = np.moveaxis(levels, 1, -1)
    return np.concatenate([pack_bits(last >> j & 1 == 1) for j in range(bits)], axis=-1)


# --- BinaryConvLevels -------------------------------------------------------------------------------------------


@dataclass
class Conv:
    """A convolution of random levels with random weights and scales."""

    channels: int
    outputs: int
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1
    batch: int = 2
    bits: int = 2
    levels: NDArray[np.int64] = field(init=False, repr=False)
    w: NDArray[np.int64] = field(init=False, repr=False)
    scale: NDArray[np.float32] = field(init=False, repr=False)
    bias: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rank = len(self.kernel)
        self.strides, self.dilations = self.strides or (1,) * rank, self.dilations or (1,) * rank
        self.pads = self.pads or (0,) * (2 * rank)
        rng = np.random.default_rng(1)
        self.levels = rng.integers(0, 2**self.bits, (self.batch, self.channels, *self.size))
        self.w = rng.choice([-1, 1], (self.outputs, self.channels // self.group, *self.kernel))
        self.scale = rng.standard_normal(self.outputs).astype(np.float32)
        self.bias = rng.standard_normal(self.outputs).astype(np.float32)
        self.bias[0] = 0

    def attributes(self) -> dict[str, object]:
        return {
            "channels": self.channels,
            "kernel_shape": self.kernel,
            "strides": self.strides,
            "pads": self.pads,
            "dilations": self.dilations,
            "group": self.group,
            "bits": self.bits,
        }

    def x(self) -> NDArray[np.uint32]:
        return planes(self.levels, self.bits)

    def model(self) -> bytes:
        constants = {"W": pack_bits(np.moveaxis(self.w > 0, 1, -1)), "scale": self.scale, "bias": self.bias}
        output = (TensorProto.FLOAT, self.levels.ndim)
        return one_node("BinaryConvLevels", self.x(), constants, output, **self.attributes())

    def sums(self) -> NDArray[np.int64]:
        rank = len(self.kernel)
        around = [(0, 0), (0, 0), *zip(self.pads[:rank], self.pads[rank:], strict=True)]
        padded = np.pad(self.levels, around)
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        out = [(n - span) // s + 1 for n, span, s in zip(padded.shape[2:], spans, self.strides, strict=True)]
        padded = padded.reshape(self.batch, self.group, -1, *padded.shape[2:])
        w = self.w.reshape(self.group, -1, *self.w.shape[1:])
        total = np.zeros((self.batch, self.group, w.shape[1], *out), np.int64)
        for tap in itertools.product(*map(range, self.kernel)):
            window = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, self.dilations, out, self.strides, strict=True)
            )
            taps = w[(slice(None), slice(None), slice(None), *tap)]
            total += np.einsum("ngc...,goc->ngo...", padded[(slice(None), slice(None), slice(None), *window)], taps)
        return total.reshape(self.batch, self.outputs, *out)

    def expected(self) -> NDArray[np.float32]:
        column = (-1, *[1] * len(self.kernel))
        return self.scale.reshape(column) * self.sums().astype(np.float32) + self.bias.reshape(column)
