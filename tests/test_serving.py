"""examples/serving: MLServer with a converted model, asked by many clients, and the configuration for Triton."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format

from bnn_deploy.conversion import convert
from bnn_deploy.image_input import ImageInput
from support.damage import Damage, flip_weight_bit

model_config_pb2 = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="MLServer has no release for this Python"
)

ROOT = Path(__file__).parents[1]
SERVING = ROOT / "examples" / "serving"


@dataclass
class Server:
    """A running server.

    Attributes:
        url: host and port.
        folder: has the model, nin_bytes.onnx, and images.npy.
    """

    url: str
    folder: Path

    def load(self, model: Path, *options: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, SERVING / "load.py", model, self.folder / "images.npy", "--url", self.url, *options]
        return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)

    def ask(self, path: str, document: object = None) -> tuple[int, dict[str, object]]:
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(f"http://{self.url}{path}", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serving")
    for name in ("bnn_runtime.py", "model-settings.json", "settings.json"):
        shutil.copy(SERVING / name, folder)
    images = np.load(ROOT / "examples/nin/cifar10_100.npz")["input"].transpose(0, 2, 3, 1)
    np.save(folder / "images.npy", np.rint((images * 0.5 + 0.5) * 255).astype(np.uint8))
    image_input = ImageInput(mean=(0.5,), std=(0.5,), layout="nhwc")
    convert(ROOT / "examples/nin/nin.pth.tar", folder / "nin_bytes.onnx", arch="nin", image_input=image_input)
    names = ("HTTP_PORT", "GRPC_PORT", "METRICS_PORT")
    ports = {f"MLSERVER_{name}": str(port) for name, port in zip(names, free_ports(3), strict=True)}
    log = folder / "server.log"
    words = [Path(sys.executable).parent / "mlserver", "start", folder]
    with log.open("w") as file:
        # Not in a source tree, of which MLServer would take the package, without its library.
        running = subprocess.Popen(words, stdout=file, stderr=file, cwd=folder, env={**os.environ, **ports})
    try:
        yield Server(f"localhost:{ports['MLSERVER_HTTP_PORT']}", folder)
    finally:
        running.terminate()
        running.wait(30)


def test_a_thousand_requests_of_eight_clients(server: Server) -> None:
    done = server.load(server.folder / "nin_bytes.onnx")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{(server.folder / 'server.log').read_text()}"
    lines = dict(line.split(maxsplit=1) for line in done.stdout.replace("right answers", "right").splitlines())
    assert lines["requests"] == "1,000 from 8 clients"
    assert lines["right"] == "1,000, every bit as in a session here"
    assert list(lines)[2:] == ["per", "median", "p90", "p99", "slowest"]


def test_wrong_answers_are_seen(server: Server) -> None:
    """The client's own session has another weight."""
    damage = Damage(onnx.load(server.folder / "nin_bytes.onnx"))
    flip_weight_bit(damage, "xnor.11.conv")
    other = server.folder / "other.onnx"
    onnx.save(damage.model, other)
    done = server.load(other, "--requests", "80")
    assert done.returncode == 1
    assert "right answers  80," not in done.stdout


def test_what_does_not_fit_is_refused(server: Server) -> None:
    assert server.load(server.folder / "nin_bytes.onnx", "--requests", "8").returncode == 0  # it is ready
    image = {"name": "input", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": [7] * 3072}
    path = "/v2/models/nin/infer"
    assert server.ask(path, {"inputs": [image]})[0] == 200
    for change, given in (
        ({"shape": [1, 3, 32, 32]}, "input UINT8 [1, 3, 32, 32]"),
        ({"datatype": "FP32"}, "input FP32 [1, 32, 32, 3]"),
        ({"name": "x"}, "x UINT8 [1, 32, 32, 3]"),
    ):
        status, answer = server.ask(path, {"inputs": [{**image, **change}]})
        assert status == 400
        assert answer["error"] == f"input {given}: nin takes input UINT8 [-1, 32, 32, 3]; -1 is any number"


def test_a_server_that_is_not_there_is_named(server: Server, tmp_path: Path) -> None:
    code = "import load; load.READY_SECONDS = 0.5; raise SystemExit(load.main())"
    (port,) = free_ports(1)
    words = [sys.executable, "-c", code, str(server.folder / "nin_bytes.onnx"), str(server.folder / "images.npy")]
    done = subprocess.run(
        [*words, "--url", f"localhost:{port}"], capture_output=True, text=True, cwd=SERVING, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr == f"error: no server has nin ready at localhost:{port} after 0.5 s\n"


def test_tritons_configuration_fits_the_model(server: Server) -> None:
    config = text_format.Parse((SERVING / "triton/nin/config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    graph = onnx.load(server.folder / "nin_bytes.onnx").graph
    types = {
        model_config_pb2.TYPE_UINT8: onnx.TensorProto.UINT8,
        model_config_pb2.TYPE_FP32: onnx.TensorProto.FLOAT,
    }
    for given, tensors in ((graph.input, config.input), (graph.output, config.output)):
        found = [(t.name, types[t.data_type], list(t.dims)) for t in tensors]
        assert found == [
            (v.name, v.type.tensor_type.elem_type, [d.dim_value or -1 for d in v.type.tensor_type.shape.dim])
            for v in given
        ]
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 0)
    assert list(config.model_operations.op_library_filename) == ["/models/nin/libbnn_deploy_ops.so"]
