"""The programs as services: set up from an unpacked bundle by its service.sh, started as its unit says, and asked.

The stand-in for systemd (support/systemd.py) starts what the unit file says; `systemd-analyze` itself reads the file.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

import bnn_deploy
from bnn_deploy.board.apps import APPS, require_app
from bnn_deploy.board.bundle import write_bundle
from bnn_deploy.board.manifest import Manifest
from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.runtime.session import load_session
from support.apps import NAMES
from support.bundles import DEPENDENCIES, WHEEL, fake_wheel, invoke, unpack
from support.damage import Damage
from support.networks import checkpoint
from support.schemas import misfits
from support.ssh_server import wait_for
from support.systemd import StandIn


class Board:
    """A home directory, into which bundles are unpacked, and programs that stand in for systemd."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home directory"
        self.tools = folder / "tools"
        for path in (self.home, self.tools):
            path.mkdir()
        self.systemd = StandIn(self.tools, folder / "state")
        for name, script in (("sleep", "exec /bin/sleep 0.3"), ("sudo", "exit 1")):
            self.tool(name, script)

    def tool(self, name: str, script: str) -> None:
        """A program that comes before the system's."""
        (self.tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.tools / name).chmod(0o755)

    def unpack(self, bundle: Path, manifest: Manifest, proved: bool = True) -> Path:
        """The folder of a bundle after its run.sh: with an environment, which is made of this one's packages."""
        folder = unpack(bundle, self.home / bundle.name)
        venv.create(folder / "venv", symlinks=True)
        (packages,) = (folder / "venv").glob("lib/python*/site-packages")
        found = [str(Path(bnn_deploy.__file__).parents[1]), *(path for path in sys.path if "site-packages" in path)]
        (packages / "here.pth").write_text("\n".join(found))
        (folder / "venv" / "complete").write_text("of this bundle")
        report = {"passed": proved, "manifest_sha256": manifest.sha256}
        (folder / "report.json").write_text(json.dumps(report))
        return folder

    def run(self, folder: Path, **variables: str) -> tuple[int, list[str]]:
        """Exit code and lines of service.sh."""
        done = subprocess.run(
            ["sh", str(folder / "service.sh")],
            capture_output=True,
            text=True,
            env={"HOME": str(self.home), "PATH": f"{self.tools}:/usr/bin:/bin"} | variables,
            timeout=120,
            check=False,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board(tmp_path)
    yield board
    board.systemd.stop()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    extras = ['opencv-python-headless>=4.5; extra == "camera"', 'pillow>=10; extra == "images"']
    return fake_wheel(tmp_path_factory.mktemp("wheels") / WHEEL, 62, [*DEPENDENCIES, *extras]).parent


@pytest.fixture(scope="module")
def other_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network with other weights: those of its first binary layer are negative where they were positive."""
    damage = Damage(onnx.load(model))
    name = next(tensor.name for tensor in damage.model.graph.initializer if tensor.name.endswith("weight_bits"))
    damage.change(name, np.invert)
    onnx.save(damage.model, path := tmp_path_factory.mktemp("other") / "nin.onnx")
    return path


def bundled(board: Board, model: Path, wheels: Path, app: str, options: str | None = None) -> tuple[Path, Manifest]:
    path = board.folder / f"{model.parent.name}-{app}.tar.gz"
    manifest = write_bundle(model, path, target="x86_64", samples=1, wheels=wheels, app=app, app_options=options)
    return path, manifest


def scores_of(model: Path, pictures: NDArray[np.uint8]) -> list[tuple[str, float]]:
    """Class and score of each picture, by a session that is fed by hand."""
    (scores,) = load_session(model, threads=1).run(None, {"input": pictures})
    return [(NAMES[row.argmax()], float(row.max())) for row in scores]


def encoded(picture: NDArray[np.uint8], kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def test_http(board: Board, model: Path, other_model: Path, wheels: Path, pictures: NDArray[np.uint8]) -> None:
    port = free_port()

    def answers() -> list[tuple[str, float]]:
        found = []
        for picture in pictures:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/?top=1", encoded(picture, "PNG"), 30) as answer:
                (best,) = json.load(answer)["predictions"]
            found.append((best["label"], best["score"]))
        return found

    expected, others = scores_of(model, pictures), scores_of(other_model, pictures)
    assert {label for label, _ in expected} != {label for label, _ in others}
    first = board.unpack(*bundled(board, model, wheels, "http", f"--port {port}"))
    assert board.run(first) == (0, ["starting bnn-deploy-http", "bnn-deploy-http runs"])
    assert answers() == expected != others
    wait_for(lambda: "WATCHDOG=1" in board.systemd.said("bnn-deploy-http"), "the watchdog hears of it")
    board.systemd.calls()
    # Repeated, it changes nothing.
    assert board.run(first) == (0, ["bnn-deploy-http runs, and is of this bundle"])
    assert [call for call in board.systemd.calls() if "restart" in call or "enable" in call] == []
    # Another model takes its place, at the same port. The check of the first model's answers would see that.
    second = board.unpack(*bundled(board, other_model, wheels, "http", f"--port {port}"))
    assert board.run(second) == (0, ["starting bnn-deploy-http", "bnn-deploy-http runs"])
    assert answers() == others
    data = board.home / ".local/share/bnn-deploy"
    assert sorted(path.name for path in data.iterdir()) == ["http", "http.started"]
    assert (data / "http").resolve() == second
    # A new environment (of another Python, say) is a reason to start it again, and so is an end.
    (second / "venv/complete").write_text("of another Python")
    for _ in range(2):
        assert board.run(second)[1] == ["starting bnn-deploy-http", "bnn-deploy-http runs"]
        assert board.run(second)[1] == ["bnn-deploy-http runs, and is of this bundle"]
        board.systemd.stop()


def test_folder(board: Board, model: Path, wheels: Path, pictures: NDArray[np.uint8]) -> None:
    folder = board.unpack(*bundled(board, model, wheels, "folder"))
    assert board.run(folder) == (0, ["starting bnn-deploy-folder", "bnn-deploy-folder runs"])
    inbox = board.home / "bnn-deploy" / "inbox"
    for number, picture in enumerate(pictures):
        (inbox / f"{number:02}.png").write_bytes(encoded(picture, "PNG"))
    results = inbox / "results.jsonl"
    wait_for(lambda: results.exists() and results.read_text().count("\n") == len(pictures), "all have a line", 60)
    lines = sorted((json.loads(line) for line in results.read_text().splitlines()), key=lambda line: str(line["file"]))
    found = [(line["label"], line["score"]) for line in lines]
    assert found == scores_of(model, pictures) != scores_of(model, pictures[::-1])
    assert len(board.systemd.log("bnn-deploy-folder")) == len(pictures)


def test_camera(board: Board, model: Path, wheels: Path, pictures: NDArray[np.uint8]) -> None:
    """A camera in the network, as OpenCV reads many: JPEG pictures one after the other, the same again and again."""

    class Camera(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with suppress(OSError):  # the service was ended
                for picture in itertools.cycle(pictures):
                    jpeg = encoded(picture, "JPEG")
                    self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg))
                    self.wfile.write(jpeg + b"\r\n")
                    time.sleep(0.01)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Camera) as camera:
        threading.Thread(target=camera.serve_forever, daemon=True).start()
        options = f"http://127.0.0.1:{camera.server_port}/video.mjpg --each"
        folder = board.unpack(*bundled(board, model, wheels, "camera", options))
        assert board.run(folder) == (0, ["starting bnn-deploy-camera", "bnn-deploy-camera runs"])

        def labels() -> list[str]:
            lines = (line.split("\t") for line in board.systemd.log("bnn-deploy-camera"))
            return [line[1] for line in lines if len(line) == 2]

        wait_for(lambda: len(labels()) >= 2 * len(pictures), "each picture was seen", 60)
        wait_for(lambda: "WATCHDOG=1" in board.systemd.said("bnn-deploy-camera"), "the watchdog hears of it")
        board.systemd.stop()
        camera.shutdown()
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(encoded(picture, "JPEG")))) for picture in pictures])
    expected = [label for label, _ in scores_of(model, decoded)]
    assert labels()[: len(pictures)] == expected
    assert [label for label, _ in scores_of(model, decoded[..., ::-1])] != expected


def test_a_service_that_dies(board: Board, model: Path, wheels: Path) -> None:
    """There is no camera: its last lines say so, and a repetition tries again."""
    folder = board.unpack(*bundled(board, model, wheels, "camera"))
    for starts in (1, 2):
        code, lines = board.run(folder)
        assert code == 1
        assert lines[:2] == ["starting bnn-deploy-camera", "the last lines of bnn-deploy-camera:"]
        assert "error: 0: OpenCV opens no camera and no video of this name" in lines
        assert lines[-1] == (
            "error: bnn-deploy-camera was set up and does not run, see its last lines above; systemd goes on trying: "
            "systemctl --user disable --now bnn-deploy-camera ends that"
        )
        assert board.systemd.starts("bnn-deploy-camera") == starts


def test_machines_that_cannot_have_it(board: Board, model: Path, wheels: Path) -> None:
    bundle, manifest = bundled(board, model, wheels, "http")
    folder = board.unpack(bundle, manifest, proved=False)
    start = "error: bnn-deploy-http was not set up: "
    report = folder / "report.json"

    def refusal() -> str:
        code, lines = board.run(folder)
        assert code == 3 and len(lines) == 1
        assert not (board.home / ".config").exists() and not (board.home / ".local").exists()
        assert board.systemd.starts("bnn-deploy-http") == 0
        return lines[0]

    unproved = "error: the proof of this bundle has not passed on this machine: sh run.sh does it; "
    assert refusal().startswith(unproved)
    report.write_text(json.dumps({"passed": True, "manifest_sha256": "of another bundle"}))
    assert refusal().startswith(unproved)
    report.unlink()
    assert refusal().startswith(unproved)
    report.write_text(json.dumps({"passed": True, "manifest_sha256": manifest.sha256}))

    (board.systemd.state / "no linger").touch()
    assert refusal().startswith(f"{start}it would end with the login of ")
    assert refusal().endswith("' there once") and "Could not enable linger: Access denied" in refusal()
    board.tool("sudo", f"touch '{board.systemd.state}/linger'")  # as Raspberry Pi OS lets its first user
    (board.systemd.state / "no manager").touch()
    reason = "Failed to connect to bus: No medium found"
    assert reason in refusal() and refusal().startswith(f"{start}systemd does not answer to ")
    # What is there of a system without systemd.
    for name in ("sh", "dirname", "sed", "tr", "id", "cat", "cmp"):
        board.tool(name, f'exec {shutil.which(name)} "$@"')
    (board.tools / "systemctl").unlink()
    done = subprocess.run(
        ["/bin/sh", str(folder / "service.sh")],
        capture_output=True,
        text=True,
        env={"HOME": str(board.home), "PATH": str(board.tools)},
    )
    assert (done.returncode, done.stdout) == (3, f"{start}there is no systemd here (no systemctl)\n")


@pytest.mark.parametrize("app", APPS)
def test_systemd_takes_the_unit(app: str, model: Path) -> None:
    """`systemd-analyze verify`, with a program that is there; another key is what it complains about."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze")
    unit = require_app(app, None, model).decode()
    there = unit.replace(f"%h/.local/share/bnn-deploy/{app}/venv/bin/python", sys.executable)
    assert there != unit
    with tempfile.TemporaryDirectory() as folder:
        for name, text, good in (
            ("good.service", there, True),
            ("typo.service", there.replace("WatchdogSec", "WatchdogSecs"), False),
            ("gone.service", there.replace(sys.executable, "/none/python"), False),
        ):
            path = Path(folder, name)
            path.write_text(text)
            done = subprocess.run(
                [analyze, "verify", "--man=no", str(path)], capture_output=True, text=True, check=False
            )
            assert (name in done.stderr) is not good, done.stderr


