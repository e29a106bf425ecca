"""Damaged files at every door: whatever their reader raises becomes one line that names the file, exit code 2."""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import ModelProto, TensorProto

from bnn_deploy.architectures import LeNet5
from bnn_deploy.board.archive import check_bundle
from bnn_deploy.cli import main
from bnn_deploy.errors import BnnDeployError, InputError, SetupError, reading
from bnn_deploy.inspection import inspect_model
from bnn_deploy.proof.golden.record import read_golden
from bnn_deploy.runtime.inputs import InputSpec, load_data, random_feed
from bnn_deploy.source.checkpoint import load_module, state_dicts
from refusals import EXPORTS, darknet, network
from support.small_models import save_binary


def npy(header: str) -> bytes:
    """A .npy file with this header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64)


def npz(change: Callable[[bytearray], None] = lambda content: None, **arrays: Any) -> bytes:
    """A .npz file, changed."""
    buffer = io.BytesIO()
    np.savez(buffer, **(arrays or {"x": np.zeros((2, 3), np.float32)}))
    content = bytearray(buffer.getvalue())
    change(content)
    return bytes(content)


def at(place: int, *values: int) -> Callable[[bytearray], None]:
    """Change bytes, counted from the only entry of the archive's directory."""

    def change(content: bytearray) -> None:
        start = content.rindex(b"PK\x01\x02") + place
        content[start : start + len(values)] = bytes(values)

    return change


ARRAYS = {
    "no end of a bracket": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,\n"),
    "more than all memory": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }\n"),
    "a size beyond 64 bits": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }\n"),
    "nested brackets": npy("[" * 9000 + "\n"),
    "encrypted": npz(at(8, 1, 0)),
    "an unknown compression": npz(at(10, 99, 0)),
    "LZMA that is none": npz(at(10, 14, 0)),
    "a later version of zip": npz(at(6, 99, 0)),
}


def test_an_entry_that_is_no_array(tmp_path: Path) -> None:
    """numpy gives its bytes."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x", "text")
    with pytest.raises(InputError, match=r"x\.npz: its entry 'x' is no array$"):
        load_data(tmp_path / "x.npz", None, None, [InputSpec("x", "float32", ("N", 3))])


META = {"format": 2, "model_sha256": "", "inputs": [], "outputs": [], "made_with": {}, "tensors": [], "floats": []}
GOLDEN = {
    "nested brackets": npz(meta=np.frombuffer(b"[" * 90_000, np.uint8)),
    "other types": npz(meta=np.frombuffer(json.dumps(META | {"tensors": [{"tensor": 1}]}).encode(), np.uint8)),
    "a number without end": npz(meta=np.frombuffer(b'{"format": ' + b"9" * 5000 + b"}", np.uint8)),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays(case: str, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(ARRAYS[case])
    with pytest.raises(InputError, match=r"x\.npz: not a \.npy or \.npz file of plain arrays \(\w+.*: .+\)$"):
        load_data(tmp_path / "x.npz", None, None, [InputSpec("x", "float32", ("N", 3))])


@pytest.mark.parametrize(
    "content", [*ARRAYS.values(), *GOLDEN.values()], ids=[*ARRAYS, *(f"meta: {k}" for k in GOLDEN)]
)
def test_golden_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "golden.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"golden\.npz: not a golden file, or a damaged one \(.+\)$"):
        read_golden(tmp_path / "golden.npz")


def legacy(content: bytes) -> bytes:
    """A checkpoint of an old PyTorch with this pickle in it."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    return magic + pickle.dumps({"little_endian": True}, 2) + content


def cyclic() -> dict[str, Any]:
    """A dict that holds itself."""
    found: dict[str, Any] = {"weight": torch.zeros(1)}
    found["own"] = {"a": found, "b": torch.zeros(1)}
    return found


