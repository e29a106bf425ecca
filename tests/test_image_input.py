"""`convert --input uint8`: a model that takes images of bytes computes what the network does of normalised ones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from bnn_deploy.cli import main
from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.image_input import ImageInput
from bnn_deploy.proof.golden.check import check_golden
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.golden.record import write_golden
from bnn_deploy.proof.verification import verify
from bnn_deploy.provenance import IMAGE_KEY, properties
from bnn_deploy.runtime.session import load_session
from support.converted import Converted
from support.graphs import parse, weights

IMAGENET = ImageInput((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "nhwc")


def network(shape: tuple[int, ...] = (3, 10, 9)) -> onnx.ModelProto:
    """A float network: a first layer of floats, a binary one, and class scores."""
    rng = np.random.default_rng(2)
    text = (
        "c = Conv<pads=[1,1,1,1]>(x, f, b)\ns = Sign(c)\nd = Conv<pads=[1,1,1,1]>(s, w)\n"
        "p = GlobalAveragePool(d)\ny = Flatten(p)"
    )
    first = rng.normal(size=(40, shape[0], 3, 3)).astype(np.float32)
    bias = rng.normal(size=40).astype(np.float32)
    return ir.to_proto(parse(text, ("N", *shape), f=first, b=bias, w=weights(40, 40, 3, 3)))


def images(layout: str, count: int = 12) -> np.ndarray:
    """Each with its own brightness."""
    rng = np.random.default_rng(6)
    x = np.clip(rng.normal(rng.uniform(60, 200, (count, 3, 1, 1)), 50, (count, 3, 10, 9)), 0, 255).astype(np.uint8)
    return x if layout == "nchw" else np.ascontiguousarray(np.moveaxis(x, 1, -1))


def test_normalise_is_that_of_torchvision() -> None:
    """ToTensor's and Normalize's own steps, in PyTorch: to the last bit, for every byte."""
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    tensor = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().to(torch.float32).div(255)
    mean, std = (torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1) for numbers in (IMAGENET.mean, IMAGENET.std))
    expected = tensor.clone().sub_(mean).div_(std).numpy()
    assert IMAGENET.normalise(x).tobytes() == expected.tobytes()
    assert ImageInput((0.5,), (0.25,)).normalise(x[..., 0][:, None]).tobytes() == (
        tensor[:, :1].sub(0.5).div(0.25).numpy().tobytes()
    )
    other = ImageInput(IMAGENET.mean, (0.229, 0.225, 0.224), "nhwc")
    assert other.normalise(x).tobytes() != expected.tobytes()


@pytest.mark.parametrize("image", [IMAGENET, ImageInput((0.5,), (0.25,)), ImageInput()], ids=["nhwc", "nchw", "plain"])
def test_the_outputs_are_those_of_the_normalised_images(image: ImageInput, tmp_path: Path) -> None:
    source = network()
    convert(source, tmp_path / "floats.onnx")
    convert(source, tmp_path / "bytes.onnx", image_input=image, float_output=tmp_path / "float.onnx")
    model = onnx.load(tmp_path / "bytes.onnx")
    assert model.graph.node[0].op_type == "ImageConvThreshold"
    assert json.loads(properties(model)[IMAGE_KEY]) == {
        "mean": list(image.mean),
        "std": list(image.std),
        "layout": image.layout,
    }
    x = images(image.layout)
    for kernels in (True, False):
        floats, own, plain = (
            load_session(tmp_path / name, kernels=kernels).run(None, {"x": array})[0]
            for name, array in (("floats.onnx", image.normalise(x)), ("bytes.onnx", x), ("float.onnx", x))
        )
        if kernels:
            assert own.tobytes() == floats.tobytes()  # the same order of summation: not a bit differs
        assert np.allclose(own, plain, atol=1e-4) and np.allclose(own, floats, atol=1e-4)
    # Another normalisation, and channels in another order, show.
    for wrong in (x[..., ::-1] if image.layout == "nhwc" else x[:, ::-1], np.minimum(x, 254) + 1):
        (other,) = load_session(tmp_path / "bytes.onnx").run(None, {"x": np.ascontiguousarray(wrong)})
        assert other.tobytes() != own.tobytes()


class Small(nn.Module):
    """A network in PyTorch, whose first layer is no convolution that reads bytes."""

    input_shape = (3, 10, 9)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(270, 64)
        self.norm = nn.BatchNorm1d(64)
        self.second = nn.Linear(64, 32)
        self.second.weight.data.sign_().mul_(0.25)
        self.last = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.norm(self.first(x.flatten(1))).sign()))


def test_verify_feeds_the_source_the_normalised_images(tmp_path: Path) -> None:
    module, x = Small(), images("nhwc", 64)
    module.train()
    with torch.no_grad():
        module(torch.from_numpy(IMAGENET.normalise(x)))  # BatchNorm's statistics are of these
    module.eval()
    convert(module, tmp_path / "m.onnx", image_input=IMAGENET, float_output=tmp_path / "f.onnx")
    assert "Cast" in {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    for against in (module, tmp_path / "f.onnx"):
        found = verify(tmp_path / "m.onnx", against, data=x, reference_samples=2)
        assert found.passed and found.outputs[0].samples == 64, found.errors
    # Random images, and floats.
    assert verify(tmp_path / "m.onnx", module, reference_samples=2).passed
    with pytest.raises(InputError, match="the inputs are float32; the network needs uint8: images as they are"):
        verify(tmp_path / "m.onnx", module, data=IMAGENET.normalise(x))
    # A model that normalises in another way is not the network.
    model = onnx.load(tmp_path / "m.onnx")
    (name,) = (node.input[1] for node in model.graph.node if node.op_type == "Sub")
    (mean,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    mean.CopyFrom(onnx.numpy_helper.from_array(np.roll(onnx.numpy_helper.to_array(mean), 1), mean.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    assert not verify(tmp_path / "wrong.onnx", module, data=x, reference_samples=2).passed


def test_golden_results_hold_images(tmp_path: Path) -> None:
    convert(network(), tmp_path / "m.onnx", image_input=IMAGENET)
    np.save(tmp_path / "x.npy", images("nhwc"))
    golden = make_golden(tmp_path / "m.onnx", tmp_path / "x.npy", samples=4)
    write_golden(golden, tmp_path / "golden.npz")
    assert check_golden(tmp_path / "m.onnx", tmp_path / "golden.npz").passed
    model = onnx.load(tmp_path / "m.onnx")
    (levels,) = (tensor for tensor in model.graph.initializer if tensor.name.endswith("_levels"))
    levels.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(levels)[:, ::-1].copy(), levels.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    digest = hashlib.sha256((tmp_path / "wrong.onnx").read_bytes()).hexdigest()
    write_golden(dataclasses.replace(golden, model_sha256=digest), tmp_path / "golden.npz")
    assert not check_golden(tmp_path / "wrong.onnx", tmp_path / "golden.npz").passed


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_the_command_line(lenet5: Converted, tmp_path: Path) -> None:
    options = ["--input", "uint8", "--mean", "0.1307", "--std", "0.3081", "--layout", "nhwc"]
    code, text = run(
        "convert",
        lenet5.checkpoint,
        "--arch",
        "lenet5",
        "-o",
        tmp_path / "m.onnx",
        "--float",
        tmp_path / "f.onnx",
        *options,
    )
    assert code == 0 and b"ImageConvThreshold" in (tmp_path / "m.onnx").read_bytes(), text
    x = np.random.default_rng(0).integers(0, 256, (20, 28, 28, 1)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", images=x)
    code, text = run("verify", tmp_path / "m.onnx", "--against", lenet5.checkpoint, "--data", tmp_path / "x.npz")
    assert code == 0 and "PASSED" in text, text
    code, text = run("profile", tmp_path / "m.onnx", "--compare", tmp_path / "f.onnx", "--runs", 3)
    assert code == 0, text
    code, text = run("inspect", tmp_path / "m.onnx")
    assert code == 0 and "28\u00d728\u00d71 uint8" in text and '"layout": "nhwc"' in text, text


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--layout", "nhwc"], 2, "give --input uint8, too"),
        (["--input", "uint8", "--std", "0"], 2, "std 0: each must be above 0"),
        (["--input", "uint8", "--std", "nan"], 2, "std nan: give one finite number"),
        (["--input", "uint8", "--mean", "a,b"], 2, "--mean a,b: give one number"),
        (["--input", "uint8", "--mean", "1,2"], 2, "mean 1,2 is for 2 channels, but the input has 3"),
    ],
)
def test_what_does_not_fit_is_refused(options: list[str], code: int, words: str, tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "source.onnx")
    found, text = run("convert", tmp_path / "source.onnx", "-o", tmp_path / "m.onnx", *options)
    assert found == code and words in " ".join(text.split()) and not (tmp_path / "m.onnx").exists(), text


def test_networks_of_other_inputs_are_refused(tmp_path: Path) -> None:
    flat = parse("s = Sign(x)\ny = MatMul(s, w)", ("N", 40), w=weights(40, 8))
    with pytest.raises(InputError, match=r"its input x is float32 \['batch', 40\]: image_input is for float32 images"):
        convert(ir.to_proto(flat), tmp_path / "m.onnx", image_input=ImageInput())
    two = parse("s = Sign(x)\ny0 = MatMul(s, w)\ny = Add(y0, z)", ("N", 40), inputs="float[N,8] z", w=weights(40, 8))
    with pytest.raises(InputError, match="it has 2 inputs: image_input is for networks of one image"):
        convert(ir.to_proto(two), tmp_path / "m.onnx", image_input=ImageInput())


def test_tensors_with_the_names_of_the_normalisation(tmp_path: Path) -> None:
    """A name that is taken is refused, or else verify would not find its tensor; names that are near are not taken."""
    for taken in ("x_normalised", "x_normalised_mean"):
        source = network()
        for names in (name for node in source.graph.node for name in (node.input, node.output)):
            names[:] = [taken if name == "d" else name for name in names]
        with pytest.raises(InputError, match=f"its tensor {taken} has a name that image_input gives"):
            convert(source, tmp_path / "m.onnx", image_input=IMAGENET)
        assert not (tmp_path / "m.onnx").exists()
    for near in ("x_mean", "x_image_0"):
        source = network()
        for names in (name for node in source.graph.node for name in (node.input, node.output)):
            names[:] = [near if name == "d" else name for name in names]
        onnx.save(source, tmp_path / "source.onnx")
        convert(tmp_path / "source.onnx", tmp_path / "m.onnx", image_input=IMAGENET)
        assert verify(tmp_path / "m.onnx", tmp_path / "source.onnx", data=images("nhwc"), reference_samples=1).passed
