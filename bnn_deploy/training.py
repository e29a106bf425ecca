"""The XNOR-Net training step as a small reusable piece.

A network is trained with real-valued *latent* weights W. In every step they are replaced by W~ = alpha * sign(W), the
loss is differentiated with respect to W~, W is put back, and the gradient is turned into one with respect to W:

    binarizer = WeightBinarizer(binary_weights(model))
    for x, y in batches:
        with binarizer:                       # W -> W~ on entry, W~ -> W on exit
            loss = criterion(model(x), y)
            optimizer.zero_grad()
            loss.backward()
        binarizer.correct_gradients()
        optimizer.step()

Sources: Rastegari et al., "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks", ECCV 2016
(section 3.1, algorithm 1), and the published XNOR-Net-PyTorch training recipe, which adds mean-centring, clamping and
its own gradient.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Literal, get_args

import torch
from torch import Tensor, nn

GradientRule = Literal["recipe", "paper"]


class SignSTE(torch.autograd.Function):
    """sign(x) with the straight-through estimator: dsign/dx = 1 where |x| < 1, else 0 (XNOR-Net, section 3.1)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        """Return torch.sign(x), of the shape and dtype of `x`; sign(0) is 0."""
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> Tensor:
        """Pass the gradient through where |x| < 1."""
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        gradient: Tensor = grad_outputs[0] * (x.abs() < 1).to(grad_outputs[0].dtype)
        return gradient


def sign_ste(x: Tensor) -> Tensor:
    """Binarise activations: sign(x) forward, straight-through backward. Any shape, floating dtype."""
    result: Tensor = SignSTE.apply(x)  # type: ignore[no-untyped-call]
    return result


def center_and_clamp(weight: Tensor) -> Tensor:
    """Steps 1 and 2 of the recipe: subtract the mean over the input channels (dim 1), clamp to [-1, 1].

    Args:
        weight: latent weight, [O, I, kh, kw] or [O, I] float.

    Returns:
        A new tensor of the same shape.
    """
    return (weight - weight.mean(dim=1, keepdim=True)).clamp(-1.0, 1.0)


def filter_alpha(weight: Tensor) -> Tensor:
    """alpha_o = mean |W_o| over all elements of filter o (XNOR-Net, equation 6), shaped [O, 1, ...] to broadcast."""
    return weight.abs().mean(dim=tuple(range(1, weight.dim())), keepdim=True)


def binarize_weight(weight: Tensor) -> Tensor:
    """Steps 1 to 3 of the recipe: alpha * sign of the centred, clamped weight; sign(0) is 0.

    The recipe also applies this once before evaluation, because its checkpoints hold latent weights.
    """
    latent = center_and_clamp(weight)
    return filter_alpha(latent) * latent.sign()


def weight_gradient(latent: Tensor, grad: Tensor, rule: GradientRule = "recipe") -> Tensor:
    """Turn dC/dW~ into dC/dW.

    With G = dC/dW~, n elements and I input channels per filter:

    * "paper" (XNOR-Net, section 3.1): G * (1/n + alpha * 1[|W| <= 1])
    * "recipe" (XNOR-Net-PyTorch): the exact derivative of alpha(W) * sign(W) under the straight-through sign,
      sign(W)/n * sum_j G_j sign(W_j) + alpha * 1[|W| <= 1] * G, then times (1 - 1/I) * n.

    Args:
        latent: the latent weight that was binarised (centred and clamped), [O, I, kh, kw] or [O, I].
        grad: dC/dW~, same shape.
        rule: the formula to use.

    Returns:
        dC/dW, same shape.

    Raises:
        ValueError: `rule` is neither of the two.
    """
    if rule not in get_args(GradientRule):
        raise ValueError(f"gradient rule {rule!r} is unknown: choose one of {', '.join(get_args(GradientRule))}")
    dims = tuple(range(1, latent.dim()))
    n = latent[0].numel()
    straight_through = filter_alpha(latent) * (latent.abs() <= 1).to(grad.dtype) * grad
    if rule == "paper":
        return grad / n + straight_through
    sign = latent.sign()
    through_alpha = sign / n * (grad * sign).sum(dim=dims, keepdim=True)
    return (through_alpha + straight_through) * (1.0 - 1.0 / latent.shape[1]) * n


class WeightBinarizer:
    """Save, binarise and restore a set of weights around a forward and backward pass.

    Args:
        weights: the parameters to binarise, each [O, I, kh, kw] or [O, I].
        rule: the gradient rule of `correct_gradients`.

    Raises:
        ValueError: a weight has one input channel: centring would make it all zeros.
    """

    def __init__(self, weights: Iterable[nn.Parameter], rule: GradientRule = "recipe") -> None:
        self.weights = list(weights)
        self.rule: GradientRule = rule
        self._latent: list[Tensor] | None = None
        for i, weight in enumerate(self.weights):
            if weight.dim() < 2 or weight.shape[1] < 2:
                raise ValueError(
                    f"weight {i} has shape {list(weight.shape)}: mean-centring over one input channel makes it zero; "
                    "leave this layer float"
                )

    @torch.no_grad()
    def binarize(self) -> None:
        """Centre and clamp every weight in place, save it, and replace it by alpha * sign(W).

        Raises:
            RuntimeError: the weights are already binarised; to do it again would lose the latent weights.
        """
        if self._latent is not None:
            raise RuntimeError("the weights are already binarised: call restore(), or leave the with block, first")
        self._latent = [center_and_clamp(weight) for weight in self.weights]
        for weight, latent in zip(self.weights, self._latent, strict=True):
            weight.copy_(filter_alpha(latent) * latent.sign())

    @torch.no_grad()
    def restore(self) -> None:
        """Put the saved latent (centred, clamped) weights back.

        Raises:
            RuntimeError: the weights are not binarised.
        """
        if self._latent is None:
            raise RuntimeError("the weights are not binarised: call binarize(), or enter the with block, first")
        for weight, latent in zip(self.weights, self._latent, strict=True):
            weight.copy_(latent)
        self._latent = None

    @torch.no_grad()
    def correct_gradients(self) -> None:
        """Replace each weight's gradient, taken at W~, by the gradient with respect to the latent weight.

        Raises:
            RuntimeError: the weights are still binarised, but the gradient needs the latent weights.
        """
        if self._latent is not None:
            raise RuntimeError("the weights are still binarised: call correct_gradients() after the with block")
        for weight in self.weights:
            if weight.grad is not None:
                weight.grad.copy_(weight_gradient(weight, weight.grad, self.rule))

    def __enter__(self) -> WeightBinarizer:
        self.binarize()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.restore()
