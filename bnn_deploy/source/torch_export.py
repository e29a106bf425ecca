"""torch module -> float ONNX.

The float ONNX is the reference for every later step, so it is kept as PyTorch wrote it: no optimisation, no fusion of
BatchNorm. Its tensors are named after the nodes of the torch.export graph, which lets `verify` compare each of them
with PyTorch's activation of the same name.
"""

from __future__ import annotations

import ast
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnn_deploy.errors import BnnDeployError, InputError, one_line
from bnn_deploy.operators.contract import OPSET


@dataclass(frozen=True)
class FloatExport:
    """An exported module.

    Attributes:
        program: the torch.export program: PyTorch's own reference.
        model: the float ONNX model; its initializers have the names of the parameters and buffers of `program`.
        binarized: names of the latent parameters that were binarised, in both `program` and `model`.
    """

    program: torch.export.ExportedProgram
    model: ir.Model
    binarized: tuple[str, ...] = ()


def export_float(module: nn.Module, shape: tuple[int, ...]) -> FloatExport:
    """Export `module` to float ONNX with a dynamic batch dimension; `module` itself is not changed.

    Args:
        module: in eval mode.
        shape: one sample, without the batch dimension.

    Raises:
        InputError: the module does not run on that shape, or cannot be exported.
    """
    module = copy.deepcopy(module).eval()
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            module(example)
    except Exception as error:
        raise InputError(
            f"{type(module).__name__} does not run on an input of shape {[2, *shape]}: {one_line(error)}"
        ) from error
    with _quiet():
        try:
            with _CopyData():
                program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            # Removes in-place operators: sign_() becomes sign, and the tensors have the names of the ONNX model.
            program = program.run_decompositions({})
        except Exception as error:
            raise InputError(f"torch.export cannot trace {type(module).__name__}: {one_line(error)}") from error
        try:
            onnx_program = torch.onnx.export(
                program, (), dynamo=True, optimize=False, verbose=False, opset_version=OPSET, input_names=["input"]
            )
        except Exception as error:
            raise InputError(f"torch.onnx cannot export {type(module).__name__}: {one_line(error)}") from error
    if onnx_program is None:
        raise BnnDeployError("torch.onnx.export returned nothing")
    model = onnx_program.model
    _name_batch(model)
    name_layers(model)
    strip_metadata(model)
    # The exporter's own decomposed program: its nodes have the names of all tensors of the model.
    decomposed = onnx_program.exported_program
    assert decomposed is not None
    return FloatExport(decomposed, model)


class _CopyData(TorchFunctionMode):
    """While the module is traced, `tensor.data` is a copy.

    The recipe clamps BatchNorm's weights in every forward pass, through `.data`, which torch.export cannot trace. The
    forward pass over the example has clamped them already.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`; the getter of `data` returns a copy instead."""
        if func == Tensor.data.__get__:  # type: ignore[attr-defined]
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def _name_batch(model: ir.Model) -> None:
    """Rename the batch dimension to `batch` in every shape; the exporter names it s77 or similar."""
    graph = model.graph
    shape = graph.inputs[0].shape
    symbol = None if shape is None or isinstance(shape[0], int) else shape[0].value
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
        if node.op_type in ("Conv", "Gemm", "MatMul") and len(scopes) > 1 and scopes[-2] not in ("", *taken):
            node.name = scopes[-2]
            taken.add(scopes[-2])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress messages and internal warnings off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
