"""How often tensors of a model are exactly 0 on some inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import onnxruntime as ort

from bnn_deploy.errors import InputError, about, one_line, option
from bnn_deploy.progress import Progress
from bnn_deploy.runtime.inputs import MORE_SAMPLES, Inputs, InputSpec, batch_size, random_feed
from bnn_deploy.runtime.session import load_session

_BATCH = 50


@dataclass(frozen=True)
class TensorZeros:
    """The exact zeros of some tensors.

    Attributes:
        zeros: their number, by tensor.
        values: the number of all values, by tensor.
        samples: on so many samples.
        inputs: the origin of these.
    """

    zeros: dict[str, int]
    values: dict[str, int]
    samples: int
    inputs: str


def count_zeros(
    model: bytes, name: str, wanted: Sequence[InputSpec], inputs: Inputs | None, progress: Progress
) -> TensorZeros:
    """Count the zeros of a model's outputs.

    Args:
        model: a float model with the tensors to count as outputs. It is run as it is: without graph optimisation.
        name: what to call it in errors.
        wanted: its inputs.
        inputs: whole batches of real ones; None for a few random samples.
        progress: called with a line of text before each batch.

    Raises:
        InputError: it does not run on them.
    """
    batch = batch_size(wanted)
    if inputs is None:
        samples, origin = batch or MORE_SAMPLES, f"random inputs (give {option('data')} for real ones)"
        with about(name):
            feeds = iter([random_feed(wanted, samples)])
    else:
        samples, origin = len(inputs), inputs.origin
        feeds = inputs.batches(batch or _BATCH)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = load_session(model, kernels=False, options=options)
    tensors = [info.name for info in session.get_outputs()]
    result = TensorZeros(dict.fromkeys(tensors, 0), dict.fromkeys(tensors, 0), samples, origin)
    for done, feed in zip(count(step=batch or _BATCH), feeds, strict=False):
        progress(f"counting exact zeros on {origin}: sample {done:,} of {samples:,}")
        try:
            found = session.run(tensors, feed)
        except Exception as error:  # onnxruntime's exception types are not public
            raise InputError(f"{name}: onnxruntime cannot run it on {origin}: {one_line(error)}") from error
        for tensor, array in zip(tensors, map(np.asarray, found), strict=True):
            result.zeros[tensor] += int((array == 0).sum())
            result.values[tensor] += array.size
    return result
