"""Checkpoints: safe loading, the keys of all the recipe's ways to save, and every mismatch named."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnn_deploy.architectures import LeNet5
from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.proof.verification import verify
from bnn_deploy.source.checkpoint import build, input_shape, load_class, load_module, load_state_dict, load_weights
from support.networks import DEMO_DATA


def state() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in LeNet5().state_dict().items()}


def write(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model_state_dict": s, "epoch": 3}]
)
@pytest.mark.parametrize("zip_format", [True, False])
def test_state_dicts_however_they_were_saved(tmp_path: Path, wrap: Any, zip_format: bool) -> None:
    expected = state()
    path = write(tmp_path / "c.pth.tar", wrap(expected), _use_new_zipfile_serialization=zip_format)
    assert same(load_state_dict(path), expected)
    expected["conv1.weight"] = expected["conv1.weight"] + 1e-6
    assert not same(load_state_dict(path), expected)


@pytest.mark.parametrize(
    "accuracy", [99.3, np.float64(99.3), np.float32(99.3), np.int64(99), torch.tensor(99.3), torch.tensor([99.3])]
)
def test_accuracy_beside_the_state_dict(tmp_path: Path, accuracy: object) -> None:
    content = {
        "best_acc": accuracy,
        "epoch": 60,
        "arch": "lenet5",
        "state_dict": state(),
        "optimizer": {"lr": 0.01, "x": []},
    }
    path = write(tmp_path / "c.pth.tar", content)
    assert same(load_state_dict(path), content["state_dict"])  # type: ignore[arg-type]


def test_a_whole_optimizer_beside_the_state_dict(tmp_path: Path) -> None:
    network = LeNet5()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    network(torch.zeros(2, 1, 28, 28)).sum().backward()
    optimizer.step()
    path = write(tmp_path / "c.pth.tar", {"state_dict": network.state_dict(), "optimizer": optimizer.state_dict()})
    assert load_state_dict(path).keys() == network.state_dict().keys()


@pytest.mark.parametrize(
    "prefixed", ["module.bin_conv2.bn.weight", "bin_conv2.module.bn.weight", "module.bin_conv2.module.bn.weight"]
)
def test_module_prefixes_wherever_they_stand(tmp_path: Path, prefixed: str) -> None:
    """DataParallel wraps the whole network, or (AlexNet of the recipe) its `features` alone."""
    renamed = {prefixed if name == "bin_conv2.bn.weight" else name: tensor for name, tensor in state().items()}
    loaded = load_state_dict(write(tmp_path / "c.pth.tar", {"state_dict": renamed}))
    assert loaded.keys() == state().keys()


def test_data_parallel(tmp_path: Path) -> None:
    network = LeNet5()
    path = write(tmp_path / "c.pth.tar", {"state_dict": nn.DataParallel(network).state_dict()})
    assert same(load_state_dict(path), network.state_dict())


def test_only_whole_parts_named_module_are_stripped(tmp_path: Path) -> None:
    keys = {"submodule.weight": torch.ones(1), "module_a.weight": torch.ones(1), "module.x.weight": torch.ones(1)}
    assert list(load_state_dict(write(tmp_path / "c", keys))) == ["submodule.weight", "module_a.weight", "x.weight"]


def test_two_keys_that_become_one_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "c", {"module.x": torch.ones(1), "x": torch.zeros(1)})
    with pytest.raises(InputError, match=r"x is there twice, with and without 'module\.'"):
        load_state_dict(path)


def test_a_checkpoint_of_a_gpu_loads_without_one(tmp_path: Path) -> None:
    """Its storages say cuda:0; the old format has that as text in the pickle, which can be written without a GPU."""
    path = write(tmp_path / "c", {"w": torch.arange(4.0)}, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert data.count(b"X\x03\x00\x00\x00cpu") == 1
    path.write_bytes(data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(path, weights_only=True)
    assert load_state_dict(path)["w"].tolist() == [0, 1, 2, 3]


def test_what_is_no_tensor_among_tensors_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "c", {"w": torch.ones(1), "epoch": 3, "name": "x"})
    assert list(load_state_dict(path)) == ["w"]


# What is refused.


class Exploit:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zip_format", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, zip_format: bool) -> None:
    trace = tmp_path / "it ran"
    path = write(
        tmp_path / "c", {"state_dict": state(), "x": Exploit(trace)}, _use_new_zipfile_serialization=zip_format
    )
    with pytest.raises(
        InputError, match=r"refused, because loading it would run code: it needs the Python object posix\.mkdir"
    ):
        load_state_dict(path)
    assert not trace.exists()
    # The file does run code for whoever loads it without care: the test is not vacuous.
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_code_in_a_plain_pickle_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    (tmp_path / "c").write_bytes(pickle.dumps(Exploit(trace)))
    with pytest.raises(InputError):
        load_state_dict(tmp_path / "c")
    assert not trace.exists()


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_whole_module_is_refused(tmp_path: Path, zip_format: bool) -> None:
    path = write(tmp_path / "c", nn.Sequential(nn.Conv2d(1, 1, 1)), _use_new_zipfile_serialization=zip_format)
    with pytest.raises(InputError, match=r"needs the Python object torch\.nn\..*; save the weights alone"):
        load_state_dict(path)


def test_another_pickle_protocol_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "c", {"state_dict": state()}, pickle_protocol=4)
    with pytest.raises(
        InputError, match=r"its pickle protocol is not the one .* save it again without pickle_protocol"
    ):
        load_state_dict(path)


def truncated(path: Path) -> None:
    data = (DEMO_DATA / "lenet5.pth.tar").read_bytes()
    path.write_bytes(data[: len(data) // 2])


def old_truncated(path: Path) -> None:
    write(path, state(), _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:20_000])


BROKEN: dict[str, tuple[Any, str]] = {
    "missing": (lambda path: None, "no such file"),
    "a folder": (lambda path: path.mkdir(), "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "not a PyTorch checkpoint"),
    "text": (lambda path: path.write_text("hello, world\n"), "not a PyTorch checkpoint"),
    "text that looks like a pickle": (
        lambda path: path.write_text("cos\nsystem\n"),
        "not a PyTorch checkpoint|refused",
    ),
    "binary": (lambda path: path.write_bytes(bytes(range(256)) * 40), "not a PyTorch checkpoint"),
    "truncated": (truncated, "truncated or damaged"),
    "old format, truncated": (old_truncated, "not a PyTorch checkpoint|truncated or damaged"),
    "another zip file": (
        lambda path: np.savez(path.open("wb"), x=np.ones(3)),
        "truncated or damaged|not a PyTorch checkpoint",
    ),
    "two networks": (
        lambda path: torch.save({"net": {"w": torch.ones(1)}, "ema": {"w": torch.ones(1), "b": torch.ones(1)}}, path),
        r"more than one dict of tensors in it: 'net' \(1 tensors\), 'ema' \(2 tensors\); save the network's alone",
    ),
    "a list": (lambda path: torch.save([torch.ones(1)], path), "no state dict in it"),
    "a tensor": (lambda path: torch.save(torch.ones(1), path), "no state dict in it"),
    "an empty state dict": (lambda path: torch.save({"state_dict": {}}, path), "no state dict in it"),
    "a dict without tensors": (lambda path: torch.save({"acc": 3}, path), "no state dict in it"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path: Path, case: str) -> None:
    make, message = BROKEN[case]
    path = tmp_path / "c.pth.tar"
    make(path)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: ({message})") as caught:
        load_state_dict(path)
    assert "\n" not in str(caught.value)


# Keys that do not fit.


def test_lists_missing_unexpected_and_misshaped_keys() -> None:
    tensors = state()
    del tensors["conv1.weight"], tensors["ip2.bias"]
    tensors["conv9.weight"] = torch.ones(1)
    tensors["bin_conv2.bn.bias"] = torch.ones(51)
    with pytest.raises(InputError) as caught:
        load_weights(LeNet5(), tensors, "c.pth.tar")
    assert str(caught.value) == (
        "c.pth.tar: its keys do not fit LeNet5: 2 missing: conv1.weight, ip2.bias; 1 unexpected: conv9.weight; "
        "1 of another shape: bin_conv2.bn.bias is [51], not [20]"
    )


def test_long_lists_are_cut() -> None:
    with pytest.raises(InputError, match=r"\d\d missing: (\S+, ){8}\.\.\.") as caught:
        load_weights(LeNet5(), {"x": torch.ones(1)}, "c")
    assert len(str(caught.value)) < 600


def test_missing_num_batches_tracked_is_forgiven() -> None:
    """Checkpoints from before PyTorch 0.4 have none."""
    tensors = {name: tensor for name, tensor in state().items() if not name.endswith("num_batches_tracked")}
    assert len(tensors) < len(state())
    module = LeNet5()
    load_weights(module, tensors, "c")
    assert same({name: module.state_dict()[name] for name in tensors}, tensors)
    del tensors["bin_conv2.bn.running_mean"]
    with pytest.raises(InputError, match=r"1 missing: bin_conv2\.bn\.running_mean"):
        load_weights(LeNet5(), tensors, "c")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(value: float) -> None:
    tensors = state()
    tensors["bin_ip1.linear.weight"][3, 5] = value
    with pytest.raises(InputError, match=r"c: bin_ip1\.linear\.weight holds NaN or infinity"):
        load_weights(LeNet5(), tensors, "c")


def test_half_precision_weights_load_as_float32() -> None:
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in state().items()}
    module = LeNet5()
    load_weights(module, tensors, "c")
    assert module.conv1.weight.dtype == torch.float32


def test_load_module_is_in_eval_mode_and_keeps_the_latent_weights() -> None:
    module = load_module(DEMO_DATA / "lenet5.pth.tar", "lenet5")
    assert not module.training
    weight = module.state_dict()["bin_conv2.conv.weight"]
    assert torch.equal(weight, load_state_dict(DEMO_DATA / "lenet5.pth.tar")["bin_conv2.conv.weight"])
    assert len(weight[0].abs().unique()) > 100


# Architectures.


def test_unknown_architecture() -> None:
    with pytest.raises(
        InputError, match=r"unknown architecture 'resnet': choose lenet5, nin, .*, reactnet, .*, or FILE"
    ):
        build("resnet", {})


def test_a_class_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "helper_of_net.py").write_text("WIDTH = 3\n")
    (tmp_path / "net.py").write_text(
        "from torch import nn\nimport helper_of_net\nclass Net(nn.Linear):\n"
        "    def __init__(self): super().__init__(helper_of_net.WIDTH, 2)\nclass Other: pass\n"
    )
    module = build(f"{tmp_path}/net.py:Net", {})
    assert module.state_dict()["weight"].shape == (2, 3)
    with pytest.raises(InputError, match=r"net\.py has no nn\.Module class 'Other'; it has Net"):
        load_class(f"{tmp_path}/net.py:Other")
    with pytest.raises(InputError, match=r"has no nn\.Module class 'Missing'; it has Net"):
        load_class(f"{tmp_path}/net.py:Missing")


def test_the_arguments_of_a_class(tmp_path: Path) -> None:
    """`convert` and `verify` make it alike; a checkpoint of another size does not fit."""
    (tmp_path / "net_w.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    input_shape = (4,)\n"
        "    def __init__(self, width=8, bias=True):\n        super().__init__()\n"
        "        self.a, self.b = torch.nn.Linear(4, width), torch.nn.Linear(width, 3, bias)\n"
        "    def forward(self, x):\n        return self.b(torch.sign(self.a(x)))\n"
    )
    spec, arguments = f"{tmp_path}/net_w.py:Net", {"width": 16, "bias": False}
    path = write(tmp_path / "c", build(spec, {}, arguments).state_dict())
    assert convert(path, tmp_path / "m.onnx", arch=spec, arch_args=arguments, weights="xnor-centred").binary_layers == (
        "b",
    )
    assert verify(tmp_path / "m.onnx", path, arch=spec, arch_args=arguments, reference_samples=0).passed
    with pytest.raises(InputError, match=r"its keys do not fit Net: .*a\.weight is \[16, 4\], not \[8, 4\]"):
        convert(path, tmp_path / "m.onnx", arch=spec)
    with pytest.raises(InputError, match="its keys do not fit Net"):
        verify(tmp_path / "m.onnx", path, arch=spec, reference_samples=0)


def test_the_arguments_of_a_built_in_architecture() -> None:
    """AlexNet's variant is its one argument; an unknown name is an error."""
    assert build("alexnet", {}, {"channels": 256}).classifier[0].bn.num_features == 256  # type: ignore[union-attr, index]
    with pytest.raises(InputError, match=r"--arch lenet5: LeNet5\(\) cannot be made with --arch-args .*'width'"):
        build("lenet5", {}, {"width": 3})


