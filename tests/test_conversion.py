"""convert(): the whole way from a checkpoint to a file, and what it leaves behind when it fails."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from bnn_deploy import conversion
from bnn_deploy.architectures import LeNet5
from bnn_deploy.conversion import convert
from bnn_deploy.errors import BnnDeployError, InputError
from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.runtime.session import load_session
from bnn_deploy.source import latent_weights
from bnn_deploy.source.checkpoint import load_module
from bnn_deploy.training import WeightBinarizer
from support.converted import Converted
from support.networks import mnist, write_checkpoint


def ops(path: Path) -> list[str]:
    return [f"{node.domain or 'onnx'}.{node.op_type}" for node in onnx.load(path).graph.node]


# The trained LeNet-5.


def test_structure_of_lenet5(lenet5: Converted) -> None:
    assert ops(lenet5.model) == [
        "bnn_deploy.DirectConvThreshold",  # conv1, with its pool, and BatchNorm and ReLU in its thresholds
        "bnn_deploy.BinaryConvThreshold",  # bin_conv2, with its ReLU and bin_ip1's BatchNorm
        "bnn_deploy.BinaryMaxPool",
        "bnn_deploy.BinaryConv",  # bin_ip1
        "bnn_deploy.ReluLinear",  # ip2, with its ReLU
    ]
    result = lenet5.conversion
    assert result.binary_layers == ("bin_conv2.conv", "bin_ip1.linear")
    assert [(d.node, d.has_sign_input) for d in result.left_float] == [("conv1", False), ("ip2", False)]
    assert result.binarized == ("bin_conv2.conv.weight", "bin_ip1.linear.weight")
    assert result.not_fused == ()


def test_structure_of_nin(nin: Converted) -> None:
    found = ops(nin.model)
    assert len(nin.conversion.binary_layers) == 7
    assert found.count("bnn_deploy.BinaryConvThreshold") + found.count("bnn_deploy.BinaryConv") == 7
    assert [d.node for d in nin.conversion.left_float] == ["xnor.0", "xnor.13"]
    # The average pool and the last block need floats; the last BatchNorm has gone into the convolution behind it.
    assert found.count("bnn_deploy.BinaryConv") == 2
    assert "onnx.BatchNormalization" not in found
    assert "onnx.Sign" not in found


def test_sizes(lenet5: Converted, nin: Converted) -> None:
    assert nin.model.stat().st_size <= 350_000
    assert nin.float_model.stat().st_size > 3_800_000
    assert lenet5.model.stat().st_size < 125_000


def test_the_file_is_a_valid_model(lenet5: Converted) -> None:
    model = onnx.load(lenet5.model)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 10
    assert {f.name for f in model.functions} == {n.op_type for n in model.graph.node if n.domain == DOMAIN}
    metadata = {p.key.removeprefix("bnn_deploy."): p.value for p in model.metadata_props}
    assert (metadata["input_shape"], metadata["weights"], metadata["arch"]) == ("1,28,28", "auto", "lenet5")
    assert metadata.keys() == {"input_shape", "weights", "arch", "source_file", "accuracy", "version"}
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names) and all(names)


@pytest.mark.parametrize("which", ["model", "float_model"])
def test_no_local_path_in_the_files(lenet5: Converted, which: str) -> None:
    data = getattr(lenet5, which).read_bytes()
    for text in (str(Path.cwd()), str(Path.home()), str(lenet5.model.parent), "site-packages", "networks.py", ".py"):
        assert text.encode() not in data, text


@pytest.mark.usefixtures("own_exports")
def test_files_are_reproducible(lenet5: Converted, tmp_path: Path) -> None:
    again = convert(lenet5.checkpoint, tmp_path / "again.onnx", arch="lenet5", float_output=tmp_path / "float.onnx")
    assert again.output.read_bytes() == lenet5.model.read_bytes()
    assert (tmp_path / "float.onnx").read_bytes() == lenet5.float_model.read_bytes()


@pytest.mark.parametrize("kernels", [True, False])
def test_dynamic_batch(lenet5: Converted, kernels: bool) -> None:
    session = load_session(lenet5.model, 1, kernels=kernels)
    together = session.run(None, {"input": lenet5.images[:7]})[0]
    assert together.shape == (7, 10)
    one_by_one = np.concatenate([session.run(None, {"input": lenet5.images[i : i + 1]})[0] for i in range(7)])
    np.testing.assert_allclose(one_by_one, together, rtol=1e-5, atol=1e-5)


def test_runs_in_an_onnxruntime_without_the_library(lenet5: Converted) -> None:
    """The float model, the function bodies and the kernels: the same classes of 1,000 real digits."""
    images, labels = (t.numpy() for t in mnist())
    plain = ort.InferenceSession(str(lenet5.model), providers=["CPUExecutionProvider"])
    classes = [
        session.run(None, {"input": images})[0].argmax(1)
        for session in (plain, load_session(lenet5.model, 1), load_session(lenet5.float_model, 1, kernels=False))
    ]
    assert np.array_equal(classes[0], classes[1])
    assert np.array_equal(classes[0], classes[2])
    assert (classes[0] == labels).mean() > 0.99
    assert not np.array_equal(classes[0], np.roll(classes[0], 1))


def test_a_module_gives_the_same_file_and_is_not_changed(lenet5: Converted, tmp_path: Path) -> None:
    module = load_module(lenet5.checkpoint, "lenet5").train()
    before = copy.deepcopy(module.state_dict())
    result = convert(module, tmp_path / "m.onnx")
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    model, reference = onnx.load(result.output), onnx.load(lenet5.model)
    # The architecture's name is missing from the metadata, and the graph has that of the class.
    assert (model.graph.node, model.graph.initializer) == (reference.graph.node, reference.graph.initializer)
    assert (model.graph.name, reference.graph.name) == ("LeNet5", "lenet5")
    assert convert(module, tmp_path / "n.onnx").output.read_bytes() == result.output.read_bytes()


def test_weights_that_are_binarised_already_are_left_alone(lenet5: Converted, tmp_path: Path) -> None:
    """A checkpoint saved after the recipe's binarisation gives the same model as the latent one."""
    module = load_module(lenet5.checkpoint, "lenet5")
    binarizer_weights = module.binary_weights()  # type: ignore[operator]
    with WeightBinarizer(binarizer_weights):
        saved = write_checkpoint(module, tmp_path / "binarised.pth.tar")
    result = convert(saved, tmp_path / "b.onnx", arch="lenet5")
    assert result.binarized == ()
    found, expected = onnx.load(result.output).graph, onnx.load(lenet5.model).graph
    assert (found.node, found.initializer) == (expected.node, expected.initializer)


