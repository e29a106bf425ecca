"""A malformed node is refused with an error that names the node, the value and what is allowed."""

from __future__ import annotations

import ctypes

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnn_deploy.runtime.session import library_path

CONV = {
    "channels": 20,
    "kernel_shape": [3, 3],
    "strides": [1, 1],
    "pads": [1, 1, 1, 1],
    "dilations": [1, 1],
    "group": 1,
}
POOL = {
    "kernel_shape": [2, 2],
    "strides": [2, 2],
    "pads": [0, 0, 0, 0],
    "dilations": [1, 1],
    "ceil_mode": 0,
}
X = np.zeros((1, 5, 5, 1), np.uint32)
W = np.zeros((8, 3, 3, 1), np.uint32)
CONSTANTS = {
    "W": W,
    "scale": np.ones(8, np.float32),
    "bias": np.zeros(8, np.float32),
    "threshold": np.zeros(8, np.int32),
    "pad_value": np.zeros(1, np.float32),
    "residual": np.zeros((1, 8, 5, 5), np.float32),
    "float_threshold": np.zeros(8, np.float32),
    "factor": np.ones((1, 1, 5, 5), np.float32),
}
INPUTS = {
    "Binarize": ["X", "threshold"],
    "BinarizeChannelsLast": ["X", "threshold"],
    "BinarizeQuantized": ["X", "threshold"],
    "BinaryConv": ["X", "W", "scale", "bias", "pad_value"],
    "BinaryConvThreshold": ["X", "W", "threshold", "pad_value"],
    "BinaryConvResidual": ["X", "W", "scale", "bias", "pad_value", "residual", "float_threshold"],
    "BinaryConvScaled": ["X", "W", "scale", "bias", "pad_value", "factor"],
    "BinarizeAbsMean": ["X", "threshold", "scale", "shift"],
    "BinaryMaxPool": ["X"],
    "AveragePoolThreshold": ["X", "threshold"],
}
CONV_OPS = ["BinaryConv", "BinaryConvThreshold", "BinaryConvResidual", "BinaryConvScaled"]


