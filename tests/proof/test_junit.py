"""The result of `verify` as JUnit XML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bnn_deploy.proof.golden.check import GoldenVerification
from bnn_deploy.proof.junit import junit_xml
from bnn_deploy.proof.results import LayerResult, OperatorResult, OutputResult, Tolerances, Verification
from support.converted import Converted
from support.pages import run

PASSED = Verification(
    "m.onnx",
    "f.onnx",
    "random",
    10,
    2,
    ["scalar"],
    Tolerances(),
    [OperatorResult("conv", "BinaryConv", 100, {"kernels, scalar": 0, "bodies": 0})],
    [LayerResult("conv", "y", "bits", values=100), LayerResult("fc", "z", "floats", values=10)],
    [OutputResult("kernels, scalar", samples=10, agreeing=10)],
)


def read(document: bytes) -> dict[tuple[str, str], str | None]:
    """(suite, case) -> the text of its failure, or None; the counts are checked."""
    root = ElementTree.fromstring(document)
    found = {
        (suite.get("name", ""), case.get("name", "")): case.findtext("failure")
        for suite in root
        for case in suite.iter("testcase")
    }
    for element in (root, *root):
        cases = list(element.iter("testcase"))
        counts = len(cases), sum(case.find("failure") is not None for case in cases)
        assert (int(element.get("tests", -1)), int(element.get("failures", -1))) == counts
    return found


def failed(result: Verification | GoldenVerification) -> dict[tuple[str, str], str]:
    return {case: text for case, text in read(junit_xml(result)).items() if text is not None}


def test_a_case_for_every_check() -> None:
    assert list(read(junit_xml(PASSED))) == [
        ("operators", "BinaryConv conv: kernels, scalar"),
        ("operators", "BinaryConv conv: bodies"),
        ("layers", "conv"),
        ("layers", "fc"),
        ("outputs", "kernels, scalar"),
        ("verdict", "verify m.onnx"),
    ]
    assert failed(PASSED) == {}


FAILED = {
    "an operator": (
        replace(PASSED, operators=[replace(PASSED.operators[0], differing={"bodies": 3})]),
        ("operators", "BinaryConv conv: bodies"),
        "3 of 100 values differ",
    ),
    "a layer": (
        replace(PASSED, layers=[LayerResult("conv", "y", "bits", values=9, passed=False, worst="worst at sample 3")]),
        ("layers", "conv"),
        "worst at sample 3",
    ),
    "an output": (
        replace(PASSED, outputs=[OutputResult("kernels, scalar", samples=10, agreeing=1)]),
        ("outputs", "kernels, scalar"),
        "only 1 of 10 samples agree with the reference",
    ),
    "a backend that does not run": (
        replace(PASSED, errors=["bodies: out of memory"]),
        ("verdict", "verify m.onnx"),
        "bodies: out of memory",
    ),
}


@pytest.mark.parametrize("name", FAILED)
def test_what_fails(name: str) -> None:
    result, case, text = FAILED[name]
    assert text in failed(result)[case]
    assert failed(result)[("verdict", "verify m.onnx")] == "\n".join(result.failures) != ""


def test_names_that_xml_cannot_hold() -> None:
    name = "a<b>&\"'\x00\x1b[31m\ud800\n"
    result = replace(PASSED, layers=[LayerResult(name, "y", "bits", passed=False, error=name)])
    assert ("layers", "a<b>&\"'\\x00\\x1b[31m\\ud800\n") in read(junit_xml(result))


def test_golden_results() -> None:
    result = GoldenVerification("m.onnx", "g.npz", 2, 1, [], 0.1, {}, errors=["kernels, scalar: wrong"])
    assert failed(result) == {("verdict", "verify m.onnx"): "kernels, scalar: wrong"}


def test_the_command_writes_it(lenet5: Converted, tmp_path: Path) -> None:
    written = tmp_path / "verify.xml"
    printed = run("verify", lenet5.model, "--against", lenet5.float_model, "--samples", 1, "--junit", written)
    assert printed.endswith("PASSED\n")
    found = read(written.read_bytes())
    assert ("layers", "bin_conv2.conv") in found and set(found.values()) == {None}
