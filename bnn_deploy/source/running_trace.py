"""Traces a module that torch.export cannot: by what it does while it runs on an example.

Every operator that runs is recorded, whatever Python code or TorchScript called it. What that code decided by values of
the example, such as a branch, is frozen; so the result is to be held against the module on other inputs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from bnn_deploy.source.module_inputs import ModuleInputs
from bnn_deploy.source.user_code import user_line


@dataclass(frozen=True)
class RunningTrace:
    """What a module did on an example.

    Attributes:
        program: as torch.export makes it of the recorded operators.
        batch: the batch size, if it is frozen; None if any will do.
        frozen: the lines of the user's code that read a value that depends on the input.
    """

    program: torch.export.ExportedProgram
    batch: int | None
    frozen: tuple[str, ...]


def trace_running(module: nn.Module, inputs: ModuleInputs) -> RunningTrace:
    """Trace a module by running it.

    Recorded at two batch sizes, the same operators with other numbers give a graph for any; else the batch is 1.

    Args:
        module: in eval mode; its parameters and buffers keep their names.
        inputs: its inputs.
    """
    example = inputs.example()
    names = {id(value): name for name, value in (*module.named_parameters(), *module.named_buffers())}
    larger = tuple(
        torch.cat((x, x[:1])) if has_batch else x for x, has_batch in zip(example, inputs.batched, strict=True)
    )
    small, large = (_record(module, inputs, x) for x in (example, larger))
    batch = None
    frozen = _values_read(small)
    for graph in (small, large):
        _remove_unread(graph)
    if not _free_batch(small, large, inputs.batched.index(True)):
        batch, example = 1, tuple(x.clone() for x in inputs.parts(example, 1)[0])
        small = _record(module, inputs, example)
        frozen = _values_read(small)
        _remove_unread(small)
    _name_parameters(small, names)
    _name_inputs(small, inputs.names)
    small.recompile()
    free = {0: torch.export.Dim("batch")}
    dynamic = None if batch else tuple(free if has_batch else {} for has_batch in inputs.batched)
    return RunningTrace(torch.export.export(small, example, dynamic_shapes=dynamic), batch, frozen)


_VALUES = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
"""The operators that give a value to Python."""


def _record(module: nn.Module, inputs: ModuleInputs, x: tuple[Tensor, ...]) -> fx.GraphModule:
    run: Callable[..., Any] = lambda *values: inputs.call(module, values)  # noqa: E731
    recorder = make_fx(
        run, tracing_mode="real", pre_dispatch=True, _error_on_data_dependent_ops=False, record_stack_traces=True
    )
    with torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        recorded: fx.GraphModule = recorder(*x)
    return recorded


def _values_read(graph: fx.GraphModule) -> tuple[str, ...]:
    """The lines of the user's code that read values that depend on the input, each once."""
    of_input: set[fx.Node] = set()
    lines: dict[str, None] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder" or of_input.intersection(node.all_input_nodes):
            of_input.add(node)
            if node.target in _VALUES and (line := user_line(node.meta.get("stack_trace") or "")):
                lines[line] = None
    return tuple(lines)


def _remove_unread(graph: fx.GraphModule) -> None:
    """Remove what no output depends on: values that Python read, and statistics that forward() keeps in a buffer."""
    read_later = set()
    for node in reversed(graph.graph.nodes):
        if node.op == "get_attr" and node.users:
            read_later.add(id(getattr(graph, node.target)))
        if node.users or node.op not in ("call_function", "get_attr"):
            continue
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            written = node
            while isinstance(argument := next(iter(written.args), None), fx.Node) and len(argument.users) == 1:
                written = argument
            if written.op != "get_attr" or id(getattr(graph, written.target)) in read_later:
                continue
        graph.graph.erase_node(node)


def _free_batch(small: fx.GraphModule, large: fx.GraphModule, batched: int) -> bool:
    """Replace the numbers of `small`, recorded with a batch of 2, that depend on it; `large` had a batch of 3.

    Args:
        small: changed in place.
        large: the other recording.
        batched: the index of an input whose first size is the batch.

    Returns:
        Whether that was possible: both have the same nodes, and each number is a multiple of the batch, or differs from
        it by as much.
    """
    nodes, others = (list(module.graph.nodes) for module in (small, large))
    if [(node.op, node.name, node.target) for node in nodes] != [(node.op, node.name, node.target) for node in others]:
        return False
    changes: list[tuple[fx.Node, list[Any], Any]] = []
    for node, other in zip(nodes, others, strict=True):
        if node.op == "get_attr":
            a, b = (getattr(module, str(node.target)) for module in (small, large))
            if a.shape != b.shape or not torch.equal(a, b):
                return False
        leaves, spec = tree_flatten((node.args, node.kwargs))
        other_leaves, other_spec = tree_flatten((other.args, other.kwargs))
        if spec != other_spec:
            return False
        for i, (a, b) in enumerate(zip(leaves, other_leaves, strict=True)):
            if isinstance(a, fx.Node) or a == b or (a != a and b != b):
                continue
            if type(a) is not int or type(b) is not int or not (2 * b == 3 * a or b == a + 1):
                return False
            leaves[i] = _OfBatch(a // 2, 0) if 2 * b == 3 * a else _OfBatch(1, a - 2)
        if any(isinstance(leaf, _OfBatch) for leaf in leaves):
            changes.append((node, leaves, spec))
    x = [node for node in nodes if node.op == "placeholder"][batched]
    for node, leaves, spec in changes:
        with small.graph.inserting_before(node):
            for i, leaf in enumerate(leaves):
                if isinstance(leaf, _OfBatch):
                    size = small.graph.call_function(torch.ops.aten.sym_size.int, (x, 0))
                    product = small.graph.call_function(operator.mul, (size, leaf.factor))
                    leaves[i] = small.graph.call_function(operator.add, (product, leaf.more))
        node.args, node.kwargs = tree_unflatten(leaves, spec)
    return True


@dataclass(frozen=True)
class _OfBatch:
    """A number of a graph that is factor * batch + more."""

    factor: int
    more: int


def _name_inputs(graph: fx.GraphModule, names: list[str]) -> None:
    """Give the inputs of a recorded graph their names, and operators that have these names others."""
    for node in graph.graph.nodes:
        if node.op != "placeholder" and node.name in names:
            node._rename(f"{node.name}_of_trace")
    for node, name in zip((node for node in graph.graph.nodes if node.op == "placeholder"), names, strict=True):
        node.target = name
        node._rename(name)


def _name_parameters(graph: fx.GraphModule, names: dict[int, str]) -> None:
    """Give the parameters and buffers of a recorded graph the names that they have in the module."""
    renamed = set()
    for node in graph.graph.nodes:
        if node.op != "get_attr":
            continue
        value = operator.attrgetter(node.target)(graph)
        name = names.get(id(value))
        if name is None:
            continue
        *path, last = name.split(".")
        owner: nn.Module = graph
        for part in path:
            if part not in dict(owner.named_children()):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        if isinstance(value, nn.Parameter):
            owner.register_parameter(last, value)
        elif last not in dict(owner.named_buffers(recurse=False)):
            owner.register_buffer(last, value)
        renamed.add(node.target)
        node.target = name
    for old in renamed:
        delattr(graph, old)
