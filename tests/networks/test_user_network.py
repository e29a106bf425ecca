"""A network as users of the recipe write one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import library_info, load_session
from bnn_deploy.source.checkpoint import load_module
from bnn_deploy.source.network_file import load_named
from bnn_deploy.training import WeightBinarizer
from support.networks import mnist, write_checkpoint

USER_NETWORK = '''
import torch
import torch.nn as nn
import torch.nn.functional as F

class BinActive(torch.autograd.Function):
    """Binarize the input activations."""
    @staticmethod
    def forward(ctx, input):
        ctx.save_for_backward(input)
        size = input.size()
        {sign}
        return input

    @staticmethod
    def backward(ctx, grad_output):
        input, = ctx.saved_tensors
        grad_input = grad_output.clone()
        grad_input[input.ge(1)] = 0
        grad_input[input.le(-1)] = 0
        return grad_input

class BinConv2d(nn.Module):
    def __init__(self, input_channels, output_channels, kernel_size=-1, stride=-1, padding=-1, dropout=0, Linear=False):
        super(BinConv2d, self).__init__()
        self.layer_type = 'BinConv2d'
        self.dropout_ratio = dropout
        self.Linear = Linear
        if dropout != 0:
            self.dropout = nn.Dropout(dropout)
        if not Linear:
            self.bn = nn.BatchNorm2d(input_channels, eps=1e-4, momentum=0.1, affine=True)
            self.conv = nn.Conv2d(input_channels, output_channels,
                    kernel_size=kernel_size, stride=stride, padding=padding)
        else:
            self.bn = nn.BatchNorm1d(input_channels, eps=1e-4, momentum=0.1, affine=True)
            self.linear = nn.Linear(input_channels, output_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.bn(x)
        x = BinActive.apply(x)
        if self.dropout_ratio != 0:
            x = self.dropout(x)
        if not self.Linear:
            x = self.conv(x)
        else:
            x = self.linear(x)
        x = self.relu(x)
        return x

class Net(nn.Module):
    def __init__(self):
        super(Net, self).__init__()
        self.conv1 = nn.Conv2d(1, 8, 5, stride=2)
        self.bn1 = nn.BatchNorm2d(8, affine=False)
        self.relu = nn.ReLU(inplace=True)
        self.block1 = BinConv2d(8, 16, 3, 1, 1, dropout=0.5)
        self.pool = nn.MaxPool2d(2, 2)
        self.block2 = BinConv2d(16, 16, 3, 2, 1)
        self.block3 = BinConv2d(16 * 3 * 3, 32, Linear=True, dropout=0.5)
        self.last = nn.Linear(32, 10)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d) or isinstance(m, nn.BatchNorm1d):
                if hasattr(m.weight, 'data'):
                    m.weight.data.zero_().add_(1.0)

    def forward(self, x):
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d) or isinstance(m, nn.BatchNorm1d):
                if hasattr(m.weight, 'data'):
                    m.weight.data.clamp_(min=0.01)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.block1(x)
        x = self.pool(x)
        x = self.block2(x)
        x = x.view(x.size(0), 16 * 3 * 3)
        x = self.block3(x)
        return self.last(x)
'''
IN_PLACE = {"out of place": "input = input.sign()", "in place": "input = input.clone().sign_()"}


@pytest.fixture
def user_network(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """FILE.py:CLASS and a checkpoint of it, with calibrated BatchNorm."""
    sign = IN_PLACE[getattr(request, "param", "out of place")]
    (tmp_path / "user_net.py").write_text(USER_NETWORK.replace("{sign}", sign))
    spec = f"{tmp_path}/user_net.py:Net"
    torch.manual_seed(0)
    network = load_named(spec)()
    network.train()
    with torch.no_grad():
        for batch in mnist()[0][:256].split(64):
            network(batch)
        # The network's own forward pass clamps it to 0.01.
        network.block2.bn.weight[3] = -0.5
    return spec, write_checkpoint(network, tmp_path / "user.pth.tar")


@pytest.mark.parametrize("user_network", IN_PLACE, indirect=True)
def test_a_class_as_users_of_the_recipe_write_it(user_network: tuple[str, Path], tmp_path: Path) -> None:
    spec, checkpoint = user_network
    result = convert(
        checkpoint,
        tmp_path / "u.onnx",
        arch=spec,
        input_shape=(1, 28, 28),
        float_output=tmp_path / "f.onnx",
        weights="xnor-centred",
        strict=True,
    )
    assert result.binary_layers == ("block1.conv", "block2.conv", "block3.linear")
    x = mnist()[0][300:320].numpy()
    network = load_module(checkpoint, spec)
    weights = [network.get_parameter(name) for name in result.binarized]
    assert len(weights) == 3
    with torch.no_grad(), WeightBinarizer(weights):
        expected = network(torch.from_numpy(x)).numpy()
    (got,) = load_session(result.output, 1).run(None, {"input": x})
    np.testing.assert_allclose(got, expected, atol=1e-3)
    for against, arch in ((checkpoint, spec), (tmp_path / "f.onnx", None)):
        checked = verify(result.output, against, arch=arch, data=x, reference_samples=0, isas=library_info().isas[:1])
        assert checked.passed, checked.failures
        if arch is not None:  # the module as it runs has latent weights
            assert checked.replaced == result.binarized
            assert [source.close < checked.samples for source in checked.source] == [True]


def test_the_old_style_of_autograd_functions_is_refused_with_pytorchs_words(tmp_path: Path) -> None:
    """`BinActive()(x)`, non-static: PyTorch itself no longer runs it."""
    (tmp_path / "old.py").write_text(
        "import torch\nfrom torch import nn\nclass BinActive(torch.autograd.Function):\n"
        "    def forward(self, input):\n        return input.sign()\n"
        "class Net(nn.Module):\n    input_shape = (4,)\n    def __init__(self):\n        super().__init__()\n"
        "        self.l = nn.Linear(4, 2)\n    def forward(self, x):\n        return self.l(BinActive()(x))\n"
    )
    path = tmp_path / "c"
    torch.save(nn.ModuleDict({"l": nn.Linear(4, 2)}).state_dict(), path)
    with pytest.raises(InputError, match="Legacy autograd function with non-static forward method is deprecated"):
        convert(path, tmp_path / "m.onnx", arch=f"{tmp_path}/old.py:Net")
