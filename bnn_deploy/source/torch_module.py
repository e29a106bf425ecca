"""A torch module as its user has it: in a wrapper, compiled, in half precision, or with parts that resist a copy."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bnn_deploy.source.module_inputs import ModuleInputs, program_arguments
from bnn_deploy.source.on_cpu import move_to_cpu
from bnn_deploy.source.user_code import users_code, users_network


def unwrap(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The network inside its wrappers: DataParallel, torch.compile, AveragedModel, and what wraps like them.

    A wrapper holds the network as its one child, `module` or `_orig_mod`, and has no other parameters.

    Returns:
        The network, and a line for each wrapper that was taken off.
    """
    notes = []
    while (inner := _wrapped(module)) is not None:
        notes.append(f"{type(module).__name__} was taken off: converted is the {type(inner).__name__} inside it")
        module = inner
    return module, tuple(notes)


def class_name(module: nn.Module) -> str:
    """The name of a module's class; of TorchScript, that of the class that it was made of."""
    return str(module.original_name if isinstance(module, torch.jit.ScriptModule) else type(module).__name__)


def _wrapped(module: nn.Module) -> nn.Module | None:
    """The network that a wrapper holds; None if `module` is no wrapper."""
    if isinstance(module, torch.jit.ScriptModule):
        return None
    children = dict(module.named_children())
    if len(children) != 1 or any(True for _ in module.parameters(recurse=False)):
        return None
    kind = type(module)
    known = isinstance(
        module, nn.DataParallel | nn.parallel.DistributedDataParallel | torch.optim.swa_utils.AveragedModel
    )
    if "_orig_mod" in children:
        return children["_orig_mod"]
    # An EMA holder of one's own has no forward() at all, or shows the network's.
    if known or (kind.forward is nn.Module.forward and not isinstance(module, nn.ModuleDict)):
        return children.get("module")
    return None


def precision_note(module: nn.Module) -> tuple[str, ...]:
    """A line about parameters and buffers that are not float32; empty if all are."""
    others = {str(value.dtype).removeprefix("torch.") for value in _other_floats(module)}
    return (f"its parameters are {' and '.join(sorted(others))}: converted in float32",) if others else ()


def _other_floats(module: nn.Module) -> list[Tensor]:
    values = (*module.parameters(), *module.buffers())
    return [value for value in values if value.is_floating_point() and value.dtype != torch.float32]


def own_copy(module: nn.Module) -> nn.Module:
    """A copy of a module in eval mode, in float32 and on the CPU, so that no forward pass changes its user's."""
    try:
        with _CopyComputed():
            made = copy.deepcopy(module)
    except Exception:  # whatever the __deepcopy__, __getattr__ or __reduce__ of an attribute raises
        made = _rebuilt(module, {})
    return _to_run(made)


def _to_run(made: nn.Module) -> nn.Module:
    """A module that is nobody else's, in eval mode, in float32 and on the CPU."""
    for part in made.modules():
        # model.forward = torch.compile(model.forward): that is the forward() of the module that was copied.
        written = getattr(vars(part).get("forward"), "_torchdynamo_orig_callable", None)
        if isinstance(written, MethodType):
            vars(part)["forward"] = MethodType(written.__func__, part)
    made = move_to_cpu(made).eval()
    return made.float() if _other_floats(made) else made


class _CopyComputed(TorchFunctionMode):
    """copy.deepcopy copies computed tensors by value: those that a forward pass left in an attribute, say."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, or copy."""
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def _rebuilt(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of a module attribute by attribute; what cannot be copied is shared.

    Args:
        value: a module, or what it holds.
        memo: copies by the id of the original, as of copy.deepcopy.
    """
    if id(value) in memo:
        return memo[id(value)]
    made: Any
    if isinstance(value, nn.Parameter):
        made = nn.Parameter(value.detach().clone(), value.requires_grad)
    elif isinstance(value, Tensor):
        made = value.detach().clone()
    elif isinstance(value, nn.Module):
        # type(), not __class__: containers of exchangeable layers show the class of the layer that they hold.
        made = memo[id(value)] = object.__new__(type(value))
        vars(made).update({name: _rebuilt(held, memo) for name, held in vars(value).items()})
    elif type(value) in (dict, OrderedDict):
        made = memo[id(value)] = type(value)()
        made.update({key: _rebuilt(held, memo) for key, held in value.items()})
    elif type(value) in (list, tuple, set):
        made = type(value)(_rebuilt(held, memo) for held in value)
    else:
        try:
            made = copy.deepcopy(value, memo)
        except Exception:  # a lock, a file, a generator
            made = value
    memo[id(value)] = made
    return made


@contextmanager
def as_written() -> Iterator[None]:
    """`users_code` in which what torch.compile compiled runs as it was written."""
    with torch.compiler.set_stance("force_eager"), users_code():
        yield


def difference(got: Any, expected: Any) -> float:
    """The largest difference of the outputs, or trees of them, in standard deviations of what is expected."""
    largest = 0.0
    for a, b in zip(tree_leaves(got), tree_leaves(expected), strict=True):
        if not isinstance(b, Tensor) or not b.numel():
            continue
        if a.shape != b.shape:
            return math.inf
        b = b.double()
        scale = b.nan_to_num().std(correction=0).item() or 1.0
        largest = max(largest, (a.double() - b).nan_to_num().abs().max().item() / scale)
    return largest


def eager(
    module: nn.Module | torch.export.ExportedProgram, inputs: ModuleInputs, copied: bool = True
) -> Callable[[Sequence[NDArray[Any]]], list[NDArray[Any]]]:
    """A module as its user runs it: forward() in eval mode, an array for each input -> all outputs.

    Args:
        module: it; of a module that someone else has, a copy runs.
        inputs: its inputs.
        copied: False if nobody else has it.
    """
    own = (own_copy(module) if copied else _to_run(module)) if isinstance(module, nn.Module) else module.module()
    name = type(module).__name__
    arguments = inputs.arguments if isinstance(module, nn.Module) else partial(program_arguments, module)
    del module  # what runs has the weights

    def run(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        args, kwargs = arguments([torch.from_numpy(array) for array in arrays])
        with users_network(name), torch.no_grad(), as_written():
            outputs = tree_leaves(own(*args, **kwargs))
        return [output.numpy() for output in outputs if isinstance(output, Tensor)]

    return run