def run(
    op: str,
    x: np.ndarray,
    attributes: dict,
    constants: dict,
    fed: str | None = None,
    outputs: tuple[str, ...] = ("Y",),
    name: str = "layer7",
) -> np.ndarray:
    """Run a model of one node; the constant named ``fed`` is a graph input instead, as a residual or factor always is.

    ``name`` is that of the node. An attribute or constant that is None is left out or, for constants, unchanged.
    """
    attributes = {name: value for name, value in attributes.items() if value is not None}
    node = helper.make_node(op, INPUTS[op], outputs, name=name, domain="bnn_deploy", **attributes)
    feeds = {"X": x}
    constants = dict(constants)
    for name in ("residual", "factor"):
        if name in INPUTS[op]:
            feeds[name] = constants.pop(name)
    if fed is not None:
        feeds[fed] = constants.pop(fed)
    graph = helper.make_graph(
        [node],
        "one_node",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
            for name, value in feeds.items()
        ],
        [helper.make_empty_tensor_value_info("Y")],
        [numpy_helper.from_array(constants[name], name) for name in INPUTS[op] if name in constants],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("bnn_deploy", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    options.log_severity_level = 4  # the errors are expected
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def message(*args: object, **kwargs: object) -> str:
    with pytest.raises(Exception) as caught:
        run(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("op", CONV_OPS)
def test_the_base_case_runs(op: str) -> None:
    """Each test below changes one thing of what works here."""
    assert run(op, X, CONV, CONSTANTS).size > 0
    assert run("BinaryMaxPool", X, POOL, {}).shape == (1, 2, 2, 1)


# --- the name of the node -----------------------------------------------------------------------


def test_errors_name_the_node_when_it_is_created_and_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.zeros((1, 3, 4, 4), np.float32)
    threshold = {"threshold": np.zeros(3, np.float32)}
    nine = np.zeros((1,) * 9, np.float32)
    too_many = "a tensor has 9 dimensions, at most 8 are supported"
    assert f"Binarize 'first': {too_many}" in message("Binarize", nine, {}, threshold, name="first")
    assert f"Binarize 'first': {too_many}" in message("Binarize", x, {}, {"threshold": nine}, name="first")
    assert f"BinaryMaxPool 'pool': {too_many}" in message(
        "BinaryMaxPool", nine.astype(np.uint32), POOL, {}, name="pool"
    )
    monkeypatch.setenv("BNN_DEPLOY_ISA", "sse9")
    assert "Binarize 'first': BNN_DEPLOY_ISA = 'sse9'" in message("Binarize", x, {}, threshold, name="first")


def test_a_node_without_a_name_is_known_by_its_output() -> None:
    assert "BinaryConv of output 'Y': attribute group" in message(
        "BinaryConv", X, CONV | {"group": 0}, CONSTANTS, name=""
    )


# --- attributes -------------------------------------------------------------------------------


@pytest.mark.parametrize("op", CONV_OPS)
@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"channels": None}, "attribute channels is missing: it is a required int"),
        ({"group": None}, "attribute group is missing: it is a required int"),
        ({"kernel_shape": None}, "attribute kernel_shape is missing: it is a required list of ints"),
        ({"strides": None}, "attribute strides is missing"),
        ({"pads": None}, "attribute pads is missing"),
        ({"dilations": None}, "attribute dilations is missing"),
        ({"channels": 0}, "attribute channels = 0: it must be in 1 to 2147483647"),
        ({"channels": 2**40}, "attribute channels = 1099511627776: it must be in 1 to 2147483647"),
        ({"channels": 40}, "input W has shape [8, 3, 3, 1], but channels = 40, group = 1"),
        ({"group": 0}, "attribute group = 0: it must be in 1 to 20"),
        ({"group": 21}, "attribute group = 21: it must be in 1 to 20"),
        ({"group": 3}, "attribute group = 3 must divide channels = 20"),
        ({"group": 5}, "input W has 8 output channels, but group = 5 must divide them"),
        ({"strides": [0, 1]}, "attribute strides = [0, 1]: each must be in 1 to 2147483647"),
        ({"strides": [1]}, "attribute strides has 1 values, but kernel_shape asks for 2"),
        ({"strides": [1, 2**62]}, "attribute strides = [1, 4611686018427387904]: each must be in"),
        ({"pads": [0, -1, 0, 0]}, "attribute pads = [0, -1, 0, 0]: each must be in 0 to 2147483647"),
        ({"pads": [1, 1]}, "attribute pads has 2 values, but kernel_shape asks for 4"),
        ({"dilations": [1, 0]}, "attribute dilations = [1, 0]: each must be in 1 to 2147483647"),
        ({"kernel_shape": [0, 3]}, "attribute kernel_shape = [0, 3]: each must be in 1 to"),
        ({"kernel_shape": [3] * 4}, "attribute kernel_shape has 4 values: it must have 1 to 3"),
        ({"kernel_shape": [1, 1, 1]}, "attribute strides has 2 values"),
        ({"kernel_shape": [2**31 - 1] * 2}, "must be at most 16777215, so that sums are exact in float32"),
        ({"kernel_shape": [3, 5]}, "input W has shape [8, 3, 3, 1]"),
    ],
)
def test_conv_attributes(op: str, attributes: dict, text: str) -> None:
    error = message(op, X, CONV | attributes, CONSTANTS)
    assert f"{op} 'layer7': " in error
    assert text in error


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"ceil_mode": None}, "attribute ceil_mode is missing: it is a required int"),
        ({"ceil_mode": 2}, "attribute ceil_mode = 2: it must be in 0 to 1"),
        ({"kernel_shape": [2, 0]}, "attribute kernel_shape = [2, 0]: each must be in 1 to 2147483647"),
        ({"strides": [0, 2]}, "attribute strides = [0, 2]: each must be in 1 to 2147483647"),
        ({"pads": [0, 0, 0, -3]}, "attribute pads = [0, 0, 0, -3]: each must be in 0 to 2147483647"),
        ({"kernel_shape": [6, 2]}, "spatial dimension 0 of input X is 5, and with pads 0 and 0 less"),
    ],
)
def test_pool_attributes(attributes: dict, text: str) -> None:
    error = message("BinaryMaxPool", X, POOL | attributes, {})
    assert "BinaryMaxPool 'layer7': " in error
    assert text in error


