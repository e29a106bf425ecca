"""examples/node and examples/rust: programs in other languages give what Python gives, and a damaged model shows."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from PIL import Image
from selenium.webdriver.support.ui import WebDriverWait

from bnn_deploy.conversion import convert
from bnn_deploy.image_input import ImageInput
from bnn_deploy.runtime.session import library_info, library_path, load_session
from support.browser import browser
from support.networks import NIN, checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples"
IMAGES = 2

Classify = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of images of bytes, with the channels last and first: with operators, for the web, and each of these damaged."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    inputs = {"nin": ImageInput((0.5,), (0.5,), "nhwc"), "lenet5": ImageInput((0.1307,), (0.3081,), "nchw")}
    for arch, image in inputs.items():
        files = {f"{arch}_{form}": folder / f"{arch}_{form}.onnx" for form in ("binary", "web")}
        output, web = files.values()
        convert(checkpoint(arch, folder), output, arch=arch, image_input=image, web_output=web)
        made |= files
        for name, path in files.items():
            made[f"{name}_damaged"] = damaged(path, folder / f"{name}_damaged.onnx")
    made["floats"] = convert(checkpoint("lenet5", folder), folder / "floats.onnx", arch="lenet5").output
    return made


def damaged(model: Path, path: Path) -> Path:
    """The model with the first bits of each word of its packed weights inverted, none of them unused."""
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.UINT32:
            flipped = onnx.numpy_helper.to_array(tensor) ^ np.uint32(1023)
            tensor.CopyFrom(onnx.numpy_helper.from_array(flipped, tensor.name))
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """CIFAR-10's, and a gray one of noise."""
    folder = tmp_path_factory.mktemp("pictures")
    with np.load(NIN / "cifar10_100.npz") as data:
        images = np.rint((np.moveaxis(data["input"][:IMAGES], 1, -1) * 0.5 + 0.5) * 255).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (28, 28, 1), np.uint8)
    return [picture(folder / f"{i}.ppm", image) for i, image in enumerate([*images, noise])]


def picture(path: Path, image: NDArray[np.uint8]) -> Path:
    height, width, channels = image.shape
    path.write_bytes(f"P{5 if channels == 1 else 6}\n{width} {height}\n255\n".encode() + image.tobytes())
    return path


def read(path: Path, layout: str) -> NDArray[np.uint8]:
    """A picture of these as a model's input."""
    magic, width, height, _, pixels = path.read_bytes().split(maxsplit=4)
    image = np.frombuffer(pixels, np.uint8).reshape(1, int(height), int(width), 1 if magic == b"P5" else 3)
    return image if layout == "nhwc" else np.moveaxis(image, -1, 1)


