"""LeNet-5 for MNIST (1x28x28), as in XNOR-Net-PyTorch; published accuracy 99.23 %."""

from __future__ import annotations

from torch import Tensor, nn

from bnn_deploy.architectures.blocks import BinConv2d, BinLinear, RecipeNetwork


class LeNet5(RecipeNetwork):
    """conv1 (float) -> bin_conv2 -> bin_ip1 -> ip2 (float). Input: (x - 0.1307) / 0.3081, x in [0, 1]."""

    input_shape = (1, 28, 28)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.bn_conv1 = nn.BatchNorm2d(20, eps=1e-4, affine=False)
        self.relu_conv1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2, 2)
        self.bin_conv2 = BinConv2d(20, 50, 5)
        self.pool2 = nn.MaxPool2d(2, 2)
        self.bin_ip1 = BinLinear(50 * 4 * 4, 500, channels=50)
        self.ip2 = nn.Linear(500, 10)

    def body(self, x: Tensor) -> Tensor:
        """[N, 1, 28, 28] float32 -> [N, 10] float32 logits."""
        x = self.pool1(self.relu_conv1(self.bn_conv1(self.conv1(x))))
        x = self.bin_ip1(self.pool2(self.bin_conv2(x)))
        logits: Tensor = self.ip2(x)
        return logits
