"""Kernel and body agree where inputs are odd: on empty images, on -0, on unused bits, on sums beyond float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bnn_deploy.operators.contract import DOMAIN, OPERATORS, OPSET, VERSION
from bnn_deploy.operators.shapes import MAX_EXTENT, MAX_PADDED, MAX_PADDED_RATIO
from support.agreement import Array, equal_outputs, model_of, outcome
from support.bodies import functions_of, stock_session
from support.kernels import ISAS, make_session

FLOAT = np.float32
WINDOW = {"kernel_shape": [3, 2], "strides": [1, 2], "pads": [1, 0, 1, 1], "dilations": [1, 1]}
CONV = {"channels": 20, **WINDOW, "group": 1}
NO_POOL = {"pool_shape": [2, 1], "pool_strides": [2, 1], "pool_pads": [0, 0, 0, 0]}
RNG = np.random.default_rng(13)


def per_channel(count: int) -> Array:
    return RNG.standard_normal(count).astype(FLOAT)


def words(*shape: int, unused: int = 12) -> Array:
    return RNG.integers(0, 2**32, shape, np.uint32) & np.uint32(0xFFFFFFFF >> unused)


W = words(7, 3, 2, 1)
PER_OUTPUT = {"scale": per_channel(7), "bias": per_channel(7)}
PAD = {"pad_value": np.zeros(1, FLOAT)}
DIRECT = {"W": RNG.standard_normal((7, 2, 3, 2)).astype(FLOAT), "bias": per_channel(7)}
LEVELS = {"levels": RNG.standard_normal((2, 256)).astype(FLOAT)}
THRESHOLD = {"threshold": per_channel(7)}

# operator -> (X of one image, attributes, constants)
CASES: dict[str, tuple[Array, dict[str, Any], dict[str, Array]]] = {
    "Binarize": (per_channel(40 * 9).reshape(1, 40, 3, 3), {}, {"threshold": per_channel(40)}),
    "BinarizeChannelsLast": (per_channel(40 * 9).reshape(1, 3, 3, 40), {}, {"threshold": per_channel(40)}),
    "BinarizeQuantized": (np.ones((1, 3, 3, 40), np.uint8), {}, {"threshold": np.arange(40, dtype=np.int32) - 20}),
    "BinarizeAbsMean": (
        per_channel(40 * 9).reshape(1, 40, 3, 3),
        {},
        {"threshold": per_channel(40), "scale": per_channel(40), "shift": per_channel(40)},
    ),
    "BinaryConv": (words(1, 4, 3, 1), CONV, {"W": W, **PER_OUTPUT, **PAD}),
    "BinaryConvThreshold": (
        words(1, 4, 3, 1),
        CONV,
        {"W": W, "threshold": np.arange(-3, 4, dtype=np.int32) * 9, **PAD},
    ),
    "BinaryConvLevels": (words(1, 4, 3, 2), {**CONV, "bits": 2}, {"W": W, **PER_OUTPUT}),
    "BinaryConvBases": (
        words(1, 4, 3, 2),
        {**CONV, "planes": 2, "bases": 1},
        {"W": W, "scale": per_channel(42).reshape(3, 2, 7), "bias": per_channel(7)},
    ),
    "BinaryMaxPool": (words(1, 4, 3, 1), {**WINDOW, "ceil_mode": 0}, {}),
    "AveragePoolThreshold": (
        per_channel(40 * 12).reshape(1, 40, 4, 3),
        {**WINDOW, "relu": 1},
        {"threshold": per_channel(40)},
    ),
    "QuantizeLevels": (
        per_channel(40 * 9).reshape(1, 40, 3, 3),
        {"bits": 2},
        {"thresholds": np.sort(per_channel(120).reshape(3, 40), axis=0)},
    ),
    "BinaryLinear": (words(1, 5, 1), {"channels": 20}, {"W": words(7, 1), **PER_OUTPUT}),
    "DirectConv": (per_channel(24).reshape(1, 2, 4, 3), WINDOW | NO_POOL, DIRECT),
    "DirectConvThreshold": (per_channel(24).reshape(1, 2, 4, 3), WINDOW | NO_POOL, DIRECT | THRESHOLD),
    "ImageConv": (
        RNG.integers(0, 256, (1, 4, 3, 2), np.uint8),
        {"channels_last": 1, **WINDOW, **NO_POOL},
        DIRECT | LEVELS,
    ),
    "ImageConvThreshold": (
        RNG.integers(0, 256, (1, 2, 4, 3), np.uint8),
        {"channels_last": 0, **WINDOW, **NO_POOL},
        DIRECT | LEVELS | THRESHOLD,
    ),
    "ReluLinear": (
        per_channel(8).reshape(1, 8),
        {},
        {"W": RNG.standard_normal((8, 7)).astype(FLOAT), "bias": per_channel(7)},
    ),
}


def assert_same(got: list[Array] | None, wanted: list[Array] | None, exact: bool) -> None:
    assert equal_outputs(got, wanted, exact), f"{got}, wanted {wanted}"


@pytest.mark.parametrize("op", CASES)
def test_empty_batches_and_images(op: str) -> None:
    """A batch of 0 and images without a pixel: the same shapes, and what the padding gives."""
    x, attributes, constants = CASES[op]
    model = model_of(op, [x], attributes, constants)
    kernel, body = make_session(model, None), stock_session(model.SerializeToString(), optimised=True)
    exact = OPERATORS[op].sums is None and op != "BinarizeAbsMean"
    image = outcome(kernel, [x])
    assert image is not None
    assert_same(outcome(body, [x]), image, exact)
    without_images = outcome(kernel, [x[:0]])
    assert without_images is not None and without_images[0].shape == (0, *image[0].shape[1:])
    assert_same(outcome(body, [x[:0]]), without_images, exact)
    first = 1 if OPERATORS[op].inputs[0].dtype == "uint32" or x.shape[-1] in (2, 40) else 2
    for axis in range(first, x.ndim - (first == 1)):
        empty = np.take(x, [], axis=axis)
        assert_same(outcome(body, [empty]), outcome(kernel, [empty]), exact)


CONVS = ("BinaryConv", "BinaryConvThreshold", "BinaryConvLevels", "BinaryConvBases", "BinaryLinear")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", CONVS)
def test_unused_bits_of_x_are_ignored(op: str, isa: str) -> None:
    x, attributes, constants = CASES[op]
    model = model_of(op, [x], attributes, constants)
    kernel, body = make_session(model, isa), stock_session(model.SerializeToString(), optimised=True)
    wanted = outcome(kernel, [x])
    assert wanted is not None
    dirty = x | np.uint32(0xFFF00000)
    assert_same(outcome(kernel, [dirty]), wanted, exact=True)
    assert_same(outcome(body, [dirty]), wanted, exact=True)
    flipped = outcome(kernel, [dirty ^ np.uint32(1)])
    assert flipped is not None and flipped[0].tobytes() != wanted[0].tobytes()


def test_unused_bits_of_a_and_b_are_ignored() -> None:
    a, b = words(2, 3, 2, unused=31), words(2, 4, 2, unused=31)
    row = OPERATORS["BinaryMatMul"]
    node = helper.make_node(row.name, ["A", "B", "scale"], ["Y"], "layer", domain=DOMAIN, channels=33, bits=1, signs=1)
    graph = helper.make_graph(
        [node],
        "unused",
        [helper.make_tensor_value_info(name, onnx.TensorProto.UINT32, x.shape) for name, x in (("A", a), ("B", b))],
        [helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(1, FLOAT), "scale")],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=imports, functions=functions_of([node]), ir_version=10)
    top = np.array([0, 0xFFFFFFFE], np.uint32)
    for session in (make_session(model, None), stock_session(model.SerializeToString(), optimised=True)):
        (wanted,) = session.run(None, {"A": a, "B": b})
        (got,) = session.run(None, {"A": a | top, "B": b | top})
        assert np.array_equal(got, wanted)
        assert not np.array_equal(session.run(None, {"A": a ^ np.uint32(1), "B": b})[0], wanted)


@pytest.mark.parametrize("absent", [0, 1])
def test_an_absent_output_changes_nothing_of_the_other(absent: int) -> None:
    """A body needs the name "" for it; the kernel does without, too, if it is the last."""
    x, attributes, constants = CASES["BinaryConv"]
    residual = per_channel(7 * 4 * 2).reshape(1, 7, 4, 2)
    model = model_of("BinaryConvResidual", [x, residual], attributes, constants | THRESHOLD)
    wanted = outcome(make_session(model, None), [x, residual])
    assert wanted is not None
    model.graph.node[0].output[absent] = ""
    del model.graph.output[absent]
    for session in (make_session(model, None), stock_session(model.SerializeToString(), optimised=True)):
        assert_same(outcome(session, [x, residual]), [wanted[1 - absent]], exact=True)
    if absent == 1:
        del model.graph.node[0].output[1:]
        # A body is not tried: onnxruntime 1.27 on ARM64 ends the process instead of refusing it.
        assert_same(outcome(make_session(model, None), [x, residual]), wanted[:1], exact=True)


def test_a_sum_of_nothing_is_positive_zero() -> None:
    """Products 0 * -1 of a window that lies in the padding are -0; scale and bias keep the sign of a 0."""
    window = {"kernel_shape": [1], "strides": [1], "pads": [2, 2], "dilations": [1]}
    constants = {
        "W": np.zeros((2, 1, 1), np.uint32),
        "scale": np.array([1, -1], FLOAT),
        "bias": np.full(2, -0.0, FLOAT),
        **PAD,
    }
    x = np.zeros((1, 1, 1), np.uint32)
    model = model_of("BinaryConv", [x], {"channels": 1, "group": 1, **window}, constants)
    got = outcome(make_session(model, None), [x])
    assert got is not None
    assert np.signbit(got[0][0, :, 0]).tolist() == [False, True]  # 1 * 0 + -0, and -1 * 0 + -0
    assert_same(outcome(stock_session(model.SerializeToString(), optimised=True), [x]), got, exact=True)


@pytest.mark.parametrize("isa", ISAS)
def test_a_mean_that_fits_though_its_sum_does_not(isa: str) -> None:
    x = np.full((1, 5, 3), 3e38, FLOAT)
    x[0, 2, 1], x[0, 3, 2] = np.inf, np.nan
    constants = {"threshold": np.zeros(5, FLOAT), "scale": np.ones(5, FLOAT), "shift": np.zeros(5, FLOAT)}
    model = model_of("BinarizeAbsMean", [x], {}, constants)
    got = outcome(make_session(model, isa), [x])
    body = outcome(stock_session(model.SerializeToString(), optimised=True), [x])
    assert got is not None and body is not None
    np.testing.assert_allclose(got[1][0, 0], [3e38, np.inf, np.nan], rtol=1e-6)
    np.testing.assert_allclose(body[1][0, 0], [3e38, np.inf, np.nan], rtol=1e-6)


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("op", ["BinaryMaxPool", "DirectConv"])
def test_a_pool_larger_than_its_input_is_refused(op: str, ceil_mode: int) -> None:
    """onnxruntime ends its process on such a MaxPool, even while it loads a model of known sizes."""
    x, attributes, constants = CASES[op]
    if op == "BinaryMaxPool":
        attributes = attributes | {"kernel_shape": [9, 2], "ceil_mode": ceil_mode}
    else:
        attributes = attributes | {"pool_shape": [9, 1], "pool_strides": [1, 1 + ceil_mode]}
    model = model_of(op, [x], attributes, constants)
    with pytest.raises(Exception, match="less than one window"):
        make_session(model, None).run(None, {"X": x})
    for optimised in (False, True):
        with pytest.raises(Exception, match="out of data bounds"):
            stock_session(model.SerializeToString(), optimised).run(None, {"X": x})
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, x.shape, strict=True):
        dim.dim_value = size
    with pytest.raises(Exception, match="out of data bounds"):
        stock_session(model.SerializeToString(), optimised=True).run(None, {"X": x})


@pytest.mark.parametrize("axis", [1, 2])
def test_a_window_in_the_end_padding_of_an_empty_image_does_not_count(axis: int) -> None:
    """The kernel refused it, and the body did not."""
    shape = [2, 3, 3, 1]
    shape[axis] = 0
    pads = [0, 0, int(axis == 1), int(axis == 2)]
    window = {"kernel_shape": [1, 1], "strides": [2, 2], "pads": pads, "dilations": [1, 1], "ceil_mode": 1}
    x = np.zeros(shape, np.uint32)
    model = model_of("BinaryMaxPool", [x], window, {})
    got = outcome(make_session(model, None), [x])
    assert got is not None and got[0].shape == tuple(np.minimum(shape, 2))
    assert_same(outcome(stock_session(model.SerializeToString(), optimised=False), [x]), got, exact=True)


def test_a_pool_of_no_channels_is_refused() -> None:
    """onnxruntime's MaxPool, which is the body, takes none either."""
    x, attributes, _ = CASES["BinaryMaxPool"]
    model = model_of("BinaryMaxPool", [x], attributes, {})
    with pytest.raises(Exception, match=r"input X has shape \[1, 4, 3, 0\], but it must be \[N, H, W, 1\]"):
        make_session(model, None).run(None, {"X": x[..., :0]})
    assert outcome(stock_session(model.SerializeToString(), optimised=False), [x[..., :0]]) is None