def test_loading_a_class_leaves_the_import_path_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "net_b.py").write_text(
        f"import sys\nsys.path.insert(0, {str(tmp_path / 'more')!r})\n"
        "from torch import nn\nclass Net(nn.Module): pass\n"
    )
    before = list(sys.path)
    load_class(f"{tmp_path}/net_b.py:Net")
    after = list(sys.path)
    sys.path[:] = before
    assert after == [str(tmp_path / "more"), *before]


def test_a_file_called_like_a_module_does_not_replace_it(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("from torch import nn\nclass Net(nn.Module): pass\n")
    load_class(f"{tmp_path}/json.py:Net")
    assert sys.modules["json"] is json


BAD_FILES = {
    "raises": ("raise ValueError('no data here')", "importing .* failed: ValueError: no data here"),
    "raises over two lines": ("raise ValueError('one\\ntwo')", "importing .* failed: ValueError: one two"),
    "exits": ("import sys; sys.exit(3)", "importing .* failed: SystemExit: 3"),
    "parses arguments": (
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--x', required=True)\np.parse_args([])",
        "importing .* failed: SystemExit: 2",
    ),
    "syntax error": ("class Net(:", "importing .* failed: SyntaxError"),
    "imports what is not there": ("import no_such_module_anywhere", "importing .* failed: ModuleNotFoundError"),
    "needs arguments": (
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, width): pass",
        r"Net\(\) cannot be made without arguments: .*width",
    ),
    "raises when made": (
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self): raise OSError('no disk')",
        r"Net\(\) cannot be made without arguments: OSError: no disk",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_cannot_be_used(tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    text, message = BAD_FILES[case]
    path = tmp_path / "bad_net.py"
    path.write_text(text)
    with pytest.raises(InputError, match=f"--arch .*{message}"):
        build(f"{path}:Net", {})


def test_a_file_that_is_not_there() -> None:
    for spec in ("no/such/file.py:Net", ":Net"):
        with pytest.raises(InputError, match="no such file"):
            build(spec, {})


def test_a_file_that_is_not_python(tmp_path: Path) -> None:
    (tmp_path / "net.txt").write_text("hello")
    with pytest.raises(InputError, match=r"importing .* failed"):
        build(f"{tmp_path}/net.txt:Net", {})


def test_input_shape() -> None:
    assert input_shape(LeNet5(), None) == (1, 28, 28)
    assert input_shape(LeNet5(), (1, 32, 32)) == (1, 32, 32)
    with pytest.raises(InputError, match="Linear has no attribute input_shape: give --input-shape"):
        input_shape(nn.Linear(1, 1), None)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"net": state},
        lambda state: {"model": state, "lr": torch.tensor(0.1), "optimizer": {"state": {0: {}}, "param_groups": []}},
        lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 3},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"net._orig_mod.module.{key}": value for key, value in state.items()}},
    ],
    ids=["net", "model and a stray tensor", "Lightning", "torch.compile", "all of them"],
)
def test_where_people_put_the_state_dict(wrap: Any, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 2)\n"
    )
    state = {
        "a.weight": torch.ones(3, 2),
        "a.bias": torch.zeros(3),
        "b.weight": torch.ones(2, 3),
        "b.bias": torch.ones(2),
    }
    module = load_module(write(tmp_path / "c", wrap(state)), f"{tmp_path}/net.py:Net")
    assert all(torch.equal(module.state_dict()[key], value) for key, value in state.items())


def test_extra_state_is_not_the_state_dict(tmp_path: Path) -> None:
    state = {"a": torch.ones(1), "b": torch.ones(2), "a._extra_state": {"scale": torch.ones(1)}}
    assert list(load_state_dict(write(tmp_path / "c", state))) == ["a", "b"]


def test_a_prefix_of_some_keys_is_no_wrapper(tmp_path: Path) -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 2)})
    with pytest.raises(InputError, match=r"2 missing: a\.weight, a\.bias; 3 unexpected"):
        load_weights(module, {"m.a.weight": torch.ones(2, 2), "m.a.bias": torch.ones(2), "x": torch.ones(1)}, "c")
