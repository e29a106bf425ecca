"""BinarizeAbsMean and BinaryConvScaled: kernels on every ISA, and function bodies, against plain numpy.

Bits and the scaled convolution agree to the last bit. A is a float sum whose order is open, so it is compared with the
exact mean of its float32 terms, within what the operator promises: min(C, C / 32 + 40) * 2^-24, relative.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bnn_deploy.operators.contract import OPSET, VERSION
from support.bodies import functions_of
from support.kernels import CHANNEL_TAILS, DOMAIN, ISAS, PAD_VALUES, ConvCase, make_session, only_runs, pack, same

Array = NDArray[Any]
BODIES = ["onnxruntime", "ReferenceEvaluator"]


def run(model: onnx.ModelProto, feeds: dict[str, Array], place: str, threads: int = 1) -> list[Array]:
    """The model's outputs: `place` is an ISA, or what runs the function bodies."""
    if place in ISAS:
        # Of an empty batch nothing runs.
        with only_runs(place) if any(array.size for array in feeds.values()) else contextlib.nullcontext():
            return make_session(model, place, threads).run(None, feeds)
    with_bodies = onnx.ModelProto()
    with_bodies.CopyFrom(model)
    with_bodies.functions.extend(functions_of(list(model.graph.node)))
    onnx.checker.check_model(with_bodies, full_check=True)
    if place == "ReferenceEvaluator":
        with np.errstate(all="ignore"):
            return ReferenceEvaluator(with_bodies).run(None, feeds)
    session = ort.InferenceSession(with_bodies.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def one_model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, Array],
    outputs: dict[str, tuple[int, int]],
    constants: dict[str, Array],
) -> onnx.ModelProto:
    """A model with inputs like these arrays, and outputs name -> (element type, rank)."""
    graph = helper.make_graph(
        nodes,
        "channel_mean",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
            for name, array in inputs.items()
        ],
        [helper.make_tensor_value_info(name, kind, [None] * rank) for name, (kind, rank) in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


# --- BinarizeAbsMean ----------------------------------------------------------------------------------------------

SHAPES: list[tuple[int, ...]] = [
    *((2, c, 3, 3) for c in CHANNEL_TAILS),
    *((1, 35, 1, w) for w in [*range(1, 34), 63, 64, 65, 80, 127, 128, 129, 200]),
    *((2, c) for c in (1, 7, 31, 32, 33, 48, 70, 4096)),
    (2, 33, 9),
    (2, 5, 2, 3, 7),
    (0, 5, 4, 4),
    (2, 5, 0, 4),
]


def mean_case(shape: tuple[int, ...], seed: int = 0, special: bool = False) -> dict[str, Array]:
    """X, threshold, scale and shift; some values equal their threshold, and some terms cancel."""
    rng = np.random.default_rng([seed, *shape])
    x = (rng.integers(-6, 7, shape) / 3).astype(np.float32)
    threshold = (rng.integers(-3, 4, shape[1]) / 3).astype(np.float32)
    scale = rng.choice([-1, 1], shape[1]) * rng.uniform(0.3, 3, shape[1])
    shift = np.where(np.arange(shape[1]) % 3 == 0, -scale, rng.standard_normal(shape[1]))
    if special and x.size:
        x.ravel()[:: max(7, x.size // 20)] = rng.choice(
            [np.nan, np.inf, -np.inf, -0.0], x.ravel()[:: max(7, x.size // 20)].size
        )
        threshold[::11], threshold[3::11], threshold[5::11] = np.inf, -np.inf, np.nan
    return {"X": x, "threshold": threshold, "scale": scale.astype(np.float32), "shift": shift.astype(np.float32)}


def terms(case: dict[str, Array]) -> Array:
    """|scale * X + shift|, each step rounded to float32."""
    column = (1, -1, *[1] * (case["X"].ndim - 2))
    with np.errstate(all="ignore"):
        return np.abs(case["X"] * case["scale"].reshape(column) + case["shift"].reshape(column))


def mean_differences(cases: Sequence[dict[str, Array]], place: str, moved: str = "", threads: int = 1) -> list[str]:
    """The cases whose bits, or whose A, are wrong; the model's constant `moved` is not that of the reference."""
    nodes, outputs, constants, feeds = [], {}, {}, {}
    for i, case in enumerate(cases):
        names = ["X", "threshold", "scale", "shift"]
        node = helper.make_node(
            "BinarizeAbsMean", [f"{name}{i}" for name in names], [f"bits{i}", f"A{i}"], domain=DOMAIN
        )
        nodes.append(node)
        outputs |= {f"bits{i}": (TensorProto.UINT32, case["X"].ndim), f"A{i}": (TensorProto.FLOAT, case["X"].ndim)}
        feeds[f"X{i}"] = case["X"]
        for name in names[1:]:
            value = case[name].copy()
            if name == moved:
                value[-1] += np.float32(0.01)
            constants[f"{name}{i}"] = value
    got = run(one_model(nodes, feeds, outputs, constants), feeds, place, threads)
    wrong = []
    for i, case in enumerate(cases):
        x, channels = case["X"], case["X"].shape[1]
        bits = x >= case["threshold"].reshape(1, -1, *[1] * (x.ndim - 2))
        if not same(got[2 * i], pack(np.where(bits, 1, -1), 1)):
            wrong.append(f"bits {x.shape}")
        exact = terms(case).astype(np.float64).mean(axis=1, keepdims=True)
        actual = got[2 * i + 1]
        if actual.shape != exact.shape or actual.dtype != np.float32:
            wrong.append(f"A {x.shape}: {actual.dtype}{list(actual.shape)}")
            continue
        number = np.isfinite(exact)
        if not np.array_equal(exact[~number], actual[~number], equal_nan=True):
            wrong.append(f"A {x.shape}: NaN or infinity")
        error = np.abs(actual[number] - exact[number])
        if (error > min(channels, channels // 32 + 40) * 2.0**-24 * exact[number]).any():
            wrong.append(f"A {x.shape}: {error.max()}")
    return wrong


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("special", [False, True])
def test_binarize_abs_mean(isa: str, special: bool) -> None:
    assert not mean_differences([mean_case(shape, special=special) for shape in SHAPES], isa)


@pytest.mark.parametrize("place", BODIES)
def test_binarize_abs_mean_bodies(place: str) -> None:
    shapes = [(2, c, 3, 2) for c in (1, 31, 33, 800)] + [(2, 40), (2, 33, 9), (2, 5, 2, 3, 7)]
    assert not mean_differences([mean_case(shape, special=True) for shape in shapes], place)


@pytest.mark.parametrize("isa", ISAS)
def test_binarize_abs_mean_threads(isa: str) -> None:
    cases = [mean_case(shape) for shape in ((2, 64, 56, 56), (1, 3, 224, 224), (64, 512, 7, 7))]
    assert not mean_differences(cases, isa, threads=2)


@pytest.mark.parametrize("place", [*ISAS, "onnxruntime"])
@pytest.mark.parametrize(("moved", "output"), [("threshold", "bits"), ("scale", "A"), ("shift", "A")])
def test_binarize_abs_mean_a_moved_constant_is_caught(place: str, moved: str, output: str) -> None:
    case = mean_case((2, 40, 5, 5))
    case["X"][:, -1] = case["threshold"][-1]  # every bit of the last channel is lost with its threshold
    wrong = mean_differences([case], place, moved)
    assert len(wrong) == 1 and wrong[0].startswith(output)


# --- BinaryConvScaled ---------------------------------------------------------------------------------------------


def factor(case: ConvCase) -> Array:
    """[N, 1, spatial'...] float32: positive, as K is, and negative, with infinities and NaN."""
    batch, _, *spatial = case.out_shape()
    rng = np.random.default_rng(case.seed)
    values = rng.standard_normal((batch, 1, *spatial)).astype(np.float32)
    special = rng.choice(np.array([np.nan, np.inf, -np.inf, 0], np.float32), values.shape)
    return np.where(rng.random(values.shape) < 0.02, special, values)


def scaled(case: ConvCase) -> Array:
    column = (-1, *[1] * len(case.kernel))
    y = case.scale.reshape(column) * case.sums().astype(np.float32) + case.bias.reshape(column)
    with np.errstate(all="ignore"):
        return y * factor(case)


def conv_differences(cases: Sequence[ConvCase], place: str, corrupt: str = "", threads: int = 1) -> list[str]:
    """The cases whose Y is wrong; `corrupt` names the input that is not that of the reference."""
    nodes, feeds, outputs, constants = [], {}, {}, {}
    for i, case in enumerate(cases):
        attributes = {
            "channels": case.channels,
            "kernel_shape": case.kernel,
            "strides": case.strides,
            "pads": case.pads,
            "dilations": case.dilations,
            "group": case.group,
        }
        inputs = [f"{name}{i}" for name in ("X", "W", "scale", "bias", "pad", "factor")]
        nodes.append(helper.make_node("BinaryConvScaled", inputs, [f"Y{i}"], domain=DOMAIN, **attributes))
        feeds |= {f"X{i}": pack(case.x, 1), f"factor{i}": factor(case)}
        constants |= {f"W{i}": pack(case.w, 1), f"scale{i}": case.scale, f"bias{i}": case.bias, f"pad{i}": case.pad}
        outputs[f"Y{i}"] = TensorProto.FLOAT, len(case.kernel) + 2
    if corrupt == "factor":
        feeds["factor0"][(-1, 0, *[-1] * len(cases[0].kernel))] = 7
    elif corrupt:
        constants[f"{corrupt}0"] = cases[0].constants()[corrupt] * np.float32(1 + 2**-20)
    got = run(one_model(nodes, feeds, outputs, constants), feeds, place, threads)
    return [str(case) for case, actual in zip(cases, got, strict=True) if not same(actual, scaled(case))]


@pytest.mark.parametrize("isa", ISAS)
def test_scaled_every_output_channel_tail(isa: str) -> None:
    outputs = [*range(1, 67), 127, 128, 129, 192]
    assert not conv_differences([ConvCase(33, o, (3, 3), (4, 5), pads=(1,) * 4, seed=o) for o in outputs], isa)


@pytest.mark.parametrize("isa", ISAS)
def test_scaled_every_pixel_tail(isa: str) -> None:
    cases = [ConvCase(40, 20, (3, 1), (3, w), seed=w) for w in [*range(1, 34), 63, 64, 65, 127, 128, 129]]
    # From 256 pixels on a unit may take pixels as lanes.
    cases += [ConvCase(40, 1 + tail % 13, (1, 3), (1, 258 + tail), seed=tail) for tail in range(65)]
    cases += [ConvCase(64, 70, (3, 3), (17, 19), pads=(1,) * 4, batch=2)]
    assert not conv_differences(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_scaled_geometry(isa: str) -> None:
    cases = [
        ConvCase(c, o, (3, 3), size, s, pads, d, g, batch=2, pad_value=value)
        for (c, o, g), size, (s, pads, d), value in itertools.product(
            ((40, 35, 1), (66, 40, 2)),
            ((9, 8), (20, 17)),
            (((1, 1), (1,) * 4, (1, 1)), ((2, 1), (0, 1, 2, 0), (1, 2))),
            PAD_VALUES,
        )
    ]
    cases += [ConvCase(30, 21, (5,), (20,), (2,), (0, 3), batch=2), ConvCase(512, 100, (1, 1), (1, 1), batch=3)]
    # Planes that are a multiple of 4096 bytes apart.
    cases += [ConvCase(512, 100, (1, 1), (1, 1)), ConvCase(40, 35, (3, 3), (32, 32), pads=(1,) * 4, batch=2)]
    assert not conv_differences(cases, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_scaled_empty_batch(isa: str) -> None:
    assert not conv_differences([ConvCase(40, 33, (3, 3), (5, 5), pads=(1,) * 4, batch=0)], isa)


@pytest.mark.parametrize("isa", ISAS)
def test_scaled_threads(isa: str) -> None:
    cases = [
        ConvCase(128, 96, (3, 3), (40, 40), pads=(1,) * 4, batch=2),
        ConvCase(120, 120, (3, 3), (20, 20), group=5, pads=(1,) * 4, batch=4),
        ConvCase(512, 512, (3, 3), (7, 7), pads=(1,) * 4, pad_value="one"),
        ConvCase(96, 80, (3, 3), (32, 32), pads=(1,) * 4, batch=3),
    ]
    assert not conv_differences(cases, isa, threads=2)


@pytest.mark.parametrize("place", BODIES)
def test_scaled_bodies(place: str) -> None:
    cases = [ConvCase(33, 6, (3, 3), (4, 5), pads=(1,) * 4, batch=2, pad_value=value) for value in PAD_VALUES]
    cases += [ConvCase(40, 6, (3,), (9,), (2,), (0, 2), (2,)), ConvCase(66, 10, (3, 3), (4, 3), group=2)]
    assert not conv_differences(cases, place)


@pytest.mark.parametrize("place", [*ISAS, *BODIES])
@pytest.mark.parametrize("corrupt", ["scale", "bias", "factor"])
@pytest.mark.parametrize("size", [(6, 7), (20, 17)])
def test_scaled_a_corruption_is_caught(place: str, corrupt: str, size: tuple[int, int]) -> None:
    case = ConvCase(70, 40, (3, 3), size, pads=(1, 1, 1, 1), seed=5)
    assert conv_differences([case], place, corrupt)
    assert not conv_differences([case], place)


def test_shape_inference_keeps_the_symbolic_batch() -> None:
    attributes = {
        "channels": 40,
        "kernel_shape": (3, 3),
        "strides": (2, 1),
        "pads": (1,) * 4,
        "dilations": (1, 1),
        "group": 1,
    }
    case = ConvCase(40, 50, (3, 3), (8, 9))
    inputs = ["bits", "W", "scale", "bias", "pad", "factor"]
    nodes = [
        helper.make_node("BinarizeAbsMean", ["X", "t", "a", "b"], ["bits", "A"], domain=DOMAIN),
        helper.make_node("BinaryConvScaled", inputs, ["Y"], domain=DOMAIN, **attributes),
    ]
    column = np.ones(40, np.float32)
    graph = helper.make_graph(
        nodes,
        "shapes",
        [
            helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch", 40, 8, 9]),
            helper.make_tensor_value_info("factor", TensorProto.FLOAT, ["batch", 1, 4, 9]),
        ],
        [helper.make_empty_tensor_value_info(name) for name in ("bits", "A", "Y")],
        [
            numpy_helper.from_array(value, name)
            for name, value in {**case.constants(), "t": column, "a": column, "b": column}.items()
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    session = make_session(helper.make_model(graph, opset_imports=opsets, ir_version=9), None)
    shapes = {output.name: output.shape for output in session.get_outputs()}
    # A is unknown: onnxruntime before 1.28 aborts if it is told of an output that a node lacks.
    assert shapes == {"bits": ["batch", 8, 9, 2], "A": [], "Y": ["batch", 50, 4, 9]}
