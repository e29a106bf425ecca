"""What must hold on ARM64, in the tree that .ci/arm64 makes: LeNet-5, NIN and AlexNet against what x86-64 computed.

The bundles are in the home folder, made by make_bundles.py, and so is classify, built from examples/cpp. QEMU_CPU is
the CPU that is emulated.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from bnn_deploy.board.manifest import FOLDER, GOLDEN, MODEL, REPORT, RUN
from bnn_deploy.runtime.session import library_info, library_path, load_session

ARCHITECTURES = ("lenet5", "nin", "alexnet")
HWCAP, DOTPROD = 16, 1 << 20
"""getauxval's key for the CPU's features, and its bit for the dot product instructions (asm/hwcap.h)."""

CPU = os.environ["QEMU_CPU"]
ISAS = {"cortex-a72": ["neon", "scalar"], "cortex-a76": ["neon_dotprod", "neon", "scalar"]}[CPU]


def run(*command: str | Path, code: int = 0, cwd: Path | None = None) -> str:
    """What a command prints on stdout; it must end with `code`."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[[str], Path]:
    def unpack(arch: str) -> Path:
        run("tar", "-xzf", Path.home() / f"{arch}.tar.gz", cwd=tmp_path)
        return tmp_path / FOLDER

    return unpack


def check_identical(golden: dict[str, Any]) -> None:
    """All bits of all samples are x86-64's, by every instruction set and the function bodies; floats are near."""
    assert golden["passed"]
    assert golden["isas"] == ISAS
    backends = [*(f"kernels, {isa}" for isa in ISAS), "bodies, onnxruntime"]
    assert [output["backend"] for output in golden["outputs"]] == backends
    for output in golden["outputs"]:
        assert output["identical"] == output["samples"] > 0
        assert output["flipped"] == 0
    assert sum(layer["bits"] for layer in golden["layers"]) > 10_000
    assert all(layer["differing"] == 0 for layer in golden["layers"])


def test_this_is_the_cpu_that_is_meant() -> None:
    assert platform.machine() == "aarch64"
    has_dotprod = bool(ctypes.CDLL(None).getauxval(HWCAP) & DOTPROD)
    assert has_dotprod == ("neon_dotprod" in ISAS)


def test_a_board_has_no_torch() -> None:
    assert importlib.util.find_spec("torch") is None


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_neon_runs(arch: str, unpacked: Callable[[str], Path], record_property: Callable[[str, object], None]) -> None:
    before = library_info()
    assert list(before.isas) == ISAS
    assert before.selected == ISAS[0]
    folder = unpacked(arch)
    with np.load(folder / GOLDEN) as golden:
        images = golden["input/0"][:1]
    load_session(folder / MODEL, threads=1).run(None, {"input": images})
    after = library_info()
    ran = {isa: after.calls[isa] - before.calls[isa] for isa in ISAS}
    assert ran.pop(ISAS[0]) > 0
    assert not any(ran.values())
    record_property("neon_calls", after.calls[ISAS[0]] - before.calls[ISAS[0]])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_golden(arch: str, unpacked: Callable[[str], Path], record_property: Callable[[str, object], None]) -> None:
    folder = unpacked(arch)
    text = run("bnn-deploy", "verify", folder / MODEL, "--golden", folder / GOLDEN, "--json")
    golden = json.loads(text)
    check_identical(golden)
    record_property("bits", sum(layer["bits"] for layer in golden["layers"]))
    record_property("relative_error", max(output["relative_error"] for output in golden["outputs"]))


def test_one_wrong_bit_is_caught(unpacked: Callable[[str], Path], tmp_path: Path) -> None:
    folder = unpacked("nin")
    with np.load(folder / GOLDEN) as golden:
        arrays = dict(golden)
    layer = next(name for name in arrays if name.startswith("bits/") and name.replace("bits", "near") not in arrays)
    arrays[layer].flat[-1] ^= 1
    np.savez(tmp_path / "wrong.npz", **arrays)
    text = run("bnn-deploy", "verify", folder / MODEL, "--golden", tmp_path / "wrong.npz", code=1)
    assert text.splitlines()[-1] == "FAILED"


def test_profile(unpacked: Callable[[str], Path]) -> None:
    report = json.loads(run("bnn-deploy", "profile", unpacked("lenet5") / MODEL, "--runs", "3", "--json"))
    assert report["isa"] == ISAS[0]
    assert report["model"]["timing"]["median_ms"] > 0
    assert report["model"]["memory"]["peak_bytes"] > report["model"]["memory"]["baseline_bytes"] > 0


@pytest.mark.timeout(1800)
def test_bundle(unpacked: Callable[[str], Path]) -> None:
    """A board with Python and no network: run.sh installs, verifies and profiles; again, it does the last two."""
    folder = unpacked("nin")
    assert "\nPASSED\n" in run("sh", RUN, "--runs", "2", cwd=folder)
    report = json.loads((folder / REPORT).read_text())
    assert report["passed"]
    assert report["profile"]["isa"] == ISAS[0]
    check_identical(report["golden"])
    run(folder / "venv/bin/python", "-c", "import importlib.util as u; assert u.find_spec('torch') is None")
    made = (folder / "venv/complete").stat().st_mtime_ns
    (folder / REPORT).unlink()
    run("sh", RUN, "--runs", "2", cwd=folder)
    assert json.loads((folder / REPORT).read_text())["passed"]
    assert (folder / "venv/complete").stat().st_mtime_ns == made


def test_the_program_without_python_gives_its_bits(tmp_path: Path) -> None:
    """examples/cpp, built on another machine, with onnxruntime's library from the wheel."""
    (runtime,) = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (tmp_path / "libonnxruntime.so.1").symlink_to(runtime)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    picture, model = tmp_path / "p.ppm", Path.home() / "nin_bytes.onnx"
    picture.write_bytes(b"P6 32 32 255\n" + pixels.tobytes())
    for isa in ISAS:
        session = load_session(model, isa=isa, threads=1)
        (expected,) = session.run(None, {session.get_inputs()[0].name: pixels[None]})
        environment = os.environ | {
            "BNN_DEPLOY_ISA": isa,
            "LD_LIBRARY_PATH": f"{tmp_path}:{library_path().parent}",
        }
        done = subprocess.run(
            [Path.home() / "classify", model, picture, "--bits"], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr  # where onnxruntime says that it does not know the CPU
        assert done.stdout.split() == [f"{bits:08x}" for bits in expected.ravel().view(np.uint32)]
