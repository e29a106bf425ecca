"""What `inspect_model` says, against hand-worked numbers and against what onnxruntime really computes."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from bnn_deploy import inspection
from bnn_deploy.cli import main
from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.inspection import Layer, ModelReport, inspect_model
from bnn_deploy.installation import install_command
from bnn_deploy.quantities import TIMES
from support.converted import Converted
from support.small_models import CONV, POOL, binary_node, random_bits, save, save_binary, save_float


def layers(report: ModelReport) -> dict[str, Layer]:
    return {layer.name: layer for layer in report.layers}


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    return save_binary(tmp_path / "binary.onnx")


def real_shapes(path: Path, batch: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all node outputs, by running the function bodies."""
    model = onnx.load(path)
    outputs = [name for node in model.graph.node for name in node.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options)
    shape = [size if isinstance(size, int) else batch for size in session.get_inputs()[0].shape]
    return dict(zip(outputs, (a.shape for a in session.run(None, {"x": np.zeros(shape, np.float32)})), strict=True))


def stated_shapes(report: ModelReport, batch: int) -> dict[str, tuple[int | str | None, ...]]:
    return {
        layer.output.name: tuple(batch if size == "N" else size for size in layer.output.shape or ())
        for layer in report.layers
    }


def test_layers_of_a_converted_model(binary: Path) -> None:
    report = inspect_model(binary)
    found = layers(report)
    assert list(found) == ["conv1", "pool1", "sign1", "conv2", "pool2", "ip1", "flatten", "ip2"]
    conv2 = found["conv2"]
    assert conv2.output.shape == ("N", 8, 8, 2)
    assert (conv2.output.dtype, conv2.output_bits) == ("uint32", 50)
    assert conv2.source == "float_b2"
    assert conv2.binary
    assert (found["pool2"].output_bits, found["ip1"].output_bits) == (50, None)
    assert (conv2.kernel_shape, conv2.strides, conv2.pads) == ((5, 5), (1, 1), (0, 0, 0, 0))
    assert (conv2.dilations, conv2.group) == ((1, 1), 1)
    # Behind the binary layers, standard inference must go on with our shapes.
    assert found["flatten"].output.shape == ("N", 500)
    assert found["flatten"].output.dtype == "float32"


def test_macs_and_bytes_by_hand(binary: Path) -> None:
    report = inspect_model(binary)
    found = layers(report)
    assert found["conv1"].float_macs == 24 * 24 * 20 * 25 * 1
    assert found["conv2"].binary_macs == 8 * 8 * 50 * 25 * 20
    assert found["ip1"].binary_macs == 500 * 4 * 4 * 50
    assert found["ip2"].float_macs == 500 * 10
    assert report.binary_macs == 1_600_000 + 400_000
    assert report.float_macs == 288_000 + 5_000
    assert report.uncounted == ()
    # conv2: weights 50*5*5 words, 50 int32 thresholds, one float of padding.
    assert found["conv2"].constant_bytes == 50 * 25 * 4 + 50 * 4 + 4
    # The padding value is shared by two nodes, and ip1 uses s3 twice: the total has each once.
    model = onnx.load(binary)
    assert report.constant_bytes == sum(numpy_helper.to_array(t).nbytes for t in model.graph.initializer)
    float_bytes = sum(numpy_helper.to_array(t).nbytes for t in model.graph.initializer if t.name in ("w1", "w4"))
    assert report.binary_constant_bytes == report.constant_bytes - float_bytes
    assert report.function_bytes == sum(len(f.SerializeToString()) for f in model.functions)
    assert report.file_bytes == binary.stat().st_size > report.constant_bytes + report.function_bytes
    assert report.functions[0] == "bnn_deploy::Binarize"
    assert report.opsets == {"": 20, "bnn_deploy": 1}
    assert report.producer == "tests 1"


def test_a_float_model(tmp_path: Path) -> None:
    report = inspect_model(save_float(tmp_path / "float.onnx"))
    assert not any(layer.binary for layer in report.layers)
    assert report.binary_macs == 0
    assert report.float_macs == 24 * 24 * 20 * 25 + 20 * 24 * 24 * 10
    assert (report.functions, report.function_bytes) == ((), 0)