def saved(value: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


CHECKPOINTS: dict[str, bytes] = {
    "an empty stack": legacy(b"\x80\x02" + b"0" * 3 + b"."),
    "a cut number": legacy(b"\x80\x02J\x01."),
    "a mark that is not there": legacy(b"\x80\x02t."),
    "a set item of none": legacy(b"\x80\x02NK\x01K\x02s."),
    "a persistent id that is none": legacy(b"\x80\x02K\x01Q."),
    "a tensor made of nothing": legacy(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R."),
    "a dict that holds itself": saved(cyclic()),
    "an encrypted archive": npz(at(8, 1, 0)),
    "lengths of safetensors": struct.pack("<Q", 50) + b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0]}}',
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(case: str, tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(CHECKPOINTS[case])
    with pytest.raises(InputError, match=rf"^{tmp_path}/c\.pt: [^\n]+$"):
        state_dicts(tmp_path / "c.pt")


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(50, device="meta"),
        torch.zeros(50).to_sparse(),
        torch.zeros(50, dtype=torch.complex64),
    ],
    ids=["meta", "sparse", "complex"],
)
def test_tensors_of_other_kinds(value: Any, tmp_path: Path) -> None:
    """They load, or are refused by name."""
    torch.save(LeNet5().state_dict() | {"bin_conv2.bn.running_var": value}, tmp_path / "c.pt")
    try:
        load_module(tmp_path / "c.pt", "lenet5")
    except InputError as error:
        assert "c.pt: " in str(error)


