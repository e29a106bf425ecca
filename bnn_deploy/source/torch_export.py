"""torch module -> float ONNX.

The float ONNX is the reference for every later step, so it is kept as PyTorch wrote it: no optimisation, no fusion of
BatchNorm. Its tensors are named after the nodes of the torch.export graph, which lets `verify` compare each of them
with PyTorch's activation of the same name.
"""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnn_deploy.errors import BnnDeployError, InputError, option
from bnn_deploy.operators.contract import FLOAT_LAYERS, OPSET
from bnn_deploy.source.evaluation import require_evaluation
from bnn_deploy.source.module_inputs import ONLY, ModuleInputs, call_program, one_input, program_inputs
from bnn_deploy.source.open_sizes import name_sizes, require_other_sizes
from bnn_deploy.source.running_trace import trace_running
from bnn_deploy.source.torch_module import as_written, class_name, difference, own_copy
from bnn_deploy.source.user_code import user_line, why, without_output


@dataclass(frozen=True)
class FloatExport:
    """An exported module.

    Attributes:
        program: the torch.export program: PyTorch's own reference.
        model: the float ONNX model; its initializers have the names of the parameters and buffers of `program`.
        binarized: names of the latent parameters that were binarised, in both `program` and `model`.
        zeros: the numbers of exact zeros that these had before.
        notes: how it was made, one line each, if not by torch.export alone.
        others: shapes of the inputs without the batch, besides the example's; empty if no size is open.
    """

    program: torch.export.ExportedProgram
    model: ir.Model
    binarized: tuple[str, ...] = ()
    zeros: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    others: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The keys of a dict that forward() returns, one for each output; empty if it returns something else."""
        spec = self.program.call_spec.out_spec
        if spec is None or spec.type is not dict or spec.num_leaves != len(spec.context):
            return ()
        return tuple(map(str, spec.context))


def export_float(
    module: nn.Module | torch.export.ExportedProgram, inputs: ModuleInputs | tuple[int, ...]
) -> FloatExport:
    """Export `module` to float ONNX with a dynamic batch dimension; `module` itself is not changed.

    A module that torch.export cannot trace, or whose export computes something else, is traced by running it, see
    `trace_running`; that is held against forward() on other inputs, too. A program of torch.export is taken as it is.

    Args:
        module: in eval mode.
        inputs: its inputs; one sample's shape alone, without the batch dimension, is that of its only one.

    Raises:
        InputError: the module does not run on such inputs, or cannot be exported, or its export computes other results.
    """
    if isinstance(module, torch.export.ExportedProgram):
        return _export_program(module)
    inputs = one_input(inputs) if isinstance(inputs, tuple) else inputs
    module = own_copy(module)
    name = class_name(module)
    example = inputs.example()
    try:
        with torch.no_grad(), as_written():
            inputs.call(module, example)
            expected = inputs.call(module, example)  # a first forward pass may still set up weights that later ones use
            require_evaluation(module, inputs, example)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} does not run on {_such_inputs(inputs, example)}: {why(error)}") from error
    if isinstance(module, torch.jit.ScriptModule):
        return _export_running(module, inputs, "it is TorchScript")
    args, kwargs = inputs.arguments(example)
    try:
        with without_output(), _Data(), as_written():
            program = torch.export.export(module, args, kwargs, dynamic_shapes=_dynamic_shapes(module, inputs))
            # Removes in-place operators: sign_() becomes sign, and the tensors have the names of the ONNX model.
            program = program.run_decompositions(_DECOMPOSITIONS)
    except Exception as error:
        return _export_running(module, inputs, f"torch.export cannot trace {name}: {why(error)}", error)
    export = _to_onnx(program, inputs, name)
    off = _difference(export.program, example, expected)
    if off > MAX_EXPORT_ERROR:
        reason = (
            f"{name}: forward() and its export differ, by up to {off:.2g} standard deviations: forward() does "
            "something that torch.export does not see, such as writing to .data of a view or to a numpy array"
        )
        return _export_running(module, inputs, reason)
    name_sizes(export.model, inputs, name)
    return replace(export, others=require_other_sizes(module, inputs, export.model, name, MAX_EXPORT_ERROR))


def _such_inputs(inputs: ModuleInputs, example: Sequence[Tensor]) -> str:
    """What the inputs are, for errors."""
    if inputs.names == [ONLY]:
        return f"an input of shape {[*example[0].shape]}"
    return f"the inputs {', '.join(map(str, inputs.items))}"


def _dynamic_shapes(module: nn.Module, inputs: ModuleInputs) -> dict[str, Any]:
    """The sizes that stay open, by the parameter of forward(), as torch.export wants them."""
    batch = torch.export.Dim("batch")
    sizes = []
    for item in inputs.items:
        # AUTO: forward() may need sizes that are equal, or multiples of its strides.
        free = {i + item.has_batch: torch.export.Dim.AUTO for i in item.open}
        sizes.append({0: batch, **free} if item.has_batch else free)
    args, kwargs = inputs.arguments(sizes)
    return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)


def _export_running(
    module: nn.Module, inputs: ModuleInputs, reason: str, cause: Exception | None = None
) -> FloatExport:
    """Trace a module by running it, the second way, and hold the result against it on other inputs.

    Args:
        module: a copy.
        inputs: its inputs.
        reason: why not the first way.
        cause: the exception that said so.

    Raises:
        InputError: that is not possible, either: `reason`, and why.
    """
    name = class_name(module)
    if any(item.open for item in inputs.items):
        raise InputError(
            f"{reason}; traced by running it, it has fixed sizes: give {option('input_shape')} in numbers"
        ) from cause
    try:
        with without_output(), _Data(), as_written():
            trace = trace_running(module, inputs)
            program = trace.program.run_decompositions(_DECOMPOSITIONS)
    except Exception as error:
        raise InputError(f"{reason}; nor can it be traced by running it: {why(error)}") from (cause or error)
    export = _to_onnx(program, inputs, name)
    frozen = f"; the values read in {', '.join(trace.frozen)} are those of the example" if trace.frozen else ""
    checked = 0
    for x in (inputs.example(), *(inputs.random(3, seed, scale) for seed, scale in ((1, 1), (2, 4), (3, 0.1)))):
        for part in inputs.parts(x, trace.batch):
            try:
                with torch.no_grad(), as_written():
                    expected = inputs.call(module, part)
            except Exception:  # an assertion about the input, say
                continue
            checked += 1
            off = _difference(export.program, part, expected)
            if off > MAX_EXPORT_ERROR:
                raise InputError(
                    f"{reason}; traced by running it on an example, it computes something else on other inputs, by up "
                    f"to {off:.2g} standard deviations{frozen}: write forward() so that it does the same for all inputs"
                ) from cause
    name_layers_by_weights(export.model)
    batch = f", for a batch of {trace.batch}" if trace.batch else ""
    note = (
        f"{reason}; so it was traced by running it on an example{batch}, and checked against forward() on {checked} "
        f"inputs{frozen}"
    )
    return replace(export, notes=(note,))


def _export_program(program: torch.export.ExportedProgram) -> FloatExport:
    """The float ONNX model of a program of torch.export."""
    inputs = program_inputs(program)
    try:
        with without_output():
            program = copy.deepcopy(program)  # its decomposition shares its weights
            decomposed = program.run_decompositions(_DECOMPOSITIONS)
    except Exception as error:
        raise InputError(f"torch.export cannot decompose the program: {why(error)}") from error
    export = _to_onnx(decomposed, inputs, "the program")
    example = inputs.example()
    with torch.no_grad():
        off = _difference(export.program, example, call_program(program, example))
    if off > MAX_EXPORT_ERROR:
        raise InputError(
            f"the program and its decomposition differ, by up to {off:.2g} standard "
            f"deviations{_random_operator(program)}"
        )
    note = (
        f"the program was exported for batches of {inputs.batch}: so is the model; dynamic_shapes={{0: Dim('batch')}} "
        "frees it"
    )
    return replace(export, notes=(note,) if inputs.batch else ())


def _random_operator(program: torch.export.ExportedProgram) -> str:
    """What in a program draws random numbers, and where, as the end of a sentence; "" if nothing does."""
    for node in program.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            line = user_line(node.meta.get("stack_trace") or "")
            return f": {line and line + ' '}draws random numbers ({node.name}); export it without"
    return ""


def _to_onnx(program: torch.export.ExportedProgram, inputs: ModuleInputs, name: str) -> FloatExport:
    """A decomposed program as float ONNX."""
    try:
        with without_output():
            onnx_program = torch.onnx.export(
                program, (), dynamo=True, optimize=False, verbose=False, opset_version=OPSET, input_names=inputs.names
            )
    except Exception as error:
        raise InputError(f"torch.onnx cannot export {name}: {why(error)}") from error
    if onnx_program is None:
        raise BnnDeployError("torch.onnx.export returned nothing")
    model = onnx_program.model
    _name_batch(model)
    for constant in [value for key, value in model.graph.initializers.items() if key in inputs.names]:
        constant.name = f"{constant.name}_buffer"  # an input mask beside a self.mask
    name_layers(model)
    strip_metadata(model)
    # The exporter's own decomposed program: its nodes have the names of all tensors of the model.
    decomposed = onnx_program.exported_program
    assert decomposed is not None
    return FloatExport(decomposed, model)


def torch_version() -> str:
    """PyTorch's version, without the suffix of its build."""
    return torch.__version__.split("+")[0]


