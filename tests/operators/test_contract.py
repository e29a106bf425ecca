"""The table of operators is what its page, ONNX bodies and the library's registration say, too."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from bnn_deploy.operators.contract import (
    DOMAIN,
    OPERATORS,
    OPSET,
    VERSION,
    Operator,
    holds_bits,
    is_layer,
    operator_of,
    reference,
    table,
)
from bnn_deploy.runtime.session import load_session
from support.bodies import FUNCTIONS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operators.md").read_text()
ROWS = list(OPERATORS.values())


def test_the_page_is_printed_from_the_table() -> None:
    assert reference() in PAGE
    assert table([dataclasses.replace(ROWS[0], formula="another"), *ROWS[1:]]) not in PAGE


def test_bodies_are_those_of_the_rows() -> None:
    assert (DOMAIN, VERSION) == ("bnn_deploy", 1)
    found = {f.name: (f.domain, list(f.input), list(f.output), list(f.attribute), f.doc_string) for f in FUNCTIONS}
    expected = {
        row.name: (
            DOMAIN,
            [i.name for i in row.inputs],
            [o.name for o in row.outputs],
            list(row.attributes),
            row.formula,
        )
        for row in ROWS
    }
    assert found == expected and list(found) == list(OPERATORS)


def test_the_library_registers_the_rows_with_a_kernel() -> None:
    """By its source: no more than these, and what tells about itself."""
    source = (ROOT / "custom_ops" / "ort" / "register.cc").read_text()
    registered = set(re.findall(r"DefineOp<(\w+)>", source))
    assert registered == {row.name for row in ROWS if row.has_kernel} | {"LibraryInfo"}


def refusal(row: Operator) -> str:
    """Why the library, without function bodies, refuses the operator's name or the element types of its row; "" if not.

    Its inputs are no constants here, and its attributes no window: the kernel itself may well refuse the node.
    """
    kinds = {"INT": 1, "INTS": [1, 1]}
    attributes = {name: kinds[kind] for name, kind in row.attributes.items()}
    inputs = [f"in_{given.name}" for given in row.inputs]
    outputs = [f"out_{made.name}" for made in row.outputs]
    types = {
        name: helper.np_dtype_to_tensor_dtype(np.dtype(given.dtype))
        for name, given in zip(inputs, row.inputs, strict=True)
    }
    types |= {
        name: TensorProto.FLOAT if made.content == "floats" else TensorProto.UINT32
        for name, made in zip(outputs, row.outputs, strict=True)
    }
    graph = helper.make_graph(
        [helper.make_node(row.name, inputs, outputs, domain=DOMAIN, name="node", **attributes)],
        "one_node",
        [helper.make_tensor_value_info(name, types[name], None) for name in inputs],
        [helper.make_tensor_value_info(name, types[name], None) for name in outputs],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    try:
        load_session(model.SerializeToString())
    except Exception as error:  # onnxruntime's exception types are not public
        text = str(error)
        about_types = ("Type Error", "type inference", "is not a registered", "does not match", "expected to have type")
        return text if any(words in text for words in about_types) else ""
    return ""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_library_knows_the_row(row: Operator) -> None:
    assert (refusal(row) == "") == row.has_kernel
    # What it would say of others.
    assert "is not a registered" in refusal(dataclasses.replace(row, name="BinaryNothing"))
    if row.has_kernel:
        first = dataclasses.replace(row.inputs[0], dtype="float64")
        assert "Type" in refusal(dataclasses.replace(row, inputs=(first, *row.inputs[1:])))


def test_questions_on_nodes() -> None:
    residual = helper.make_node("BinaryConvResidual", [], [], domain=DOMAIN)
    assert [holds_bits(residual, i) for i in (0, 1)] == [False, True] and is_layer(residual)
    foreign = helper.make_node("BinaryConvResidual", [], [], domain="other")
    assert operator_of(foreign) is None and not holds_bits(foreign, 1) and not is_layer(foreign)
    assert is_layer(helper.make_node("Conv", [], [])) and not is_layer(helper.make_node("Relu", [], []))