AVERAGE = {name: value for name, value in POOL.items() if name != "ceil_mode"} | {"relu": 0}


@pytest.mark.parametrize(
    ("attributes", "shape", "text"),
    [
        ({"relu": 2}, (1, 8, 5, 5), "attribute relu = 2: it must be in 0 to 1"),
        ({"relu": None}, (1, 8, 5, 5), "attribute relu is missing: it is a required int"),
        (
            {"kernel_shape": [2], "strides": [2], "pads": [0, 0], "dilations": [1]},
            (1, 8, 5),
            "attribute kernel_shape has 1 values: it must have 2, one per spatial dimension",
        ),
        ({"kernel_shape": [6, 2]}, (1, 8, 5, 5), "spatial dimension 0 of input X is 5, and with pads 0 and 0 less"),
        ({"pads": [0, 2**26, 0, 0]}, (1, 8, 5, 5), "attribute pads makes"),
        ({}, (1, 7, 5, 5), "input X has shape [1, 7, 5, 5], but it must be [N, 8, H, W], as threshold has shape [8]"),
        ({}, (1, 8, 25), "input X has shape [1, 8, 25], but it must be [N, 8, H, W]"),
    ],
)
def test_average_pool(attributes: dict, shape: tuple[int, ...], text: str) -> None:
    constants = {"threshold": np.zeros(8, np.float32)}
    assert run("AveragePoolThreshold", np.zeros((1, 8, 5, 5), np.float32), AVERAGE, constants).shape == (1, 2, 2, 1)
    error = message("AveragePoolThreshold", np.zeros(shape, np.float32), AVERAGE | attributes, constants)
    assert "AveragePoolThreshold 'layer7': " in error
    assert text in error


# --- inputs -----------------------------------------------------------------------------------


def with_bit_beyond_the_channels() -> np.ndarray:
    weights = W.copy()
    weights[3, 2, 1, 0] = 1 << 20
    return weights


@pytest.mark.parametrize("op", CONV_OPS)
@pytest.mark.parametrize(
    ("constants", "text"),
    [
        (
            {"W": np.zeros((8, 3, 3, 2), np.uint32)},
            "input W has shape [8, 3, 3, 2], but channels = 20, group = 1 and kernel_shape need "
            "[output channels, kernel_shape..., ceil(20 / 32) = 1]",
        ),
        ({"W": np.zeros((8, 9, 1), np.uint32)}, "input W has shape [8, 9, 1], but"),
        ({"W": np.zeros((0, 3, 3, 1), np.uint32)}, "input W has shape [0, 3, 3, 1], but"),
        (
            {"W": with_bit_beyond_the_channels()},
            "input W has bits set beyond channel 19 (output channel 3): the unused bits of a last word must be 0",
        ),
        (
            {"pad_value": np.zeros(2, np.float32)},
            "input pad_value has shape [2], but it must be [1] or [channels] = [20]",
        ),
        ({"pad_value": np.zeros((1, 1), np.float32)}, "input pad_value has shape [1, 1]"),
        ({"pad_value": np.float32(0)}, "input pad_value has shape []"),
        (
            {"pad_value": np.array([1] * 19 + [0], np.float32)},
            "input pad_value[19] = 0.000000: its values must be all 0, or each -1 or +1",
        ),
        ({"pad_value": np.full(1, 0.5, np.float32)}, "input pad_value[0] = 0.500000"),
        ({"pad_value": np.full(1, np.nan, np.float32)}, "input pad_value[0] = nan"),
    ],
)
def test_conv_constants(op: str, constants: dict, text: str) -> None:
    constants = {name: np.asarray(value) for name, value in constants.items()}
    error = message(op, X, CONV, CONSTANTS | constants)
    assert f"{op} 'layer7': " in error
    assert text in error


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("BinaryConv", "scale"),
        ("BinaryConv", "bias"),
        ("BinaryConvThreshold", "threshold"),
        ("BinaryConvResidual", "scale"),
        ("BinaryConvResidual", "bias"),
        ("BinaryConvScaled", "scale"),
        ("BinaryConvScaled", "bias"),
    ],
)
def test_per_output_constants(op: str, name: str) -> None:
    constants = CONSTANTS | {name: CONSTANTS[name][:7]}
    text = f"{op} 'layer7': input {name} has shape [7], but W has 8 output channels and needs [8]"
    assert text in message(op, X, CONV, constants)


