"""Golden results: what they hold, what passes, and files that cannot be used."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.operators.contract import OPERATORS
from bnn_deploy.proof.golden.check import check_golden
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.golden.record import read_golden, write_golden
from bnn_deploy.runtime.session import load_session
from support.converted import Converted
from support.golden_files import BEST, ISAS, rewrite

# What passes.


@pytest.mark.parametrize(
    ("arch", "samples", "bodies"), [("lenet5", 32, 3), ("nin", 5, 1), ("alexnet", 1, 0), ("birealnet18", 2, 1)]
)
def test_this_machine_gives_its_own_results_again(
    arch: str, samples: int, bodies: int, request: pytest.FixtureRequest, goldens: Callable[[Converted, int], Path]
) -> None:
    """By the kernels of every instruction set, and by the function bodies (AlexNet's are slow)."""
    converted: Converted = request.getfixturevalue(arch)
    result = check_golden(converted.model, goldens(converted, samples), body_samples=bodies)
    assert result.passed, result.failures
    assert result.isas == ISAS
    counts = {f"kernels, {isa}": samples for isa in ISAS} | ({"bodies, onnxruntime": bodies} if bodies else {})
    assert [(o.backend, o.samples, o.identical, o.flipped) for o in result.outputs] == [
        (backend, count, count, 0) for backend, count in counts.items()
    ]
    assert all(output.same_class == output.samples for output in result.outputs)
    assert all(layer.bits > 0 and layer.differing == 0 for layer in result.layers)
    assert all(floats.values > 0 and floats.differing == 0 for floats in result.float_layers)
    # Every binary layer is there, with bits or floats.
    graph = onnx.load(converted.model).graph
    layers = {node.name for node in graph.node if node.op_type.startswith("BinaryConv")}
    assert layers <= {layer.layer for layer in result.layers} | {floats.layer for floats in result.float_layers}
    # Every bit tensor of the model is there, and only those that are made from floats may have near bits.
    nodes = {output: node for node in graph.node for output in node.output}
    from_floats = {layer.tensor for layer in result.layers if layer.made_from == "floats"}
    thresholds = {layer.tensor: OPERATORS[nodes[layer.tensor].op_type].threshold for layer in result.layers}
    assert from_floats == {tensor for tensor, found in thresholds.items() if found is not None and not found.of_sums}
    assert all(layer.near == 0 for layer in result.layers if layer.tensor not in from_floats)
    assert all(layer.near < 1e-3 * layer.bits for layer in result.layers)


def test_what_is_recorded(nin: Converted, goldens: Callable[[Converted, int], Path]) -> None:
    result = check_golden(nin.model, goldens(nin, 5), isas=BEST, body_samples=0)
    assert [(layer.layer, layer.made_from, layer.bits // 5) for layer in result.layers] == [
        ("xnor.0", "floats", 192 * 32 * 32),
        ("xnor.3.conv", "integers", 160 * 32 * 32),
        ("xnor.4.conv", "integers", 96 * 32 * 32),
        ("max_pool2d_bits", "integers", 96 * 16 * 16),
        ("xnor.6.conv", "integers", 192 * 16 * 16),
        ("xnor.7.conv", "integers", 192 * 16 * 16),
        ("sign_5", "floats", 192 * 8 * 8),
        ("xnor.10.conv", "integers", 192 * 8 * 8),
    ]
    assert [(floats.layer, floats.values // 5) for floats in result.float_layers] == [
        ("xnor.8.conv", 192 * 16 * 16),
        ("xnor.11.conv", 192 * 8 * 8),
    ]
    assert [output.backend for output in result.outputs] == [f"kernels, {BEST[0]}"]


def test_the_golden_bits_are_those_of_the_model(lenet5: Converted, goldens: Callable[[Converted, int], Path]) -> None:
    """Seen by onnx's own means: a model that has them as outputs."""
    golden = read_golden(goldens(lenet5, 32))
    model = onnx.load(lenet5.model)
    for tensor in golden.tensors:
        model.graph.output.append(onnx.helper.make_tensor_value_info(tensor.tensor, onnx.TensorProto.UINT32, None))
    session = load_session(model.SerializeToString(), 1, kernels=False)
    output, *bits = session.run(None, {"input": lenet5.images})
    np.testing.assert_allclose(golden.outputs[0].values, output, atol=1e-4)
    for tensor, array in zip(golden.tensors, bits, strict=True):
        assert (tensor.bits == array).all()
        assert tensor.bits.any()


def test_int8_edges(nin_int8: Converted, goldens: Callable[[Converted, int], Path]) -> None:
    result = check_golden(nin_int8.model, goldens(nin_int8, 5))
    assert result.passed, result.failures
    assert [layer.layer for layer in result.layers if layer.quantized] == ["xnor.0"]
    assert result.float_relative == 0.05
    assert result.layers[0].near > 0.01 * result.layers[0].bits  # where one level decides


def test_the_same_bytes_again(lenet5: Converted, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_golden(make_golden(lenet5.model, lenet5.images[:3]), tmp_path / name)
        os.utime(lenet5.model)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    write_golden(make_golden(lenet5.model, lenet5.images[:4]), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() != (tmp_path / "b.npz").read_bytes()


def test_what_is_written_is_read(lenet5: Converted, tmp_path: Path) -> None:
    made = make_golden(lenet5.model, lenet5.images[:3])
    write_golden(made, tmp_path / "golden.npz")
    read = read_golden(tmp_path / "golden.npz")
    np.testing.assert_equal(dataclasses.asdict(read), dataclasses.asdict(made))


def test_random_inputs_when_none_are_given(lenet5: Converted) -> None:
    assert make_golden(lenet5.model, samples=3).inputs.arrays["input"].shape == (3, 1, 28, 28)


def test_a_sign_of_the_input_itself(tmp_path: Path, seeded_torch: None) -> None:
    """No layer before it, and nothing behind the last bits but the output."""
    from torch import nn

    from support.networks import Signed

    module = nn.Sequential(Signed(nn.Conv2d(4, 6, 3)))
    model = convert(module, tmp_path / "m.onnx", input_shape=(4, 6, 6), weights="xnor-centred").output
    x = np.random.default_rng(0).standard_normal((3, 4, 6, 6)).astype(np.float32)
    x[1, 2, 3, 4] = -1e-6
    write_golden(make_golden(model, x), tmp_path / "golden.npz")
    result = check_golden(model, tmp_path / "golden.npz")
    assert result.passed, result.failures
    assert [(layer.made_from, layer.near) for layer in result.layers] == [("floats", 1)]
    assert [output.same_class for output in result.outputs] == [None] * (len(ISAS) + 1)


# Files that cannot be used.


def test_the_golden_file_of_another_model(
    lenet5: Converted, nin: Converted, goldens: Callable[[Converted, int], Path]
) -> None:
    with pytest.raises(InputError, match=r"made from another model than .*nin\.onnx: SHA-256 [0-9a-f]{12}"):
        check_golden(nin.model, goldens(lenet5, 32))


def test_bad_golden_files(lenet5: Converted, goldens: Callable[[Converted, int], Path], tmp_path: Path) -> None:
    good = goldens(lenet5, 32).read_bytes()
    with np.load(goldens(lenet5, 32)) as arrays:
        content = dict(arrays)

    def npz(**changes: Any) -> bytes:
        np.savez(tmp_path / "changed.npz", **{k: v for k, v in (content | changes).items() if v is not None})
        return (tmp_path / "changed.npz").read_bytes()

    def meta(**changes: Any) -> bytes:
        values = json.loads(content["meta"].tobytes()) | changes
        return npz(meta=np.frombuffer(json.dumps(values).encode(), np.uint8))

    middle = len(good) // 2
    damaged_or_none = "not a golden file, or a damaged one"
    cases = [
        (b"", damaged_or_none),
        (b"hello", damaged_or_none),
        (good[:middle], damaged_or_none),
        (good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :], damaged_or_none),
        (npz(**{"input/0": None}), damaged_or_none),
        (npz(**{"bits/1": None}), damaged_or_none),
        (npz(**{"floats/0": None}), damaged_or_none),
        (npz(**{"floats/0": content["floats/0"][:-1]}), "the checksums of 'fed/linear_map' are [31]"),
        (npz(**{"output/0": content["output/0"][:-1]}), "32 samples, but 'linear_1' is float32 [31, 10]"),
        (
            npz(**{"input/0": content["input/0"].astype(np.complex64)}),
            "32 samples, but 'input' is complex64 [32, 1, 28",
        ),
        (meta(outputs=[]), "no inputs or no outputs"),
        (npz(**{"bits/1": content["bits/1"][:-1]}), "the bits of 'relu_1_bits' are [31, "),
        (npz(**{"bits/1": content["bits/1"].astype(np.int64)}), "the bits of 'relu_1_bits' are int64"),
        (npz(**{"near/0": content["near/0"][:, 1:]}), "the bits of 'sign_bits' are uint32 [32, 11, "),
        (meta(format=1), "golden results of format 1; this bnn-deploy knows format 2"),
        (meta(tensors=3), damaged_or_none),
        (meta(made_with={}), damaged_or_none),
        (npz(meta=np.array([None])), damaged_or_none),
    ]
    path = tmp_path / "golden.npz"
    for data, message in cases:
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            check_golden(lenet5.model, path)
        assert message in str(caught.value)
        assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(InputError, match="no such file"):
        read_golden(tmp_path / "none.npz")
    with pytest.raises(InputError, match="no such file"):
        check_golden(tmp_path / "none.onnx", goldens(lenet5, 32))


def test_a_probe_that_onnxruntime_refuses(
    lenet5: Converted, goldens: Callable[[Converted, int], Path], tmp_path: Path
) -> None:
    path = rewrite(tmp_path / "golden.npz", read_golden(goldens(lenet5, 32)), probe=b"\xff\xff")
    with pytest.raises(InputError, match="onnxruntime cannot load it"):
        check_golden(lenet5.model, path)


def test_unknown_isa(lenet5: Converted, goldens: Callable[[Converted, int], Path]) -> None:
    with pytest.raises(SetupError, match="BNN_DEPLOY_ISA = 'sse9'"):
        check_golden(lenet5.model, goldens(lenet5, 32), isas=["sse9"])


def test_no_golden_results_of_a_float_model(lenet5: Converted) -> None:
    with pytest.raises(InputError, match="not one that bnn-deploy converted"):
        make_golden(lenet5.float_model)
