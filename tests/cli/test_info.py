"""`bnn-deploy info`: the environment, also where parts of it are missing."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version

import onnxruntime as ort
import pytest

from bnn_deploy.cli import info
from bnn_deploy.errors import SetupError
from bnn_deploy.runtime import session
from bnn_deploy.runtime.session import library_info
from support.bundles import invoke


def as_json() -> dict[str, object]:
    result = invoke("info", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_what_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNN_DEPLOY_ISA", "scalar")
    found = as_json()
    assert found["library"]["isas"] == list(library_info().isas)  # type: ignore[index]
    assert found["library"]["selected"] == "scalar"  # type: ignore[index]
    assert found["library"]["providers"] == ort.get_available_providers()  # type: ignore[index]
    assert found["environment"]["BNN_DEPLOY_ISA"] == "scalar"  # type: ignore[index]
    text = invoke("info").stdout
    for word in (ort.__version__, sys.executable, ", ".join(library_info().isas), "; scalar is used", "BNN_DEPLOY_ISA"):
        assert word in text


def test_a_library_that_is_missing_is_said_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise SetupError("the operator library is missing: reinstall")

    monkeypatch.setattr(session, "library_path", missing)
    assert as_json()["library"]["error"] == "the operator library is missing: reinstall"  # type: ignore[index]
    assert "unknown: the operator library is missing: reinstall" in invoke("info").stdout


def test_packages_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(name: str) -> str:
        if name == "torch":
            raise PackageNotFoundError(name)
        return "0.1" if name == "onnx" else version(name)

    monkeypatch.setattr(info, "version", other)
    states = {package["name"]: package["state"] for package in as_json()["packages"]}  # type: ignore[attr-defined]
    assert states["torch"] == "missing" and states["onnx"] == "does not fit" and states["numpy"] == "ok"
    assert "pytest" not in states
