"""Reading and merging what the commands wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bnn_deploy.errors import InputError
from bnn_deploy.page.record import RECORD_PARTS, Run, merge, new_record, read_record

RUN = Run(("model",), "bnn-deploy inspect m.onnx", "a CPU", {"bnn-deploy": "1"})

MODEL = {"format": "bnn-deploy inspection", "version": 1, "sha256": "a" * 64}
PROOF = {"format": "bnn-deploy verification", "version": 1, "sha256": "a" * 64}
PROFILE = {"format": "bnn-deploy profile", "version": 1, "model": {"sha256": "a" * 64}}
BOARD = {
    "format": "bnn-deploy board report",
    "version": 1,
    "manifest_sha256": "f" * 64,
    "golden": {"sha256": "a" * 64},
    "profile": PROFILE,
    "versions": {"bnn_deploy": "1"},
}


def written(folder: Path, value: object) -> Path:
    path = folder / "x.json"
    path.write_text(json.dumps(value))
    return path


def test_every_document_is_a_part(tmp_path: Path) -> None:
    for document, part in ((MODEL, "model"), (PROOF, "verification"), (PROFILE, "profile")):
        record = read_record(written(tmp_path, document))
        assert {name for name in RECORD_PARTS if record[name] is not None} == {part}
        assert record[part] == document and record["sha256"] == "a" * 64


def test_the_report_of_a_board_is_two_parts(tmp_path: Path) -> None:
    record = read_record(written(tmp_path, BOARD))
    assert (record["golden"], record["profile"]) == (BOARD["golden"], PROFILE)
    assert record["runs"][0]["versions"] == {"bnn_deploy": "1"}


def test_a_record_is_read_as_it_was_made(tmp_path: Path) -> None:
    record = new_record({"model": MODEL}, RUN)
    assert read_record(written(tmp_path, record)) == json.loads(json.dumps(record))


def test_parts_of_the_same_model_are_merged(tmp_path: Path) -> None:
    record = merge({"m.onnx": new_record({"model": MODEL}, RUN), "p.json": read_record(written(tmp_path, PROFILE))})
    assert (record["model"], record["profile"], record["verification"]) == (MODEL, PROFILE, None)
    assert [run["command"] for run in record["runs"]] == ["bnn-deploy inspect m.onnx"]


def test_another_model_is_refused(tmp_path: Path) -> None:
    other = read_record(written(tmp_path, {**PROOF, "sha256": "b" * 64}))
    with pytest.raises(InputError, match=r"v\.json: about another model than m\.onnx: SHA-256 bbbbbbbbbbbb"):
        merge({"m.onnx": new_record({"model": MODEL}, RUN), "v.json": other})


def test_the_same_part_twice_is_refused(tmp_path: Path) -> None:
    proof = read_record(written(tmp_path, PROOF))
    with pytest.raises(InputError, match=r"b\.json: a\.json has the part 'verification', too: give one of them"):
        merge({"a.json": proof, "b.json": proof})


REFUSED: dict[str, tuple[Any, str]] = {
    "a list": ([1], "it is no object"),
    "another format": ({"format": "other"}, "not what `report` reads"),
    "a newer version": ({**PROOF, "version": 2}, "of version 2, this bnn-deploy reads up to 1: update it"),
    "no version": ({"format": PROOF["format"]}, "of version None"),
    "no hash": ({**PROOF, "sha256": ""}, "does not say which model it is about"),
    "a conversion that failed": (
        {"format": "bnn-deploy conversion", "version": 1, "sha256": None},
        "does not say which model it is about",
    ),
    "two models in one": ({**BOARD, "golden": {"sha256": "c" * 64}}, "does not say which model it is about"),
    "no parts": ({"format": "bnn-deploy record", "version": 1}, "not JSON that bnn-deploy wrote, or damaged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read(tmp_path: Path, name: str) -> None:
    value, message = REFUSED[name]
    path = written(tmp_path, value)
    with pytest.raises(InputError) as caught:
        read_record(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": 1' + b"9" * 5000])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not JSON that bnn-deploy wrote, or damaged"):
        read_record(path)
