"""Runs the code of networks that were written for a GPU on the CPU, which this package alone uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class OnCpu(TorchFunctionMode):
    """While it is active, tensors that are made on or moved to an accelerator are made and stay on the CPU.

    Networks are full of it, `torch.tensor([0.1]).cuda()` in __init__() or forward(), and the machine that converts them
    may have none.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func` with the CPU for any other device."""
        if func is Tensor.cuda:
            return args[0]
        if func is Tensor.to and len(args) > 1 and _is_accelerator(args[1]):
            args = (args[0], "cpu", *args[2:])
        elif func is Tensor.type and isinstance(wanted := args[-1], str):
            args = (*args[:-1], wanted.replace("torch.cuda.", "torch."))
        if kwargs and _is_accelerator(kwargs.get("device")):
            kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **(kwargs or {}))


def _is_accelerator(device: Any) -> bool:
    if type(device) is int:  # of a GPU; -1 is what get_device() says of the CPU
        return True
    kind = device.partition(":")[0] if isinstance(device, str) else getattr(device, "type", None)
    return isinstance(device, str | torch.device) and kind not in ("cpu", "meta")


def move_to_cpu(module: nn.Module) -> nn.Module:
    """Move a module to the CPU in place, with the tensors that it keeps in attributes; returns it."""
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.device.type != "cpu":
                setattr(part, name, value.cpu())
        if isinstance(part, nn.DataParallel):
            part.device_ids = []  # or forward() asks for the parameters on the first GPU
    return module.cpu()
