"""Refuses networks that compute something else each time, or for each batch, although they are in evaluation mode."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bnn_deploy.errors import InputError
from bnn_deploy.source.module_inputs import ModuleInputs
from bnn_deploy.source.torch_module import class_name
from bnn_deploy.source.user_code import user_line


def require_evaluation(module: nn.Module, inputs: ModuleInputs, example: Sequence[Tensor]) -> None:
    """Run a module twice with different seeds, and see what its operators are.

    Args:
        module: in eval mode.
        inputs: its inputs.
        example: a value of each, with a batch of 2 or more.

    Raises:
        InputError: it draws random numbers that its outputs depend on, or normalises by the statistics of the batch.
    """
    watch, results = _Watch(), []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for seed in range(2):
            torch.manual_seed(seed)
            with watch:
                results.append([x for x in tree_leaves(inputs.call(module, example)) if isinstance(x, Tensor)])
    name = class_name(module)
    if watch.statistics is not None:
        raise InputError(
            f"{name}{watch.statistics}: BatchNorm normalises by the batch that it is given, so each sample's result "
            "depends on the others: train it with track_running_stats=True, and call it in evaluation mode"
        )
    same = all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(*results, strict=True))
    if watch.random is not None and not same:
        raise InputError(
            f"{name}{watch.random}, so it computes something else each time: switch that off in evaluation, such as "
            "by F.dropout(..., training=self.training)"
        )


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the first operator that draws random numbers, and the first BatchNorm by the batch's statistics."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.random: str | None = None
        self.statistics: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.random is None and torch.Tag.nondeterministic_seeded in func.tags:
            self.random = f"{_where()} draws random numbers ({func.overloadpacket.__name__})"
        if self.statistics is None and "batch_norm" in func.overloadpacket.__name__ and _by_batch(func, args):
            self.statistics = _where()
        return func(*args, **(kwargs or {}))


def _by_batch(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether a BatchNorm normalises by the batch. InstanceNorm is one, too, of a batch of 1."""
    named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
    return bool(named.get("training", "no_stats" in str(func))) and len(named["input"]) > 1


def _where() -> str:
    """The line of the user's code that is running, as ": net.py, line 12"."""
    line = user_line("".join(traceback.format_list(traceback.extract_stack())))
    return f": {line}" if line else ""
