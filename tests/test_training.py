"""The recipe's training step: the gradient rules against autograd and against numbers worked by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bnn_deploy.training import (
    GradientRule,
    WeightBinarizer,
    binarize_weight,
    center_and_clamp,
    filter_alpha,
    sign_ste,
    weight_gradient,
)

pytestmark = pytest.mark.usefixtures("seeded_torch")

# One convolution weight of two filters, I = 2 input channels of 1x2 taps, so n = 4 elements per filter; and dC/dW~.
WEIGHT = torch.tensor([[[[0.5, -1.0]], [[0.25, -0.25]]], [[[2.0, -1.0]], [[0.5, 0.5]]]], dtype=torch.float64)
GRAD = torch.tensor([[[[1.0, 2.0]], [[-4.0, 8.0]]], [[[1.0, 1.0]], [[1.0, 1.0]]]], dtype=torch.float64)
# Filter 0: alpha = (0.5 + 1 + 0.25 + 0.25) / 4 = 0.5, no |W| > 1.
# Filter 1: alpha = (2 + 1 + 0.5 + 0.5) / 4 = 1; the straight-through sign stops the gradient of 2.0 only, 1.0 passes.

# Recipe, filter 0: sum G sign(W) = 1 - 2 - 4 - 8 = -13. Through alpha: sign(W) / 4 * -13 = -3.25, 3.25, -3.25, 3.25.
#   Through the sign: 0.5 * G = 0.5, 1, -2, 4. Together -2.75, 4.25, -5.25, 7.25, times (1 - 1/2) * 4 = 2.
# Recipe, filter 1: sum G sign(W) = 1 - 1 + 1 + 1 = 2. Through alpha: sign(W) / 4 * 2 = 0.5, -0.5, 0.5, 0.5.
#   Through the sign: 1 * G * (0, 1, 1, 1) = 0, 1, 1, 1. Together 0.5, 0.5, 1.5, 1.5, times 2.
RECIPE = torch.tensor([[[[-5.5, 8.5]], [[-10.5, 14.5]]], [[[1.0, 1.0]], [[3.0, 3.0]]]], dtype=torch.float64)

# Paper, filter 0: G * (1/4 + 0.5) = 0.75 G. Filter 1: G * (1/4 + 1 * (0, 1, 1, 1)).
PAPER = torch.tensor([[[[0.75, 1.5]], [[-3.0, 6.0]]], [[[0.25, 1.25]], [[1.25, 1.25]]]], dtype=torch.float64)


class StraightThroughSign(torch.autograd.Function):
    """The sign of the weights: its derivative is taken to be 1 where |W| <= 1, else 0."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return w.sign()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return torch.where(w.abs() <= 1, grad, torch.zeros_like(grad))


