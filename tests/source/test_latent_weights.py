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
from bnn_deploy.runtime.session import library_info, load_session
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


SIGNS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.where": lambda x: torch.where(x > 0, 1.0, -1.0),
    "comparison": lambda x: (x >= 0).float() * 2 - 1,
    "heaviside": lambda x: 2 * torch.heaviside(x, torch.tensor(1.0)) - 1,
    "torch.sign": torch.sign,
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
    return Net(SIGNS[sign] if isinstance(sign, str) else sign).eval()


@pytest.mark.parametrize("sign", SIGNS)
def test_auto_refuses_to_guess(sign: str, tmp_path: Path) -> None:
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
    [*((sign, "xnor") for sign in SIGNS), ("comparison", "xnor-centred"), ("comparison", "sign")],
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


@pytest.mark.parametrize("scheme", ["auto", "as-is"])
def test_nothing_is_guessed_where_forward_binarises_other_weights(scheme: Weights, tmp_path: Path) -> None:
    """A last layer that reads a sign and is real by design stays so, and says why."""

    class RealLast(Net):
        def forward(self, x: Tensor) -> Tensor:
            alpha = self.conv.weight.abs().mean((1, 2, 3), keepdim=True)
            x = nn.functional.conv2d(torch.sign(self.first(x)), torch.sign(self.conv.weight) * alpha, padding=1)
            result: Tensor = self.fc(torch.sign(x - 0.01).flatten(1))  # never exactly 0
            return result

    module = RealLast(torch.sign).eval()
    result = convert(module, tmp_path / "m.onnx", weights=scheme)
    assert len(result.binary_layers) == 1 and result.binarized == ()
    (left,) = (left for left in result.left_float if left.node == "fc")
    assert left.reason.startswith("its weights are real-valued") and left.has_sign_input
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected = module(x).numpy()
    np.testing.assert_allclose(load_session(result.output, 1).run(None, {"input": x.numpy()})[0], expected, atol=1e-5)
    (guessed,) = load_session(convert(module, tmp_path / "g.onnx", weights="xnor").output, 1).run(
        None, {"input": x.numpy()}
    )
    assert np.abs(guessed - expected).max() > 0.01


@pytest.mark.parametrize("scheme", ["auto", "sign"])
def test_two_valued_weights_need_no_scheme(scheme: Weights) -> None:
    module = net("comparison")
    with torch.no_grad():
        for layer in (module.conv, module.fc):
            layer.weight.copy_(binarize_weight(layer.weight))
    assert float_module(module, module.input_shape, scheme).binarized == ()


@pytest.mark.parametrize("scheme", ["xnor", "sign"])
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
    export = float_module(module, (12,), "xnor-centred")
    assert export.binarized == ("weight",)
    expected = binarize_weight(module.weight.detach().T).T
    assert torch.equal(export.program.state_dict["weight"], expected)
