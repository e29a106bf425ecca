"""Network in Network for CIFAR-10 (3x32x32), as in XNOR-Net-PyTorch; published accuracy 86.28 %."""

from __future__ import annotations

from torch import Tensor, nn

from bnn_deploy.architectures.blocks import BinConv2d, RecipeNetwork


class NIN(RecipeNetwork):
    """One Sequential named `xnor`: first and last convolution float, seven binary blocks. Input in about [-1, 1]."""

    input_shape = (3, 32, 32)

    def __init__(self) -> None:
        super().__init__()
        self.xnor = nn.Sequential(
            nn.Conv2d(3, 192, 5, padding=2),
            nn.BatchNorm2d(192, eps=1e-4, affine=False),
            nn.ReLU(),
            BinConv2d(192, 160, 1),
            BinConv2d(160, 96, 1),
            nn.MaxPool2d(3, 2, padding=1),
            BinConv2d(96, 192, 5, padding=2, dropout=0.5),
            BinConv2d(192, 192, 1),
            BinConv2d(192, 192, 1),
            nn.AvgPool2d(3, 2, padding=1),
            BinConv2d(192, 192, 3, padding=1, dropout=0.5),
            BinConv2d(192, 192, 1),
            nn.BatchNorm2d(192, eps=1e-4, affine=False),
            nn.Conv2d(192, 10, 1),
            nn.ReLU(),
            nn.AvgPool2d(8),
        )

    def body(self, x: Tensor) -> Tensor:
        """[N, 3, 32, 32] float32 -> [N, 10] float32 logits."""
        x = self.xnor(x)
        return x.view(x.shape[0], 10)
