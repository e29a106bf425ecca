"""The part of the proof that needs no onnx: outputs against a float .onnx file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.progress import Progress
from bnn_deploy.proof.backends import BATCH, Backends
from bnn_deploy.proof.margins import (
    Magnitudes,
    absolute_error,
    classes,
    has_classes,
    other_class,
    relative_error,
    tie_margin,
)
from bnn_deploy.proof.results import Disagreement, OutputResult, Tolerances, Verification
from bnn_deploy.runtime.inputs import batch_size, load_data, read_inputs, whole_batches
from bnn_deploy.runtime.session import load_session

CLOSE_SHARE = 0.5
"""Where only outputs can be compared, this share of the samples must have outputs that differ by rounding alone."""


def add_output(
    result: OutputResult,
    got: NDArray[Any],
    expected: NDArray[Any],
    labels: NDArray[Any] | None,
    tolerances: Tolerances,
    scale: Magnitudes,
) -> None:
    """Add a batch of free-running outputs to a backend's result; `scale` holds the reference's magnitudes."""
    error = absolute_error(got, expected)
    result.samples += len(got)
    result.max_error = max(result.max_error, float(error.max()))
    limit = tolerances.float_relative * float(scale.largest.max())
    result.close += int((error.reshape(len(error), -1).max(axis=1) <= limit).sum())
    if has_classes(expected):
        result.same_class = (result.same_class or 0) + len(got) - len(other_class(got, expected))
        if labels is not None:
            result.correct = (result.correct or 0) + int((classes(got) == labels).sum())
            result.reference_correct = (result.reference_correct or 0) + int((classes(expected) == labels).sum())


def verify_outputs(
    model: str | os.PathLike[str],
    against: Any,
    data: Any,
    labels: NDArray[Any] | None,
    samples: int | None,
    sessions: Backends,
    tolerances: Tolerances,
    progress: Progress,
) -> Verification:
    """The part of `verify` that a board without onnx can do: the outputs, against a float .onnx file.

    Kernels and function bodies must give the same outputs but for rounding. Against the float model, a sign
    that flips within rounding changes a sample's outputs, but few samples have such a flip: most must be close.
    """
    if not str(against).lower().endswith(".onnx"):
        raise SetupError(
            f"{against}: to verify against a checkpoint, install torch and onnx: pip install 'bnn-deploy[convert]'; "
            "without them, verify against a float .onnx file"
        )
    float_session = load_session(against, sessions.threads, kernels=False)
    graph_input = float_session.get_inputs()[0]
    wanted = read_inputs(float_session)
    batch = batch_size(wanted)
    inputs = load_data(data, labels, samples, wanted)
    inputs = whole_batches(inputs, batch)
    step = batch or BATCH
    result = Verification(
        str(model),
        f"onnxruntime {ort.__version__} running {Path(against).name}",
        inputs.origin,
        len(inputs),
        0,
        [],
        tolerances,
        notes=[
            "onnx is not installed: only outputs were compared, not operators and layers "
            "(pip install 'bnn-deploy[convert]')"
        ],
    )
    runners = {backend: sessions.make(str(model), backend) for backend in sessions.onnxruntime}
    result.outputs = [OutputResult(backend) for backend in runners]
    name = graph_input.name
    float_scale, bodies_scale = Magnitudes(), Magnitudes()
    for feed in inputs.more().batches(step):
        float_scale.add(np.asarray(float_session.run(None, feed)[0]))
        bodies_scale.add(runners[sessions.BODIES](feed))
    for start in range(0, len(inputs), step):
        progress(f"verifying: outputs, sample {start} of {len(inputs)}")
        x = inputs.arrays[name][start : start + step]
        part_labels = None if inputs.labels is None else inputs.labels[start : start + step]
        expected = bodies = np.asarray(float_session.run(None, {name: x})[0])
        float_scale.add(expected)
        for output in result.outputs:
            got = runners[output.backend]({name: x})
            if got.shape != expected.shape:
                raise InputError(
                    f"{model}: its output has shape {list(got.shape)}, that of {against} {list(expected.shape)}: "
                    "it is not what this model was converted from"
                )
            add_output(output, got, expected, part_labels, tolerances, float_scale)
            if output.backend == sessions.BODIES:
                bodies = got
                bodies_scale.add(bodies)
            spread = float(relative_error(got, bodies, bodies_scale).max())
            if spread > tolerances.float_relative:
                result.errors.append(
                    f"{output.backend} differs from the function bodies by {spread:.2g} of the largest in a channel"
                )
            for i in other_class(got, expected):
                margin = tie_margin(got[i], expected[i])
                result.disagreements.append(
                    Disagreement(
                        output.backend,
                        start + int(i),
                        int(classes(expected)[i]),
                        int(classes(got)[i]),
                        "",
                        margin,
                        explained=margin <= tolerances.float_relative,
                    )
                )
    for output in result.outputs:
        if output.close < CLOSE_SHARE * output.samples:
            result.errors.append(
                f"{output.backend}: only {output.close} of {output.samples} samples have outputs within "
                f"{tolerances.float_relative:g} of the float model's (needed: {CLOSE_SHARE:.0%})"
            )
    return result
