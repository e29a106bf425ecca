"""AlexNet for ImageNet (3x227x227), as in XNOR-Net-PyTorch; published top-1 accuracy 44.87 %."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bnn_deploy.architectures.blocks import BinConv2d, BinLinear, RecipeNetwork


class AlexNet(RecipeNetwork):
    """`features` and `classifier`, first and last layer float.

    Args:
        channels: None if `classifier.0` has its BatchNorm over the 9216 flat features, 256 if over the channels.
    """

    input_shape = (3, 227, 227)

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 11, stride=4),
            nn.BatchNorm2d(96, eps=1e-4),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            BinConv2d(96, 256, 5, padding=2),
            nn.MaxPool2d(3, 2),
            BinConv2d(256, 384, 3, padding=1),
            BinConv2d(384, 384, 3, padding=1),
            BinConv2d(384, 256, 3, padding=1),
            nn.MaxPool2d(3, 2),
        )
        self.flatten_first = channels is None
        self.classifier = nn.Sequential(
            BinLinear(256 * 6 * 6, 4096, channels=channels),
            BinLinear(4096, 4096, dropout=0.5),
            nn.BatchNorm1d(4096, eps=1e-3),
            nn.Dropout(),
            nn.Linear(4096, 1000),
        )

    @classmethod
    def for_state_dict(cls, state_dict: dict[str, Any]) -> AlexNet:
        """Checkpoints have classifier.0's BatchNorm in either place; the size of its gamma tells which."""
        gamma = state_dict.get("classifier.0.bn.weight")
        return cls(channels=256 if gamma is not None and tuple(gamma.shape) == (256,) else None)

    def body(self, x: Tensor) -> Tensor:
        """[N, 3, 227, 227] float32 -> [N, 1000] float32 logits."""
        x = self.features(x)
        logits: Tensor = self.classifier(x.flatten(1) if self.flatten_first else x)
        return logits
