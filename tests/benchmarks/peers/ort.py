"""onnxruntime: float and int8 models as they are, and converted ones with the kernels of bnn_deploy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from bnn_deploy.runtime.session import library_info, load_session


def versions() -> dict[str, str]:
    return {
        "bnn_deploy": library_info().version,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }


class Session:
    """A session with its input and output bound to fixed memory, so that a run copies nothing."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.binding = session.io_binding()
        self.memory: list[object] = []

    def output(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        given, made = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name
        x_value = onnxruntime.OrtValue.ortvalue_from_numpy(x)
        self.binding.bind_ortvalue_input(given, x_value)
        self.binding.bind_output(made)  # onnxruntime allocates it, in the shape that only the run tells
        self.run()
        (y_value,) = self.binding.get_outputs()
        self.binding.bind_ortvalue_output(made, y_value)
        self.memory = [x, x_value, y_value]  # the binding does not keep its tensors alive
        return np.array(y_value.numpy())

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)


def load(
    model: Path, *, batch: int, threads: int, kernels: bool = False, isa: str | None = None, checked: bool = False
) -> Session:
    """Load an .onnx file; its batch dimension is open.

    Args:
        model: the file.
        batch: of no account here.
        threads: of the session.
        kernels: with those of bnn_deploy, and then with no operator whose function body would run instead.
        isa: their instruction set; None for the best.
        checked: that the library has a kernel for every operator is known already.
    """
    if kernels and not checked:
        require_kernels(model)
    return Session(load_session(model, threads, kernels=kernels, isa=isa))


def require_kernels(model: Path) -> None:
    """Fail if onnxruntime would run the function body of an operator, slowly, because the library has no kernel for it.

    Without its functions, such a model cannot be loaded.
    """
    import onnx  # not at the top, for the cold start's memory

    content = onnx.load(model)
    del content.functions[:]
    load_session(content.SerializeToString(), threads=1)
