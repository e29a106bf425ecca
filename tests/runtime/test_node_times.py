"""What `profile` says of nodes: times by hand, and what they compute against `inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from bnn_deploy.errors import InputError
from bnn_deploy.inspection import inspect_model
from bnn_deploy.runtime.bound import Bound
from bnn_deploy.runtime.model_nodes import read_nodes
from bnn_deploy.runtime.node_times import node_times
from bnn_deploy.runtime.profile_results import NodeTime, grouped, speedup_if_free
from bnn_deploy.runtime.profiling import profile
from support.converted import Converted
from support.small_models import save_binary, save_float

BOUND = Bound("scalar", 1, 10.0, 5.0, 1.0, 1)


def event(name: str, index: str, dur: int, op: str, shape: list[int], cat: str = "Node") -> dict[str, Any]:
    args = {"node_index": index, "op_name": op, "output_type_shape": [{"float": shape}], "output_size": "8"}
    return {"cat": cat, "name": name, "dur": dur, "args": args}


def test_node_times_by_hand(tmp_path: Path) -> None:
    model = save_float(tmp_path / "float.onnx")
    events = [event("run", "", 99_999, "", [], cat="Session")]
    for conv, relu in ((900, 700), (30, 10), (50, 10), (40, 30)):  # the first run is the warm-up
        events.append(event("conv_kernel_time", "0", conv, "Conv", [1, 2]))
        events.append(event("conv_fence_before", "0", 5000, "Conv", [1, 2]))
        events.append(event("same_kernel_time", "1", relu, "Relu", [3]))
        events.append(event("same_kernel_time", "2", 50, "Relu", [4]))  # another node of the same name
    nodes = node_times(events, 1, model, 1, BOUND)
    assert [(node.name, node.op_type, node.kind, node.median_ms, node.output_shapes) for node in nodes] == [
        ("conv", "Conv", "float layer", 0.04, ((1, 2),)),
        ("same", "Relu", "other operator", 0.01, ((3,),)),
        ("same", "Relu", "other operator", 0.05, ((4,),)),
    ]
    assert [node.share for node in nodes] == [pytest.approx(share) for share in (0.4, 0.1, 0.5)]
    assert [(node.macs, node.bytes, node.output_dtypes) for node in nodes[:2]] == [
        (None, 8, ("float32",)),  # the shapes of its inputs are not there
        (0, 8, ("float32",)),
    ]
    assert node_times(events, 0, model, 1, BOUND)[0].median_ms == 0.045
    assert node_times([], 1, model, 1, BOUND) == ()


def test_a_file_that_only_onnxruntime_reads(tmp_path: Path) -> None:
    (tmp_path / "model.ort").write_bytes(b"\x18\x00\x00\x00ORTM")
    (node,) = node_times([event("conv_kernel_time", "0", 9, "BinaryConv", [1])], 0, tmp_path / "model.ort", 1, BOUND)
    assert (node.kind, node.output_bits, node.median_ms) == ("other operator", (None,), 0.009)


def test_rates_by_hand(tmp_path: Path) -> None:
    model = save_binary(tmp_path / "binary.onnx")
    args = {
        "node_index": "3",
        "op_name": "BinaryConvThreshold",
        "input_type_shape": [{"uint32": [2, 12, 12, 1]}, {"uint32": [50, 5, 5, 1]}, {"int32": [50]}, {"float": [1]}],
        "output_type_shape": [{"uint32": [2, 8, 8, 2]}],
        "activation_size": "1152",
        "parameter_size": "5204",
        "output_size": "1024",
    }
    conv = {"cat": "Node", "name": "conv2_kernel_time", "dur": 640, "args": args}
    (node,) = node_times([conv], 0, model, 2, BOUND)
    assert node.macs == 2 * 8 * 8 * 50 * 5 * 5 * 20
    assert node.gmacs_per_second == pytest.approx(3.2e6 / 0.64 / 1e6)
    assert node.bound_share == pytest.approx(0.5)
    assert node.gbytes_per_second == pytest.approx(7380 / 0.64e-3 / 1e9)
    assert (node.bytes, node.output_bits, node.output_dtypes) == (7380, (50,), ("uint32",))
    assert (node.channels, node.unused_bits) == (20, 1 - 20 / 32)
    two = onnx.load(model)
    grouped_conv = next(item for item in two.graph.node if item.name == "conv2")
    next(item for item in grouped_conv.attribute if item.name == "channels").i = 40
    grouped_conv.attribute.append(onnx.helper.make_attribute("group", 2))
    onnx.save(two, tmp_path / "grouped.onnx")
    shapes = [{"uint32": [2, 12, 12, 2]}, *args["input_type_shape"][1:]]
    (other,) = node_times(
        [{**conv, "args": {**args, "input_type_shape": shapes}}], 0, tmp_path / "grouped.onnx", 2, BOUND
    )
    assert (other.macs, other.channels, other.unused_bits) == (node.macs, 20, 1 - 20 / 32)
    (short,) = node_times([{**conv, "dur": 4}], 0, model, 2, BOUND)
    assert (short.macs, short.bytes) == (node.macs, node.bytes)
    assert (short.gmacs_per_second, short.gbytes_per_second, short.bound_share) == (None, None, None)
    (other,) = node_times([{**conv, "args": {**args, "op_name": "Conv"}}], 0, model, 2, BOUND)
    assert other.output_bits == (None,)  # onnxruntime's own node of that name


def test_nodes_agree_with_inspect(lenet5: Converted, tmp_path: Path) -> None:
    """Kinds, bits and multiply-accumulates: the two read the same table, one with the onnx package and one without."""
    for path in (lenet5.model, save_binary(tmp_path / "binary.onnx")):
        layers = {layer.name: layer for layer in inspect_model(path).layers}
        nodes = profile(path, runs=1, batch=3).model.nodes
        found = [node for node in nodes if node.name in layers]
        assert {node.kind for node in found} >= {"binary layer", "float layer", "bit operator"}
        for node in found:
            layer = layers[node.name]
            assert node.op_type == layer.op_type
            assert node.output_bits[0] == layer.output_bits
            assert node.macs == 3 * ((layer.binary_macs or 0) + (layer.float_macs or 0))
            assert (node.kind == "binary layer") == bool(layer.binary_macs)


def test_onnxruntimes_own_layers(tmp_path: Path) -> None:
    """Weights that it has packed are gone from its profile: their bytes are added; the bias is not taken for them."""
    model = save_float(tmp_path / "float.onnx")
    args = {
        "node_index": "0",
        "op_name": "FusedGemm",
        "input_type_shape": [{"float": [2, 800]}, {"float": [500]}],
        "output_type_shape": [{"float": [2, 500]}],
        "parameter_size": "2000",
    }
    gemm = {"cat": "Node", "name": "gemm_kernel_time", "dur": 100, "args": args}
    (packed,) = node_times([gemm], 0, model, 2, BOUND)
    assert (packed.kind, packed.macs, packed.bytes) == ("float layer", 2 * 800 * 500, 2000 + 4 * 800 * 500)
    assert (packed.gmacs_per_second, packed.bound_share) == (pytest.approx(8.0), pytest.approx(8.0 / BOUND.float_gmacs))
    (bytes_of_weights,) = node_times([{**gemm, "args": {**args, "op_name": "QGemm"}}], 0, model, 2, BOUND)
    assert (bytes_of_weights.kind, bytes_of_weights.bytes) == ("int8 layer", 2000 + 800 * 500)
    shapes = [{"float": [2, 800]}, {"float": [800, 500]}, {"float": [500]}]
    (whole,) = node_times([{**gemm, "args": {**args, "input_type_shape": shapes}}], 0, model, 2, BOUND)
    assert (whole.macs, whole.bytes) == (packed.macs, 2000)
    int8 = {
        "op_name": "QLinearConv",
        "input_type_shape": [{"uint8": [1, 4, 8, 8]}, {"float": []}, {"uint8": []}, {"int8": [6, 4, 3, 3]}],
        "output_type_shape": [{"uint8": [1, 6, 6, 6]}],
    }
    (conv,) = node_times([{**gemm, "args": int8}], 0, model, 1, BOUND)
    assert (conv.kind, conv.macs, conv.bound_share) == ("int8 layer", 6 * 36 * 4 * 9, None)


def test_nodes_of_a_file_without_onnx(lenet5: Converted, tmp_path: Path) -> None:
    for path in (lenet5.model, lenet5.float_model, save_binary(tmp_path / "binary.onnx")):
        graph = onnx.load(path).graph
        for node, expected in zip(read_nodes(path), graph.node, strict=True):
            assert (node.name, node.op_type, node.domain) == (expected.name, expected.op_type, expected.domain)
            assert (node.inputs, node.outputs) == (tuple(expected.input), tuple(expected.output))
            wanted = {
                item.name: (item.i,) if item.type == onnx.AttributeProto.INT else tuple(item.ints)
                for item in expected.attribute
            }
            assert node.attributes == wanted


def test_integers_of_every_size(tmp_path: Path) -> None:
    numbers = [0, 1, 127, 128, -1, 2**63 - 1, -(2**63)]
    node = onnx.helper.make_node("Op", ["x"], ["y"], numbers=numbers, one=-3, text="no", real=1.5)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    (found,) = read_nodes(tmp_path / "m.onnx")
    assert {name: values for name, values in found.attributes.items() if values} == {
        "numbers": tuple(numbers),
        "one": (-3,),
    }


def test_damaged_files(tmp_path: Path) -> None:
    content = save_binary(tmp_path / "binary.onnx").read_bytes()
    for damaged in (content[:5000], b"\x3b", b"\x38\x01", b"\x3a\xff"):
        (tmp_path / "damaged.onnx").write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged\.onnx: not an ONNX file, or a truncated one"):
            read_nodes(tmp_path / "damaged.onnx")


def node(name: str, op_type: str, ms: float, share: float) -> NodeTime:
    return NodeTime(name, op_type, "other operator", ms, share, (), (), (), 0, 0, None, None, None, None, None)


def test_groups_and_what_they_would_give() -> None:
    nodes = [node("a", "Relu", 1, 0.1), node("b", "Add", 6, 0.6), node("c", "Relu", 3, 0.3)]
    first, second = grouped(nodes, lambda item: item.op_type)
    assert (first.name, first.nodes, first.median_ms) == ("Add", 1, 6)
    assert (second.name, second.nodes, second.median_ms) == ("Relu", 2, 4)
    assert first.speedup_if_free == pytest.approx(2.5)
    assert second.speedup_if_free == pytest.approx(1 / 0.6)
    assert (speedup_if_free(0), speedup_if_free(1)) == (1, None)