def autograd_recipe(weight: Tensor, grad: Tensor) -> Tensor:
    """The recipe's gradient by differentiating alpha(W) * sign(W), then its factor (1 - 1/I) * n."""
    w = weight.clone().requires_grad_()
    dims = list(range(1, w.dim()))
    binary = w.abs().mean(dims, keepdim=True) * StraightThroughSign.apply(w)
    (derivative,) = torch.autograd.grad(binary, w, grad)
    n = weight.numel() / weight.shape[0]
    return derivative * (1 - 1 / weight.shape[1]) * n


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to within the rounding of float64."""
    return torch.allclose(a, b, rtol=1e-12, atol=1e-12)


# --- the gradient rules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "expected", "other"), [("recipe", RECIPE, PAPER), ("paper", PAPER, RECIPE)])
def test_gradient_rules_on_hand_worked_numbers(rule: GradientRule, expected: Tensor, other: Tensor) -> None:
    assert torch.equal(weight_gradient(WEIGHT, GRAD, rule), expected)  # every number here is exact in binary
    assert not torch.equal(weight_gradient(WEIGHT, GRAD, rule), other)


def test_the_default_rule_is_the_recipes() -> None:
    assert torch.equal(weight_gradient(WEIGHT, GRAD), RECIPE)
    assert WeightBinarizer([nn.Parameter(WEIGHT.clone())]).rule == "recipe"


def test_unknown_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'papr'.*recipe.*paper"):
        weight_gradient(WEIGHT, GRAD, "papr")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 2, 1, 1), (4, 5, 3, 3), (2, 3, 5, 2), (6, 7), (1, 2)])
def test_recipe_is_the_exact_derivative(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, dtype=torch.float64)
    weight.view(-1)[0], weight.view(-1)[1] = 1.0, -1.0  # the edges of the straight-through window ...
    weight.view(-1)[-1] = 0.0  # ... and sign(0) = 0
    grad = torch.randn(shape, dtype=torch.float64)
    exact = autograd_recipe(weight, grad)
    assert same(weight_gradient(weight, grad), exact)
    assert not same(weight_gradient(weight, grad, "paper"), exact)


def test_recipe_is_exact_on_the_latent_weights_of_a_step() -> None:
    latent = center_and_clamp(2 * torch.randn(8, 6, 3, 3, dtype=torch.float64))
    assert (latent.abs() == 1).any()
    grad = torch.randn_like(latent)
    assert same(weight_gradient(latent, grad), autograd_recipe(latent, grad))


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda w, g: weight_gradient(w, g) / (w[0].numel()),  # without n
        lambda w, g: weight_gradient(w, g) / w[0].numel() * w.shape[1],  # n counts channels only
        lambda w, g: weight_gradient(w, g) / (1 - 1 / w.shape[1]),  # without 1 - 1/I
        lambda w, g: weight_gradient(w, g) / (1 - 1 / w.shape[1]) * (1 - 1 / w.shape[0]),  # output channels
        lambda w, g: weight_gradient(w * (1 + 1e-9), g),  # |W| = 1 falls out of the window
        lambda w, g: weight_gradient(w.flip(0), g),  # the other filter's alpha
    ],
)
def test_the_autograd_check_catches(corrupt: Callable[[Tensor, Tensor], Tensor]) -> None:
    weight, grad = (
        torch.cat([WEIGHT, WEIGHT[:1] / 2]),
        torch.cat([GRAD, GRAD[:1]]),
    )  # as many filters as channels hide one
    assert same(weight_gradient(weight, grad), autograd_recipe(weight, grad))
    assert not same(corrupt(weight, grad), autograd_recipe(weight, grad))


# --- signs, centring, alpha -------------------------------------------------------------------------------------


def test_sign_ste_forward_and_backward() -> None:
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    y = sign_ste(x)
    assert y.tolist() == [-1, -1, -1, 0, 1, 1, 1]
    y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 0, 0]  # |x| = 1 is outside; the weights' window includes it


def test_center_comes_before_clamp() -> None:
    # Two input channels of one tap: 3 and 0, mean 1.5: centred 1.5 and -1.5, clamped 1 and -1.
    # The other way round: clamped 1 and 0, mean 0.5: centred 0.5 and -0.5.
    weight = torch.tensor([[[[3.0]], [[0.0]]]])
    assert center_and_clamp(weight).flatten().tolist() == [1.0, -1.0]
    clamped = weight.clamp(-1, 1)
    clamped_first = clamped - clamped.mean(1, keepdim=True)
    assert clamped_first.flatten().tolist() == [0.5, -0.5]


def test_centring_is_per_tap_over_the_input_channels() -> None:
    # One filter, two channels of 1x2 taps. Tap 0: 0.5, 0.1, mean 0.3. Tap 1: -0.2, 0.6, mean 0.2.
    weight = torch.tensor([[[[0.5, -0.2]], [[0.1, 0.6]]]], dtype=torch.float64)
    expected = torch.tensor([[[[0.2, -0.4]], [[-0.2, 0.4]]]], dtype=torch.float64)
    assert same(center_and_clamp(weight), expected)
    assert not same(weight - weight.mean(), expected)  # the mean over the filter is 0.25


def test_alpha_is_the_mean_magnitude_of_each_filter() -> None:
    assert filter_alpha(WEIGHT).shape == (2, 1, 1, 1)
    assert filter_alpha(WEIGHT).flatten().tolist() == [0.5, 1.0]
    linear = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 0.0]])
    assert filter_alpha(linear).tolist() == [[2.0], [0.0]]


def test_binarize_weight_on_hand_worked_numbers() -> None:
    # Row 0: mean 0, alpha (0.5 + 0.25 + 0.25) / 3 = 1/3. Row 1: mean 1: centred -1, 0, 1; alpha 2/3; sign(0) = 0.
    # Row 2: mean 1: centred 2, -1, -1; clamped 1, -1, -1; alpha 1 (4/3 without the clamp).
    weight = torch.tensor([[0.5, -0.25, -0.25], [0.0, 1.0, 2.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    third = 1 / 3
    expected = torch.tensor([[third, -third, -third], [-2 * third, 0, 2 * third], [1, -1, -1]], dtype=torch.float64)
    assert same(binarize_weight(weight), expected)
    assert not same(filter_alpha(weight) * weight.sign(), expected)  # not centred, not clamped


# --- the binariser ----------------------------------------------------------------------------------------------


def test_with_block_binarises_and_leaves_the_centred_clamped_weights() -> None:
    weights = [nn.Parameter(2 * torch.randn(4, 3, 2, 2)), nn.Parameter(2 * torch.randn(5, 6))]
    before = [w.detach().clone() for w in weights]
    with WeightBinarizer(weights) as binarizer:
        for weight, old in zip(weights, before, strict=True):
            assert torch.equal(weight, binarize_weight(old))
            assert all(row.abs().unique().numel() == 1 for row in weight.detach())  # one alpha per filter
    assert binarizer.weights[0] is weights[0]
    for weight, old in zip(weights, before, strict=True):
        assert torch.equal(weight, center_and_clamp(old))
        assert not torch.equal(weight, old)
        assert not torch.equal(weight, binarize_weight(old))


def test_an_exception_in_the_block_restores() -> None:
    weight = nn.Parameter(torch.randn(4, 3, 2, 2))
    latent = center_and_clamp(weight.detach())
    binarizer = WeightBinarizer([weight])
    with pytest.raises(KeyboardInterrupt), binarizer:
        raise KeyboardInterrupt
    assert torch.equal(weight, latent)
    with binarizer:  # and it can be used again
        assert torch.equal(weight, binarize_weight(latent))


def test_binarising_twice_is_an_error_and_loses_nothing() -> None:
    weight = nn.Parameter(torch.randn(4, 3))
    latent = center_and_clamp(weight.detach())
    binarizer = WeightBinarizer([weight])
    with binarizer, pytest.raises(RuntimeError, match="already binarised"):
        binarizer.binarize()
    assert torch.equal(weight, latent)


def test_a_network_without_binary_weights_trains_too() -> None:
    with WeightBinarizer([]) as binarizer:
        pass
    binarizer.correct_gradients()


def test_restore_without_binarize_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="not binarised"):
        WeightBinarizer([nn.Parameter(torch.randn(4, 3))]).restore()


def test_correcting_inside_the_block_is_an_error() -> None:
    weight = nn.Parameter(torch.randn(4, 3))
    with WeightBinarizer([weight]) as binarizer:
        weight.sum().backward()
        with pytest.raises(RuntimeError, match="after the with block"):
            binarizer.correct_gradients()


def test_gradients_are_corrected_in_place_with_the_latent_weights() -> None:
    weight, frozen = nn.Parameter(WEIGHT.clone()), nn.Parameter(torch.randn(2, 3))
    binarizer = WeightBinarizer([weight, frozen], "paper")
    with binarizer:
        (weight * GRAD).sum().backward()
    binarizer.correct_gradients()
    latent = center_and_clamp(WEIGHT)
    assert weight.grad is not None
    assert same(weight.grad, weight_gradient(latent, GRAD, "paper"))
    assert not same(weight.grad, weight_gradient(WEIGHT, GRAD, "paper"))
    assert not same(weight.grad, weight_gradient(binarize_weight(WEIGHT), GRAD, "paper") * 2)
    assert frozen.grad is None


@pytest.mark.parametrize("shape", [(8, 1, 3, 3), (4, 1), (4,)])
def test_one_input_channel_is_an_error(shape: tuple[int, ...]) -> None:
    good, bad = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(shape))
    with pytest.raises(ValueError, match=r"weight 1 has shape .*one input channel.*leave this layer float"):
        WeightBinarizer([good, bad])


# --- a whole step -----------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.binary = nn.Conv2d(4, 6, 3, padding=1)
        self.last = nn.Linear(6 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.binary(sign_ste(self.bn(self.first(x))))).flatten(1))


def tiny() -> tuple[Tiny, torch.optim.Optimizer, list[tuple[Tensor, Tensor]]]:
    """The same network, optimiser and batches each time. Weights reach beyond 1, so that the clamp acts."""
    torch.manual_seed(3)
    model = Tiny().double()
    model.binary.weight.data.mul_(6)
    batches = [(torch.randn(5, 1, 6, 6, dtype=torch.float64), torch.randint(3, (5,))) for _ in range(3)]
    return model, torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-5), batches


def hand_written(
    rule: str = "recipe", center: bool = True, clamp: bool = True, restore: bool = True, correct: bool = True
) -> dict[str, Tensor]:
    """Three steps of the recipe, with nothing from bnn_deploy but the activations' sign; flags switch parts off."""
    model, optimizer, batches = tiny()
    w = model.binary.weight
    for x, y in batches:
        if center:
            w.data -= w.data.mean(1, keepdim=True)
        if clamp:
            w.data.clamp_(-1, 1)
        saved = w.data.clone()
        alpha = saved.abs().sum((1, 2, 3), keepdim=True) / 36  # n = 4 * 3 * 3
        w.data = alpha * saved.sign()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if restore:
            w.data = saved
        grad = w.grad
        assert grad is not None
        if correct and rule == "recipe":
            dot = (grad * saved.sign()).sum((1, 2, 3), keepdim=True)
            w.grad = (saved.sign() / 36 * dot + alpha * grad) * (1 - 1 / 4) * 36
        elif correct:
            w.grad = grad * (1 / 36 + alpha)
        optimizer.step()
    return model.state_dict()


def with_binarizer(rule: GradientRule) -> dict[str, Tensor]:
    model, optimizer, batches = tiny()
    binarizer = WeightBinarizer([model.binary.weight], rule)
    for x, y in batches:
        with binarizer:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
        binarizer.correct_gradients()
        optimizer.step()
    return model.state_dict()


def equal_states(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    # Adam divides by the root of the mean square gradient, which magnifies the rounding of tiny gradients.
    return all(torch.allclose(a[key], b[key], rtol=1e-9, atol=1e-9) for key in a)


@pytest.mark.parametrize("rule", ["recipe", "paper"])
def test_training_equals_the_recipe_written_out(rule: GradientRule) -> None:
    assert equal_states(with_binarizer(rule), hand_written(rule))


@pytest.mark.parametrize(
    "corruption", [{"rule": "paper"}, {"center": False}, {"clamp": False}, {"restore": False}, {"correct": False}]
)
def test_the_written_out_recipe_catches(corruption: dict[str, bool | str]) -> None:
    assert not equal_states(with_binarizer("recipe"), hand_written(**corruption))  # type: ignore[arg-type]