def flipped(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, near the ends or anywhere."""
    result = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.choice((rng.randrange(400), len(result) - 1 - rng.randrange(400), rng.randrange(len(result))))
        result[place % len(result)] = rng.randrange(256)
    return bytes(result)


def test_any_bytes(tmp_path: Path) -> None:
    """Each door with files damaged at random: they are read, or refused by name on one line."""
    rng, path = random.Random(0), tmp_path / "x"
    model = network().SerializeToString()
    state = saved({"a.weight": torch.zeros(4, 3), "a.bias": torch.zeros(4)})
    doors: list[tuple[bytes, Callable[[], object]]] = [
        (npz(), lambda: load_data(path, None, None, [InputSpec("x", "float32", ("N", 3))])),
        (npz(meta=np.frombuffer(json.dumps(META).encode(), np.uint8)), lambda: read_golden(path)),
        (state, lambda: state_dicts(path)),
        (model, lambda: inspect_model(path)),
        (model[:200], lambda: check_bundle(path)),
    ]
    read = dict.fromkeys(range(len(doors)), 0)
    for index, (content, door) in enumerate(doors):
        for _ in range(100):
            path.write_bytes(flipped(content, rng))
            try:
                door()
                read[index] += 1
            except BnnDeployError as error:
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert 0 < read[0] < 100 and 0 < read[2] < 100 and 0 < read[3] < 100


def element(number: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.graph.initializer[0].data_type = number

    return change


def dims(*sizes: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.graph.initializer[0].dims[:] = sizes

    return change


GRAPHS: dict[str, Callable[[ModelProto], None]] = {
    "an unknown type of element": element(99),
    "another type of element": element(TensorProto.DOUBLE),
    "texts for numbers": element(TensorProto.STRING),
    "other dims": dims(5, 3, 3, 4),
    "dims below 0": dims(-5, -3, 3, 3),
    "dims beyond 64 bits": dims(2**40, 2**40, 3, 3),
}


@pytest.mark.parametrize("command", ["convert", "inspect"])
@pytest.mark.parametrize("case", GRAPHS)
def test_graphs_whose_initializers_lie(command: str, case: str, tmp_path: Path) -> None:
    model = network()
    GRAPHS[case](model)
    onnx.save(model, tmp_path / "f.onnx")
    more = ["-o", str(tmp_path / "m.onnx")] if command == "convert" else []
    result = CliRunner().invoke(main, [command, str(tmp_path / "f.onnx"), *more])
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and line.startswith(f"error: {tmp_path}/f.onnx: "), line
    assert [path.name for path in tmp_path.iterdir()] == ["f.onnx"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    content = network().SerializeToString().replace(b"Sign", b"\xffign")
    (tmp_path / "f.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"f\.onnx: not a valid ONNX model"):
        inspect_model(tmp_path / "f.onnx")
    source = tmp_path / "f\udcff.onnx"
    onnx.save(network(), source)
    with pytest.raises(InputError, match=r"its name is not UTF-8, .*: rename it"):
        inspect_model(source)
    for more in ([], ["--json"]):
        result = CliRunner().invoke(main, ["convert", str(source), "-o", str(tmp_path / "m\udcff.onnx"), *more])
        assert (result.exit_code, result.stderr) == (0, "")
        assert r"m\udcff.onnx" in result.stdout


@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_texts_in_models_that_are_not_utf8(command: str, tmp_path: Path) -> None:
    """Protobuf takes them; onnx-ir then left the initializers among the inputs, and convert said "internal error"."""
    model = network()
    model.graph.node[0].name = "a name"
    (tmp_path / "f.onnx").write_bytes(model.SerializeToString().replace(b"a name", b"a \xffame"))
    more = ["-o", str(tmp_path / "m.onnx")] if command == "convert" else []
    result = CliRunner().invoke(main, [command, str(tmp_path / "f.onnx"), *more])
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2
    assert line == f"error: {tmp_path}/f.onnx: not a valid ONNX model: its name b'a \\xffame' is not UTF-8"


@pytest.mark.parametrize(
    ("size", "said"),
    [(-5, "no size is negative|give data, to say how large"), (2**62, "at most [0-9,]+ numbers are made")],
)
@pytest.mark.parametrize("command", ["profile", "verify"])
def test_sizes_of_which_no_random_input_is_made(command: str, size: int, said: str, tmp_path: Path) -> None:
    """A model's sizes may lie: refused before memory is asked for."""
    model = onnx.load(save_binary(tmp_path / "m.onnx"))
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = size
    onnx.save(model, tmp_path / "m.onnx")
    more = ["--against", "x.onnx"] if command == "verify" else []
    result = CliRunner().invoke(main, [command, str(tmp_path / "m.onnx"), *more])
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and line.startswith("error: ") and re.search(said, line), line
    with pytest.raises(InputError, match=said):
        random_feed([InputSpec("x", "float32", (1, 3, size, size))], 1)  # as convert does


def test_an_error_is_one_line_whatever_the_names() -> None:
    assert str(InputError("member 'a\nb\r\nc' is a link")) == "member 'a b c' is a link"


def test_names_that_are_too_long(tmp_path: Path) -> None:
    for name in ("a" * 300 + ".onnx", "a" * 300 + ".cfg", "a" * 300):
        more = ["--darknet-weights", "w"] if ".cfg" in name else [] if "." in name else ["--arch", "lenet5"]
        result = CliRunner().invoke(main, ["convert", name, "-o", str(tmp_path / "m.onnx"), *more])
        assert (result.exit_code, result.stderr) == (2, f"error: {name}: no such file\n")


@pytest.mark.parametrize("value", ["9" * 5000, "1e400", "99999999999999999999", "-1", "nan"])
@pytest.mark.parametrize("key", ["filters", "size", "stride", "width"])
def test_numbers_of_a_cfg_file(key: str, value: str, tmp_path: Path) -> None:
    text = (EXPORTS / "darknet_classifier.cfg").read_text()
    line = next(line for line in text.splitlines() if line.startswith(f"{key}="))
    arguments = darknet(lambda cfg, weights: (cfg.replace(line, f"{key}={value}", 1), weights))(tmp_path)
    result = CliRunner().invoke(main, ["convert", *map(str, arguments), "-o", str(tmp_path / "m.onnx")])
    (error,) = result.stderr.splitlines()
    assert result.exit_code == 2 and error.startswith(f"error: {tmp_path}/net.") and len(error) < 500


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_arch_args(text: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["convert", "c.pt", "--arch", "nin", "--arch-args", text, "-o", "m.onnx"])
    assert result.exit_code == 2 and result.stderr.startswith("error: --arch-args ") and ": not JSON (" in result.stderr
    assert len(result.stderr) < 600


def test_the_door_keeps_what_says_itself_what_to_do() -> None:
    with pytest.raises(SetupError, match=r"^no$"), reading("f", "damaged"):
        raise SetupError("no")
    with pytest.raises(InputError, match=r"^f: damaged \(BadZipFile: a b\)$"), reading("f", "damaged"):
        raise zipfile.BadZipFile("a\nb")
