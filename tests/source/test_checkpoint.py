"""Checkpoints: safe loading, the keys of all the recipe's ways to save, and every mismatch named."""

from __future__ import annotations

import argparse
import datetime
import decimal
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from bnn_deploy.architectures import LeNet5
from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.source.checkpoint import LoadedNetwork, load_module, load_network, load_weights, state_dicts
from support.networks import DEMO_DATA


def state() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in LeNet5().state_dict().items()}


def write(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def load_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The only state dict of a checkpoint."""
    (found,) = state_dicts(path).values()
    return found


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
    assert load_network(path, "lenet5").accuracy == {"best_acc": pytest.approx(99.3, abs=0.5)}


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


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("protocol", [4, 5])
def test_another_pickle_protocol_is_refused_with_the_way_out(protocol: int, zip_format: bool, tmp_path: Path) -> None:
    """PyTorch's own reader of weights refuses them, too."""
    path = write(
        tmp_path / "c",
        {"state_dict": state()},
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zip_format,
    )
    with pytest.raises(pickle.UnpicklingError, match="Unsupported operand"):
        torch.load(path, weights_only=True)
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
        "a NumPy archive, not a model",
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


SMALL = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 2)
"""


def small_state(first: float = 1.0) -> dict[str, torch.Tensor]:
    shapes = {"a.weight": (3, 2), "a.bias": (3,), "b.weight": (2, 3), "b.bias": (2,)}
    return {key: torch.full(shape, first + i) for i, (key, shape) in enumerate(shapes.items())}


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def small(folder: Path, content: Any, **options: str) -> LoadedNetwork:
    """The small network with the weights of a checkpoint, and the notes."""
    (folder / "net.py").write_text(SMALL)
    return load_network(write(folder / "c", content), f"{folder}/net.py:Net", **options)


class Whole(argparse.Namespace):
    """An object of a class of one's own."""


OPTIONS = argparse.Namespace(lr=0.1, path=Path("data"), sizes=[1, 2])
ADAM = torch.optim.Adam([nn.Parameter(torch.ones(99))])

FOUND: dict[str, tuple[Any, dict[str, str], tuple[str, ...]]] = {
    "net": (lambda s: {"net": s}, {}, ()),
    "a stray tensor": (lambda s: {"model": s, "lr": torch.tensor(0.1)}, {}, ()),
    "an optimizer": (
        lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(9)}}, "param_groups": []}},
        {},
        (),
    ),
    "Lightning": (lambda s: {"state_dict": prefixed("model.", s), "epoch": 3}, {}, ()),
    "Lightning with a loss": (
        lambda s: {"state_dict": prefixed("net.", s) | {"loss.weight": torch.ones(2)}},
        {},
        ("1 tensors outside of 'net.' were left out: loss.weight",),
    ),
    "torch.compile": (lambda s: prefixed("_orig_mod.", s), {}, ()),
    "several wrappers": (lambda s: {"state_dict": prefixed("net._orig_mod.module.", s)}, {}, ()),
    "AveragedModel": (lambda s: prefixed("module.", s) | {"n_averaged": torch.tensor(3)}, {}, ()),
    "options": (lambda s: {"args": OPTIONS, "state_dict": s, "history": {"loss": [(1, 0.5)]}}, {}, ()),
    "a loss and an optimizer": (
        lambda s: {"state_dict": s, "criterion": nn.CrossEntropyLoss(torch.ones(9)), "optimizer": ADAM},
        {},
        (),
    ),
    "random states": (lambda s: {"model": s, "rng": np.random.RandomState(0).get_state()}, {}, ()),
    "a model and its average": (
        lambda s: {"model": s, "model_ema": small_state(9), "args": OPTIONS},
        {},
        ("loaded was 'model'; key takes another that fits: model_ema",),
    ),
    "what scripts save beside it": (
        lambda s: {
            "model": s,
            "args": argparse.Namespace(act=nn.ReLU, when=datetime.date(2026, 1, 2), sides={Path("a"), Path("b")}),
            "history": [
                np.bool_(True),
                np.int32(3),
                np.float16(0.5),
                decimal.Decimal("0.1"),
            ],
            "names": np.array(["cat", "dog"]),
            "rng": np.random.default_rng(0).bit_generator.state,
        },
        {},
        (),
    ),
    "a tuple": (lambda s: (s, 17, OPTIONS), {}, ()),
    "nested": (lambda s: {"checkpoint": {"model": s, "epoch": 1}}, {}, ()),
    "two networks of which one fits": (lambda s: {"G": s, "D": {"c.weight": torch.ones(9, 9)}}, {}, ()),
    "an average beside it": (
        lambda s: {"state_dict": s, "state_dict_ema": small_state(9)},
        {},
        ("loaded was 'state_dict'; key takes another that fits: state_dict_ema",),
    ),
    "--key": (lambda s: {"state_dict": small_state(9), "ema": {"model": s}}, {"key": "ema.model"}, ()),
    "--prefix": (lambda s: prefixed("student.", s) | prefixed("teacher.", small_state(9)), {"prefix": "student"}, ()),
    "--key of a tuple": (lambda s: (small_state(9), s), {"key": "1"}, ()),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_state_dict_is_found_wherever_people_put_it(case: str, tmp_path: Path) -> None:
    wrap, options, notes = FOUND[case]
    module, found, _ = small(tmp_path, wrap(small_state()), **options)
    assert same(dict(module.state_dict()), small_state()) and found == notes