@pytest.mark.parametrize(
    ("op", "name"),
    [
        *(("BinaryConv", name) for name in ("W", "scale", "bias", "pad_value")),
        *(("BinaryConvThreshold", name) for name in ("W", "threshold", "pad_value")),
        *(("BinaryConvResidual", name) for name in ("W", "scale", "bias", "pad_value")),
        *(("BinaryConvScaled", name) for name in ("W", "scale", "bias", "pad_value")),
    ],
)
def test_constants_must_be_constant(op: str, name: str) -> None:
    error = message(op, X, CONV, CONSTANTS, fed=name)
    text = f"input {name} is not a constant: make it an initializer that is not also a graph input"
    assert f"{op} 'layer7': {text}" in error


def test_residual_threshold() -> None:
    label = "BinaryConvResidual 'layer7': input threshold"
    constants = CONSTANTS | {"float_threshold": np.zeros(7, np.float32)}
    text = f"{label} has shape [7], but W has 8 output channels and needs [8]"
    assert text in message("BinaryConvResidual", X, CONV, constants)
    error = message("BinaryConvResidual", X, CONV, CONSTANTS, fed="float_threshold")
    assert f"{label} is not a constant: make it an initializer that is not also a graph input" in error


@pytest.mark.parametrize("shape", [(1, 8, 5, 4), (1, 7, 5, 5), (2, 8, 5, 5), (1, 8, 25), (1, 8, 5, 5, 1), (1, 1, 1, 1)])
def test_residual_shape(shape: tuple[int, ...]) -> None:
    """Y has shape [1, 8, 5, 5], and a residual is not broadcast."""
    error = message("BinaryConvResidual", X, CONV, CONSTANTS | {"residual": np.zeros(shape, np.float32)})
    text = f"input residual has shape {list(shape)}, but it must have the shape of Y, [1, 8, 5, 5]"
    assert f"BinaryConvResidual 'layer7': {text}" in error


@pytest.mark.parametrize("shape", [(1, 8, 5, 5), (1, 1, 5, 4), (2, 1, 5, 5), (1, 1, 25), (1, 1, 1, 1), (1, 5, 5)])
def test_factor_shape(shape: tuple[int, ...]) -> None:
    """Y has shape [1, 8, 5, 5]: one factor per pixel, which is not broadcast."""
    error = message("BinaryConvScaled", X, CONV, CONSTANTS | {"factor": np.ones(shape, np.float32)})
    text = f"input factor has shape {list(shape)}, but it must have one value per pixel of Y, [1, 1, 5, 5]"
    assert f"BinaryConvScaled 'layer7': {text}" in error


