"""The page as HTML: what is on it, what a record lacks, and that nothing from a file becomes part of its code."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bnn_deploy.errors import InputError
from bnn_deploy.page.record import RECORD_PARTS
from bnn_deploy.page.render import render
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.golden.record import write_golden
from support.converted import Converted
from support.pages import HOSTILE, Elements, loads, run, with_hostile_texts

Made = tuple[dict[str, Any], Path]


def page(record: dict[str, Any]) -> str:
    return render(record, "record.json").decode()


def test_the_page_says_what_came_out(record: Made) -> None:
    found, file = record
    text = file.read_text()
    assert text == page(found)
    output, shown = found["verification"]["outputs"][1], "".join(Elements(text).texts)
    for expected in (
        "Equivalent: the model computes what its source computes.",
        f"{100 * output['correct'] / output['samples']:.2f} %",
        "bin_conv2.conv",
        found["sha256"],
        found["runs"][0]["command"],
        f"onnxruntime {found['runs'][0]['versions']['onnxruntime']}",
    ):
        assert expected in shown
    ids = {attributes.get("id") for _, attributes in Elements(text).found}
    assert ids >= {"network", "layers", "outputs", "waterfall", "became"}


def test_the_page_is_whole_html_and_asks_for_nothing(record: Made) -> None:
    text = record[1].read_text()
    elements = Elements(text)
    assert elements.open == [] and elements.found[0][0] == "html"
    assert loads(elements) == []
    assert "http:" not in text and "https:" not in text
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_page_that_asks_for_something_is_found() -> None:
    for text in ('<img src="a.png">', "<p style=\"background: url('b')\"></p>", "<script></script>"):
        assert len(loads(Elements(f"<p>{text}</p>"))) == 1


def test_nothing_from_a_file_becomes_code(record: Made) -> None:
    found = record[0]
    hostile = with_hostile_texts(found) | {"sha256": found["sha256"]}
    hostile["model"]["metadata"][HOSTILE] = HOSTILE
    sample = next(iter(hostile["verification"]["pictures"]))
    hostile["verification"]["pictures"] |= {sample: HOSTILE}
    elements, plain = Elements(page(hostile)), Elements(page(found))
    assert {tag for tag, _ in elements.found} == {tag for tag, _ in plain.found}
    assert loads(elements) == []
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    assert f"bin_conv2.conv{HOSTILE}" in "".join(elements.texts)


@pytest.mark.parametrize("part", [name for name in RECORD_PARTS if name != "golden"])
def test_a_part_alone_makes_a_page(record: Made, part: str) -> None:
    text = page({**record[0], **{name: None for name in RECORD_PARTS if name != part}})
    elements = Elements(text)
    assert elements.open == [] and loads(elements) == []
    assert ("Equivalent" in text, "Not verified" in text) == (
        (True, False) if part == "verification" else (False, True)
    )
    assert "Not in this report, and how to add it:" in text


def test_the_golden_results_of_a_board(board: tuple[Any, str]) -> None:
    text = board[1]
    assert "The board computes, bit by bit, what the machine that made the bundle computed." in text
    assert "bin_conv2.conv" in text and Elements(text).open == []


def test_without_a_part_the_page_says_how_to_add_it(record: Made) -> None:
    text = page({**record[0], "verification": None, "profile": None})
    assert "bnn-deploy report lenet5.onnx --against SOURCE --data FILE -o FILE.html" in text
    assert "bnn-deploy report lenet5.onnx --compare FLOAT.onnx -o FILE.html" in text
    assert "Not in this report" not in page(record[0])
    spaced = copy.deepcopy(record[0]) | {"profile": None}
    spaced["model"]["path"] = "a folder/my net.onnx"
    command = "bnn-deploy report 'my net.onnx' --compare FLOAT.onnx -o FILE.html"
    assert command in Elements(page(spaced)).texts


def test_a_failed_proof_is_said_first(record: Made) -> None:
    found = copy.deepcopy(record[0])
    proof = found["verification"]
    proof["layers"][1]["passed"] = False
    proof |= {"passed": False, "failures": ["layer 'bin_conv2.conv': 3 of 9 bits differ"]}
    text = page(found)
    assert "Not equivalent: verify FAILED." in text
    assert proof["failures"][0] in Elements(text).texts
    assert text.index("Not equivalent") < text.index("bits differ") < text.index('id="network"')
    assert '<span class="state bad">FAILED</span>' in text
    assert '<span class="state bad">' not in page(record[0])


@pytest.fixture(scope="module")
def board(lenet5: Converted, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The golden results of LeNet-5, checked: the part of a record, and the page of it."""
    folder = tmp_path_factory.mktemp("board")
    write_golden(make_golden(lenet5.model, samples=2), folder / "golden.npz")
    text = run("verify", lenet5.model, "--golden", folder / "golden.npz", "--html", folder / "x.html", "--json")
    return json.loads(text), (folder / "x.html").read_text()