def test_a_direct_convolution_counts_as_the_float_layer_it_was(lenet5: Converted) -> None:
    before, report = inspect_model(lenet5.float_model), inspect_model(lenet5.model)
    conv, old = layers(report)["conv1"], layers(before)["conv1"]
    assert (conv.op_type, conv.float_macs, conv.binary_macs) == ("DirectConvThreshold", old.float_macs, 0)
    assert (conv.output.shape, conv.output_bits, conv.kernel_shape) == (("batch", 12, 12, 1), 20, (5, 5))
    assert (conv.pool_shape, conv.pool_strides, conv.pool_pads) == ((2, 2), (2, 2), (0, 0, 0, 0))
    assert conv.constant_bytes == old.constant_bytes + 20 * 4, "the thresholds"
    binary = sum(layer.constant_bytes for layer in report.layers if layer.binary_macs)
    assert report.binary_constant_bytes <= binary, "nothing of the float layer"
    printed = CliRunner().invoke(main, ["inspect", str(lenet5.model)]).output
    assert "5x5 pool 2x2 s2" in printed.replace(TIMES, "x") and "288 k" in printed


GEOMETRIES = [
    {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 2], "pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]},
    {"kernel_shape": [1, 1], "strides": [3, 3]},
    {"kernel_shape": [3, 3], "group": 4, "strides": [2, 2]},
]


def save_geometry(path: Path, conv: dict[str, object], pool: dict[str, object]) -> Path:
    conv = CONV | conv
    kernel, group = conv["kernel_shape"], conv["group"]
    nodes = [
        binary_node("Binarize", ["x", "t"], "b", "sign"),
        binary_node("BinaryConvThreshold", ["b", "w", "ti", "pad"], "bt", "threshold", **conv),
        binary_node("BinaryMaxPool", ["bt"], "bp", "pool", **(POOL | pool)),
        binary_node("BinaryConv", ["b", "w", "s", "s", "pad"], "y", "conv", **conv),
    ]
    constants = {
        "t": np.zeros(20, np.float32),
        "w": random_bits(36, *kernel, 20 // group),
        "ti": np.zeros(36, np.int32),
        "s": np.ones(36, np.float32),
        "pad": np.zeros(1, np.float32),
    }
    return save(path, nodes, constants, ["N", 20, 14, 13], ("y", TensorProto.FLOAT, [None] * 4))


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("conv", GEOMETRIES)
def test_shapes_are_those_that_run(tmp_path: Path, conv: dict[str, object], ceil_mode: int) -> None:
    pool = {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 1, 1], "ceil_mode": ceil_mode}
    path = save_geometry(tmp_path / "model.onnx", conv, pool)
    real = real_shapes(path, batch=2)
    assert stated_shapes(inspect_model(path), batch=2) == real
    # One pad moved must show.
    moved = list(conv.get("pads", [0] * 4))
    moved[0] += conv.get("strides", [1])[0]
    other = save_geometry(tmp_path / "other.onnx", conv | {"pads": moved}, pool)
    assert stated_shapes(inspect_model(other), batch=2) != real