def test_binarize_abs_mean() -> None:
    x = np.zeros((1, 3, 4, 4), np.float32)
    constants = dict.fromkeys(("threshold", "scale", "shift"), np.zeros(3, np.float32))
    both = ("Y", "A")
    assert run("BinarizeAbsMean", x, {}, constants, outputs=both).shape == (1, 4, 4, 1)
    label = "BinarizeAbsMean 'layer7': "
    error = message("BinarizeAbsMean", x, {}, constants | {"threshold": np.zeros((3, 1), np.float32)}, outputs=both)
    assert f"{label}input threshold has shape [3, 1], but it must be [C]" in error
    for name in ("scale", "shift"):
        error = message("BinarizeAbsMean", x, {}, constants | {name: np.zeros(4, np.float32)}, outputs=both)
        assert f"{label}input {name} has shape [4], but threshold has 3 values and it needs [3]" in error
    for name in constants:
        error = message("BinarizeAbsMean", x, {}, constants, fed=name, outputs=both)
        assert f"{label}input {name} is not a constant" in error
    for wrong in (x[:, :2], x[0, 0, 0]):
        error = message("BinarizeAbsMean", wrong, {}, constants, outputs=both)
        assert f"{label}input X has shape {list(wrong.shape)}, but it must be [N, 3, 0 to 3 spatial" in error
    error = message("BinarizeAbsMean", x, {}, constants, outputs=("Y",))
    assert f"{label}output A is absent: give both outputs a name, or use Binarize, which has no A" in error
    error = message("BinarizeAbsMean", x, {}, constants, outputs=("", "Y"))
    assert f"{label}output bits is absent: give both outputs a name" in error


