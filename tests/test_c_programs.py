"""examples/cpp: the program that runs a model without Python gives Python's bits, and says in a line what is wrong."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from bnn_deploy.conversion import convert
from bnn_deploy.image_input import ImageInput
from bnn_deploy.runtime.session import library_info, library_path, load_session
from support.networks import checkpoint
from wheels import FUNCTIONS

SOURCE = Path(__file__).parents[1] / "examples" / "cpp"
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
    """A gray one with its channels first, a coloured one with them last, and one of floats."""
    folder = tmp_path_factory.mktemp("models")
    images = {"lenet5": ImageInput((0.1307,), (0.3081,), "nchw"), "nin": ImageInput((0.5,) * 3, (0.25,) * 3, "nhwc")}
    paths = {}
    for arch, image in images.items():
        paths[arch] = convert(checkpoint(arch, folder), folder / f"{arch}.onnx", arch=arch, image_input=image).output
    paths["floats"] = convert(checkpoint("lenet5", folder), folder / "floats.onnx", arch="lenet5").output
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
        (models["floats"], good, "convert it with --input uint8"),
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
