"""onnxruntime: float and int8 models as they are, and converted ones with the kernels of bnn_deploy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from bnn_deploy.runtime.session import library_info, load_session


def versions() -> dict[str, str]:
    info = library_info()
    return {
        "bnn_deploy": f"{info.version}, {info.selected} kernels",
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }


class Session:
    """A session with its input and output bound to fixed memory, so that a run copies nothing."""

    def __init__(self, model: Path, threads: int, kernels: bool) -> None:
        self.session = load_session(model, threads, kernels=kernels)
        self.binding = self.session.io_binding()
        self.memory: list[object] = []

    def output(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        given, made = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name
        (shape,) = (y.shape for y in self.session.run([made], {given: x}))
        x_value = onnxruntime.OrtValue.ortvalue_from_numpy(x)
        y_value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32)
        self.binding.bind_ortvalue_input(given, x_value)
        self.binding.bind_ortvalue_output(made, y_value)
        self.memory = [x, x_value, y_value]  # the binding does not keep its tensors alive
        self.run()
        return np.array(y_value.numpy())

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)


def load(model: Path, *, batch: int, threads: int, kernels: bool = False) -> Session:
    """Load an .onnx file; its batch dimension is open."""
    if kernels:
        require_kernels(model)
    return Session(model, threads, kernels)


def require_kernels(model: Path) -> None:
    """Fail if onnxruntime would run the function body of an operator, slowly, because the library has no kernel for it.

    Without its functions, such a model cannot be loaded.
    """
    content = onnx.load(model)
    del content.functions[:]
    load_session(content.SerializeToString(), threads=1)