class _Data(TorchFunctionMode):
    """While the module is traced, `.data` is something that torch.export can follow.

    Of an activation, `x.data` is an alias of it, and `x.data = y` writes y into it, as BinaryNet's layers do:
    `input.data = input.data.sign()`. Of a parameter, `p.data` is a copy: the recipe clamps BatchNorm's weights in every
    forward pass, and the forward pass over the example has clamped them already.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, or what stands in for the getter and the setter of `data`."""
        if func == Tensor.data.__get__:  # type: ignore[attr-defined]
            return args[0].detach().clone() if isinstance(args[0], nn.Parameter) else args[0].detach()
        if func == Tensor.data.__set__ and not isinstance(args[0], nn.Parameter):  # type: ignore[attr-defined]
            args[0].copy_(args[1])
            return None
        return func(*args, **(kwargs or {}))


def _copy(into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """x.copy_(y) without x, whose values it does not need."""
    return source.to(into.dtype).expand(into.shape).clone()


def _index_put(x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """x[mask] = number as torch.where, which has a standard operator; NotImplemented for any other assignment."""
    mask = indices[0]
    if len(indices) != 1 or mask is None or mask.dtype != torch.bool or accumulate or values.numel() != 1:
        return NotImplemented  # type: ignore[no-any-return]
    mask = mask.reshape(*mask.shape, *[1] * (x.dim() - mask.dim()))
    return torch.where(mask, values.reshape(()).to(x.dtype), x)


def _convolution(*arguments: Any) -> Tensor:
    """TorchScript's convolution without its last four flags, which say how to compute it."""
    result: Tensor = torch.ops.aten.convolution(*arguments[:9])
    return result


def _copysign(x: Tensor, sign: Tensor) -> Tensor:
    """As torch.copysign, but the sign of -0 is that of 0."""
    return torch.where(sign < 0, -x.abs(), x.abs())


def _clamp(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Clamp by two bounds of different types, such as 0 and 1.5, as two clamps; NotImplemented for any other."""
    if low is None or high is None or type(low) is type(high):
        return NotImplemented  # type: ignore[no-any-return]
    return x.clamp(min=low).clamp(max=high)


_DECOMPOSITIONS = {
    torch.ops.aten.clamp.default: _clamp,
    torch.ops.aten.copy.default: _copy,
    torch.ops.aten.copysign.Tensor: _copysign,
    torch.ops.aten.signbit.default: lambda x: x < 0,
    torch.ops.aten.index_put.default: _index_put,
    torch.ops.aten._convolution.default: _convolution,
}
"""The assignments of signs, `x.data = y` and `x[x == 0] = 1`; what torch.onnx has no form of; and what TorchScript
writes in another way. Where the sign of -0 matters, the export is found to differ from forward()."""

MAX_EXPORT_ERROR = 1e-3
"""Largest difference of an export from its module, in standard deviations of the output, that counts as rounding."""


def _difference(program: torch.export.ExportedProgram, x: Sequence[Tensor], expected: Any) -> float:
    """The largest difference of a program from what the module computed, in standard deviations of the output."""
    with torch.no_grad():
        return difference(call_program(program, x), expected)


def _name_batch(model: ir.Model) -> None:
    """Rename the batch dimension to `batch` in every shape; the exporter names it s77 or similar."""
    graph = model.graph
    first = (value.shape[0] for value in graph.inputs if value.shape is not None and len(value.shape))
    symbol = next((dim.value for dim in first if not isinstance(dim, int)), None)
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.shape is not None and symbol is not None:
            value.shape = ir.Shape(
                ["batch" if not isinstance(dim, int) and dim.value == symbol else dim for dim in value.shape]
            )
    graph.name = "float"


def strip_metadata(model: ir.Model) -> None:
    """Remove the exporter's metadata from every node and value: stack traces with local paths."""
    for props in (model.metadata_props, model.graph.metadata_props):
        props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def name_layers(model: ir.Model) -> None:
    """Name a layer's node after its module, such as "features.3"; of several in one module, the first."""
    taken: set[str] = set()
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        if node.op_type in FLOAT_LAYERS and len(scopes) > 1 and scopes[-2] not in ("", *taken):
            node.name = scopes[-2]
            taken.add(scopes[-2])


def name_layers_by_weights(model: ir.Model) -> None:
    """Name a layer's node after its weights: "features.3" for "features.3.weight", or what is computed from it."""
    taken: set[str] = set()
    for node in model.graph:
        value = node.inputs[1] if node.op_type in FLOAT_LAYERS else None
        while value is not None and (producer := value.producer()) is not None:
            value = producer.inputs[0] if producer.inputs else None
        name = (value.name or "").rpartition(".")[0] if value is not None and value.is_initializer() else ""
        if name not in ("", *taken):
            node.name = name
            taken.add(name)
