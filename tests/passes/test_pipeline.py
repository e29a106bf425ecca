"""What each pass needs of its place holds in the pipeline, and a pass in a wrong place is caught."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path
from types import ModuleType

import onnx_ir as ir
import pytest

import bnn_deploy.passes
from bnn_deploy.passes import pipeline
from bnn_deploy.passes.outcome import Pass
from bnn_deploy.passes.pipeline import fold, to_binary
from support.graphs import batch_norm, parse, weights

PASSES = Path(bnn_deploy.passes.__file__).parent

TEXT = """g0 = GreaterOrEqual(x, zero)
s = Where(g0, one, minus)
d = Conv<pads=[1,1,1,1]>(s, w)
n = BatchNormalization(d, g, b, m, v)
r = Add(n, x)
t = Sign(r)
e = Conv(t, w)
q = BatchNormalization(e, g, b, m, v)
u = Sign(q)
f = Flatten(u)
y = MatMul(f, last)"""


def network() -> ir.Model:
    numbers = {name: ir.tensor(value, ir.DataType.FLOAT).numpy() for name, value in NUMBERS.items()}
    own = {"w": weights(4, 4, 3, 3), "last": weights(64, 5), **batch_norm(4)}
    return parse(TEXT, ("N", 4, 6, 6), **own, **numbers)


NUMBERS = {"zero": 0.0, "one": 1.0, "minus": -1.0}


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pass, "checked", True)


@pytest.mark.usefixtures("checked")
def test_what_each_pass_needs_holds_at_its_place() -> None:
    binary, left, _ = to_binary(network())
    assert left == []
    assert "BinaryConvResidual" in {node.op_type for node in binary.graph}


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize(
    ("group", "condition"),
    [("SIGNS", "signs_canonical"), ("BITS", "thresholds_folded"), ("FLOATS", "batch_norms_folded")],
)
def test_a_pass_before_those_it_relies_on_is_caught(
    group: str, condition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, group, ())
    if group == "SIGNS":
        monkeypatch.setattr(pipeline, "CanonicalizeSign", lambda: lambda model: None)
    with pytest.raises(ir.passes.PreconditionError, match=f"needs {condition}: "):
        to_binary(network())


@pytest.mark.usefixtures("checked")
def test_constants_have_to_be_folded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    node = ir.Node("", "Constant", [], [ir.AttrFloat32("value_float", 1.0)])
    node.outputs[0].name = "c"
    model.graph.insert_before(model.graph[0], node)
    monkeypatch.setattr(pipeline, "fold", lambda model: None)
    with pytest.raises(ir.passes.PreconditionError, match="needs constants_folded: Constant 'c' is left"):
        to_binary(model)
    fold(model)


def holds_a_pass(module: ModuleType) -> bool:
    """Whether a module defines a pass that can run."""
    own = (kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__)
    return any(issubclass(kind, Pass) and not inspect.isabstract(kind) for kind in own)


MODULES = [
    module.__name__
    for path in PASSES.glob("*/*.py")
    if holds_a_pass(module := import_module(f"bnn_deploy.passes.{path.parent.name}.{path.stem}"))
]
"""The modules that hold a pass."""


def imported_passes(text: str) -> list[str]:
    """What a module's text imports from the modules of passes."""
    return [
        alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.module in MODULES
        for alias in node.names
    ]


def test_all_passes_are_known() -> None:
    stems = {name.rpartition(".")[2] for name in MODULES}
    assert stems >= {"fold_constants", "sink_sign", "lower_levels", "unfold_stride"}
    assert len(MODULES) >= 28


@pytest.mark.parametrize("path", sorted(PASSES.glob("*/*.py")), ids=lambda path: path.stem)
def test_passes_never_import_passes(path: Path) -> None:
    assert imported_passes(path.read_text()) == []


def test_an_import_of_a_pass_is_seen() -> None:
    assert imported_passes("from bnn_deploy.passes.fuse.fuse_factor import FuseFactor") == ["FuseFactor"]
