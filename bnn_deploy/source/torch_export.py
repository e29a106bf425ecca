"""torch module -> float ONNX.

The float ONNX is the reference for every later step, so it is kept as PyTorch wrote it: no optimisation, no fusion of
BatchNorm. Its tensors are named after the nodes of the torch.export graph, which lets `verify` compare each of them
with PyTorch's activation of the same name.
"""

from __future__ import annotations

import ast
import io
import logging
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bnn_deploy.errors import BnnDeployError, InputError, one_line
from bnn_deploy.operators.contract import FLOAT_LAYERS, OPSET
from bnn_deploy.source.torch_module import as_written, own_copy


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
        InputError: the module does not run on that shape, or cannot be exported, or the export computes something else.
    """
    module = own_copy(module)
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad(), as_written():
            module(example)
            expected = module(example)  # a first forward pass may still set up weights that later ones use
    except Exception as error:
        raise InputError(
            f"{type(module).__name__} does not run on an input of shape {[2, *shape]}: {one_line(error)}"
        ) from error
    with _quiet():
        try:
            with _Data(), as_written():
                program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            # Removes in-place operators: sign_() becomes sign, and the tensors have the names of the ONNX model.
            program = program.run_decompositions(_DECOMPOSITIONS)
        except Exception as error:
            raise InputError(f"torch.export cannot trace {type(module).__name__}: {_why(error)}") from error
        try:
            onnx_program = torch.onnx.export(
                program, (), dynamo=True, optimize=False, verbose=False, opset_version=OPSET, input_names=["input"]
            )
        except Exception as error:
            raise InputError(f"torch.onnx cannot export {type(module).__name__}: {_why(error)}") from error
    if onnx_program is None:
        raise BnnDeployError("torch.onnx.export returned nothing")
    model = onnx_program.model
    _name_batch(model)
    name_layers(model)
    strip_metadata(model)
    # The exporter's own decomposed program: its nodes have the names of all tensors of the model.
    decomposed = onnx_program.exported_program
    assert decomposed is not None
    _require_same(decomposed, example, expected, type(module).__name__)
    return FloatExport(decomposed, model)


def _why(error: BaseException) -> str:
    """PyTorch's reason: that of the innermost cause, and the line of the user's code where it came up."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    reason = re.sub("\x1b\\[[0-9;]*m", "", str(chain[-1]))
    if "data-dependent" in reason:
        reason = (
            "forward() depends on the values of a tensor, such as `if x.min() < 0` or `assert`, which no export keeps"
        )
    frames = [frame for e in chain for frame in traceback.extract_tb(e.__traceback__)]
    own = [frame for frame in frames if not frame.filename.startswith((*_LIBRARIES, "<"))]
    where = f"{Path(own[-1].filename).name}, line {own[-1].lineno}: " if own else ""
    return f"{where}{one_line(reason)}"


_PACKAGES = Path(torch.__file__).parent.parent

_LIBRARIES = (
    *(str(_PACKAGES / name) for name in ("torch", "onnxscript", "onnx_ir")),
    str(Path(__file__).parent.parent),
)
"""The folders of torch, of its exporter and of this package: what is not in them is the user's code."""


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


_DECOMPOSITIONS = {torch.ops.aten.copy.default: _copy, torch.ops.aten.index_put.default: _index_put}
"""The assignments of signs: `x.data = y`, and `x[x == 0] = 1`."""

MAX_EXPORT_ERROR = 1e-3
"""Largest difference of an export from its module, in standard deviations of the output, that counts as rounding."""


def _require_same(program: torch.export.ExportedProgram, example: Tensor, expected: Any, name: str) -> None:
    """Hold an exported program against what the module computed eagerly.

    Raises:
        InputError: an output differs by more than MAX_EXPORT_ERROR.
    """
    with torch.no_grad():
        got = program.module()(example)
    for i, (a, b) in enumerate(zip(tree_leaves(got), tree_leaves(expected), strict=True)):
        if not isinstance(b, Tensor) or not b.is_floating_point() or not b.numel():
            continue
        scale = b.nan_to_num().std(correction=0).item() or 1.0
        error = (a.double() - b.double()).nan_to_num().abs().max().item() / scale
        if error > MAX_EXPORT_ERROR:
            raise InputError(
                f"{name}: forward() and its export differ, by up to {error:.2g} standard deviations in output {i}: "
                "forward() does something that torch.export does not see, such as writing to .data of a view or to a "
                "numpy array; write it with operators that return a new tensor"
            )


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
        if node.op_type in FLOAT_LAYERS and len(scopes) > 1 and scopes[-2] not in ("", *taken):
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