def test_to_json(lenet5: Converted) -> None:
    report = json.loads(json.dumps(lenet5.conversion.to_json()))
    assert report["output"] == str(lenet5.model)
    assert report["left_float"][0]["node"] == "conv1"


def test_progress_names_the_steps(tmp_path: Path) -> None:
    steps: list[str] = []
    convert(LeNet5(), tmp_path / "m.onnx", progress=steps.append)
    reading = ["loading the network", "exporting to float ONNX"]
    # Its BatchNorms have learned no shift yet, so what a ReLU makes 0 reaches the signs as 0.
    counting = "counting exact zeros on random inputs (give data for real ones): sample 0 of 8"
    comparing = "comparing the converted model's layers with the float model's"
    assert steps == [*reading, "running the passes", counting, "running the converted model once", comparing, "writing"]


# What stays float, and --strict.


class Half(nn.Module):
    """Two layers of signs, the second padded with what is no sign."""

    input_shape = (4, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 8, 3, bias=False)
        self.b = nn.Conv2d(8, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sign(self.a(torch.sign(x)) - 0.1)
        return self.b(nn.functional.pad(x, (1, 1, 1, 1), value=0.5))


def test_strict_fails_on_a_layer_of_signs_that_stays_float(tmp_path: Path, seeded_torch: None) -> None:
    module = Half()
    result = convert(module, tmp_path / "m.onnx", weights="xnor-centred")
    assert result.binary_layers == ("a",)
    assert [(d.node, d.has_sign_input) for d in result.left_float] == [("b", True)]
    with pytest.raises(
        BnnDeployError, match=r"strict=True: 1 layer whose input is a sign or has few levels stays float: Conv 'b': "
    ) as caught:
        convert(module, tmp_path / "strict.onnx", weights="xnor-centred", strict=True)
    assert caught.value.exit_code == 1
    assert not (tmp_path / "strict.onnx").exists()
    convert(LeNet5(), tmp_path / "fine.onnx", strict=True)


def test_a_network_without_binary_layers_is_an_error(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
    with pytest.raises(InputError, match=r"no layer of Sequential is binary: Conv '0': its input is the model's"):
        convert(module, tmp_path / "m.onnx", input_shape=(1, 8, 8))
    assert list(tmp_path.iterdir()) == []


def test_as_is_with_latent_weights_says_so(lenet5: Converted, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no layer of \S*lenet5\.pth\.tar is binary: .*'bin_conv2\.conv': its weights are real-valued"
    ):
        convert(lenet5.checkpoint, tmp_path / "m.onnx", arch="lenet5", weights="as-is")


def test_an_all_zero_filter_names_layer_and_filter(tmp_path: Path, seeded_torch: None) -> None:
    module = LeNet5()
    with torch.no_grad():
        module.bin_conv2.conv.weight[7] = 0.25  # equal in all input channels: centring makes it zero
    with pytest.raises(InputError, match=r"Conv 'bin_conv2\.conv': filter 7 is all zeros"):
        convert(module, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


# Files.


@pytest.mark.parametrize("failing", [1, 2])
def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    (tmp_path / "m.onnx").write_bytes(b"the old model")
    real_open, written = Path.open, []

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        file = real_open(path, mode, **options)
        if path.suffix == ".tmp":
            written.append(path)
            if len(written) == failing:
                file.write(b"half of it")
                file.close()
                raise OSError(28, "No space left on device", str(path))
        return file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space"):
        convert(LeNet5(), tmp_path / "m.onnx", float_output=tmp_path / "f.onnx")
    assert len(written) == failing
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"m.onnx": b"the old model"}


@pytest.mark.parametrize(
    ("module", "failing"),
    [(conversion, "to_binary"), (latent_weights, "export_float"), (conversion, "binary_layers")],
)
def test_nothing_is_left_when_a_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, failing: str
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, failing, fail)
    with pytest.raises(KeyboardInterrupt):
        convert(LeNet5(), tmp_path / "m.onnx", float_output=tmp_path / "f.onnx")
    assert list(tmp_path.iterdir()) == []


def test_files_get_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        convert(LeNet5(), tmp_path / "m.onnx")
    finally:
        os.umask(before)
    assert (tmp_path / "m.onnx").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("which", ["output", "float_output"])
def test_a_folder_that_is_not_there_is_an_error_before_any_work(tmp_path: Path, which: str) -> None:
    files = {"output": tmp_path / "m.onnx", "float_output": tmp_path / "f.onnx"} | {which: tmp_path / "no" / "m.onnx"}
    steps: list[str] = []
    with pytest.raises(InputError, match=f"the folder {tmp_path}/no does not exist"):
        convert(LeNet5(), files["output"], float_output=files["float_output"], progress=steps.append)
    assert steps == []
    assert list(tmp_path.iterdir()) == []


def test_one_file_for_both_models_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is asked for twice"):
        convert(LeNet5(), tmp_path / "m.onnx", float_output=tmp_path / "." / "m.onnx")


def test_a_checkpoint_needs_an_architecture(lenet5: Converted, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"which architecture it is: lenet5, nin, .*, reactnet, .* or FILE"):
        convert(lenet5.checkpoint, tmp_path / "m.onnx")


def test_to_binary_leaves_the_float_model_alone(lenet5: Converted) -> None:
    model = ir.load(lenet5.float_model)
    before = ir.to_proto(model).SerializeToString()
    binary, leftovers, _ = to_binary(model)
    assert ir.to_proto(model).SerializeToString() == before
    assert len(leftovers) == 2
    assert [n.op_type for n in binary.graph] == [n.op_type for n in ir.load(lenet5.model).graph]