NOT_FOUND: dict[str, tuple[Any, dict[str, str], str]] = {
    "two that fit": (
        lambda s: {"net": s, "ema": s},
        {},
        r"it has several dicts of tensors, and more than one fits Net: 'net' \(4 tensors\), 'ema' \(4 tensors\); "
        "say which with key",
    ),
    "two that do not": (
        lambda s: {"G": {"x": torch.ones(1)}, "D": {"y": torch.ones(1)}},
        {},
        r"it has several dicts of tensors, and none fits Net: 'G' \(1 tensors\), 'D' \(1 tensors\); say which",
    ),
    "two prefixes": (
        lambda s: prefixed("student.", s) | prefixed("teacher.", s),
        {},
        r"its keys fit with several prefixes: student\., teacher\.; say which with prefix",
    ),
    "another --key": (lambda s: {"net": s}, {"key": "model"}, r"no state dict under key='model'; it has 'net' \(4 ten"),
    "another --prefix": (
        lambda s: s,
        {"prefix": "model."},
        r"no key begins with prefix='model\.'; they begin with a, b",
    ),
    "a key within the prefix": (
        lambda s: prefixed("model.", s | {"c.weight": torch.ones(1)}),
        {},
        r"its keys do not fit Net: 1 unexpected: c\.weight",
    ),
    "a class of one's own": (
        lambda s: {"net": s, "args": Whole(lr=1)},
        {},
        r"refused, because loading it would run code: it needs the Python object [\w.]+\.Whole",
    ),
}


@pytest.mark.parametrize("case", NOT_FOUND)
def test_what_is_not_clear_is_refused_with_what_was_found(case: str, tmp_path: Path) -> None:
    wrap, options, message = NOT_FOUND[case]
    with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path / 'c'))}: {message}"):
        small(tmp_path, wrap(small_state()), **options)


class Config:
    """The options of a training script, in a class of its own."""

    def __init__(self) -> None:
        self.lr = 0.1

    def __setstate__(self, state: Any) -> None:
        Path("it ran").touch()


def test_the_scripts_own_class_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not run, and need not be there."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Config, "__module__", "__main__")
        patch.setattr(sys.modules["__main__"], "Config", Config, raising=False)
        path = write(tmp_path / "c", {"state_dict": small_state(), "config": Config()})
        torch.load(path, weights_only=False)
        assert Path("it ran").exists(), "it is code, which runs for whoever loads it without care"
    Path("it ran").unlink()
    assert same(load_state_dict(path), small_state()) and not Path("it ran").exists()


def test_options_run_no_code(tmp_path: Path) -> None:
    """The classes of options are not even imported, and what they hold is still checked."""
    path = write(
        tmp_path / "c", {"args": argparse.Namespace(x=Exploit(tmp_path / "it ran")), "state_dict": small_state()}
    )
    with pytest.raises(InputError, match=r"it needs the Python object posix\.mkdir"):
        state_dicts(path)
    assert not (tmp_path / "it ran").exists()


def test_extra_state_is_not_the_state_dict(tmp_path: Path) -> None:
    state = {"a": torch.ones(1), "b": torch.ones(2), "a._extra_state": {"scale": torch.ones(1)}}
    assert list(load_state_dict(write(tmp_path / "c", state))) == ["a", "b"]


def test_the_networks_own_data_parallel(tmp_path: Path) -> None:
    """A network that wraps a part of itself has `module.` in its own keys."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.features = nn.DataParallel(nn.Linear(2, 3))\n"
    )
    state = {"features.module.weight": torch.ones(3, 2), "features.module.bias": torch.ones(3)}
    module = load_network(write(tmp_path / "c", prefixed("model.", state)), f"{tmp_path}/net.py:Net").module
    assert same(dict(module.state_dict()), state)


def test_safetensors(tmp_path: Path) -> None:
    """By their content, whatever the suffix."""
    (tmp_path / "net.py").write_text(SMALL)
    for name in ("c.safetensors", "c.bin"):
        safetensors.torch.save_file(prefixed("module.", small_state()), tmp_path / name)
        module = load_module(tmp_path / name, f"{tmp_path}/net.py:Net")
        assert same(dict(module.state_dict()), small_state())
    (tmp_path / "c.safetensors").write_bytes((tmp_path / "c.safetensors").read_bytes()[:-8])
    with pytest.raises(InputError, match=r"c\.safetensors: not a safetensors file, or a damaged one"):
        state_dicts(tmp_path / "c.safetensors")


def test_without_the_package_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safetensors.torch.save_file(small_state(), tmp_path / "c")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(SetupError, match=r"c: reading it needs the package safetensors: pip install safetensors"):
        state_dicts(tmp_path / "c")
