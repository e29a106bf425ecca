"""What session.cc runs: python tests/windows/make_case.py FOLDER writes model.onnx, x.bin and y.bin into FOLDER.

The model is binary from end to end, so that every instruction set gives the same bits; y is what the scalar kernels of
this machine give for x.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import kernels, small_models


def main() -> None:
    folder = Path(sys.argv[1])
    path = folder / "model.onnx"
    ip1 = small_models.CONV | {"channels": 50, "kernel_shape": [4, 4], "strides": [4, 4]}
    nodes = [
        small_models.binary_node("Binarize", ["x", "t1"], "b1", "sign1"),
        small_models.binary_node(
            "BinaryConvThreshold", ["b1", "w2", "t2", "zero"], "b2", "conv2", **small_models.CONV | {"channels": 1}
        ),
        small_models.binary_node("BinaryMaxPool", ["b2"], "b3", "pool2", **small_models.POOL | {"strides": [6, 6]}),
        small_models.binary_node("BinaryConv", ["b3", "w3", "s3", "s3", "zero"], "y", "ip1", **ip1),
    ]
    constants = {
        "t1": np.zeros(1, np.float32),
        "w2": small_models.random_bits(50, 5, 5, 1),
        "t2": np.zeros(50, np.int32),
        "w3": small_models.random_bits(500, 4, 4, 50),
        "s3": np.ones(500, np.float32),
        "zero": np.zeros(1, np.float32),
    }
    small_models.save(path, nodes, constants, [1, 1, 28, 28], ("y", TensorProto.FLOAT, [1, 500, 1, 1]))
    x = np.random.default_rng(0).standard_normal((1, 1, 28, 28)).astype(np.float32)
    (y,) = kernels.make_session(onnx.load(path), "scalar").run(None, {"x": x})
    (folder / "x.bin").write_bytes(x.tobytes())
    (folder / "y.bin").write_bytes(y.tobytes())


if __name__ == "__main__":
    main()
