"""What commands write, when they fail late, and over what was there."""

from __future__ import annotations

import json
import logging
import os
import stat
import threading
from pathlib import Path
from typing import Any

import click
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from onnx_ir.passes.common import ShapeInferencePass

from bnn_deploy.cli import COMMANDS, main
from bnn_deploy.errors import InputError
from bnn_deploy.passes.pipeline import infer_shapes
from refusals import network
from support.command_lines import Files
from support.deployment import REPORT
from support.devices import device
from support.graphs import parse


def convert(folder: Path, *more: Any) -> Result:
    onnx.save(network(), folder / "source.onnx")
    return CliRunner().invoke(main, ["convert", str(folder / "source.onnx"), *map(str, more)])


def test_convert_keeps_devices_and_links(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to("report.json")
    (tmp_path / "dev").mkdir()
    null = device(tmp_path / "dev", "null")
    result = convert(tmp_path, "-o", null, "--float", tmp_path / "f.onnx", "--report", tmp_path / "link.json")
    assert result.exit_code == 0, result.output
    assert stat.S_ISCHR(null.stat().st_mode)
    assert (tmp_path / "link.json").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"source.onnx", "f.onnx", "link.json", "report.json", "dev"}


def test_what_fails_after_the_conversion_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is given last: `convert` counts what it made before it writes it."""

    def fail(path: Path, content: bytes | None = None) -> None:
        raise InputError(f"{path}: no")

    monkeypatch.setattr("bnn_deploy.inspection.inspect_model", fail)
    result = convert(tmp_path, "-o", tmp_path / "m.onnx", "--float", tmp_path / "f.onnx")
    assert (result.exit_code, result.stderr) == (2, f"error: {tmp_path}/f.onnx: no\n")
    assert [path.name for path in tmp_path.iterdir()] == ["source.onnx"]


@pytest.mark.parametrize("opset", [21, 26])
def test_newer_opsets_and_formats_than_ours(opset: int, tmp_path: Path) -> None:
    """Both models are of a format and opset that the oldest onnxruntime takes; a format unknown to onnx is refused."""
    model = network()
    model.opset_import[0].version, model.ir_version = opset, onnx.IR_VERSION
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "source.onnx")
    arguments = ["convert", str(tmp_path / "source.onnx"), "-o", str(tmp_path / "m.onnx")]
    result = CliRunner().invoke(main, [*arguments, "--float", str(tmp_path / "f.onnx")])
    assert result.exit_code == 0, result.output
    for name in ("m.onnx", "f.onnx"):
        written = onnx.load(tmp_path / name)
        assert (written.ir_version, written.opset_import[0].version) == (10, 20)
        (tmp_path / name).unlink()
    model.ir_version = 99
    onnx.save(model, tmp_path / "source.onnx")
    result = CliRunner().invoke(main, arguments)
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and line.startswith(f"error: {tmp_path}/source.onnx: ") and "ir_version 99" in line
    assert [path.name for path in tmp_path.iterdir()] == ["source.onnx"]


def test_a_network_without_layers_has_a_reason(tmp_path: Path) -> None:
    onnx.save(ir.to_proto(parse("y = Relu(x)")), tmp_path / "source.onnx")
    result = CliRunner().invoke(main, ["convert", str(tmp_path / "source.onnx"), "-o", str(tmp_path / "m.onnx")])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "is binary: it has no convolution and no linear layer that a pass knows; --report" in result.stderr


def test_what_libraries_log_stays_off_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnx-ir logs the traceback of a shape inference that failed, and goes on without it."""
    model = parse("a = Relu(x)\ny = Relu(a)")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no inference")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", fail)
    logged = logging.getLogger("onnx_ir")
    records = list[logging.LogRecord]()
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logged.addHandler(handler)
    try:
        ShapeInferencePass()(model)
        assert records
        records.clear()
        model.graph.node(0).outputs[0].shape = None
        infer_shapes(model)
        assert not records
    finally:
        logged.removeHandler(handler)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    full = device(tmp_path / "dev", "full")
    result = convert(tmp_path, "-o", full, "--float", tmp_path / "f.onnx")
    assert (result.exit_code, result.stderr) == (3, f"error: {full}: No space left on device\n")
    assert {path.name for path in tmp_path.iterdir()} == {"source.onnx", "dev"}
    assert stat.S_ISCHR(full.stat().st_mode)


OUTPUTS: dict[str, dict[str, str]] = {
    "convert": {"-o": "m.onnx", "--float": "f.onnx", "--web": "w.onnx", "--report": "r.json"},
    "verify": {"--junit": "v.xml", "--html": "v.html"},
    "verify --golden": {"--junit": "v.xml", "--html": "v.html"},
    "profile": {"--trace": "t.json", "--html": "p.html"},
    "report": {"-o": "r.html"},
    "bundle": {"-o": "b.tar.gz"},
    "run-bundle": {"--report": "r.json"},
}
"""Command -> its options that name a file to write -> a name. The files of the demo are read by it again."""


def with_outputs(files: Files, case: str) -> list[str]:
    """The command with all its outputs, in the folder for them."""
    words = [str(word) for word in files.commands[case]]
    for option, name in OUTPUTS[case].items():
        if option not in words:
            words += [option, str(files.out / name)]
    return words


@pytest.mark.parametrize("case", OUTPUTS)
def test_every_output_may_be_a_link_or_a_fifo(case: str, given: Path, tmp_path: Path) -> None:
    """The first is a FIFO, and the others are links to files that are not there."""
    fifo, *links = [tmp_path / name for name in OUTPUTS[case].values()]
    os.mkfifo(fifo)
    for link in links:
        link.symlink_to(f"real.{link.name}")
    read = list[bytes]()
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()), daemon=True)
    reader.start()
    result = CliRunner().invoke(main, with_outputs(Files(given, tmp_path), case))
    assert result.exit_code == 0, result.output
    reader.join(10)
    assert read and read[0] and stat.S_ISFIFO(fifo.lstat().st_mode)
    for link in links:
        assert link.is_symlink() and (tmp_path / f"real.{link.name}").stat().st_size > 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *OUTPUTS[case].values(),
        *(f"real.{link.name}" for link in links),
    }


def test_every_option_that_names_an_output_is_here() -> None:
    """By what the help says; the page of the demo is that of the others, and a playbook is a folder."""
    said = set()
    for name in COMMANDS.keys() - {"demo"}:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        said |= {
            (name, option.opts[0])
            for option in command.params
            if isinstance(option, click.Option) and option.metavar and "write" in (option.help or "").lower()
        }
    here = {(case.split()[0], option) for case, options in OUTPUTS.items() for option in options}
    assert said == here | {("bundle", "--ansible"), ("fleet", "-o")}


def test_the_page_of_a_fleet_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "board.json").write_text(json.dumps(REPORT))
    (tmp_path / "fleet.html").symlink_to("real.html")
    result = CliRunner().invoke(main, ["fleet", str(tmp_path / "reports"), "-o", str(tmp_path / "fleet.html")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "fleet.html").is_symlink() and (tmp_path / "real.html").stat().st_size > 0


def test_the_demo_follows_links(given: Path, tmp_path: Path) -> None:
    names = ("larq_alpha.onnx", "larq_alpha_float.onnx")
    for name in names:
        (tmp_path / name).symlink_to(f"real.{name}")
    result = CliRunner().invoke(main, [str(word) for word in Files(given, tmp_path).commands["demo"]])
    assert result.exit_code == 0, result.output
    for name in names:
        assert (tmp_path / name).is_symlink() and (tmp_path / f"real.{name}").stat().st_size > 0
