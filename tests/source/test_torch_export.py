"""torch -> float ONNX: latent weights binarised exactly once, PyTorch's own numbers, no local path in the file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from bnn_deploy.architectures import LeNet5
from bnn_deploy.errors import InputError
from bnn_deploy.passes.lower.layer import two_valued
from bnn_deploy.source.checkpoint import load_module
from bnn_deploy.source.latent_weights import float_module
from bnn_deploy.source.torch_export import FloatExport
from bnn_deploy.training import WeightBinarizer, binarize_weight, sign_ste
from support.converted import Converted

pytestmark = pytest.mark.usefixtures("own_exports")


class Small(nn.Module):
    """conv (float) -> BatchNorm -> sign -> layer, all of which a test may replace."""

    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.layer = layer or nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(torch.sign(self.bn(self.first(x))))
        return result


SHAPE = (1, 8, 8)


def weight_of(export: FloatExport, name: str) -> Tensor:
    value = export.model.graph.initializers[name].const_value
    assert value is not None
    return torch.from_numpy(np.array(value.numpy()))


def run(export: FloatExport, x: Tensor) -> Any:
    session = ort.InferenceSession(ir.to_proto(export.model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.numpy()})[0]


def test_latent_weights_are_binarised_by_the_recipe(seeded_torch: None) -> None:
    module = Small().eval()
    export = float_module(module, SHAPE, "xnor-centred")
    assert export.binarized == ("layer.weight",)
    assert torch.equal(weight_of(export, "layer.weight"), binarize_weight(module.layer.weight.detach()))
    assert torch.equal(weight_of(export, "first.weight"), module.first.weight)
    two_valued(weight_of(export, "layer.weight").numpy())  # raises if not


def test_binarising_a_second_time_would_be_seen(seeded_torch: None) -> None:
    """Why two-valued weights are left alone: centring them again changes alpha and signs."""
    once = binarize_weight(torch.randn(6, 4, 3, 3))
    assert not torch.allclose(binarize_weight(once), once, rtol=1e-2)
    module = Small().eval()
    with torch.no_grad():
        module.layer.weight.copy_(once)
    export = float_module(module, SHAPE, "xnor-centred")
    assert export.binarized == ()
    assert torch.equal(weight_of(export, "layer.weight"), once)


def test_the_program_and_the_model_hold_the_same_weights(seeded_torch: None) -> None:
    export = float_module(Small(), SHAPE, "xnor-centred")
    assert torch.equal(export.program.state_dict["layer.weight"], weight_of(export, "layer.weight"))


def test_as_is_leaves_all_weights_alone(seeded_torch: None) -> None:
    module = Small()
    export = float_module(module, SHAPE, "as-is")
    assert export.binarized == ()
    assert torch.equal(weight_of(export, "layer.weight"), module.layer.weight)


def test_the_module_is_not_changed(seeded_torch: None) -> None:
    module = LeNet5().train()
    with torch.no_grad():
        module.bin_conv2.bn.weight[0] = 0.001  # below what eval() clamps it to
    before = copy.deepcopy(module.state_dict())
    float_module(module, LeNet5.input_shape)
    assert module.training
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_the_export_computes_what_pytorch_does(seeded_torch: None, lenet5: Converted) -> None:
    module = load_module(lenet5.checkpoint, "lenet5")
    weights = module.binary_weights()  # type: ignore[operator]
    x = torch.from_numpy(lenet5.images)
    export = float_module(module, LeNet5.input_shape)
    with torch.no_grad(), WeightBinarizer(weights):
        expected = module(x).numpy()
    np.testing.assert_allclose(run(export, x), expected, atol=1e-4)
    with torch.no_grad():
        latent = module(x).numpy()
    assert not np.allclose(latent, expected, atol=1e-1), "the latent weights give something else"


def test_weights_shared_by_two_layers_are_binarised_once(seeded_torch: None) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(sign_ste(self.conv(sign_ste(x)) - 0.1))

    module = Shared()
    export = float_module(module, (4, 6, 6), "xnor-centred")
    assert export.binarized == ("conv.weight",)
    assert torch.equal(weight_of(export, "conv.weight"), binarize_weight(module.conv.weight.detach()))


SIGNS = {
    "sign": lambda x: torch.sign(x),
    "method": lambda x: x.sign(),
    "sgn": lambda x: torch.sgn(x),
    "in place": lambda x: x.clone().sign_(),
    "straight through": sign_ste,
    "dropout": lambda x: nn.functional.dropout(x.sign(), 0.5, training=False),
    "pooled": lambda x: nn.functional.max_pool2d(x.sign(), 2),
    "contiguous": lambda x: x.sign().contiguous().clone(),
}


@pytest.mark.parametrize("case", SIGNS)
def test_recognises_a_sign(case: str, seeded_torch: None) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(SIGNS[case](x + 0.1))

    assert float_module(Net(), (4, 8, 8), "xnor-centred").binarized == ("conv.weight",)


@pytest.mark.parametrize(
    "between", [lambda x: x, lambda x: x.sign() * x, lambda x: nn.functional.avg_pool2d(x.sign(), 2), torch.tanh]
)
def test_does_not_binarise_weights_of_real_valued_inputs(between: Any, seeded_torch: None) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(between(x + 0.1))

    assert float_module(Net(), (4, 8, 8), "xnor-centred").binarized == ()


def test_a_depthwise_layer_is_an_error_of_its_own(seeded_torch: None) -> None:
    with pytest.raises(
        InputError, match=r"Conv 'layer': it has one input channel per filter, .* choose another weights"
    ):
        float_module(Small(nn.Conv2d(4, 4, 3, groups=4)), SHAPE, "xnor-centred")


def test_names_layers_after_modules_and_the_batch() -> None:
    export = float_module(LeNet5(), LeNet5.input_shape)
    names = [node.name for node in export.model.graph if node.op_type in ("Conv", "Gemm")]
    assert names == ["conv1", "bin_conv2.conv", "bin_ip1.linear", "ip2"]
    (graph_input,), (output,) = export.model.graph.inputs, export.model.graph.outputs
    assert (graph_input.name, str(graph_input.shape)) == ("input", "['batch',1,28,28]".replace("'batch'", "batch"))
    assert str(output.shape) == "[batch,10]"


def test_nothing_of_this_machine_is_in_the_model(seeded_torch: None) -> None:
    data = ir.to_proto(float_module(Small(), SHAPE, "xnor-centred").model).SerializeToString()
    for text in (str(Path.cwd()), str(Path.home()), "site-packages", ".py", str(Path(torch.__file__).parent)):
        assert text.encode() not in data, text


def raises(error: Exception) -> nn.Module:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    return Raises()


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (LeNet5(), (3, 28, 28), r"LeNet5 does not run on an input of shape \[2, 3, 28, 28\]: Given groups=1"),
        (LeNet5(), (1, 4, 4), r"LeNet5 does not run on an input of shape \[2, 1, 4, 4\]"),
        (
            raises(AssertionError()),
            (1,),
            r"Raises does not run on an input of shape \[2, 1\]: test_torch_export\.py, line \d+: AssertionError",
        ),
        (raises(ValueError("one\ntwo")), (1,), "one two"),
    ],
)
def test_modules_that_do_not_run(module: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        float_module(module, shape, "xnor-centred")


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], seeded_torch: None) -> None:
    float_module(Small(), SHAPE, "xnor-centred")
    assert capfd.readouterr() == ("", "")