def floats(done: subprocess.CompletedProcess[str]) -> NDArray[np.float32]:
    """What --bits printed."""
    assert (done.returncode, done.stderr) == (0, "")
    return np.array([int(word, 16) for word in done.stdout.split()], np.uint32).view(np.float32)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/node with its packages, as the page says."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("node") / "app"
    shutil.copytree(EXAMPLES / "node", folder)
    install = ["npm", "install", "--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(install, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def node(app: Path) -> Classify:
    """Runs its program."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = ["node", str(app / "classify.js"), *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)

    return run


@pytest.fixture(scope="module")
def rust(tmp_path_factory: pytest.TempPathFactory) -> Classify:
    """examples/rust, built as the page says."""
    if shutil.which("rustc") is None:
        pytest.skip("rustc is not installed")
    folder = tmp_path_factory.mktemp("rust")
    (runtime,) = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (folder / "libonnxruntime.so.1").symlink_to(runtime)  # the name by which the program asks for it
    link = [
        folder / "libonnxruntime.so.1",
        library_path(),
        f"-Wl,-rpath,{folder}",
        f"-Wl,-rpath,{library_path().parent}",
    ]
    words = ["rustc", "--edition", "2021", "-O", "-D", "warnings", EXAMPLES / "rust" / "classify.rs"]
    arguments = [word for item in link for word in ("-C", f"link-arg={item}")]
    subprocess.run([*words, "-o", folder / "classify", *arguments], check=True, capture_output=True)

    def run(*arguments: object, isa: str = "") -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"BNN_DEPLOY_ISA": isa}
        words = [str(folder / "classify"), *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, env=environment, check=False, timeout=120)

    return run


@pytest.mark.parametrize(
    ("model", "options"), [("nin_web", ()), ("nin_binary", ()), ("lenet5_web", ()), ("nin_web", ("--wasm",))]
)
def test_node_gives_what_python_gives(
    model: str, options: tuple[str, ...], node: Classify, models: dict[str, Path], pictures: list[Path]
) -> None:
    """By standard operators alone, whose sums each build of onnxruntime rounds in its own order: a sign may differ.

    So, as `verify` judges outputs that run free, each is within half a standard deviation; and one is as close as sums
    are without such a sign.
    """
    layout, chosen = ("nchw", pictures[-1:]) if model == "lenet5_web" else ("nhwc", pictures[:2])
    stock = load_session(models[model], 1, kernels=False)

    def difference(file: Path, path: Path) -> float:
        """The largest, in standard deviations of the expected outputs."""
        (expected,) = stock.run(None, {stock.get_inputs()[0].name: read(path, layout)})
        return float(np.abs(floats(node(file, path, "--bits", *options)) - expected[0]).max() / expected.std())

    found = [difference(models[model], path) for path in chosen]
    assert max(found) <= 0.5 and min(found) <= 1e-4
    assert difference(models[f"{model}_damaged"], chosen[0]) > 0.5


@pytest.mark.parametrize("model", ["nin_web", "nin_web_damaged"])
def test_a_browser_gives_what_node_gives(
    model: str, app: Path, node: Classify, models: dict[str, Path], pictures: list[Path], tmp_path: Path
) -> None:
    """To all digits that the page shows: it is the same WebAssembly."""
    shutil.copy(models[model], app / "model.onnx")
    Image.fromarray(read(pictures[0], "nhwc")[0]).save(tmp_path / "picture.png")
    with serving(app) as address, browser() as window:
        window.driver.get(f"{address}/index.html")
        window.driver.find_element("tag name", "input").send_keys(str(tmp_path / "picture.png"))
        WebDriverWait(window.driver, 60).until(lambda _: window.text("#classes"))
        found = [line.split()[1:4:2] for line in window.text("#classes").splitlines()]
    done = node(models["nin_web"], pictures[0], "--wasm", "--runs", 1)
    expected = [line.split()[1:4:2] for line in done.stdout.splitlines()[:-1]]
    assert (found == expected) == (model == "nin_web")


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A web server for a folder; its address."""
    handler = functools.partial(SilentHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class SilentHandler(http.server.SimpleHTTPRequestHandler):
    """Writes no log."""

    def log_message(self, *arguments: object) -> None:
        """Write nothing."""


def test_rust_gives_pythons_bits(rust: Classify, models: dict[str, Path], pictures: list[Path]) -> None:
    for isa in library_info().isas:
        session = load_session(models["nin_binary"], isa=isa, threads=1)
        for path in pictures[:-1]:
            (expected,) = session.run(None, {session.get_inputs()[0].name: read(path, "nhwc")})
            found = floats(rust(models["nin_binary"], path, "--bits", isa=isa))
            np.testing.assert_array_equal(found.view(np.uint32), expected[0].view(np.uint32))
            wrong = floats(rust(models["nin_binary_damaged"], path, "--bits", isa=isa))
            assert (wrong != expected[0]).any()


def test_what_they_print(rust: Classify, node: Classify, models: dict[str, Path], pictures: list[Path]) -> None:
    lines = {}
    for name, run, model in (("rust", rust, "nin_binary"), ("node", node, "nin_web")):
        done = run(models[model], pictures[0], "--runs", 3)
        assert (done.returncode, done.stderr) == (0, "")
        *lines[name], last = done.stdout.splitlines()
        assert "ms, the median of 3 runs; " in last
    assert [line.split()[0] for line in lines["rust"]] == ["class"] * 5
    assert lines["rust"] == lines["node"]


def test_what_they_refuse(
    rust: Classify, node: Classify, models: dict[str, Path], pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "cut.ppm").write_bytes(pictures[0].read_bytes()[:-1])
    (tmp_path / "no.ppm").write_bytes(b"GIF89a")
    for run in (rust, node):
        for model, path, message in (
            (models["nin_web"], tmp_path / "cut.ppm", "cut.ppm: ends before its last pixel"),
            (models["nin_web"], tmp_path / "no.ppm", "no.ppm: not a binary PGM or PPM file"),
            (models["nin_web"], tmp_path / "none.ppm", "none.ppm"),
            (tmp_path / "none.onnx", pictures[0], "none.onnx"),
        ):
            done = run(model, path)
            assert (done.returncode, done.stdout) == (1, "")
            assert message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
        assert "usage: " in run(pictures[0]).stderr
    for model, path, message in (
        (models["nin_web"], pictures[-1], "28 x 28 pixels of 1 channels, but the model takes"),
        (models["floats"], pictures[-1], "takes float32: convert it with --input uint8"),
    ):
        assert message in node(model, path).stderr
