"""The camera: every frame of a video gets the class that a session fed by hand gives, and systemd hears of it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bnn_deploy.conversion import convert
from bnn_deploy.runtime.session import load_session
from support import python
from support.apps import NAMES, video
from support.networks import checkpoint

PROGRAM = (sys.executable, "-I", "-m", "bnn_deploy.apps.camera")


@pytest.fixture(scope="module")
def videos(pictures: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """CIFAR-10 test images as videos: of the model's own size, and larger and wide, between bars that are cut off."""
    folder = tmp_path_factory.mktemp("videos")
    wide = [np.pad(cv2.resize(image, (96, 96)), ((0, 0), (16, 16), (0, 0)), constant_values=255) for image in pictures]
    return {"small": video(folder / "small.avi", list(pictures)), "wide": video(folder / "wide.avi", wide)}


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables, timeout=60)


def by_hand(model: Path, path: Path, swap: bool = True) -> list[str]:
    """The classes of a video's frames, without anything of the example."""
    session, capture, found = load_session(model, threads=1), cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frame = read[1][:, 16:112] if read[1].shape[1] == 128 else read[1]
        small = frame if frame.shape[0] == 32 else cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA)
        x = np.ascontiguousarray(small[..., ::-1] if swap else small)[None]
        found.append(NAMES[session.run(None, {"input": x})[0].argmax()])
    return found


@pytest.mark.parametrize("kind", ["small", "wide"])
def test_each_frame_has_the_class_of_a_session_fed_by_hand(kind: str, model: Path, videos: dict[str, Path]) -> None:
    done = run(model, videos[kind], "--each")
    assert done.returncode == 0, done.stderr
    expected = by_hand(model, videos[kind])
    assert done.stdout.splitlines() == [f"{i}\t{name}" for i, name in enumerate(expected)]
    assert len(expected) == 20 and len(set(expected)) > 4
    assert by_hand(model, videos[kind], swap=False) != expected  # blue taken for red shows
    assert done.stderr == ""


def test_the_screen_shows_the_class_and_the_frames_per_second(model: Path, videos: dict[str, Path]) -> None:
    done = run(model, videos["small"], "--period", 0)
    assert (done.returncode, done.stdout) == (0, "")
    lines = [re.fullmatch(r"(\w+), (\d+\.\d) frames per second", line) for line in done.stderr.splitlines()]
    assert [found[1] for found in lines if found] == by_hand(model, videos["small"])
    assert all(found and float(found[2]) > 1 for found in lines)


def test_systemd_hears_when_it_is_ready_and_that_it_lives(model: Path, videos: dict[str, Path], tmp_path: Path) -> None:
    for address in (str(tmp_path / "notify"), f"@bnn-deploy-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(address.replace("@", "\0"))
            systemd.settimeout(60)
            variables = os.environ | {"NOTIFY_SOCKET": address}
            for period, signs in (("0", 20), ("1000", 0)):
                command = [*PROGRAM, model, videos["small"], "--period", period]
                with subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL) as program:
                    # While it runs: the socket holds few messages, and its writer waits.
                    assert [systemd.recv(100) for _ in range(signs + 1)] == [b"READY=1", *[b"WATCHDOG=1"] * signs]
                assert program.returncode == 0
            (tmp_path / "no.avi").write_bytes(b"")
            assert run(model, tmp_path / "no.avi", NOTIFY_SOCKET=address).returncode == 3
            systemd.setblocking(False)
            with pytest.raises(BlockingIOError):
                systemd.recv(100)


def test_threads_have_cpus_of_their_own(model: Path, videos: dict[str, Path]) -> None:
    """As the kernel says while it runs: the program's own thread is on one CPU, and onnxruntime's is on another."""
    code = (
        "import os, sys, pathlib\n"
        "from bnn_deploy.apps import camera\n"
        "found = {}\n"
        "def look(state):\n"
        "    threads = pathlib.Path('/proc/self/task').iterdir()\n"
        "    found.update({t.name: os.sched_getaffinity(int(t.name)) for t in threads})\n"
        "camera.notify = look\n"
        "camera.classify_frames(sys.argv[1], sys.argv[2], int(sys.argv[3]), 1, False)\n"
        "print(sorted(map(sorted, found.values())), sorted(found[str(os.getpid())]))"
    )
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("one CPU")
    words = [*python.command(code), model, videos["small"], "2"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f" {cpus[:1]}\n") and f"[{cpus[1]}]" in done.stdout, done.stdout


def test_what_it_refuses(model: Path, videos: dict[str, Path], tmp_path: Path) -> None:
    floats = convert(checkpoint("nin", tmp_path), tmp_path / "floats.onnx", arch="nin").output
    for arguments, message in (
        ((model, tmp_path / "none.avi"), f"{tmp_path}/none.avi: OpenCV opens no camera and no video of this name"),
        ((model, 99), "99: OpenCV opens no camera"),
        ((tmp_path / "none.onnx", videos["small"]), f"{tmp_path}/none.onnx: no such file"),
        (
            (floats, videos["small"]),
            f"{floats}: takes no colour images of bytes of one size: convert it with --input uint8",
        ),
        ((model, videos["small"], "--threads", 1000), "1000 threads, and this process may use"),
    ):
        done = run(*arguments)
        assert done.returncode and done.stdout == ""
        assert re.search(rf"^error: {re.escape(message)}", done.stderr, re.MULTILINE), done.stderr