def test_what_fails_on_the_board_is_not_hidden_by_what_passed_here(record: Made, board: tuple[Any, str]) -> None:
    """Nor the other way round."""
    both = {**record[0], "golden": board[0]}
    assert "Equivalent: the model computes" in page(both)
    failed = {**board[0], "passed": False, "failures": ["layer 'conv1': 3 bits differ"]}
    text = page({**both, "golden": failed})
    assert "Equivalent: " not in text and "The board does not compute what the machine" in text
    assert failed["failures"][0] in Elements(text).texts
    proof = {**both["verification"], "passed": False, "failures": ["no"]}
    assert "Not equivalent: verify FAILED." in page({**both, "verification": proof})


def test_an_interrupted_proof_does_not_say_that_the_model_is_another(record: Made) -> None:
    proof = {**record[0]["verification"], "interrupted": True, "passed": False, "failures": ["it was interrupted"]}
    text = page({**record[0], "verification": proof})
    assert "Not verified to the end" in text and "quivalent" not in text and "it was interrupted" in text


def test_what_it_is_compared_with_is_named(record: Made) -> None:
    """The first compared model may be any; the float model is only what the conversion says that it is."""
    found = copy.deepcopy(record[0])
    found["profile"]["compare"][0]["path"] = "folder/other.onnx"
    text = page(found)
    assert " other.onnx in onnxruntime alone, on 1 thread." in text and " than that of the float model: " in text
    text = page({**found, "conversion": None})
    assert " than that of other.onnx: " in text and "the float model:" not in text


def test_a_tolerance_of_0_has_no_histogram(record: Made) -> None:
    found = copy.deepcopy(record[0])
    for layer in found["verification"]["layers"]:
        layer["histogram"] |= {"tolerance": 0.0, "edges": [0.0] * len(layer["histogram"]["edges"])}
    assert "right of the dashed line" not in page(found) and "right of the dashed line" in page(record[0])


def rows(text: str, table: str) -> list[dict[str, str]]:
    """The cells of a table of the page by their headers; of a bar its style."""
    (found,) = re.findall(rf'<table [^>]*id="{table}".*?</table>', text, re.DOTALL)
    cell, style = (
        r'<td[^>]*data-header="([^"]*)">(.*?)</td>',
        r'<div class="bar"><i class="\w*" style="(.*?)"></i></div>',
    )
    lines = re.findall(r"<tr>(.*?)</tr>", found.partition("<tbody>")[2], re.DOTALL)
    return [{name: re.sub(style, r"\1", content) for name, content in re.findall(cell, line)} for line in lines]


def test_every_number_stands_below_its_header(record: Made) -> None:
    found = copy.deepcopy(record[0])
    outputs = found["verification"]["outputs"]
    outputs[0] |= {"samples": 40, "agreeing": 39, "same_class": 38, "max_error": 0.25, "correct": 10}
    outputs[0] |= {"reference_correct": 20, "correct_top5": 30, "reference_correct_top5": 36}
    first, second, *_ = found["profile"]["model"]["nodes"]
    first |= {"share": 0.25, "median_ms": 1.5, "gmacs_per_second": 12.0, "bound_share": 0.5}
    second |= {"share": 0.125}
    text = page(found)
    assert rows(text, "outputs")[0] == {
        "samples": "40",
        "agree": "39",
        "same class": "38",
        "largest error": "2.5e-01",
        "accuracy": "25.00 %",
        "the source&#39;s": "50.00 %",
        "top 5": "75.00 %",
        "the source&#39;s top 5": "90.00 %",
    }
    nodes = rows(text, "waterfall")
    assert [nodes[0][name] for name in ("time", "share", "GMAC/s", "of the bound")] == [
        "1.500 ms",
        "25.0 %",
        "12.0",
        "50%",
    ]
    bars = [node["from the start of a run to its end"] for node in nodes[:2]]
    assert bars == ["left: 0.000%; width: 25.000%", "left: 25.000%; width: 12.500%"]
    layers = {layer["layer"]: layer for layer in found["verification"]["layers"]}
    shown = rows(text, "layers")
    assert [row["compared"] for row in shown] == [f"{layer['values']:,}" for layer in layers.values()]
    assert [row["relative error"] for row in shown if row["relative error"]] == [
        f"{layer['relative_error']:.1e}" for layer in layers.values() if layer["kind"] == "floats"
    ]


def test_a_damaged_record_is_refused_in_one_line(record: Made) -> None:
    found = copy.deepcopy(record[0])
    del found["profile"]["model"]["nodes"]
    with pytest.raises(InputError, match=r"^x\.json: not a record that bnn-deploy wrote, or a damaged one"):
        render(found, "x.json")
