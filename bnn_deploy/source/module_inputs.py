"""The inputs of a PyTorch module or program: their names, types and shapes, examples of them, and how it takes them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_unflatten

from bnn_deploy.errors import InputError, option
from bnn_deploy.source.input_sizes import SampleShape

TYPES = ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")
"""The types that an input may have, as numpy and PyTorch call them."""

ONLY = "input"
"""The name of an only input that nobody named."""

ExampleInputs = Tensor | NDArray[Any] | Sequence[Tensor | NDArray[Any]] | Mapping[str, Tensor | NDArray[Any]]
"""What a module is called with, each [N, ...]: the only input, the arguments in their order, or arguments by name."""


@dataclass(frozen=True)
class ModuleInput:
    """An input.

    Attributes:
        name: the parameter of forward(), or ONLY.
        shape: of one sample; of an input without the batch, of all of it.
        dtype: one of TYPES.
        has_batch: whether its first dimension is the batch.
        given: an example from the user, [N, ...], or None.
        open: the dimensions of `shape` that may have other sizes, too; 0 there if no example says one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    has_batch: bool = True
    given: Tensor | None = field(default=None, compare=False)
    open: tuple[int, ...] = ()

    def example(self, count: int) -> Tensor:
        """The first `count` samples of `given`, repeated if it has fewer; else random ones, see `random`."""
        if self.given is None:
            return self.random(count, 0, 1)
        if not self.has_batch:
            return self.given.clone()
        return self.given.repeat(-(-count // len(self.given)), *[1] * len(self.shape))[:count].clone()

    def random(self, count: int, seed: int, scale: float) -> Tensor:
        """Random samples: floats from a normal distribution; others like `given`, else as `load_data` makes them."""
        size = (count, *self.shape) if self.has_batch else self.shape
        generator = torch.Generator().manual_seed(seed)
        if self.dtype == "float32":
            return scale * torch.randn(size, generator=generator)
        kind = getattr(torch, self.dtype)
        if self.given is not None:
            return self.given.flatten()[torch.randint(0, self.given.numel(), size, generator=generator)]
        low, high = (
            (0, 2) if self.dtype not in ("int8", "uint8") else (torch.iinfo(kind).min, torch.iinfo(kind).max + 1)
        )
        return torch.randint(low, high, size, generator=generator).to(kind)

    def __str__(self) -> str:
        shape = ["N", *self.shape] if self.has_batch else [*self.shape]
        return f"{self.name} {self.dtype}[{', '.join(map(str, shape))}]"


@dataclass(frozen=True)
class ModuleInputs:
    """All inputs, in the order of the module's parameters.

    Attributes:
        items: the inputs.
        keywords: the names of the last ones of them, which are passed by name.
        batch: the batch size that a program was exported for; None for any.
    """

    items: tuple[ModuleInput, ...]
    keywords: tuple[str, ...] = ()
    batch: int | None = None

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [item.name for item in self.items]

    @property
    def batched(self) -> list[bool]:
        """Of each, whether its first dimension is the batch."""
        return [item.has_batch for item in self.items]

    def example(self) -> tuple[Tensor, ...]:
        """An example of each: two samples, or the fixed batch."""
        return tuple(item.example(self.batch or 2) for item in self.items)

    def random(self, count: int, seed: int, scale: float) -> tuple[Tensor, ...]:
        """`count` random samples of each; `scale` is the standard deviation of floats."""
        return tuple(item.random(count, seed, scale) for item in self.items)

    def parts(self, tensors: Sequence[Tensor], batch: int | None) -> list[tuple[Tensor, ...]]:
        """The samples of one value for each input, in batches of that size; None for all in one."""
        count = next(len(tensor) for tensor, item in zip(tensors, self.items, strict=True) if item.has_batch)
        split = [
            torch.split(tensor, batch or count) if item.has_batch else [tensor] * count
            for tensor, item in zip(tensors, self.items, strict=True)
        ]
        return list(zip(*split, strict=False))

    def arguments(self, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """One value for each input, as forward() takes them: by position, and by name."""
        count = len(self.items) - len(self.keywords)
        return tuple(values[:count]), dict(zip(self.keywords, values[count:], strict=True))

    def call(self, module: nn.Module, tensors: Sequence[Tensor]) -> Any:
        """What a module computes of its inputs."""
        args, kwargs = self.arguments(tensors)
        return module(*args, **kwargs)


def program_arguments(
    program: torch.export.ExportedProgram, tensors: Sequence[Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs of a program of torch.export, in the order of its graph, as its module takes them."""
    args, kwargs = tree_unflatten(list(tensors), program.call_spec.in_spec)
    return args, kwargs


def call_program(program: torch.export.ExportedProgram, tensors: Sequence[Tensor]) -> Any:
    """What a program of torch.export computes of its inputs, in the order of its graph."""
    args, kwargs = program_arguments(program, tensors)
    return program.module(check_guards=False)(*args, **kwargs)


def one_input(shape: tuple[int, ...]) -> ModuleInputs:
    """The only input, float32, of a module: one sample's shape."""
    return ModuleInputs((ModuleInput(ONLY, tuple(shape)),))


def module_inputs(
    module: nn.Module, name: str, shape: SampleShape | None, examples: ExampleInputs | None = None
) -> ModuleInputs:
    """The inputs of a module, as its user says them.

    Args:
        module: a module; of `shape` and `examples` None, its attribute `input_shape` says the inputs.
        name: its name in errors.
        shape: one sample's shape of the only input, or one of each input by name; None in it leaves a size open. A name
            may have a type, one of TYPES: {"images": (3, 32, 32), "ids:int64": (16,)}.
        examples: values instead, or beside a `shape` that leaves sizes open. Tensors whose first size is not that of
            the first have no batch; float16, bfloat16 and float64 become float32, as the module does.

    Raises:
        InputError: neither says it, or an input is none of forward(), or has another type, or forward() needs more.
    """
    if examples is not None:
        return _arranged(module, name, _opened(name, _given(module, name, examples), shape))
    if shape is None:
        shape = getattr(module, "input_shape", None)
    if shape is None:
        raise InputError(
            f"{type(module).__name__} has no attribute input_shape: give {option('input_shape', example='C,H,W')}"
        )
    if not isinstance(shape, Mapping):
        return _arranged(module, name, [_of_shape(ONLY, shape)])
    items = []
    for key, sizes in shape.items():
        given, colon, kind = key.rpartition(":")
        if colon and kind not in TYPES:
            raise InputError(
                f"{option('input_shape')} {key}: {kind} is no type of an input; these are: {', '.join(TYPES)}"
            )
        items.append(_of_shape(given or key, sizes, kind if colon else "float32"))
    return _arranged(module, name, items)


def _of_shape(name: str, shape: Sequence[int | None], dtype: str = "float32") -> ModuleInput:
    """An input without an example; None in `shape` is a size that is open."""
    open_sizes = tuple(i for i, size in enumerate(shape) if size is None)
    return ModuleInput(name, tuple(int(size or 0) for size in shape), dtype, open=open_sizes)


def _opened(name: str, items: Sequence[ModuleInput], shape: SampleShape | None) -> list[ModuleInput]:
    """Inputs that examples give, with the sizes open that `shape` leaves open."""
    shapes = shape if isinstance(shape, Mapping) else {} if shape is None else {items[0].name: shape}
    if shape is not None and not any(None in sizes for sizes in shapes.values()):
        raise InputError(f"{name}: the example inputs say their shapes: leave out {option('input_shape')}")
    found = {item.name: item for item in items}
    for key, sizes in shapes.items():
        own = _of_shape(key, sizes)
        item = found.get(key)
        fits = item is not None and len(item.shape) == len(sizes)
        if item is None or not fits or any(a not in (None, b) for a, b in zip(sizes, item.shape, strict=True)):
            raise InputError(
                f"{name}: {option('input_shape')} {key} {list(sizes)} does not fit the example inputs, {item}"
            )
        found[key] = replace(item, open=own.open)
    return list(found.values())


def inputs_of_model(
    source: nn.Module | torch.export.ExportedProgram,
    name: str,
    model: Sequence[tuple[str, str, Sequence[int]]],
    examples: Mapping[str, Sequence[int]],
) -> ModuleInputs:
    """The inputs of the module or program that a model was converted from.

    Args:
        source: the module or program.
        name: its name in errors.
        model: the model's inputs: name, type as numpy calls it, shape with the batch, 0 for open sizes.
        examples: the shapes without the batch that it was converted from.

    Raises:
        InputError: it does not take such inputs.
    """
    if isinstance(source, torch.export.ExportedProgram):
        return program_inputs(source)
    batch = next((shape[0] for _, _, shape in model if shape), 0)
    items = []
    for given, dtype, shape in model:
        has_batch = bool(shape) and shape[0] == batch
        sizes = tuple(shape[1:] if has_batch else shape)
        open_sizes = tuple(i for i, size in enumerate(sizes) if not size)
        sizes = tuple(examples[given]) if open_sizes and given in examples else sizes
        items.append(ModuleInput(given, sizes, dtype, has_batch, open=open_sizes))
    return _arranged(source, name, items)


def program_inputs(
    program: torch.export.ExportedProgram, shape: SampleShape | None = None, examples: ExampleInputs | None = None
) -> ModuleInputs:
    """The inputs of a program; the batch is the first size of the first one.

    Args:
        program: a program of torch.export.
        shape: what its user takes for one sample's shape of its only input, or of each by name.
        examples: as for a module: a program needs none.

    Raises:
        InputError: an input is not a tensor of one of TYPES, has free sizes besides the batch, or another shape than
            given; or there are `examples`.
    """
    if examples is not None:
        raise InputError("a program of torch.export says its inputs itself: leave out example_inputs")
    names = program.graph_signature.user_inputs
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    kinds = [str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.") for value in values]
    if not values or not set(kinds) <= set(TYPES):
        raise InputError(
            f"the program's inputs are {', '.join(kinds) or 'none'}; convert takes tensors of {', '.join(TYPES)}"
        )
    given = tree_leaves(program.example_inputs) if program.example_inputs is not None else [None] * len(values)
    batch = next((value.shape[0] for value in values if value.dim()), None)
    items = []
    for name, value, kind, example in zip(names, values, kinds, given, strict=True):
        has_batch = value.dim() > 0 and str(value.shape[0]) == str(batch)
        sample = value.shape[1:] if has_batch else value.shape
        if not all(isinstance(size, int) for size in sample):
            raise InputError(
                f"the program's input is {list(value.shape)}: export it with fixed sizes besides the batch"
            )
        own = example.detach() if isinstance(example, Tensor) else None
        items.append(ModuleInput(ONLY if len(values) == 1 else name, tuple(sample), kind, has_batch, own))
    for key, sizes in (
        shape if isinstance(shape, Mapping) else {} if shape is None else {items[0].name: shape}
    ).items():
        item = next((item for item in items if item.name == key), None)
        if item is None or item.shape != tuple(sizes):
            raise InputError(
                f"the program's input is {', '.join(map(str, items)) if len(items) > 1 else ['N', *items[0].shape]}, "
                f"which {option('input_shape')} {list(sizes) if not isinstance(shape, Mapping) else shape} does not fit"
            )
    return ModuleInputs(tuple(items), batch=batch if isinstance(batch, int) else None)


def _given(module: nn.Module, name: str, examples: ExampleInputs) -> list[ModuleInput]:
    """The inputs that example values are."""
    if isinstance(examples, Tensor | np.ndarray):
        examples = (examples,)
    if isinstance(examples, Mapping):
        found = dict(examples)
    elif len(examples) == 1:
        found = {ONLY: examples[0]}
    else:
        own = []
        for p in _signature(module).parameters.values():
            own += [f"{p.name}_{i}" for i in range(len(examples))] if p.kind is p.VAR_POSITIONAL else [p.name]
        if len(examples) > len(own):
            raise InputError(f"{name}: {len(examples)} example inputs, but forward() takes {', '.join(own) or 'none'}")
        found = dict(zip(own, examples, strict=False))
    tensors = {}
    for key, value in found.items():
        if not isinstance(value, Tensor | np.ndarray):
            raise InputError(
                f"{name}: the example input '{key}' is a {type(value).__name__}, not a tensor: pass tensors alone, and "
                "set what else forward() takes as its default, or in a module of yours around it"
            )
        tensor = torch.as_tensor(value).detach().cpu()
        tensors[key] = tensor.float() if tensor.is_floating_point() else tensor
        if (kind := str(tensors[key].dtype).removeprefix("torch.")) not in TYPES:
            raise InputError(f"{name}: the example input '{key}' is {kind}; inputs are {', '.join(TYPES)}")
    batch = next((len(tensor) for tensor in tensors.values() if tensor.dim()), 0)
    if not batch or not all(tensor.numel() for tensor in tensors.values()):
        raise InputError(f"{name}: the example inputs have no batch: each is [N, ...], N >= 1")
    items = []
    for key, tensor in tensors.items():
        has_batch = tensor.dim() > 0 and len(tensor) == batch
        shape = tuple(tensor.shape[1:] if has_batch else tensor.shape)
        items.append(ModuleInput(key, shape, str(tensor.dtype).removeprefix("torch."), has_batch, tensor))
    return items


def _signature(module: nn.Module) -> inspect.Signature:
    """What forward() takes."""
    if not isinstance(module, torch.jit.ScriptModule):
        return inspect.signature(module.forward)
    schema: Any = module.forward.schema  # type: ignore[attr-defined]
    kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    return inspect.Signature(
        [
            inspect.Parameter(argument.name, kind, default=None if argument.has_default_value() else empty)
            for argument in schema.arguments[1:]
        ]
    )


def _arranged(module: nn.Module, name: str, items: Sequence[ModuleInput]) -> ModuleInputs:
    """The inputs in the order of forward()'s parameters."""
    parameters = _signature(module).parameters.values()
    known = {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    given = {item.name: item for item in items}
    if list(given) == [ONLY] and ONLY not in known:
        missing = [p.name for p in list(known.values())[1:] if p.default is p.empty]
        order, by_name = [ONLY], []
    else:
        others = [key for key in given if key not in known]
        if others and len(known) == len(parameters):
            raise InputError(
                f"{name}: it has no input '{others[0]}', which {option('input_shape')} names; forward() takes "
                f"{', '.join(known)}"
            )
        missing = [p.name for p in known.values() if p.default is p.empty and p.name not in given]
        # By position, as long as no default is left out; *args come behind all others.
        order = []
        for p in known.values():
            if p.name not in given or p.kind is p.KEYWORD_ONLY:
                break
            order.append(p.name)
        by_name = [key for key in known if key in given and key not in order]
        if any(p.kind is p.VAR_POSITIONAL for p in parameters) and not by_name:
            order += others
        else:
            by_name += others
    if missing:
        raise InputError(
            f"{name}: its forward() takes {', '.join(known)}, and nothing is said of {', '.join(missing)}: give "
            f"{option('input_shape')} for each by its name, NAME=C,H,W, or NAME:int64=16 for integers (in Python "
            "{'NAME': (C, H, W), 'NAME:int64': (16,)}, or example_inputs)"
        )
    return ModuleInputs(tuple(given[key] for key in (*order, *by_name)), tuple(by_name))
