"""The shape of a network's input where neither its user nor its class says it: from its first layer, and by running."""

from __future__ import annotations

import torch
from torch import nn

from bnn_deploy.errors import InputError, option
from bnn_deploy.source.module_inputs import one_input
from bnn_deploy.source.torch_module import as_written, own_copy

_SIDES = (28, 32, 64, 96, 128, 224, 227, 256, 299)
"""Heights and widths of usual data sets."""


def infer_shape(module: nn.Module) -> tuple[int, ...]:
    """The shape of one sample of a network with one input, without the batch.

    A first layer that is linear takes [C]. One that is a convolution takes [C, H, W], of which it says C; a linear
    layer behind it fixes H and W, so that the network runs at one of the usual sizes alone.

    Raises:
        InputError: it has no such layer, or runs at none or at several of these sizes: the user has to say it.
    """
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    name = type(module).__name__
    if not layers:
        wanted = option("input_shape", example="C,H,W")
        raise InputError(f"{name} has no attribute input_shape, and no layer that says its input: give {wanted}")
    first = layers[0]
    if isinstance(first, nn.Linear):
        shapes: list[tuple[int, ...]] = [(first.in_features,)]
        wanted = option("input_shape", shapes[0])
    else:
        rank = len(first.kernel_size)
        shapes = [(first.in_channels, *[side] * rank) for side in _SIDES]
        wanted = option("input_shape", example=",".join([str(first.in_channels), *"DHW"[-rank:]]))
    own = own_copy(module)
    runs = [shape for shape in shapes if _runs(own, shape)]
    if len(runs) == 1:
        return runs[0]
    found = ", and runs at none that was tried"
    if runs:
        found = f", and runs at {' and '.join(','.join(map(str, shape)) for shape in runs[:2])}"
        found += " and others" if len(runs) > 2 else ""
    raise InputError(f"{name} has no attribute input_shape{found}: give {wanted}")


def _runs(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a module runs on inputs of a shape."""
    inputs = one_input(shape)
    try:
        with torch.no_grad(), as_written():
            inputs.call(module, inputs.example())
    except Exception:  # whatever forward() raises
        return False
    return True
