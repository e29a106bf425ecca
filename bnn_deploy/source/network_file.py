"""FILE.py:NAME -> torch module: a class, a function that builds the network, or the network itself."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from bnn_deploy.architectures import ARCHITECTURES, Network
from bnn_deploy.errors import InputError, one_line, option
from bnn_deploy.files import is_file
from bnn_deploy.source.user_code import as_script


def load_named(spec: str) -> Callable[..., Any]:
    """Import NAME from FILE.py; `spec` is FILE.py:NAME. NAME may be an attribute of a name: Net.small.

    FILE.py may import modules beside it, those of the package that its folder is, and those of the current folder.

    Returns:
        A class, a function, or a module, which is a callable, too.

    Raises:
        InputError: no such file, no such name, or the file raises when it is imported.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not is_file(path):
        raise InputError(f"{option('arch', spec)}: no such file {path}")
    root = path.resolve().parent
    while (root / "__init__.py").is_file():
        root = root.parent
    # As when it is run as a script, and as a part of its package; the current folder last, where it hides nothing.
    added = [str(path.parent.resolve()), *({str(root), str(Path.cwd())} - {str(path.parent.resolve()), *sys.path})]
    sys.path.insert(0, added[0])
    sys.path.extend(added[1:])
    try:
        with as_script(path):
            module = _import(path, root)
    except SystemExit as error:
        raise InputError(
            f"{option('arch', spec)}: importing {path} ended the program (SystemExit: {error}), as a parser of "
            "arguments does: name a file that builds the network and needs no arguments"
        ) from error
    except Exception as error:
        raise InputError(
            f"{option('arch', spec)}: importing {path} failed: {type(error).__name__}: {one_line(error)}"
            f"{_where_it_is(error, path)}"
        ) from error
    finally:
        for folder in added:
            sys.path.remove(folder)
    try:
        found = functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        found = None
    if not callable(found):
        there = [name for name, value in vars(module).items() if _makes_networks(name, value, module)]
        raise InputError(
            f"{option('arch', spec)}: {path} has no class or function '{name}' that makes a network; "
            f"it has {', '.join(there) or 'none'}"
        )
    result: Callable[..., Any] = found
    return result


def _where_it_is(error: Exception, path: Path) -> str:
    """Where to run the command, if what an import missed is in a folder above FILE.py, as a repository's `utils` is."""
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    for folder in path.resolve().parents if missing else ():
        if (folder / missing).is_dir() or (folder / f"{missing}.py").is_file():
            return f"; '{missing}' is in {folder}: run this there"
    return ""


def _import(path: Path, root: Path) -> ModuleType:
    """Run FILE.py as a module of its own; if it imports relative to its package, as a part of that, below `root`."""
    # A prefixed module name: a file called json.py must not replace the standard library's json.
    import_name = f"bnn_deploy_arch_{path.stem}"
    spec = importlib.util.spec_from_file_location(import_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[import_name] = module  # dataclasses, for one, look the module up here
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        if "relative import" not in str(error) or root == path.resolve().parent:
            raise
        parts = path.resolve().relative_to(root).with_suffix("").parts
        module = importlib.import_module(".".join(parts))
        if Path(module.__file__ or "").resolve() != path.resolve():
            raise ImportError(f"the name {'.'.join(parts)} is that of {module.__file__}, too") from error
    return module


def _makes_networks(name: str, value: object, module: ModuleType) -> bool:
    """Whether a name of a file is one that --arch takes: a class of its networks, or a public function of its own."""
    if isinstance(value, type):
        return issubclass(value, nn.Module)
    own = isinstance(value, FunctionType) and value.__module__ == module.__name__ and not name.startswith("_")
    return own or isinstance(value, nn.Module)


def build(arch: str, state_dict: Mapping[str, Tensor], arch_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Build the network `arch`, a name of ARCHITECTURES or FILE.py:NAME, without weights.

    Args:
        arch: the name.
        state_dict: the weights that will be loaded; a built-in network with variants chooses one by them.
        arch_args: keyword arguments of the class or function.

    Raises:
        InputError: the name is unknown, or nothing can be made with `arch_args`, or without arguments, or what is made
            is no torch.nn.Module.
    """
    if arch in ARCHITECTURES:
        found: Callable[..., Any] = ARCHITECTURES[arch]
    elif ":" in arch:
        found = load_named(arch)
    else:
        raise InputError(f"unknown architecture '{arch}': choose {', '.join(ARCHITECTURES)}, or FILE.py:NAME")
    if isinstance(found, nn.Module) and not arch_args:
        return found
    name = getattr(found, "__name__", type(found).__name__)
    try:
        with as_script(Path(arch.rpartition(":")[0] or arch)):
            if arch_args:
                made = found(**arch_args)
            elif isinstance(found, type) and issubclass(found, Network):
                made = found.for_state_dict(dict(state_dict))
            else:
                made = found()
    except Exception as error:
        given = f"with {option('arch_args', dict(arch_args))}" if arch_args else "without arguments"
        hint = "" if arch_args or "required" not in str(error) else f"; give them with {option('arch_args')}"
        raise InputError(
            f"{option('arch', arch)}: {name}() cannot be made {given}: {type(error).__name__}: {one_line(error)}{hint}"
        ) from error
    if not isinstance(made, nn.Module):
        raise InputError(f"{option('arch', arch)}: {name}() gives a {type(made).__name__}, not a torch.nn.Module")
    return made
