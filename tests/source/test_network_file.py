"""FILE.py:NAME: classes, functions and networks in files of the user's, and every way in which that fails."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.proof.verification import verify
from bnn_deploy.source.network_file import build, load_named


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


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
    with pytest.raises(InputError, match=r"net\.py:Other': Other\(\) gives a Other, not a torch\.nn\.Module"):
        build(f"{tmp_path}/net.py:Other", {})
    with pytest.raises(InputError, match=r"has no class or function 'Missing' that makes a network; it has Net"):
        load_named(f"{tmp_path}/net.py:Missing")


FUNCTIONS = """
from torch import nn
class Net(nn.Linear):
    @classmethod
    def small(cls): return cls(2, 3)
def net(width=3, **options): return Net(2, width)
def wrapped(): return nn.DataParallel(net(4))
def pair(): return net(), 3
def _hidden(): pass
instance = net(5)
number = 3
"""


def test_a_function_or_a_network_in_a_file(tmp_path: Path) -> None:
    """As most repositories build their networks."""
    (tmp_path / "nets.py").write_text(FUNCTIONS)

    def width(name: str, **arguments: Any) -> int:
        return len(build(f"{tmp_path}/nets.py:{name}", {}, arguments).state_dict()["weight"])

    assert [width("net"), width("net", width=7), width("Net.small"), width("instance")] == [3, 7, 3, 5]
    assert isinstance(build(f"{tmp_path}/nets.py:wrapped", {}), nn.DataParallel)
    for name, message in {
        "pair": r"pair\(\) gives a tuple, not a torch\.nn\.Module",
        "number": r"has no class or function 'number' that makes a network; it has Net, net, wrapped, pair, instance$",
        "Net.large": r"has no class or function 'Net\.large'",
        "net_": r"has no class or function 'net_'",
    }.items():
        with pytest.raises(InputError, match=rf"^arch='{re.escape(str(tmp_path))}/nets\.py:{name}': .*{message}"):
            build(f"{tmp_path}/nets.py:{name}", {})


def test_a_file_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may import relative to its package, the package by its name, and what is in the current folder."""
    (tmp_path / "my_networks").mkdir()
    (tmp_path / "my_networks" / "__init__.py").write_text("")
    (tmp_path / "my_networks" / "layers.py").write_text("WIDTH = 3\n")
    text = "from torch import nn\n{} import WIDTH\ndef net(): return nn.Linear(2, WIDTH)\n"
    for i, source in enumerate(("from .layers", "from my_networks.layers", "from layers", "from my_layers_of_cwd")):
        (tmp_path / "my_networks" / f"net{i}.py").write_text(text.format(source))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "my_layers_of_cwd.py").write_text("WIDTH = 3\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = list(sys.path)
    for i in range(4):
        assert len(build(f"../my_networks/net{i}.py:net", {}).state_dict()["weight"]) == 3
    assert sys.path == before
    (tmp_path / "elsewhere" / "alone.py").write_text(text.format("from .layers"))
    with pytest.raises(InputError, match=r"importing alone\.py failed: ImportError: attempted relative import"):
        build("alone.py:net", {})


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
    with pytest.raises(InputError, match=r"arch='lenet5': LeNet5\(\) cannot be made with arch_args=.*'width'"):
        build("lenet5", {}, {"width": 3})


def test_loading_a_file_leaves_the_import_path_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "net_b.py").write_text(
        f"import sys\nsys.path.insert(0, {str(tmp_path / 'more')!r})\n"
        "from torch import nn\nclass Net(nn.Module): pass\n"
    )
    before = list(sys.path)
    load_named(f"{tmp_path}/net_b.py:Net")
    after = list(sys.path)
    sys.path[:] = before
    assert after == [str(tmp_path / "more"), *before]


def test_a_file_called_like_a_module_does_not_replace_it(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("from torch import nn\nclass Net(nn.Module): pass\n")
    load_named(f"{tmp_path}/json.py:Net")
    assert sys.modules["json"] is json


BAD_FILES = {
    "raises": ("raise ValueError('no data here')", "importing .* failed: ValueError: no data here"),
    "raises over two lines": ("raise ValueError('one\\ntwo')", "importing .* failed: ValueError: one two"),
    "exits": ("import sys; sys.exit(3)", r"importing .* ended the program \(SystemExit: 3\)"),
    "parses arguments": (
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('--x', required=True)\np.parse_args([])",
        r"ended the program \(SystemExit: 2\), as a parser of arguments does: name a file",
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
    with pytest.raises(InputError, match=f"arch=.*{message}"):
        build(f"{path}:Net", {})


def test_a_module_of_a_folder_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nets/net.py imports `helpers` of the repository's own folder, where its scripts run."""
    (tmp_path / "nets").mkdir()
    (tmp_path / "helpers.py").write_text("width = 3\n")
    (tmp_path / "nets" / "net.py").write_text(
        "from torch import nn\nimport helpers\ndef net():\n    return nn.Linear(2, helpers.width)\n"
    )
    spec = f"{tmp_path}/nets/net.py:net"
    with pytest.raises(
        InputError, match=rf"No module named 'helpers'; 'helpers' is in {tmp_path.resolve()}: run this there"
    ):
        build(spec, {})
    monkeypatch.chdir(tmp_path)
    assert build(spec, {}).out_features == 3


def test_a_file_that_is_not_there() -> None:
    for spec in ("no/such/file.py:Net", ":Net"):
        with pytest.raises(InputError, match="no such file"):
            build(spec, {})


def test_a_file_that_is_not_python(tmp_path: Path) -> None:
    (tmp_path / "net.txt").write_text("hello")
    with pytest.raises(InputError, match=r"importing .* failed"):
        build(f"{tmp_path}/net.txt:Net", {})
