"""The folder: a line for each image, of whole files alone, once each, also after the power went."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bnn_deploy.runtime.session import load_session
from support.apps import NAMES

PROGRAM = (sys.executable, "-I", "-m", "bnn_deploy.apps.folder")


class Watcher:
    """The program, which watches a folder."""

    def __init__(self, model: Path, folder: Path, settle: float) -> None:
        self.process = subprocess.Popen(
            [*PROGRAM, str(model), str(folder), "--settle", str(settle)], stdout=subprocess.PIPE, text=True
        )
        self.results = folder / "results.jsonl"

    def line(self) -> dict[str, Any]:
        """The next line that it prints, which it has then written, too."""
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        assert self.results.read_text().splitlines()[-1] == text.strip()
        found: dict[str, Any] = json.loads(text)
        return found


@pytest.fixture
def watchers() -> Iterator[list[Watcher]]:
    started: list[Watcher] = []
    yield started
    for watcher in started:
        watcher.process.kill()
        watcher.process.communicate()


def once(model: Path, folder: Path) -> tuple[int, list[dict[str, Any]], str]:
    done = subprocess.run(
        [*PROGRAM, str(model), str(folder), "--once", "--settle", "0.1"], capture_output=True, text=True, timeout=60
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def save(path: Path, picture: NDArray[np.uint8]) -> Path:
    Image.fromarray(picture).save(path)
    return path


def test_each_image_has_the_class_of_a_session_fed_by_hand(
    model: Path, pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    folder = tmp_path / "not" / "there yet"
    assert once(model, folder) == (0, [], "")
    for number, picture in enumerate(pictures):
        save(folder / f"{number:02}.png", picture)
    (folder / ".17.png").write_bytes(b"a file that rsync is still writing")
    (folder / "notes.txt").write_text("no image")
    (folder / "20.jpg").write_bytes(b"no image, but called one")
    (folder / "21.png").mkdir()
    code, (*lines, last), errors = once(model, folder)
    assert (code, errors) == (0, "")
    (scores,) = load_session(model, threads=1).run(None, {"input": pictures})
    shares = np.exp(scores.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)

    def expected(scores: NDArray[np.float32]) -> list[tuple[str, str, float]]:
        return [(f"{i:02}.png", NAMES[row.argmax()], float(row.max())) for i, row in enumerate(scores)]

    found = [(line["file"], line["label"], line["score"]) for line in lines]
    assert found == expected(scores) and found != expected(np.roll(scores, 1, axis=0))
    assert np.allclose([line["probability"] for line in lines], shares.max(axis=1), rtol=1e-9)
    assert last["file"] == "20.jpg" and "not an image that Pillow can read" in last["error"]
    # Nothing of it is new.
    assert once(model, folder) == (0, [], "")
    save(folder / "05.png", pictures[0])
    (folder / "20.jpg").unlink()
    assert [(line["file"], line["label"]) for line in once(model, folder)[1]] == [("05.png", "cat")]


def test_an_image_that_is_being_copied_is_not_read(
    model: Path, pictures: NDArray[np.uint8], tmp_path: Path, watchers: list[Watcher]
) -> None:
    """Its halves come with a pause, each; a PNG file whose end is missing would be an error."""
    content = save(tmp_path / "a.png", pictures[1]).read_bytes()
    folder = tmp_path / "folder"
    watchers.append(Watcher(model, folder, settle=2))
    while not folder.exists():
        time.sleep(0.05)
    with (folder / "a.png").open("wb") as file:
        for start in range(0, len(content), len(content) // 3):
            file.write(content[start : start + len(content) // 3])
            file.flush()
            time.sleep(1)
    line = watchers[0].line()
    assert (line["file"], line["label"], line["bytes"]) == ("a.png", "ship", len(content))
    # What is read at once shows it: so this test can fail.
    (folder / "b.png").write_bytes(content[: len(content) // 2])
    assert "truncated" in watchers[0].line()["error"]
    # It goes on when the rest comes after all.
    (folder / "b.png").write_bytes(content)
    assert watchers[0].line()["label"] == "ship"


def test_a_line_that_was_cut_off_is_made_again(model: Path, pictures: NDArray[np.uint8], tmp_path: Path) -> None:
    for name, number in (("a.png", 0), ("b.png", 1)):
        save(tmp_path / name, pictures[number])
    first = once(model, tmp_path)[1]
    results = tmp_path / "results.jsonl"
    results.write_bytes(results.read_bytes()[:-40])
    code, (again,), errors = once(model, tmp_path)
    assert (code, errors, again) == (0, "", first[1])
    lines = results.read_text().splitlines()
    assert [json.loads(lines[0]), json.loads(lines[2])] == first and len(lines) == 3


def test_what_it_refuses(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, model_there, message in (
        (tmp_path / "file", model, f"error: {tmp_path / 'file'}: File exists"),
        (tmp_path, tmp_path / "none.onnx", f"error: {tmp_path / 'none.onnx'}: no such file"),
    ):
        code, lines, errors = once(model_there, folder)
        assert code and lines == [] and errors.splitlines() == [message]
    done = subprocess.run([*PROGRAM, str(model), "x", "--settle", "-1"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: argument --settle: -1: give a number of seconds")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