def test_the_services_name_and_options(model: Path) -> None:
    unit = require_app("http", "--host  0.0.0.0 --port 80", model).decode()
    assert '\nEnvironment="OPTIONS=--host 0.0.0.0 --port 80"\n' in unit
    assert "\n#   systemctl --user status bnn-deploy-http " in unit
    for app, options, message in (
        ("http", "--prot 80", "--app-options --prot 80: unrecognized arguments: --prot 80; usage: python -m"),
        ("http", "--port 0x50", "argument --port: 0x50: give a whole number from 0 to 65,535"),
        ("http", "--help", "--app-options --help: this is for python -m bnn_deploy.apps.http --help"),
        ("folder", "", "the following arguments are required: FOLDER"),
        ("folder", '"my pictures"', "they may have letters, digits, blanks and"),
        ("folder", "$HOME/x", "they may have letters, digits, blanks and"),
        ("folder", "/%h/x", "they may have letters, digits, blanks and"),
        ("camera", "0\nUser=root", "unrecognized arguments: User=root"),
        ("ftp", None, "app ftp: choose camera, folder, http"),
    ):
        with pytest.raises(InputError) as error:
            require_app(app, options, model)
        assert message in str(error.value), str(error.value)


def test_the_command(model: Path, wheels: Path, tmp_path: Path) -> None:
    words = ["bundle", model, "--target", "x86_64", "-o", tmp_path / "b.tar.gz", "--samples", "1", "--wheels", wheels]
    made = invoke(*words, "--app", "http", "--app-options=--port 8000")
    assert made.exit_code == 0, made.output
    assert "service  bnn-deploy-http" in made.stdout.splitlines()
    assert made.stdout.splitlines()[-1] == (
        "On the board: tar -xzf b.tar.gz && sh bnn-deploy-bundle/run.sh && sh bnn-deploy-bundle/service.sh"
    )
    unit = (unpack(tmp_path / "b.tar.gz", tmp_path) / "app.service").read_bytes()
    assert unit == require_app("http", "--port 8000", model)
    document = json.loads(invoke(*words, "--app", "camera", "--json").stdout)
    assert misfits(document) == [] and document["manifest"]["app"] == "camera"
    for options, message in (
        (["--app-options=--port 1"], "error: --app-options are those of an application: give --app"),
        (
            ["--app", "http", "--app-options=--port 0x1"],
            "error: --app-options --port 0x1: argument --port: 0x1: give a",
        ),
    ):
        (tmp_path / "b.tar.gz").unlink(missing_ok=True)
        refused = invoke(*words, *options)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert refused.stderr.splitlines()[-1].startswith(message)
        assert not (tmp_path / "b.tar.gz").exists()


def test_models_that_the_programs_cannot_use(model: Path, tmp_path: Path) -> None:
    """Found where the bundle is made, and not on the board."""
    floats = convert(checkpoint("nin", tmp_path), tmp_path / "floats.onnx", arch="nin").output
    of_one_size = Damage(onnx.load(model)).model
    (steps,) = (entry for entry in of_one_size.metadata_props if entry.key == "bnn_deploy.preprocessing")
    of_one_size.metadata_props.remove(steps)
    onnx.save(of_one_size, tmp_path / "one_size.onnx")
    for app, path, message in (
        ("camera", floats, "takes no colour images of bytes of one size: convert it with --input uint8 --layout nhwc"),
        ("http", floats, "nothing says how these images are normalised"),
        (
            "folder",
            tmp_path / "one_size.onnx",
            "takes no picture of 160x120 pixels (image: its images become [120, 160",
        ),
    ):
        with pytest.raises(InputError, match=re.escape(message)) as error:
            require_app(app, None, path)
        assert str(error.value).startswith(f"{path}: ")
    require_app("camera", None, tmp_path / "one_size.onnx")
