"""Float exports in the cache folder: `verify` needs the one that `convert` made, and an export takes seconds.

A kept export is used only if everything that it was made of is as it was: the module's content (its tensors, its other
attributes, its hooks), the source files of its classes and of what these import, the inputs, the versions of the
libraries, and this package's own code. And whatever the digest may have missed, a kept program is held against
forward() on the example, as a new one is, before it is used.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from bnn_deploy.kept import MAX_KEPT_BYTES, find_kept, keep, kept_folder
from bnn_deploy.source.module_inputs import ModuleInputs, call_program, one_input
from bnn_deploy.source.torch_export import MAX_EXPORT_ERROR, FloatExport
from bnn_deploy.source.torch_module import as_written, difference, own_copy
from bnn_deploy.source.user_code import is_own, without_output

_PROGRAM, _MODEL, _NOTES = "program.pt2", "float.onnx", "notes.json"


def kept_export(
    module: nn.Module | torch.export.ExportedProgram,
    inputs: ModuleInputs | tuple[int, ...],
    export_float: Callable[[nn.Module | torch.export.ExportedProgram, ModuleInputs | tuple[int, ...]], FloatExport],
) -> FloatExport:
    """What `export_float` makes, or made for an equal module and equal inputs in an earlier command.

    Args:
        module: as for `torch_export.export_float`; the export of a program is never kept, as it takes no time.
        inputs: likewise.
        export_float: that function.
    """
    if isinstance(module, torch.export.ExportedProgram) or kept_folder() is None:
        return export_float(module, inputs)
    inputs = one_input(inputs) if isinstance(inputs, tuple) else inputs
    digest = export_digest(module, inputs)
    if digest is None:
        return export_float(module, inputs)
    name = f"export-{digest}"
    folder = find_kept(name)
    found = None if folder is None else _read(folder, module, inputs)
    if found is not None:
        return found
    export = export_float(module, inputs)
    if 2 * sum(tensor.nbytes for tensor in export.program.state_dict.values()) < MAX_KEPT_BYTES:
        keep(name, lambda new: _write(new, export))
    return export


def _write(folder: Path, export: FloatExport) -> None:
    """Write an export; the weights only once, in the program.

    Raises:
        OSError: the disk is full; or the program has no form in a file.
    """
    model, state = export.model.clone(), export.program.state_dict
    for name, value in model.graph.initializers.items():
        if name in state and _is_same_memory(value.const_value, state[name]):
            value.const_value = ir.tensor(np.zeros(0, np.float32), name=name)
    try:
        with without_output():
            torch.export.save(export.program, folder / _PROGRAM)
    except OSError:
        raise
    except Exception as error:  # torch has no type for what it cannot write
        raise OSError(str(error)) from error
    (folder / _MODEL).write_bytes(ir.to_proto(model).SerializeToString())
    notes = {"notes": export.notes, "others": export.others}
    (folder / _NOTES).write_text(json.dumps(notes), encoding="utf-8")


def _read(folder: Path, module: nn.Module, inputs: ModuleInputs) -> FloatExport | None:
    """The export in a folder; None if it cannot be read, or does not compute what the module does."""
    try:
        example = inputs.example()
        own = own_copy(module)
        with torch.no_grad(), as_written():
            inputs.call(own, example)
            expected = inputs.call(own, example)
        del own  # before the program comes with as many weights
        with without_output():
            program = torch.export.load(folder / _PROGRAM)
        proto = onnx.load(folder / _MODEL)
        notes = json.loads((folder / _NOTES).read_text(encoding="utf-8"))
        state = program.state_dict
        left_out = [t.name for t in proto.graph.initializer if t.name in state and not t.raw_data]
        model = ir.from_proto(proto)
        for name in left_out:  # in the same memory as the program's
            model.graph.initializers[name].const_value = ir.tensor(state[name].detach().numpy(), name=name)
        with torch.no_grad():
            off = difference(call_program(program, example), expected)
    except Exception:  # whatever a damaged file or another version of torch makes of it: it is made anew
        return None
    if not off <= MAX_EXPORT_ERROR:
        return None
    others = {name: tuple(shape) for name, shape in notes["others"].items()}
    return FloatExport(program, model, notes=tuple(notes["notes"]), others=others)


def _is_same_memory(value: ir.TensorProtocol | None, tensor: Tensor) -> bool:
    """Whether the values of a float model and of its program are the very same."""
    if value is None:
        return False
    array = value.numpy()
    return (array.ctypes.data, array.nbytes) == (tensor.data_ptr(), tensor.nbytes)


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


class ModuleWriter(pickle.Pickler):
    """Writes a module's content, equal content as equal bytes: tensors by value, functions by code, classes by name.

    Attributes:
        classes: all classes that were written.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.fast = True  # no references to earlier objects: they depend on which strings are identical objects
        self.classes: list[type] = []

    def reducer_override(self, value: Any) -> Any:
        """What stands for a value."""
        content: tuple[Any, ...]
        if isinstance(value, Tensor):
            content = (str(value.dtype), value.shape, value.detach().numpy().tobytes())
        elif isinstance(value, nn.Module):
            # The keys of hooks come from a global counter, so only the hooks themselves are written.
            state = {name: [*held.values()] if "_hooks" in name else held for name, held in vars(value).items()}
            content = (type(value), state)
        elif isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            content = (
                value.__qualname__,
                marshal.dumps(value.__code__),
                value.__defaults__,
                value.__kwdefaults__,
                cells,
            )
        elif isinstance(value, type) and value is not list:
            self.classes.append(value)
            content = (value.__module__, value.__qualname__)
        else:
            return NotImplemented
        return list, (content,)