def test_residual_with_both_outputs_absent() -> None:
    op = "BinaryConvResidual"
    nodes = [
        helper.make_node(op, INPUTS[op], ["", ""], "layer7", domain="bnn_deploy", **CONV),
        helper.make_node("Identity", ["X"], ["Y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "no_output",
        [helper.make_tensor_value_info("X", TensorProto.UINT32, X.shape)],
        [helper.make_tensor_value_info("Y", TensorProto.UINT32, X.shape)],
        [numpy_helper.from_array(CONSTANTS[name], name) for name in INPUTS[op][1:]],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("bnn_deploy", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    options.log_severity_level = 4
    with pytest.raises(Exception, match="BinaryConvResidual 'layer7': both outputs are absent: give Y or bits a name"):
        ort.InferenceSession(model, options).run(None, {"X": X})


@pytest.mark.parametrize("op", CONV_OPS)
@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((1, 5, 5, 2), "input X has shape [1, 5, 5, 2], but it must be [N, H, W, 1]"),
        ((1, 5, 5, 0), "input X has shape [1, 5, 5, 0], but it must be [N, H, W, 1]"),
        ((1, 5, 1), "input X has shape [1, 5, 1], but it must be [N, H, W, 1]"),
        ((), "input X has shape [], but it must be [N, H, W, 1]"),
        ((0, 2**31, 5, 1), "input X has shape [0, 2147483648, 5, 1], but it must be [N, H, W, 1], each at most 2147"),
        ((1,) * 9, "a tensor has 9 dimensions, at most 8 are supported"),
        (
            (1, 0, 5, 1),
            "spatial dimension 0 of input X is 0, and with pads 1 and 1 less than one window of 3",
        ),
    ],
)
def test_conv_input_shape(op: str, shape: tuple[int, ...], text: str) -> None:
    assert f"{op} 'layer7': {text}" in message(op, np.zeros(shape, np.uint32), CONV, CONSTANTS)


@pytest.mark.parametrize("op", ["BinaryConv", "BinaryConvThreshold"])
def test_huge_sizes_are_errors(op: str) -> None:
    """Each attribute is in its range; the tensors they ask for cannot exist."""
    most = 2**31 - 1
    label = f"{op} 'layer7': "
    huge_output = CONV | {"pads": [most] * 4}
    assert label in message(op, X, huge_output, CONSTANTS)
    huge_copy = CONV | {"pads": [most] * 4, "strides": [most, most]}
    text = f"{label}attribute pads makes at least 1000000000000000000 elements of input X"
    assert text in message(op, X, huge_copy, CONSTANTS)
    large_copy = CONV | {"pads": [2**20] * 4, "strides": [most, most]}
    assert f"{label}attribute pads makes 4398067" in message(op, X, large_copy, CONSTANTS)
    huge_window = CONV | {"dilations": [most, most]}
    assert "less than one window of 4294967295" in message(op, X, huge_window, CONSTANTS)


def test_binarize() -> None:
    x = np.zeros((1, 3, 4, 4), np.float32)
    threshold = np.zeros(3, np.float32)
    assert run("Binarize", x, {}, {"threshold": threshold}).shape == (1, 4, 4, 1)
    label = "Binarize 'layer7': "
    error = message("Binarize", x, {}, {"threshold": np.zeros((3, 1), np.float32)})
    assert f"{label}input threshold has shape [3, 1], but it must be [C]" in error
    error = message("Binarize", x, {}, {"threshold": np.zeros(0, np.float32)})
    assert f"{label}input threshold has shape [0]" in error
    error = message("Binarize", x, {}, {"threshold": np.zeros(4, np.float32)})
    assert f"{label}input X has shape [1, 3, 4, 4], but it must be [N, 4, 0 to 3 spatial" in error
    error = message("Binarize", x[0, 0, 0], {}, {"threshold": threshold})
    assert f"{label}input X has shape [4], but it must be [N, 3," in error
    error = message("Binarize", x, {}, {"threshold": threshold}, fed="threshold")
    assert f"{label}input threshold is not a constant" in error


@pytest.mark.parametrize(
    ("op", "dtype", "threshold_dtype"),
    [("BinarizeChannelsLast", np.float32, np.float32), ("BinarizeQuantized", np.uint8, np.int32)],
)
def test_binarize_channels_last(op: str, dtype: type, threshold_dtype: type) -> None:
    x = np.zeros((1, 4, 4, 3), dtype)
    threshold = np.zeros(3, threshold_dtype)
    assert run(op, x, {}, {"threshold": threshold}).shape == (1, 4, 4, 1)
    label = f"{op} 'layer7': "
    error = message(op, x, {}, {"threshold": np.zeros((3, 1), threshold_dtype)})
    assert f"{label}input threshold has shape [3, 1], but it must be [C]" in error
    error = message(op, x, {}, {"threshold": np.zeros(4, threshold_dtype)})
    assert f"{label}input X has shape [1, 4, 4, 3], but it must be [N, 0 to 3 spatial dimensions, 4]" in error
    error = message(op, x[0, 0, 0], {}, {"threshold": threshold})
    assert f"{label}input X has shape [3], but it must be [N," in error
    error = message(op, x, {}, {"threshold": threshold}, fed="threshold")
    assert f"{label}input threshold is not a constant" in error


@pytest.mark.parametrize("isa", ["AVX512", "sse9"])
def test_an_unknown_isa_is_an_error(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNN_DEPLOY_ISA", isa)
    error = message("BinaryConv", X, CONV, CONSTANTS)
    assert f"BinaryConv 'layer7': BNN_DEPLOY_ISA = '{isa}': this machine can run " in error
    assert "scalar; unset the variable to use the first of them" in error
    monkeypatch.setenv("BNN_DEPLOY_ISA", "scalar")
    assert run("BinaryConv", X, CONV, CONSTANTS).size > 0


def test_an_onnxruntime_that_is_too_old_is_named() -> None:
    """A runtime of API version 17: it knows no table 18, and an older table can still make a status."""
    texts = []
    get_api_type = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    get_version_type = ctypes.CFUNCTYPE(ctypes.c_char_p)
    create_status_type = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)

    class OrtApi(ctypes.Structure):
        _fields_ = (("CreateStatus", create_status_type),)

    class OrtApiBase(ctypes.Structure):
        _fields_ = (("GetApi", get_api_type), ("GetVersionString", get_version_type))

    def create_status(_code: int, text: bytes) -> int:
        texts.append(text.decode())
        return 1234

    api = OrtApi(create_status_type(create_status))
    base = OrtApiBase(
        get_api_type(lambda version: ctypes.addressof(api) if version <= 17 else None),
        get_version_type(lambda: b"1.17.3"),
    )
    register = ctypes.CDLL(str(library_path())).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base)) == 1234
    assert texts == ["bnn_deploy needs onnxruntime 1.18 or later (C API version 18), but this is onnxruntime 1.17.3"]
