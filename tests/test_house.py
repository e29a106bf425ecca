"""The rooms of the package: what each may import, and that no other room is reached from it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bnn_deploy

PACKAGE = Path(bnn_deploy.__file__).parent

BASE = {
    "errors",
    "file_kind",
    "files",
    "image_input",
    "installation",
    "json_form",
    "kept",
    "notebook",
    "preprocessing",
    "progress",
    "provenance",
    "quantities",
    "system",
}
"""What every room may import; they themselves import nothing of the package but each other."""

ROOMS: dict[str, set[str]] = {
    **dict.fromkeys(BASE, BASE),
    "operators": BASE,
    "training": BASE,
    "architectures": BASE | {"training"},
    "passes": BASE | {"operators"},
    "source": BASE | {"operators", "passes", "architectures", "training"},
    "report": BASE | {"operators", "passes", "source"},
    "conversion": BASE | {"operators", "passes", "source", "report", "architectures", "runtime", "proof"},
    "inspection": BASE | {"operators"},
    "data": BASE,
    "runtime": BASE | {"operators", "data"},
    "proof": BASE | {"operators", "data", "runtime", "source", "architectures"},
    "apps": BASE | {"data", "runtime"},
    "board": BASE | {"apps", "runtime", "proof"},
    "page": BASE,
    "cli": BASE | {"passes", "report", "conversion", "inspection", "runtime", "proof", "board", "page"},
    "__init__": BASE | {"conversion", "runtime", "proof"},
    "__main__": {"cli"},
}
"""Room -> the rooms that it may import, besides itself. Imports follow the data."""

LIBRARIES = {
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "torch",
    "google",
    "safetensors",
    "click",
    "packaging",
    "pandas",
    "platformdirs",
    "rich",
    "PIL",
    "cv2",
    "jinja2",
    "markupsafe",
    "matplotlib",
}
"""Libraries that not every room may use; numpy and the standard library are everywhere."""

HEAVY = {"onnx", "onnx_ir", "onnxscript", "torch", "google", "safetensors", "platformdirs"}
"""The extra `convert`: what a board does not have."""

ALLOWED: dict[str, set[str]] = {
    **{room: set() for room in BASE},
    "installation": {"packaging"},
    "kept": {"platformdirs"},
    "notebook": {"pandas"},  # if it is there
    "provenance": {"onnx", "onnx_ir"},  # for their types alone
    "operators": {"onnx_ir", "onnx"},
    "training": {"torch"},
    "architectures": {"torch"},
    "passes": {"onnx_ir", "onnxscript", "onnxruntime"},
    "source": {"onnx", "onnx_ir", "google", "torch", "safetensors", "onnxruntime"},
    "report": {"onnx_ir"},
    "conversion": {"onnx_ir", "torch"},
    "inspection": {"onnx", "google"},
    "data": {"PIL"},
    "runtime": {"onnxruntime"},
    "proof": HEAVY | {"onnxruntime"},
    "apps": {"onnxruntime", "cv2"},
    "board": {"packaging"},
    "page": {"jinja2", "markupsafe", "matplotlib"},  # when a page is made
    "cli": {"click", "rich", "onnxruntime", "packaging"},
    "__init__": set(),
    "__main__": set(),
}
"""Room -> the libraries of LIBRARIES that it may use, now or when a function is called."""


def imported(source: str) -> Iterator[str]:
    """The full names of all modules that a module imports, inside functions and for type checking, too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str:
    """The folder right below the package, or the module there."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def violations(room: str, source: str) -> list[str]:
    """The imports of a module of `room` that it may not have."""
    found = []
    for name in imported(source):
        library, *rest = name.split(".")
        if library == "bnn_deploy":
            target = rest[0] if rest and rest[0] in ROOMS else "__init__"
            if target not in (room, "__init__") and target not in ROOMS[room]:
                found.append(name)
        elif library in LIBRARIES and library not in ALLOWED[room]:
            found.append(name)
    return found


def test_every_room_imports_only_what_it_may() -> None:
    wrong = {
        str(path.relative_to(PACKAGE)): found
        for path in sorted(PACKAGE.rglob("*.py"))
        if (found := violations(room_of(path), path.read_text()))
    }
    assert wrong == {}


def test_the_rules_name_every_room() -> None:
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert rooms == set(ROOMS) == set(ALLOWED)


def test_a_forbidden_import_is_found() -> None:
    assert violations("runtime", "import onnx") == ["onnx"]
    assert violations("runtime", "def f():\n    from torch import nn") == ["torch.nn"]
    assert violations("passes", "from bnn_deploy.runtime.session import load_session") != []
    assert violations("proof", "from bnn_deploy import cli") == ["bnn_deploy.cli"]
    assert violations("runtime", "from bnn_deploy.errors import InputError\nimport numpy\nimport onnxruntime") == []


def loaded_by(statement: str) -> set[str]:
    """The libraries of the extras `convert` and `report` that are loaded after a statement in a new process."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return (HEAVY | ALLOWED["page"]).intersection(name.split(".")[0] for name in run.stdout.split())


def test_the_face_of_the_package_and_runtime_load_nothing_that_a_board_lacks() -> None:
    runtime = sorted(path.stem for path in (PACKAGE / "runtime").glob("*.py") if path.stem != "__init__")
    modules = ", ".join(f"bnn_deploy.runtime.{name}" for name in runtime)
    assert loaded_by(f"import bnn_deploy, {modules}; bnn_deploy.profile; bnn_deploy.verify") == set()
    assert (
        loaded_by("import bnn_deploy.proof.golden.check, bnn_deploy.board.bundle, bnn_deploy.cli.run_bundle") == set()
    )
    assert "onnx" in loaded_by("import bnn_deploy; bnn_deploy.convert")


def test_a_command_handles_ctrl_c_before_it_imports_what_takes_long() -> None:
    code = "import sys, bnn_deploy.__main__; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "onnxruntime", "click"}.intersection(run.stdout.split())


OWN_FILES = {
    "apps/folder.py": 1,  # results.jsonl, which grows by lines
    "board/deployment.py": 1,  # in a temporary folder
    "kept.py": 1,  # in the cache, in a folder that gets its name last
    "passes/layout/quantize_edges.py": 1,  # in a temporary folder
    "runtime/profiling.py": 1,  # in a temporary folder
    "source/kept_exports.py": 3,  # as kept.py
    "system.py": 1,  # into /proc
}
"""Module -> its calls that write a file past `files.write_files`, whose names no user gives."""


def test_what_users_name_is_written_by_one_function() -> None:
    """So a device, a FIFO, a link or a full disk is treated alike everywhere."""
    found: dict[str, int] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            name, given = node.func.attr, ast.unparse(node)
            # np.savez_compressed, which is slow, is for files that users get, and so writes into memory.
            saves = name.startswith("save") and given.startswith(("np.", "onnx.", "torch.", "ir."))
            opens = name == "open" and any(f"'{mode}" in given for mode in "wax")
            if (name in ("write_text", "write_bytes") or opens or saves) and "np.savez_compressed(" not in given:
                module = path.relative_to(PACKAGE).as_posix()
                found[module] = found.get(module, 0) + 1
    assert found.pop("files.py") == 2
    assert found == OWN_FILES
