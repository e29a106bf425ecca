"""The result of a verification as JUnit XML, which CI systems show: a suite per question, a case per check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from xml.etree import ElementTree

from bnn_deploy.proof.golden.check import GoldenVerification
from bnn_deploy.proof.results import Verification

Case = tuple[str, str]
"""What was checked, and why it failed, or ""."""


def junit_xml(result: Verification | GoldenVerification) -> bytes:
    """A document with the suites of a verification, UTF-8.

    The last suite has one case: the verdict, with all failures, since some, such as of a backend that does not run, are
    of no layer. So the document fails if and only if the verification does.
    """
    suites = _verification(result) if isinstance(result, Verification) else _golden(result)
    suites = {**suites, "verdict": [(f"verify {result.model}", "\n".join(result.failures))]}
    root = ElementTree.Element("testsuites", {"name": "bnn-deploy verify", **_counts(chain(*suites.values()))})
    for name, cases in suites.items():
        suite = ElementTree.SubElement(root, "testsuite", {"name": name, **_counts(cases)})
        for case, failure in cases:
            element = ElementTree.SubElement(suite, "testcase", classname=f"bnn-deploy.{name}", name=_legal(case))
            if failure:
                message = failure.splitlines()[0]
                ElementTree.SubElement(element, "failure", message=_legal(message)).text = _legal(failure)
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _counts(cases: Iterable[Case]) -> dict[str, str]:
    failures = [bool(failure) for _, failure in cases]
    return {"tests": str(len(failures)), "failures": str(sum(failures)), "errors": "0", "skipped": "0"}


def _legal(text: str) -> str:
    """`text` with the characters that XML 1.0 cannot hold, not even escaped, as Python escapes."""
    return "".join(
        c if c in "\t\n" or 0x20 <= ord(c) <= 0xD7FF or 0xE000 <= ord(c) <= 0xFFFD or ord(c) > 0xFFFF
        else c.encode("unicode_escape").decode()
        for c in text
    )  # fmt: skip


def _verification(result: Verification) -> dict[str, Sequence[Case]]:
    operators = [
        (f"{operator.op_type} {operator.node}: {backend}", f"{count} of {operator.values} values differ" * bool(count))
        for operator in result.operators
        for backend, count in operator.differing.items()
    ]
    layers = [(layer.layer, "" if layer.passed else layer.error or layer.worst) for layer in result.layers]
    outputs = [
        (f"{output.backend}{output.output and f', {output.output}'}", result.disagreement(output))
        for output in result.outputs
    ]
    return {"operators": operators, "layers": layers, "outputs": outputs}


def _golden(result: GoldenVerification) -> dict[str, Sequence[Case]]:
    floats = [(layer.layer, layer.worst) for layer in result.float_layers]
    return {"layers": [(layer.layer, layer.worst) for layer in result.layers], "layers of floats": floats}