def write_module(module: nn.Module, digest: Any) -> list[type] | None:
    """Add a module's content to a digest.

    Returns:
        Its classes; None if it has an attribute that cannot be written.
    """
    writer = ModuleWriter(SimpleNamespace(write=digest.update))
    try:
        writer.dump(module)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RecursionError, RuntimeError):
        return None
    return writer.classes


def export_digest(module: nn.Module, inputs: ModuleInputs) -> str | None:
    """A digest of everything that the export of a module depends on; None if that cannot be said.

    Args:
        module: in eval mode.
        inputs: its inputs.
    """
    digest = hashlib.sha256()
    classes = write_module(module, digest)
    if classes is None:
        return None
    files = _source_files(classes)
    if files is None:
        return None
    package = Path(__file__).parents[1]
    for name, file in [*files, *((str(path.relative_to(package)), path) for path in sorted(package.rglob("*.py")))]:
        content = file.read_bytes() if isinstance(file, Path) else file.encode()
        digest.update(f"{name} {len(content)} ".encode() + content)
    for item in inputs.items:
        given = None if item.given is None else _raw(item.given)
        digest.update(repr((replace(item, given=None), given)).encode())
    versions = [sys.version, *(version(name) for name in ("numpy", "onnx", "onnx-ir", "onnxscript", "torch"))]
    digest.update(repr((inputs.keywords, inputs.batch, versions)).encode())
    return digest.hexdigest()


def _source_files(classes: Sequence[type]) -> list[tuple[str, Path | str]] | None:
    """The user's modules that define classes, and those that they import, each with its file.

    Installed packages have their version in place of a file. None if a class is not from a file, as in a notebook.
    """
    found: dict[str, Path | str] = {}
    waiting = [sys.modules.get(kind.__module__) for kind in classes]
    if any(module is None or not _file_of(module) for module in waiting if not _is_builtin(module)):
        return None
    while waiting:
        module = waiting.pop()
        file = "" if module is None else _file_of(module)
        if module is None or not file or not is_own(file) or module.__name__ in found:
            continue
        if "-packages" in file:
            top = sys.modules.get(module.__name__.partition(".")[0], module)
            installed = getattr(top, "__version__", None)
            found[module.__name__] = Path(file) if installed is None else str(installed)
            continue
        found[module.__name__] = Path(file)
        waiting += _imported(module)
    return sorted(found.items())


def _is_builtin(module: ModuleType | None) -> bool:
    return module is not None and module.__name__ == "builtins"


def _file_of(module: ModuleType) -> str:
    """The file of a module; "" if it has none, as in a notebook."""
    return getattr(module, "__file__", None) or ""


def _imported(module: ModuleType) -> Iterator[ModuleType | None]:
    """The modules that a module's names are, or come from."""
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            yield value
        else:
            name = getattr(value, "__module__", None)
            yield sys.modules.get(name) if isinstance(name, str) else None
