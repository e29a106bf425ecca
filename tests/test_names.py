"""A public name at the top level of a module means one thing in the whole package."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import bnn_deploy

PACKAGE = Path(bnn_deploy.__file__).parent


def definitions(source: str) -> set[str]:
    """The public classes, type aliases and constants that a module defines at its top level."""
    found: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return {name for name in found if not name.startswith("_")}


def clashes(sources: dict[str, str]) -> dict[str, list[str]]:
    """Name -> the modules that define it, for names of more than one module."""
    modules: dict[str, list[str]] = defaultdict(list)
    for module, source in sorted(sources.items()):
        for name in definitions(source):
            modules[name].append(module)
    return {name: places for name, places in modules.items() if len(places) > 1}


def package() -> dict[str, str]:
    """Module -> its source, of the whole package."""
    return {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}


def test_no_public_class_or_constant_is_defined_twice() -> None:
    sources = package()
    assert len(sources) > 100
    assert clashes(sources) == {}


def test_a_second_definition_is_seen() -> None:
    """The names that had two meanings: a class, a constant, an annotated constant and a type alias."""
    second = "class BoardFacts: ...\nGOLDEN_FORMAT = 2\nELEMENTWISE: dict[str, int] = {}\nFloats = list[float]\n"
    found = clashes(package() | {"second.py": second})
    assert set(found) == {"BoardFacts", "GOLDEN_FORMAT", "ELEMENTWISE", "Floats"}
    assert all("second.py" in places for places in found.values())
