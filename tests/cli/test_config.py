"""bnn-deploy.toml: every option of the commands as a key, checked by click, with errors that name file and line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from bnn_deploy.cli import main
from support.golden_files import BEST
from support.schemas import misfits
from support.user_network import times_run, write_network

CONFIG = """
source = "net.pth"
model = "net.onnx"
arch = "net.py:Net"
float = "net_float.onnx"
data = "x.npy"

[convert]
arch_args = {width = 8}
input-shape = [3, 8, 8]
classes = ["cat", "dog, small", "2", "3", "4", "5", "6", "7", "8", "9"]
output_names = ["logits"]
mean = [0.5, 0.4, 0.3]
size = 8

[verify]
isa = ["ISA"]
reference-samples = 1

[profile]
runs = 2
""".replace("ISA", BEST[0])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network, data and a bnn-deploy.toml; the current one."""
    write_network(tmp_path)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32))
    (tmp_path / "bnn-deploy.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_file_for_all_commands(folder: Path) -> None:
    made = run("convert")
    assert made.exit_code == 0, made.output
    assert "options from bnn-deploy.toml: arch, convert.arch_args, convert.classes, convert.input-shape" in made.stderr
    proto = onnx.load("net.onnx")
    kept = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(kept["bnn_deploy.classes"])[:2] == ["cat", "dog, small"]
    assert json.loads(kept["bnn_deploy.preprocessing"])["mean"] == [0.5, 0.4, 0.3]
    assert [value.name for value in proto.graph.output] == ["logits"]
    verified = run("verify")
    assert verified.exit_code == 0 and "4 samples: x.npy" in verified.stdout, verified.output
    profiled = run("profile", "--json")
    report = json.loads(profiled.stdout)
    assert report["runs"] == 2 and report["compare"][0]["path"] == "net_float.onnx" and report["data"] == "x.npy"
    # What is typed comes first.
    assert json.loads(run("profile", "--json", "--runs", "3").stdout)["runs"] == 3
    # And then the file is not asked for it.
    Path("bnn-deploy.toml").write_text('model = "none.onnx"\n[profile]\nruns = 0\n')
    typed = run("profile", "net.onnx", "--runs", "2", "--json")
    assert (typed.exit_code, typed.stderr) == (0, ""), typed.output
    assert run("profile", "net.onnx").stderr.startswith("error: bnn-deploy.toml, line 3: profile.runs = 0:")


def test_data_in_a_folder_is_for_all_commands(folder: Path) -> None:
    """`data` at the top is the option of each command: all of them read the same kinds of data."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 10, 3), np.uint8)
    for name, image in zip(("cat", "dog, small"), pixels, strict=True):
        (folder / "images" / name).mkdir(parents=True)
        Image.fromarray(image).save(folder / "images" / name / "1.png")
    text = CONFIG.replace('"x.npy"', '"images"').replace("size = 8", "size = 8\ncrop = 8\nstd = 0.2")
    Path("bnn-deploy.toml").write_text(text)
    results = json.loads(run("run", "--json").stdout)
    assert results["verification"]["samples"] == 2 and results["verification"]["passed"] is True
    assert results["profile"]["data"] == "images"


def test_from_another_folder(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are relative to the file; a file in a folder that is not the current one is read only if it is named."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    result = run("convert", "--config", folder / "bnn-deploy.toml")
    assert result.exit_code == 0 and (folder / "net.onnx").is_file() and list(Path().iterdir()) == [], result.output
    (folder / "net.onnx").unlink()
    before = times_run(folder)
    assert run("convert").exit_code == 2 and times_run(folder) == before


def test_run_does_everything_and_can_be_repeated(folder: Path) -> None:
    first = run("run")
    assert first.exit_code == 0, first.output
    for name in ("convert", "verify", "profile"):
        assert f"$ bnn-deploy {name} --config bnn-deploy.toml" in first.stdout
    assert "PASSED" in first.stdout
    content = Path("net.onnx").read_bytes()
    second = run("run", "--json")
    results = json.loads(second.stdout)
    assert second.exit_code == 0 and results["format"] == "bnn-deploy record" and misfits(results) == []
    assert results["verification"]["passed"] is True and results["profile"]["runs"] == 2
    assert len(results["conversion"]["layers"]) == 2
    assert Path("net.onnx").read_bytes() == content


def test_run_makes_a_page(folder: Path) -> None:
    Path("bnn-deploy.toml").write_text(CONFIG + '[report]\noutput = "net.html"\n')
    result = run("run", "--quiet")
    assert result.exit_code == 0 and "wrote net.html" in result.stdout, result.output
    page = Path("net.html").read_text()
    assert "Equivalent: the model computes what its source computes." in page and "second" in page


def test_run_stops_at_the_first_failure_with_its_code(folder: Path) -> None:
    text = CONFIG.replace("[verify]", "[verify]\nmin-agreement = 2.0")
    Path("bnn-deploy.toml").write_text(text)
    result = run("run")
    assert result.exit_code == 2 and "$ bnn-deploy profile" not in result.stdout
    Path("bnn-deploy.toml").write_text(CONFIG.replace("net.pth", "absent.pth"))
    result = run("run")
    assert result.exit_code == 2 and result.stderr.splitlines()[-1] == "error: absent.pth: no such file"
    assert "$ bnn-deploy verify" not in result.stdout


def test_a_failed_proof_ends_run_with_1(folder: Path) -> None:
    assert run("run").exit_code == 0
    other = CONFIG.replace("[verify]", '[verify]\nagainst = "other.pth"')
    Path("bnn-deploy.toml").write_text(other)
    import torch

    state = torch.load("net.pth")
    state["second.weight"] = -state["second.weight"]
    torch.save(state, "other.pth")
    result = run("run")
    assert result.exit_code == 1 and "FAILED" in result.stdout and "$ bnn-deploy profile" not in result.stdout


def test_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("run").stderr == "error: bnn-deploy.toml: no such file\n"
    Path("bnn-deploy.toml").write_text('model = "m.onnx"\n')
    result = run("run")
    assert result.exit_code == 2 and "bnn-deploy.toml: it has no key source: source = " in result.stderr
    Path("bnn-deploy.toml").write_text('source = "net.pth"\nmodel = "m.onnx"\n[report]\noutput = 3\n')
    assert run("run").stderr == "error: bnn-deploy.toml: report.output = 3: give the name of the page to write\n"
    Path("bnn-deploy.toml").write_text('source = "net.pth"\nmodel = "m.onnx"\n[report]\noutput = "net.pth"\n')
    assert run("run").stderr == "error: net.pth is the source itself: choose another name for the output\n"


WRONG = {
    "no TOML": (
        "model = \n",
        "bnn-deploy.toml: not a TOML file (TOMLDecodeError: Invalid value (at line 1, ",
    ),
    "an unknown key": (
        '\nmodle = "m.onnx"\n',
        "line 2: the top has no key 'modle'; it may have against, ansible, app, app_options, arch, ",
    ),
    "an unknown key of a table": ("[profile]\n\nrun = 3\n", "line 3: [profile] has no key 'run'; it may have "),
    "an unknown table": (
        "model = 'm'\n[deploy]\nx = 1\n",
        "line 3: there is no table [deploy]; tables are convert, ",
    ),
    "a word for a number": (
        '[profile]\nruns = "many"\n',
        "line 2: profile.runs = 'many': 'many' is not a valid integer",
    ),
    "a number out of range": ("[profile]\nruns = 0\n", "line 2: profile.runs = 0: 0 is not in the range x>=1"),
    "a wrong choice": (
        '[convert]\nweights = "xnro"\n[profile]\nruns = 1\n',
        "line 2: convert.weights = 'xnro': 'xnro' is not one of 'auto', 'xnor', 'xnor-centred', 'sign', 'as-is'",
    ),
    "a word for a flag": ('[convert]\nstrict = "yes"\n', "line 2: convert.strict = 'yes': give true or false"),
    "a flag for a word": ("data = true\n", "line 1: data = True: give a text or a number"),
    "an empty table": ("[convert.weights]\n", "convert.weights = {}: '{}' is not one of 'auto'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_file_line_and_value(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, message = WRONG[case]
    Path("bnn-deploy.toml").write_text(text)
    name = "convert" if "convert" in text else "profile"
    result = run(name, "m.onnx", *(["-o", "o.onnx"] if name == "convert" else []))
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: bnn-deploy.toml") and message in line
