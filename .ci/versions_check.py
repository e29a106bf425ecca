"""What must hold in one environment of .ci/versions; prints the versions and instruction sets that ran, as JSON.

python versions_check.py FOLDER NAME...    NAME.onnx, NAME.wrong.onnx, NAME.golden.npz and NAME.npz in FOLDER
python versions_check.py FOLDER --convert  lenet5.pth.tar in FOLDER
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from bnn_deploy.runtime.session import library_info, load_session

RUNTIME = ("onnxruntime", "numpy", "click", "packaging", "rich")
CONVERT = ("onnx", "onnx-ir", "onnxscript", "safetensors")


def require(holds: bool, what: str) -> None:
    """End this check with an error unless something holds."""
    if not holds:
        sys.exit(f"error: {what}")


def command(*words: object, code: int = 0) -> None:
    """Run a command of bnn-deploy, which must end with this exit code."""
    done = subprocess.run([sys.executable, "-m", "bnn_deploy", *map(str, words)], capture_output=True, text=True)
    said = (done.stdout + done.stderr)[-2000:]
    require(done.returncode == code, f"bnn-deploy {words[0]} {words[1]}: exit {done.returncode}, not {code}: {said}")


def outputs(model: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    """The output by the bodies, without the library, and by the kernels of each instruction set."""
    sessions = {"bodies": load_session(model, 1, kernels=False)}
    sessions |= {isa: load_session(model, 2, isa=isa) for isa in library_info().isas}
    return {name: session.run(None, {session.get_inputs()[0].name: x})[0] for name, session in sessions.items()}


def check(folder: Path, name: str) -> None:
    """The outputs are those that were stored, to the last bit; those of a model with other weights are not."""
    with np.load(folder / f"{name}.npz") as stored:
        expected = dict(stored)
    x = expected.pop("x")
    got, wrong = (outputs(folder / f"{name}.{end}", x) for end in ("onnx", "wrong.onnx"))
    require(got.keys() == expected.keys(), f"{name}: run by {', '.join(got)}, stored of {', '.join(expected)}")
    for backend, y in expected.items():
        require(got[backend].dtype == y.dtype and np.array_equal(got[backend], y), f"{name}, {backend}: other outputs")
        require(not np.array_equal(wrong[backend], y), f"{name}, {backend}: other weights do not show")
    command("verify", folder / f"{name}.onnx", "--golden", folder / f"{name}.golden.npz")
    command("profile", folder / f"{name}.onnx", "--runs", 3)


def with_another_weight(model: Path) -> bytes:
    """The file of a converted model with 32 weights of its last binary layer inverted."""
    import onnx

    proto = onnx.load(model)
    *_, weights = (tensor for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.UINT32)
    weights.raw_data = bytes(255 - byte for byte in weights.raw_data[:4]) + weights.raw_data[4:]
    return proto.SerializeToString()


def convert(folder: Path) -> None:
    """The converted network passes verify, and one with other weights does not."""
    model, wrong = folder / "converted.onnx", folder / "converted.wrong.onnx"
    command("convert", folder / "lenet5.pth.tar", "--arch", "lenet5", "-o", model)
    command("inspect", model)
    command("verify", model, "--against", folder / "lenet5.pth.tar", "--samples", 4, "--reference-samples", 1)
    wrong.write_bytes(with_another_weight(model))
    command("verify", wrong, "--against", folder / "lenet5.pth.tar", "--samples", 4, "--reference-samples", 1, code=1)


def main() -> None:
    """Run the checks, and say of what."""
    folder, *names = Path(sys.argv[1]), *sys.argv[2:]
    for name in names:
        convert(folder) if name == "--convert" else check(folder, name)
    found: dict[str, Any] = {"python": platform.python_version(), "isas": library_info().isas}
    for package in (*RUNTIME, *CONVERT, "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    print(json.dumps(found))


if __name__ == "__main__":
    main()