@pytest.mark.parametrize("op", ["BinaryConv", "BinaryMaxPool", "DirectConv"])
def test_absurd_pads_are_refused_before_memory_is_asked_for(op: str) -> None:
    x, attributes, constants = CASES[op]
    absurd = attributes | {"pads": [10**8, 0, 10**8, 0], "strides": [10**8, 1]}
    session = make_session(model_of(op, [x], absurd, constants), None)
    limits = rf"at most {MAX_PADDED}, or {MAX_PADDED_RATIO} times those of X"
    with pytest.raises(Exception, match=rf"attribute pads makes \d+ elements of input X \[1, .*: {limits}"):
        session.run(None, {"X": x})
    with pytest.raises(Exception, match=rf"attribute strides = .*: each must be in 1 to {MAX_EXTENT}"):
        make_session(model_of(op, [x], attributes | {"strides": [MAX_EXTENT + 1, 1]}, constants), None)


@pytest.mark.parametrize("size", [2**31, 2**62, 2**63 - 1])
@pytest.mark.parametrize("op", CASES)
def test_sizes_that_overflow_are_not_inferred(op: str, size: int) -> None:
    """A session takes a declared size that no tensor can have, or refuses it with a line; X of another size is refused.

    Under the sanitizers an overflow would end the process here.
    """
    x, attributes, constants = CASES[op]
    if "bits" in attributes:
        attributes = attributes | {"bits": size}
    model = model_of(op, [x], attributes, constants)
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_value = size
    with pytest.raises(Exception, match=r"attribute bits|invalid dimensions|Got: "):
        make_session(model, None).run(None, {"X": x})


@pytest.mark.parametrize(("size", "known"), [(2**31 - 1, True), (2**31, False), (2**62, False)])
@pytest.mark.parametrize("op", CASES)
def test_shapes_are_inferred_up_to_the_largest_size(op: str, size: int, known: bool) -> None:
    x, attributes, constants = CASES[op]
    model = model_of(op, [x], attributes, constants)
    sizes = [*x.shape[:1], size, *x.shape[2:]] if op == "BinaryLinear" else [*x.shape[:2], size, *x.shape[3:]]
    if op == "ReluLinear":
        sizes = [size, 8]
    for dim, extent in zip(model.graph.input[0].type.tensor_type.shape.dim, sizes, strict=True):
        dim.dim_value = extent
    assert bool(make_session(model, None).get_outputs()[0].shape) is known
