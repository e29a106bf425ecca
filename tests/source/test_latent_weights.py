"""`--weights` for modules and checkpoints: one mechanism, on any form of the sign, as for ONNX models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.passes.recognise.binarize_weights import Weights, binarize
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import library_info
from bnn_deploy.source.latent_weights import float_module
from bnn_deploy.training import binarize_weight


class OwnSign(torch.autograd.Function):
    """A sign of one's own, without torch.sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return ±1."""
        return (x >= 0).float() * 2 - 1


def trick(x: Tensor) -> Tensor:
    clamped = torch.clamp(x, -1, 1)
    return torch.sign(x).detach() - clamped.detach() + clamped


OTHER_SIGNS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.where": lambda x: torch.where(x > 0, 1.0, -1.0),
    "comparison": lambda x: (x >= 0).float() * 2 - 1,
    "heaviside": lambda x: 2 * torch.heaviside(x, torch.tensor(1.0)) - 1,
    "autograd function": OwnSign.apply,
    "straight-through trick": trick,
}
SCHEMES: list[Weights] = ["xnor", "xnor-centred", "sign"]


class Net(nn.Module):
    """conv (float) -> sign -> conv -> sign -> linear."""

    input_shape = (3, 8, 8)

    def __init__(self, sign: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.sign = sign
        self.first, self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 8, 8] -> [N, 10]."""
        x = self.conv(self.sign(self.first(x) - 0.1))
        result: Tensor = self.fc(self.sign(x).flatten(1))
        return result


def net(sign: str | Callable[[Tensor], Tensor]) -> Net:
    torch.manual_seed(0)
    return Net(OTHER_SIGNS[sign] if isinstance(sign, str) else sign).eval()


@pytest.mark.parametrize("sign", OTHER_SIGNS)
def test_auto_refuses_to_guess_for_another_sign_than_torchs(sign: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        convert(net(sign), tmp_path / "m.onnx")
    text = str(caught.value)
    assert text.startswith(
        "Net: Conv 'conv' (and 1 more): its input is a sign, but its weights are real-valued: two-val"
    )
    for part in ("two-valued: 0 of 8 filters", "latent: likely", "clamped: no", "centred over the input channels: no"):
        assert part in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sign", "scheme"),
    [*((sign, "xnor") for sign in OTHER_SIGNS), ("comparison", "xnor-centred"), ("comparison", "sign")],
)
def test_schemes_act_on_any_sign(sign: str, scheme: Weights) -> None:
    module = net(sign)
    export = float_module(module, module.input_shape, scheme)
    assert export.binarized == ("conv.weight", "fc.weight")
    for name in export.binarized:
        latent = module.get_parameter(name).detach()
        expected = binarize_weight(latent).numpy() if scheme == "xnor-centred" else binarize(latent.numpy(), scheme)
        in_model = export.model.graph.initializers[name].const_value
        assert in_model is not None
        assert np.array_equal(export.program.state_dict[name].detach().numpy(), expected)
        assert np.array_equal(in_model.numpy(), expected)
        assert not np.array_equal(latent.numpy(), expected)
    assert torch.equal(export.program.state_dict["first.weight"], module.first.weight)


@pytest.mark.parametrize("scheme", ["xnor", "sign"])
def test_verify_follows_the_scheme_of_the_file(scheme: Weights, tmp_path: Path) -> None:
    """PyTorch is given the same weights; those of another scheme are told apart."""
    module = net("torch.where")
    result = convert(module, tmp_path / "m.onnx", weights=scheme, strict=True)
    assert result.binary_layers == ("conv", "fc")
    options: dict[str, Any] = {"reference_samples": 0, "isas": library_info().isas[:1]}
    assert verify(tmp_path / "m.onnx", module, **options).passed
    import onnx

    model = onnx.load(tmp_path / "m.onnx")
    (entry,) = (p for p in model.metadata_props if p.key == "bnn_deploy.weights")
    assert entry.value == scheme
    entry.value = SCHEMES[SCHEMES.index(scheme) - 1]
    onnx.save(model, tmp_path / "wrong.onnx")
    assert not verify(tmp_path / "wrong.onnx", module, **options).passed


def test_auto_is_the_recipe_for_torchs_sign() -> None:
    module = net(torch.sign)
    auto, recipe = (float_module(module, module.input_shape, scheme) for scheme in ("auto", "xnor-centred"))
    assert auto.binarized == recipe.binarized == ("conv.weight", "fc.weight")
    for name in auto.binarized:
        assert torch.equal(auto.program.state_dict[name], recipe.program.state_dict[name])


def test_auto_does_not_mix() -> None:
    """One layer behind torch.sign, one behind another: what the recipe says of the one says nothing of the other."""

    class Mixed(Net):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.fc(OwnSign.apply(self.conv(torch.sign(self.first(x)))).flatten(1))  # type: ignore[no-untyped-call]
            return result

    with pytest.raises(InputError, match=r"Mixed: Gemm 'fc': its input is a sign"):
        float_module(Mixed(torch.sign).eval(), (3, 8, 8))


@pytest.mark.parametrize("scheme", ["auto", "sign"])
def test_two_valued_weights_need_no_scheme(scheme: Weights) -> None:
    module = net("comparison")
    with torch.no_grad():
        for layer in (module.conv, module.fc):
            layer.weight.copy_(binarize_weight(layer.weight))
    assert float_module(module, module.input_shape, scheme).binarized == ()


@pytest.mark.parametrize("scheme", ["auto", "sign"])
def test_computed_weights_are_no_latent_ones(scheme: Weights, tmp_path: Path) -> None:
    class Computed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(torch.sign(self.first(x)), torch.tanh(self.conv.weight))

    module = Computed(torch.sign).eval()
    with pytest.raises(
        InputError, match=r"Computed: Conv '.*': its input is a sign, but its weights, which forward\(\)"
    ):
        convert(module, tmp_path / "m.onnx", weights=scheme)
    with pytest.raises(InputError, match="no layer of Computed is binary"):
        convert(module, tmp_path / "m.onnx", weights="as-is")
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_that_is_read_transposed() -> None:
    class Matrix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12, 5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.sign(x) @ self.weight

    module = Matrix().eval()
    export = float_module(module, (12,))
    assert export.binarized == ("weight",)
    expected = binarize_weight(module.weight.detach().T).T
    assert torch.equal(export.program.state_dict["weight"], expected)
