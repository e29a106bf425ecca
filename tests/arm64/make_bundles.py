"""Bundles for ARM64 with golden results of this machine: python tests/arm64/make_bundles.py WHEELS FOLDER.

WHEELS has bnn-deploy's aarch64 wheel and all that it needs; NIN's bundle takes all of it and needs no network. FOLDER
gets lenet5.tar.gz, nin.tar.gz and alexnet.tar.gz, and nin_bytes.onnx, which takes images of bytes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bnn_deploy.board.bundle import write_bundle
from bnn_deploy.conversion import convert
from bnn_deploy.image_input import ImageInput
from support import networks

SAMPLES = {"lenet5": 32, "nin": 2, "alexnet": 2}
CALIBRATION = 8
"""Images that the BatchNorm statistics of AlexNet come from; the others were trained."""


def make(arch: str, wheels: Path, output: Path, folder: Path) -> None:
    """Convert a network and write its bundle."""
    checkpoint = networks.checkpoint(arch, folder, CALIBRATION)
    model = convert(checkpoint, folder / f"{arch}.onnx", arch=arch).output
    images = folder / f"{arch}.npy"
    np.save(images, networks.inputs(arch, SAMPLES[arch], first=500).numpy())
    manifest = write_bundle(model, output, target="aarch64", data=images, samples=SAMPLES[arch], wheels=wheels)
    print(f"{output.name}: {output.stat().st_size:,} bytes, offline {manifest.offline}")


def main() -> None:
    wheels, output = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = folder / "wheels"
        own.mkdir()
        for wheel in wheels.glob("bnn_deploy-*.whl"):
            shutil.copy(wheel, own)
        for arch in SAMPLES:
            make(arch, wheels if arch == "nin" else own, output / f"{arch}.tar.gz", folder)
        image = ImageInput((0.5,), (0.5,), "nhwc")
        convert(networks.checkpoint("nin", folder), output / "nin_bytes.onnx", arch="nin", image_input=image)


if __name__ == "__main__":
    main()
