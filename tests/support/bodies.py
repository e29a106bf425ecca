"""Runs function bodies in three runtimes, and a reference in integer loops, written from the contract alone."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bnn_deploy.operators import bodies
from bnn_deploy.operators.contract import DOMAIN, OPSET, VERSION

Array = NDArray[Any]
FUNCTIONS = [ir.to_proto(function) for function in bodies.functions()]
INT32 = np.iinfo(np.int32)


# --- models and the runtimes that run them -----------------------------------------------------------------------


def functions_of(nodes: list[onnx.NodeProto]) -> list[onnx.FunctionProto]:
    """The functions of our operators among these nodes, as in a converted model: all of them cost each session time."""
    used = {node.op_type for node in nodes}
    return [function for function in FUNCTIONS if function.name in used]


def make_model(
    nodes: list[onnx.NodeProto], x: Array, initializers: dict[str, Array], outputs: dict[str, int], rank: int
) -> bytes:
    """A checked model with the bodies of its nodes, input X (dynamic batch) and `outputs` (name -> type) of `rank`."""
    x_type = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("X", x_type, ["N", *x.shape[1:]])],
        [helper.make_tensor_value_info(name, kind, [None] * rank) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=imports, functions=functions_of(nodes), ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True, data_prop=True)
    return model.SerializeToString()


def stock_session(model: bytes, optimised: bool) -> ort.InferenceSession:
    """An onnxruntime session without our kernels."""
    levels = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_everywhere(model: bytes, x: Array) -> dict[str, list[Array]]:
    """Name of the runtime -> outputs."""
    return {
        "onnxruntime, not optimised": stock_session(model, optimised=False).run(None, {"X": x}),
        "onnxruntime, optimised": stock_session(model, optimised=True).run(None, {"X": x}),
        "reference evaluator": ReferenceEvaluator(onnx.load_from_string(model)).run(None, {"X": x}),
    }


def equal(got: Array, expected: Array) -> bool:
    """Same type, same shape, same bytes."""
    return got.dtype == expected.dtype and got.shape == expected.shape and got.tobytes() == expected.tobytes()


def check(model: bytes, x: Array, expected: list[Array]) -> None:
    for place, outputs in run_everywhere(model, x).items():
        for got, wanted in zip(outputs, expected, strict=True):
            assert equal(got, wanted), f"{place}: {got.dtype}{got.shape}, wanted {wanted.dtype}{wanted.shape}"


def nowhere_equal(model: bytes, x: Array, expected: list[Array]) -> bool:
    """Whether every runtime gives other outputs than expected: all of them notice a corruption."""
    return all(
        not all(equal(got, wanted) for got, wanted in zip(outputs, expected, strict=True))
        for outputs in run_everywhere(model, x).values()
    )


# --- the reference: loops over integers, written from the contract alone ----------------------------------------


def pack(values: Array) -> Array:
    """Booleans [A, C, spatial...] -> uint32 [A, spatial..., ceil(C/32)]: channel c is bit c % 32 of word c // 32."""
    a, channels, *spatial = values.shape
    packed = np.zeros((a, *spatial, math.ceil(channels / 32)), np.uint32)
    for c in range(channels):
        packed[..., c // 32] |= values[:, c].astype(np.uint32) << np.uint32(c % 32)
    return packed


@dataclass(frozen=True)
class Window:
    """The positions of a convolution or pooling kernel on an input."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]

    @classmethod
    def of(
        cls,
        *kernel: int,
        strides: tuple[int, ...] | None = None,
        pads: tuple[int, ...] | None = None,
        dilations: tuple[int, ...] | None = None,
    ) -> Window:
        ones = (1,) * len(kernel)
        return cls(kernel, strides or ones, pads or (0,) * 2 * len(kernel), dilations or ones)

    def attributes(self) -> dict[str, list[int]]:
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides),
            "pads": list(self.pads),
            "dilations": list(self.dilations),
        }

    def outputs(self, size: tuple[int, ...], ceil: bool = False) -> list[int]:
        """The output's spatial size, as ONNX defines it for Conv and MaxPool."""
        result = []
        rank = len(size)
        for i, extent in enumerate(size):
            free = extent + self.pads[i] + self.pads[i + rank] - (self.kernel[i] - 1) * self.dilations[i] - 1
            count = (-(-free // self.strides[i]) if ceil else free // self.strides[i]) + 1
            if ceil and (count - 1) * self.strides[i] >= extent + self.pads[i]:
                count -= 1  # the last window would start in the end padding
            result.append(count)
        return result

    def taps(self, position: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """(tap, coordinate in the unpadded input) for each tap of the window at an output position."""
        begins = self.pads[: len(self.kernel)]
        axes = list(zip(position, self.strides, self.dilations, begins, strict=True))
        return [
            (tap, tuple(p * s + t * d - b for t, (p, s, d, b) in zip(tap, axes, strict=True)))
            for tap in itertools.product(*map(range, self.kernel))
        ]


def inside(coordinate: tuple[int, ...], size: tuple[int, ...]) -> bool:
    return all(0 <= c < extent for c, extent in zip(coordinate, size, strict=True))


def convolve(x: Array, w: Array, pad_value: Array, window: Window, group: int) -> Array:
    """x [N, C, spatial...], w [O, C/group, kernel...] of ±1 -> int64 [N, O, spatial'...], one tap at a time."""
    n, channels, *size = x.shape
    padding = np.broadcast_to(pad_value, (channels,)).astype(np.int64)
    positions = window.outputs(tuple(size))
    acc = np.zeros((n, len(w), *positions), np.int64)
    for position in np.ndindex(*positions):
        for tap, coordinate in window.taps(position):
            at = (slice(None), slice(None), *coordinate)
            held = x[at] if inside(coordinate, tuple(size)) else np.tile(padding, (n, 1))
            for g in range(group):
                c = slice(g * channels // group, (g + 1) * channels // group)
                o = slice(g * len(w) // group, (g + 1) * len(w) // group)
                acc[(slice(None), o, *position)] += held[:, c] @ w[(o, slice(None), *tap)].T
    return acc
