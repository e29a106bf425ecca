"""HTTP: right answers to many at once, and one clear line to whatever is no picture."""

from __future__ import annotations

import http.client
import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bnn_deploy.apps import http as app
from bnn_deploy.apps.http import PictureServer
from bnn_deploy.apps.program import MAX_PIXELS, limit_pictures
from bnn_deploy.runtime.classifier import Classifier
from bnn_deploy.runtime.session import load_session
from support.apps import NAMES


@pytest.fixture
def server(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PictureServer]:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    limit_pictures()
    with PictureServer(("127.0.0.1", 0), Classifier(model, threads=1)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: PictureServer, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    assert answer.headers["Content-Type"] == "application/json"
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if content else None


def raw(server: PictureServer, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
        return answer


def png(picture: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def test_eight_clients_get_the_answers_of_a_session_fed_by_hand(
    server: PictureServer, model: Path, pictures: NDArray[np.uint8]
) -> None:
    (scores,) = load_session(model, threads=1).run(None, {"input": pictures})

    def expected(number: int) -> list[tuple[str, int, float]]:
        order = np.argsort(-scores[number], kind="stable")[:3]
        return [(NAMES[index], int(index), float(scores[number][index])) for index in order]

    def found(number: int) -> list[tuple[str, int, float]]:
        status, document = ask(server, "POST", "/?top=3", png(pictures[number]))
        assert status == 200 and list(document) == ["predictions"]
        return [(item["label"], item["index"], item["score"]) for item in document["predictions"]]

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(found, [*range(20)] * 5))
    assert answers == [expected(number) for number in range(20)] * 5
    assert answers[0] != expected(1)
    document = ask(server, "POST", "/", png(pictures[0]))[1]
    assert len(document["predictions"]) == 5
    assert 0.9 < document["predictions"][0]["probability"] < 1


def test_health(server: PictureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(server, "GET", "/health") == (200, {"status": "ok"})
    assert ask(server, "HEAD", "/health") == (200, None)
    said: list[str] = []
    monkeypatch.setattr(app, "notify", said.append)
    time.sleep(1.2)
    assert set(said) == {"WATCHDOG=1"} and len(said) <= 2
    # A picture that never ends: the load balancer hears of it, and systemd no longer hears anything.
    server._since = time.monotonic() - app.STUCK_SECONDS - 1
    status, document = ask(server, "GET", "/health")
    assert (status, list(document)) == (503, ["error"])
    said.clear()
    time.sleep(1.2)
    assert said == []


def test_what_is_no_picture(server: PictureServer, pictures: NDArray[np.uint8]) -> None:
    picture = png(pictures[0])
    large = io.BytesIO()
    Image.new("1", (MAX_PIXELS // 1000 + 1, 1000)).save(large, "PNG")  # a few kB, and a lot of memory
    file = io.BytesIO()
    Image.fromarray(pictures[0]).save(file, "GIF")
    for method, path, body, status, message in (
        ("POST", "/", b"no picture", 400, "image: not an image that Pillow can read (UnidentifiedImageError:"),
        (
            "POST",
            "/",
            picture[:-200],
            400,
            "image: not an image that Pillow can read (OSError: image file is truncated",
        ),
        ("POST", "/", large.getvalue(), 400, "exceeds limit of"),
        ("POST", "/", file.getvalue(), 400, "image: not an image that Pillow can read"),
        ("POST", "/", b"%!PS-Adobe-3.0 EPSF-3.0\n", 400, "image: not an image that Pillow can read"),
        ("POST", "/", b"", 400, "the request has no body: post an image file"),
        ("POST", "/?top=0", picture, 400, "top=0: give a number of classes from 1 on"),
        ("POST", "/?top=" + "9" * 5000, picture, 400, "give a number of classes from 1 on"),
        ("POST", "/model", picture, 404, "POST /model: post an image to /, or get /health"),
        ("GET", "/", None, 405, "GET /: post an image to /, or get /health"),
        ("GET", "/../../etc/passwd", None, 404, "post an image to /"),
        ("PUT", "/", picture, 501, "Unsupported method ('PUT')"),
    ):
        found, document = ask(server, method, path, body)
        assert (found, list(document)) == (status, ["error"])
        text = document["error"]
        assert message in text and "\n" not in text and "Traceback" not in text and " at 0x" not in text
    assert ask(server, "POST", "/", picture)[0] == 200


def test_limits(server: PictureServer, pictures: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    for request, status in (
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", b"411"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"411"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n", b"400"),
        (b"no request\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
    ):
        answer = raw(server, request)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.split()[1] == status, answer
        assert list(json.loads(body)) == ["error"]
    monkeypatch.setattr(app, "MAX_BODY", 1000)
    status, document = ask(server, "POST", "/", bytes(3900))
    assert (status, document["error"]) == (413, "the body has 3900 bytes; at most 1,000 are read")


def test_clients_that_say_nothing_are_left(server: PictureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen of them keep a seventeenth from its answer, for as long as they may be silent."""
    monkeypatch.setattr(app._Handler, "timeout", 1)
    silent = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(app.MAX_CLIENTS)]
    silent[0].sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf")
    assert b"HTTP/1.1 503" in raw(server, b"")
    time.sleep(1.5)
    assert ask(server, "GET", "/health") == (200, {"status": "ok"})
    for connection in silent:
        connection.close()


def test_an_error_inside_shows_nothing_of_itself(
    server: PictureServer, pictures: NDArray[np.uint8], capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(image: bytes, top: int) -> None:
        raise RuntimeError("secret")

    server.classifier.predict = fail  # type: ignore[assignment, method-assign]
    assert ask(server, "POST", "/", png(pictures[0])) == (500, {"error": "this picture could not be classified"})
    assert "RuntimeError: secret" in capfd.readouterr().err


def test_what_it_refuses(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options, message in (
            (["--port", str(port)], f"error: 127.0.0.1, port {port}: Address already in use: give --host and --port"),
            (["--port", "99999"], "error: argument --port: 99999: give a whole number from 0 to 65,535; usage: "),
            (["--prot", "80"], "error: unrecognized arguments: --prot 80; usage: "),
        ):
            words = [sys.executable, "-I", "-m", "bnn_deploy.apps.http", str(model), *options]
            done = subprocess.run(words, capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
