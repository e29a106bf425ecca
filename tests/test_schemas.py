"""The published JSON Schemas: they are those of the classes, and what the commands print fits them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from bnn_deploy.cli import COMMANDS, main
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.golden.record import write_golden
from support.bundles import DEPENDENCIES, WHEEL, fake_wheel, unpack
from support.converted import Converted
from support.pages import run
from support.schemas import FOLDER, files, misfits, schemas


def printed(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.fixture(scope="module")
def documents(lenet5: Converted, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each command prints about LeNet-5."""
    folder = tmp_path_factory.mktemp("documents")
    report = folder / "convert.json"
    found = {
        "convert": printed("convert", lenet5.float_model, "-o", folder / "m.onnx", "--report", report),
        "inspect": printed("inspect", lenet5.model),
        "verify": printed("verify", lenet5.model, "--against", lenet5.float_model, "--samples", 2),
        "profile": printed("profile", lenet5.model, "--compare", lenet5.float_model, "--runs", 3),
    }
    found["convert --report"] = json.loads(report.read_text())
    golden = folder / "golden.npz"
    write_golden(make_golden(lenet5.model, samples=2), golden)
    found["verify --golden"] = printed("verify", lenet5.model, "--golden", golden)
    for name in ("verify", "profile"):
        (folder / f"{name}.json").write_text(json.dumps(found[name]))
    found["report"] = printed("report", lenet5.model, folder / "verify.json", folder / "profile.json")
    packed, board = folder / "b.tar.gz", folder / "report.json"
    options = (
        "--target",
        "x86_64",
        "-o",
        packed,
        "--samples",
        2,
        "--wheels",
        fake_wheel(folder / "dist" / WHEEL, 62, DEPENDENCIES).parent,
    )
    found["bundle"] = printed("bundle", lenet5.model, *options)
    run("run-bundle", unpack(packed, folder), "--report", board, "--runs", 3)
    found["run-bundle --report"] = json.loads(board.read_text())
    found["info"] = printed("info")
    return found


PRINTED = [
    "convert",
    "convert --report",
    "inspect",
    "verify",
    "verify --golden",
    "profile",
    "report",
    "bundle",
    "run-bundle --report",
    "info",
]

ELSEWHERE = {
    "run": "tests/cli/test_config.py",
    "demo": "tests/cli/test_demo.py",
    "deploy": "tests/board/deployment/test_deploy.py",
    "fleet": "tests/board/deployment/test_ansible.py",
}
"""The commands whose documents other tests hold against the schemas, as they take long to run."""


@pytest.mark.parametrize("command", PRINTED)
def test_what_a_command_prints_fits_its_schema(documents: dict[str, dict[str, Any]], command: str) -> None:
    assert misfits(documents[command]) == []


def test_no_command_prints_what_has_no_schema() -> None:
    """Every command with --json is here; and every class that is printed has a schema of its own."""
    commands = {name for name in COMMANDS if any("--json" in option.opts for option in command_of(name).params)}
    assert commands == {name for name in PRINTED if " " not in name} | ELSEWHERE.keys()
    for path in ELSEWHERE.values():
        assert "misfits(" in (Path(__file__).parents[1] / path).read_text()


def command_of(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


def test_what_does_not_fit_is_found(documents: dict[str, dict[str, Any]]) -> None:
    profile = copy.deepcopy(documents["profile"])
    profile["model"]["timing"]["median_ms"] = "fast"
    del profile["isa"]
    profile["board"]["after"]["further"] = 1
    found = "\n".join(misfits(profile))
    for expected in ("'fast' is not of type", "'isa' is a required property", "'further' was unexpected"):
        assert expected in found
    assert misfits({**documents["verify"], "version": 2}) != []


def test_the_published_schemas_are_those_of_the_classes() -> None:
    now = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    expected = {path.name: content for path, content in files().items()}
    assert now == expected, "run: python -m tests.support.schemas"
    for content in expected.values():
        Draft202012Validator.check_schema(json.loads(content))


def test_every_entry_is_described() -> None:
    """As far as the docstrings of the classes say what their attributes mean."""
    schema = schemas()["verification"]
    described = {name for name, entry in schema["properties"].items() if "description" in entry}
    assert described >= {"samples", "isas", "passed", "failures"}
