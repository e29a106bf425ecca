"""Classify images over HTTP: post the content of an image file, and get its likeliest classes as JSON.

    python -m bnn_deploy.apps.http MODEL.onnx [--host ADDRESS] [--port N] [--threads N]

    POST /           the image file as the body; /?top=3 for so many classes, 5 if left out
    GET  /health     200 while the server works, 503 if a picture has kept it for too long

Whatever is wrong is told as {"error": "..."} with a status of 4xx. Who may reach the address may ask: by default only
programs on this machine; --host 0.0.0.0 lets all machines of the network, and nothing here knows users or encryption.
"""

from __future__ import annotations

import argparse
import json
import socket
import socketserver
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from bnn_deploy.apps.program import OptionParser, limit_pictures, notify, option_parser, run_program, whole
from bnn_deploy.errors import InputError, one_line
from bnn_deploy.json_form import json_form
from bnn_deploy.runtime.classifier import Classifier

MAX_BODY = 16 << 20
"""Largest image file, in bytes."""

MAX_CLIENTS = 16
"""Connections at a time: each may hold a body in memory."""

CLIENT_SECONDS = 10
"""How long a client may be silent."""

STUCK_SECONDS = 20
"""A picture that takes longer means that the server no longer works."""


def parser() -> OptionParser:
    """The program's options."""
    result = option_parser("http", __doc__)
    result.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen at (default: 127.0.0.1)")
    result.add_argument(
        "--port", type=whole(0, 65535), default=8080, metavar="N", help="0 for a free one (default: 8080)"
    )
    return result


class PictureServer(ThreadingHTTPServer):
    """A thread for each connection, and one picture at a time."""

    daemon_threads = True
    request_queue_size = 2 * MAX_CLIENTS

    def __init__(self, address: tuple[str, int], classifier: Classifier) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.classifier = classifier
        self._clients = threading.BoundedSemaphore(MAX_CLIENTS)
        self._one = threading.Lock()
        self._since: float | None = None
        self._signed = 0.0
        super().__init__(address, _Handler)

    @property
    def stuck(self) -> bool:
        """Whether a picture has taken longer than one does."""
        since = self._since
        return since is not None and time.monotonic() - since > STUCK_SECONDS

    def predict(self, image: bytes, top: int) -> list[Any]:
        """The likeliest classes of an image file, as JSON."""
        with self._one:
            self._since = time.monotonic()
            try:
                return [json_form(found) for found in self.classifier.predict(image, top)]
            finally:
                self._since = None

    def server_bind(self) -> None:
        """Bind without asking a name server for this machine's name, as HTTPServer would: there may be no network."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def service_actions(self) -> None:
        """Tell systemd that the server works: called twice a second, and after each connection."""
        if not self.stuck and time.monotonic() - self._signed >= 1:
            notify("WATCHDOG=1")
            self._signed = time.monotonic()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, if there are not too many."""
        if self._clients.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        text = b'{"error": "too many requests at a time: try again"}\n'
        head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n"
        try:
            request.settimeout(1)
            request.sendall(head.encode() + b"Connection: close\r\nRetry-After: 1\r\n\r\n" + text)
        except OSError:
            pass  # it has gone
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._clients.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went while it was answered, say: one line, and no traceback."""
        print(f"{client_address[0]}: {one_line(sys.exc_info()[1] or '')}", file=sys.stderr, flush=True)


class _RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """One connection, which asks once."""

    server: PictureServer
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # whose answers have a status, other than those of 0.9
    timeout = CLIENT_SECONDS

    def do_GET(self) -> None:
        """Say how the server is."""
        if self._path != "/health":
            self._answer(*self._unknown("GET"))
        elif self.server.stuck:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": f"a picture takes longer than {STUCK_SECONDS} s"})
        else:
            self._answer(HTTPStatus.OK, {"status": "ok"})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        """Classify the image in the body."""
        try:
            if self._path != "/":
                self._answer(*self._unknown("POST"))
                return
            top, body = self._top(), self._body()
            self._answer(HTTPStatus.OK, {"predictions": self.server.predict(body, top)})
        except _RefusedError as error:
            self._answer(error.status, {"error": str(error)})
        except InputError as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except OSError:
            raise  # the connection's
        except Exception as error:
            self.log_error("%s", f"{type(error).__name__}: {one_line(error)}")
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "this picture could not be classified"})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses, as JSON, too."""
        self._answer(HTTPStatus(code), {"error": message or HTTPStatus(code).phrase})

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing: the journal of a board is small."""

    def version_string(self) -> str:
        """The server's name, without versions."""
        return "bnn-deploy"

    @property
    def _path(self) -> str:
        return urlsplit(self.path).path

    def _unknown(self, method: str) -> tuple[HTTPStatus, dict[str, str]]:
        """The answer to a method or a path that is not known."""
        known = self._path in ("/", "/health")
        text = f"{method} {self._path}: post an image to /, or get /health"
        return (HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND), {"error": text}

    def _top(self) -> int:
        """How many classes are asked for."""
        (text, *_) = parse_qs(urlsplit(self.path).query).get("top", ["5"])
        if not text.isdecimal() or not 1 <= int(text[:9]) <= 100_000:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, f"top={text[:20]}: give a number of classes from 1 on")
        return int(text[:9])

    def _body(self) -> bytes:
        """The body, all of it."""
        text = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not text:
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "the request has no Content-Length")
        if not text.isdecimal() or not int(text[:18]):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "the request has no body: post an image file")
        length = int(text[:18])
        if length > MAX_BODY:
            # Most clients read no answer before all is sent.
            left = min(length, 4 * MAX_BODY)
            while left and (part := self.rfile.read(min(left, 1 << 16))):
                left -= len(part)
            raise _RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has {text[:18]} bytes; at most {MAX_BODY:,} are read"
            )
        body = self.rfile.read(length)
        if len(body) < length:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, f"the body ended after {len(body)} of {length} bytes")
        return body

    def _answer(self, status: HTTPStatus, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode() + b"\n"
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def run(args: argparse.Namespace) -> int:
    """Answer, until the process is ended."""
    limit_pictures()
    classifier = Classifier(args.model, args.threads)
    try:
        server = PictureServer((args.host, args.port), classifier)
    except OSError as error:
        raise InputError(f"{args.host}, port {args.port}: {error.strerror or error}: give --host and --port") from None
    with server:
        print(f"listening at {args.host}, port {server.server_port}", file=sys.stderr, flush=True)
        notify("READY=1")
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(run_program(parser(), run))