def test_macs_of_a_group_and_a_stride(tmp_path: Path) -> None:
    path = save_geometry(tmp_path / "model.onnx", GEOMETRIES[3], {})
    assert layers(inspect_model(path))["conv"].binary_macs == 36 * 6 * 6 * 9 * (20 // 4)


def test_stale_shapes_in_the_file_do_not_mislead(binary: Path) -> None:
    model = onnx.load(binary)
    model.graph.value_info.append(helper.make_tensor_value_info("b2", TensorProto.UINT32, ["a", "b", "c", "d"]))
    onnx.save(model, binary)
    assert layers(inspect_model(binary))["conv2"].output.shape == ("N", 8, 8, 2)


def test_unknown_image_size_is_not_counted_as_zero(tmp_path: Path) -> None:
    path = save_binary(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    onnx.save(model, path)
    report = inspect_model(path)
    assert layers(report)["conv2"].binary_macs is None
    assert layers(report)["conv2"].output.shape == ("N", None, 8, 2)
    assert "conv2" in report.uncounted


def test_constant_nodes_count_as_constants(tmp_path: Path) -> None:
    path = save_float(tmp_path / "float.onnx")
    model = onnx.load(path)
    weight = model.graph.initializer.pop(1)
    model.graph.node.insert(0, helper.make_node("Constant", [], [weight.name], value=weight))
    onnx.save(model, tmp_path / "constant.onnx")
    expected, found = inspect_model(path), inspect_model(tmp_path / "constant.onnx")
    assert found.layers == expected.layers
    assert found.constant_bytes == expected.constant_bytes


def test_external_data_is_part_of_the_size(tmp_path: Path) -> None:
    path = save_float(tmp_path / "float.onnx")
    inside = inspect_model(path)
    onnx.save(onnx.load(path), tmp_path / "outside.onnx", save_as_external_data=True, location="weights.bin")
    outside = inspect_model(tmp_path / "outside.onnx")
    sizes = [(tmp_path / name).stat().st_size for name in ("outside.onnx", "weights.bin")]
    assert outside.file_bytes == sum(sizes)
    assert sizes[0] < 10_000 < sizes[1]
    assert outside.layers == inside.layers


def test_shapes_are_inferred_without_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But with the small constants that they are computed from."""
    weights = np.zeros((256, 512), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Reshape", ["product", "shape"], ["y"]),
    ]
    constants = {"w": weights, "shape": np.array([-1, 16, 16])}
    path = save(tmp_path / "m.onnx", nodes, constants, [4, 256], ("y", TensorProto.FLOAT, [None] * 3), functions=False)
    infer, read = inspection.shape_inference.infer_shapes, []

    def recording(model: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
        read.append(model.ByteSize())
        return infer(model, **options)

    monkeypatch.setattr(inspection.shape_inference, "infer_shapes", recording)
    report = inspect_model(path)
    assert max(read) < weights.nbytes
    assert [layer.output.shape for layer in report.layers] == [(4, 512), (8, 16, 16)]
    monkeypatch.setattr(inspection, "MOST_SHAPE_BYTES", 1)
    assert inspect_model(path).layers[1].output.shape != (8, 16, 16)
    monkeypatch.setattr(inspection, "MOST_SHAPE_BYTES", weights.nbytes)
    assert inspect_model(path) == report
    assert max(read) > weights.nbytes


def test_bad_files_are_one_line_that_names_the_file(binary: Path, tmp_path: Path) -> None:
    whole = binary.read_bytes()
    bad = {
        "empty": b"",
        "text": b"this is no model, it is a text\n",
        "half": whole[: len(whole) // 2],
        "short": whole[:-100],
        "zeros": bytes(1000),
    }
    for name, content in bad.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            inspect_model(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        inspect_model(tmp_path / "absent.onnx")
    assert inspect_model(binary).layers  # and the whole file is fine


def test_a_missing_attribute_is_named(binary: Path) -> None:
    model = onnx.load(binary)
    node = next(node for node in model.graph.node if node.name == "conv2")
    node.attribute.remove(next(attribute for attribute in node.attribute if attribute.name == "strides"))
    onnx.save(model, binary)
    with pytest.raises(InputError, match=r"node conv2 \(BinaryConvThreshold\) has no attribute strides"):
        inspect_model(binary)


def test_attributes_of_the_wrong_rank_are_named(tmp_path: Path) -> None:
    path = save_binary(tmp_path / "model.onnx", pads=[0, 0])
    with pytest.raises(InputError, match=r"node conv2: .*pads \(0, 0\).*2 spatial dimensions"):
        inspect_model(path)


def test_without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "bnn_deploy.inspection")
    with pytest.raises(SetupError, match=re.escape(install_command("convert"))):
        importlib.import_module("bnn_deploy.inspection")


def test_json(binary: Path) -> None:
    report = inspect_model(binary).to_json()
    assert report["binary_macs"] == 2_000_000
    assert report["layers"][3]["output"]["shape"] == ["N", 8, 8, 2]
