"""The networks that a checkpoint can be loaded into by name. One file per network."""

from __future__ import annotations

from bnn_deploy.architectures.alexnet import AlexNet
from bnn_deploy.architectures.binarynet_mlp import BinaryNetMLP
from bnn_deploy.architectures.binarynet_vgg import BinaryNetVGG
from bnn_deploy.architectures.birealnet18 import BiRealNet18
from bnn_deploy.architectures.blocks import Network, RecipeNetwork
from bnn_deploy.architectures.dorefa_vgg import DoReFaVGG
from bnn_deploy.architectures.lenet5 import LeNet5
from bnn_deploy.architectures.nin import NIN
from bnn_deploy.architectures.reactnet import ReActNet
from bnn_deploy.architectures.xnor_alexnet import XnorAlexNet

ARCHITECTURES: dict[str, type[Network]] = {
    "lenet5": LeNet5,
    "nin": NIN,
    "alexnet": AlexNet,
    "birealnet18": BiRealNet18,
    "xnor-alexnet": XnorAlexNet,
    "binarynet-vgg": BinaryNetVGG,
    "binarynet-mlp": BinaryNetMLP,
    "reactnet": ReActNet,
    "dorefa-vgg": DoReFaVGG,
}

__all__ = [
    "ARCHITECTURES",
    "NIN",
    "AlexNet",
    "BiRealNet18",
    "BinaryNetMLP",
    "BinaryNetVGG",
    "DoReFaVGG",
    "LeNet5",
    "Network",
    "ReActNet",
    "RecipeNetwork",
    "XnorAlexNet",
]
