"""The networks that a checkpoint can be loaded into by name. One file per network."""

from __future__ import annotations

from bnn_deploy.architectures.alexnet import AlexNet
from bnn_deploy.architectures.blocks import RecipeNetwork
from bnn_deploy.architectures.lenet5 import LeNet5
from bnn_deploy.architectures.nin import NIN

ARCHITECTURES: dict[str, type[RecipeNetwork]] = {"lenet5": LeNet5, "nin": NIN, "alexnet": AlexNet}

__all__ = ["ARCHITECTURES", "NIN", "AlexNet", "LeNet5", "RecipeNetwork"]
