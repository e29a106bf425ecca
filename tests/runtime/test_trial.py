"""The run of a converted model beside its source, before its file gets its name."""

from __future__ import annotations

import numpy as np
import pytest

from bnn_deploy.errors import BnnDeployError, InputError
from bnn_deploy.runtime.inputs import InputSpec
from bnn_deploy.runtime.trial import MOST_BODIES, require_runs
from support.agreement import model_of
from support.graphs import parse, runnable, weights

WANTED = [InputSpec("x", "float32", ("N", 4, 6, 6), (4, 6, 6))]


def model(nodes: str, output: str = "y") -> bytes:
    return runnable(parse(nodes, outputs=(output,), w=weights(8, 4, 3, 3), few=weights(7, 4, 3, 3)))


@pytest.mark.parametrize(
    ("nodes", "output", "said"),
    [
        ("y = Conv(x, few)", "y", r"is float32 \[1, 7, 4, 4\], and of the float one float32 \[1, 8, 4, 4\]"),
        ("c = Conv(x, w)\ny = Cast<to=11>(c)", "double[] y", r"is float64 \[1, 8, 4, 4\]"),
        ("c = Conv(x, w)\ny = Flatten(c)", "y", r"is float32 \[1, 128\]"),
    ],
)
def test_an_output_of_another_kind_is_a_fault(nodes: str, output: str, said: str) -> None:
    source = model("y = Conv(x, w)")
    require_runs(source, 0, source, WANTED, "net.onnx")
    with pytest.raises(BnnDeployError, match=rf"^net.onnx: a fault of bnn-deploy.* output 'y' .*{said}") as caught:
        require_runs(model(nodes, output), 0, source, WANTED, "net.onnx")
    assert not isinstance(caught.value, InputError)


def test_sizes_that_depend_on_values_may_differ() -> None:
    source, other = (model(f"c = {op}(x)\ny = NonZero(c)", "int64[] y") for op in ("Relu", "Identity"))
    require_runs(other, 0, source, WANTED, "net.onnx")


def test_a_model_that_runs_only_with_the_library_is_a_fault() -> None:
    """Up to a number of bodies: of more, stock onnxruntime would take minutes to load them."""
    x = np.zeros((1, 3, 4, 4), np.float32)
    whole = model_of("Binarize", [x], {}, {"threshold": np.zeros(3, np.float32)})
    source, wanted = whole.SerializeToString(), [InputSpec("X", "float32", (None, 3, 4, 4))]
    require_runs(source, 1, source, wanted, "net.onnx")
    del whole.functions[:]
    without = whole.SerializeToString()
    with pytest.raises(BnnDeployError, match=r"fault of bnn-deploy.*not the converted one by its function bodies \(.*"):
        require_runs(without, MOST_BODIES, source, wanted, "net.onnx")
    require_runs(without, MOST_BODIES + 1, source, wanted, "net.onnx")
