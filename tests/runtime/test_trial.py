"""The run of a converted model beside its source, before its file gets its name."""

from __future__ import annotations

import pytest

from bnn_deploy.errors import BnnDeployError, InputError
from bnn_deploy.runtime.inputs import InputSpec
from bnn_deploy.runtime.trial import require_runs
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
    require_runs(source, source, WANTED, "net.onnx")
    with pytest.raises(BnnDeployError, match=rf"^net.onnx: a fault of bnn-deploy.* output 'y' .*{said}") as caught:
        require_runs(model(nodes, output), source, WANTED, "net.onnx")
    assert not isinstance(caught.value, InputError)


def test_sizes_that_depend_on_values_may_differ() -> None:
    source, other = (model(f"c = {op}(x)\ny = NonZero(c)", "int64[] y") for op in ("Relu", "Identity"))
    require_runs(other, source, WANTED, "net.onnx")
