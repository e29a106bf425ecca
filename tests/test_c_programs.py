"""examples/cpp: the program that runs a model without Python gives Python's bits, and says in a line what is wrong."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from bnn_deploy.conversion import convert
from bnn_deploy.image_input import ImageInput
from bnn_deploy.preprocessing import Preprocessing
from bnn_deploy.runtime.classifier import Classifier
from bnn_deploy.runtime.session import library_info, library_path, load_session
from support.networks import NIN, checkpoint
from wheels import FUNCTIONS

SOURCE = Path(__file__).parents[1] / "examples" / "cpp"
NAMES = ("airplane", "automobile", 'a "bird"', "cat \\ kitten", "deer, roe", "dog", "frog", "horse", "ship", "truck")
PACKAGE = library_path().parent / "cmake" / "bnn_deploy"

pytestmark = pytest.mark.skipif(not PACKAGE.is_dir(), reason="an editable installation has no CMake package")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as its CMakeLists.txt says, with the library of onnxruntime's wheel."""
    build = tmp_path_factory.mktemp("classify")
    (library,) = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*")
    configure = [
        *("cmake", "-S", SOURCE, "-B", build, f"-Dbnn_deploy_DIR={PACKAGE}", f"-DONNXRUNTIME_LIBRARY={library}"),
        "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON",
    ]
    for command in (configure, ["cmake", "--build", build]):
        subprocess.run(command, check=True, capture_output=True)
    return build / "classify"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A gray one with its channels first, a coloured one with them last, floats; and two that name their classes."""
    folder = tmp_path_factory.mktemp("models")
    inputs = {"lenet5": ImageInput((0.1307,), (0.3081,), "nchw"), "nin": ImageInput((0.5,) * 3, (0.25,) * 3, "nhwc")}
    paths = {}
    for arch, image in inputs.items():
        paths[arch] = convert(checkpoint(arch, folder), folder / f"{arch}.onnx", arch=arch, image_input=image).output
    paths["floats"] = convert(checkpoint("lenet5", folder), folder / "floats.onnx", arch="lenet5").output
    named = {"arch": "nin", "classes": NAMES}
    images: dict[str, dict[str, Any]] = {"bytes": {"image_input": ImageInput((0.5,), (0.5,), "nhwc")}}
    images["normalised"] = {"preprocessing": Preprocessing(mean=(0.5, 0.5, 0.25), std=(0.5,))}
    for name, options in images.items():
        paths[name] = convert(checkpoint("nin", folder), folder / f"{name}.onnx", **named, **options).output
    return paths


def picture(path: Path, pixels: NDArray[np.uint8]) -> Path:
    """Write pixels [H, W, C] as binary PGM or PPM, with a comment as some tools write it."""
    height, width, channels = pixels.shape
    header = f"P{5 if channels == 1 else 6}\n# made by a test\n{width} {height}\n255\n"
    path.write_bytes(header.encode() + pixels.tobytes())
    return path


def run(program: Path, *arguments: object, isa: str = "") -> subprocess.CompletedProcess[str]:
    command = [program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"BNN_DEPLOY_ISA": isa})


def pixels(arch: str, seed: int = 0) -> NDArray[np.uint8]:
    shape = {"lenet5": (28, 28, 1), "nin": (32, 32, 3)}[arch]
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("arch", ["lenet5", "nin"])
def test_the_bits_are_pythons(arch: str, program: Path, models: dict[str, Path], tmp_path: Path) -> None:
    image = pixels(arch)
    path = picture(tmp_path / "p.ppm", image)
    x = image[None] if arch == "nin" else np.moveaxis(image, -1, 0)[None]
    for isa in library_info().isas:
        session = load_session(models[arch], isa=isa, threads=1)
        (expected,) = session.run(None, {session.get_inputs()[0].name: x})
        done = run(program, models[arch], path, "--bits", isa=isa)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.split() == [f"{bits:08x}" for bits in expected.ravel().view(np.uint32)]
    other = run(program, models[arch], picture(path, pixels(arch, seed=1)), "--bits")
    assert other.stdout != done.stdout


def test_what_it_prints(program: Path, models: dict[str, Path], tmp_path: Path) -> None:
    done = run(program, models["nin"], picture(tmp_path / "p.ppm", pixels("nin")), "--runs", 3, "--threads", 2)
    assert (done.returncode, done.stderr) == (0, "")
    *classes, last = done.stdout.splitlines()
    assert [line.split()[0] for line in classes] == ["class"] * 5
    scores = [float(line.split()[3]) for line in classes]
    assert scores == sorted(scores, reverse=True)
    assert f"ms, the median of 3 runs; bnn_deploy {library_info().version}, {library_info().selected} kernels" in last


@pytest.mark.parametrize("form", ["bytes", "normalised"])
def test_the_classes_are_those_of_classifier(form: str, program: Path, models: dict[str, Path], tmp_path: Path) -> None:
    classifier = Classifier(models[form], threads=1)
    with np.load(NIN / "cifar10_100.npz") as data:
        images = np.rint((np.moveaxis(data["input"][:3], 1, -1) * 0.5 + 0.5) * 255).astype(np.uint8)
    shown = []
    for image in images:
        path = picture(tmp_path / "p.ppm", image)
        done = run(program, models[form], path, "--runs", 1)
        assert (done.returncode, done.stderr) == (0, "")
        shown.append(done.stdout.splitlines()[:-1])
        expected = [
            f"{p.label:<20} score {p.score:9.4f}   {100 * p.probability:5.1f} %" for p in classifier.predict(image)
        ]
        assert shown[-1] == expected
        # The scores to their last bit, which what is printed leaves out.
        bits = run(program, models[form], path, "--bits").stdout.split()
        scores = sorted(classifier.predict(image, top=10), key=lambda p: p.index)
        assert bits == [f"{np.float32(p.score).view(np.uint32):08x}" for p in scores]
    assert shown[0] != shown[1] != shown[2]


def test_shares_are_not_made_of_shares(program: Path, models: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(models["bytes"])
    (output,) = model.graph.output
    model.graph.node.append(onnx.helper.make_node("Softmax", [output.name], ["shares"]))
    output.name = "shares"
    onnx.save(model, tmp_path / "m.onnx")
    path = picture(tmp_path / "p.ppm", pixels("nin"))
    plain, again = (run(program, name, path, "--runs", 1).stdout for name in (models["bytes"], tmp_path / "m.onnx"))
    shares = [[line.split()[-2] for line in text.splitlines()[:-1]] for text in (plain, again)]
    assert shares[0] == shares[1] and float(shares[0][0]) > 0


def test_what_it_refuses(program: Path, models: dict[str, Path], tmp_path: Path) -> None:
    good = picture(tmp_path / "good.ppm", pixels("nin"))
    (tmp_path / "cut.ppm").write_bytes(good.read_bytes()[:-1])
    (tmp_path / "no.ppm").write_bytes(b"GIF89a")
    (tmp_path / "huge.ppm").write_bytes(b"P6 99999999 99999999 255\n")
    for model, path, message in (
        (models["nin"], tmp_path / "cut.ppm", "cut.ppm: ends before its last pixel"),
        (models["nin"], tmp_path / "no.ppm", "no.ppm: not a binary PGM or PPM file"),
        (models["nin"], tmp_path / "huge.ppm", "huge.ppm: not a binary PGM or PPM file"),
        (models["nin"], tmp_path / "none.ppm", "none.ppm: cannot be read"),
        (models["lenet5"], good, "32 x 32 pixels of 3 channels, but the model takes [N, 1, 28, 28]"),
        (models["floats"], good, "convert it with --input uint8, or with --mean and --std"),
        (tmp_path / "none.onnx", good, "none.onnx"),
    ):
        done = run(program, model, path)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert run(program, good).returncode == 2
    assert "BNN_DEPLOY_ISA = 'mmx'" in run(program, models["nin"], good, isa="mmx").stderr


def test_the_library_exports_the_functions_of_the_header_alone() -> None:
    table = subprocess.run(["readelf", "--dyn-syms", "-W", library_path()], capture_output=True, text=True, check=True)
    rows = [line.split() for line in table.stdout.splitlines()]
    exported = {row[7] for row in rows if len(row) > 7 and row[4] in ("GLOBAL", "WEAK") and row[6] != "UND"}
    assert exported == set(FUNCTIONS)
