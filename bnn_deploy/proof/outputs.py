"""The part of the proof that needs no onnx: outputs against a float .onnx file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bnn_deploy.errors import InputError, SetupError, reading_metadata
from bnn_deploy.installation import install_command
from bnn_deploy.preprocessing import Preprocessing
from bnn_deploy.progress import Progress, ProgressStep
from bnn_deploy.proof.backends import BATCH, Arrays, Backends, RunError
from bnn_deploy.proof.margins import (
    Magnitudes,
    absolute_error,
    agreeing,
    among_highest,
    classes,
    has_classes,
    other_class,
    relative_error,
    tie_margin,
)
from bnn_deploy.proof.results import Disagreement, OutputResult, Tolerances, Verification, WorstSample
from bnn_deploy.proof.samples import Tally, add_worst
from bnn_deploy.runtime.inputs import ArrayLike, Inputs, batch_size, load_data, read_inputs, whole_batches
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
    samples: int,
) -> NDArray[np.bool_]:
    """Add a batch of free-running outputs to a backend's result.

    Args:
        result: the result so far.
        got: the model's output.
        expected: the reference's.
        labels: the classes of the samples; None if there are none, or they are not this output's.
        tolerances: the largest differences that count as rounding.
        scale: the magnitudes of the reference's output.
        samples: number of samples in the batch; the output may have another first dimension.

    Returns:
        Which samples agree, see `margins.agreeing`.
    """
    agree = agreeing(got, expected, scale, samples)
    result.samples += samples
    result.agreeing += int(agree.sum())
    if got.shape != expected.shape:  # as many boxes as were found
        result.max_error = float("inf")
        return agree
    error = absolute_error(got, expected)
    result.max_error = max(result.max_error, float(error.max(initial=0)))
    limit = tolerances.float_relative * float(scale.largest.max()) if expected.dtype.kind == "f" else 0.0
    rows = (samples, -1) if len(error) == samples and error.size else (1, -1)
    close = error.reshape(rows).max(axis=1, initial=0) <= limit
    result.close += int(np.broadcast_to(close, samples).sum())
    if has_classes(expected) and len(expected) == samples:
        result.same_class = (result.same_class or 0) + len(got) - len(other_class(got, expected))
        if labels is not None:
            result.correct = (result.correct or 0) + int((classes(got) == labels).sum())
            result.reference_correct = (result.reference_correct or 0) + int((classes(expected) == labels).sum())
            among = among_highest(got, labels), among_highest(expected, labels)
            if among[0] is not None and among[1] is not None:
                result.correct_top5 = (result.correct_top5 or 0) + int(among[0].sum())
                result.reference_correct_top5 = (result.reference_correct_top5 or 0) + int(among[1].sum())
    return agree


def require_form(got: NDArray[Any], expected: NDArray[Any]) -> None:
    """Check the type and shape of an output; the first dimension may be a number of boxes found.

    Raises:
        RunError: they are not the reference's.
    """
    if got.dtype != expected.dtype or got.shape[1:] != expected.shape[1:] or got.ndim != expected.ndim:
        raise RunError(
            f"its output is {got.dtype} {list(got.shape)}, the reference's {expected.dtype} {list(expected.shape)}"
        )


def verify_outputs(
    model: str | os.PathLike[str],
    against: Any,
    data: Any,
    labels: ArrayLike | None,
    samples: int | None,
    sessions: Backends,
    tolerances: Tolerances,
    progress: Progress,
    preprocessing: Preprocessing | None,
    seed: int | None,
) -> tuple[Inputs, Verification]:
    """The part of `verify` that a board without onnx can do: the outputs, against a float .onnx file.

    Kernels and function bodies must give the same outputs but for rounding. Against the float model, a sign
    that flips within rounding changes a sample's outputs, but few samples have such a flip: most must be close.

    Returns:
        The inputs and the result; what Ctrl-C leaves open stays so, see `Verification.interrupted`.
    """
    if not str(against).lower().endswith(".onnx"):
        raise SetupError(
            f"{against}: to verify against a checkpoint, install torch and onnx: {install_command('convert')}; "
            "without them, verify against a float .onnx file"
        )
    float_session = load_session(against, sessions.threads, kernels=False)
    with reading_metadata(against):
        wanted = read_inputs(float_session)
    batch = batch_size(wanted)
    inputs = load_data(data, labels, samples, wanted, preprocessing=preprocessing, seed=seed)
    inputs = whole_batches(inputs, batch)
    step = batch or BATCH
    result = Verification(
        str(model),
        f"onnxruntime {ort.__version__} running {Path(against).name}",
        inputs.origin,
        0,
        0,
        [],
        tolerances,
        planned=len(inputs),
        class_names=inputs.class_names,
        notes=[
            "onnx is not installed: only outputs were compared, not operators and layers "
            f"({install_command('convert')})"
        ],
    )
    runners = {backend: sessions.make(str(model), backend) for backend in sessions.onnxruntime}
    own_names = [info.name for info in load_session(model, sessions.threads, kernels=False).get_inputs()]
    names = [info.name for info in float_session.get_outputs()]
    scales = [(Magnitudes(), Magnitudes()) for _ in names]  # of the float model, and of the bodies

    def run(backend: str, feed: Arrays) -> list[NDArray[Any]]:
        return runners[backend](dict(zip(own_names, feed.values(), strict=True)))

    def measure(feed: Arrays) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """The float model's outputs and those of the function bodies, added to `scales`."""
        outputs = list(map(np.asarray, float_session.run(None, feed))), run(sessions.BODIES, feed)
        for expected, bodies, (float_scale, bodies_scale) in zip(*outputs, scales, strict=True):
            float_scale.add(expected)
            bodies_scale.add(bodies)
        return outputs

    result.outputs = [OutputResult(backend, name if len(names) > 1 else "") for backend in runners for name in names]
    worst: list[list[WorstSample]] = [[] for _ in names]
    classifiers: list[Tally] = []

    def check(start: int) -> None:
        size = min(step, len(inputs) - start)
        feed = inputs.part(start, start + size)
        floats, bodies = measure(feed)
        found = {backend: bodies if backend == sessions.BODIES else run(backend, feed) for backend in runners}
        # The labels are those of the first output with classes.
        labelled = next((i for i, expected in enumerate(floats) if has_classes(expected)), None)
        for i, output in enumerate(result.outputs):
            which = i % len(names)
            got, expected = found[output.backend][which], floats[which]
            try:
                require_form(got, expected)
            except RunError as error:
                raise InputError(f"{model}: {error}: it is not what this model was converted from") from error
            part_labels = (
                inputs.labels[start : start + size] if inputs.labels is not None and which == labelled else None
            )
            add_output(output, got, expected, part_labels, tolerances, scales[which][0], size)
            if output.backend == sessions.own:
                what = (output.backend, output.output)
                add_worst(worst[which], what, got, expected, scales[which][0], inputs, start)
                if part_labels is not None:
                    if not classifiers:
                        named = (("reference", result.reference), ("model", output.backend))
                        classifiers.extend(Tally(network, backend, output.output) for network, backend in named)
                    for classifier, scores in zip(classifiers, (expected, got), strict=True):
                        classifier.add(scores, part_labels)
            spread = float(relative_error(got, bodies[which], scales[which][1]).max(initial=0))
            if spread > tolerances.float_relative:
                result.errors.append(
                    f"{output.backend} differs from the function bodies by {spread:.2g} of the largest in a channel"
                )
            for sample in map(int, other_class(got, expected)):
                margin = tie_margin(got[sample], expected[sample])
                result.disagreements.append(
                    Disagreement(
                        output.backend,
                        output.output,
                        inputs.index(start + sample),
                        int(classes(expected)[sample]),
                        int(classes(got)[sample]),
                        "",
                        margin,
                        zero=False,
                        explained=margin <= tolerances.float_relative,
                        label=None if part_labels is None else int(part_labels[sample]),
                        file=inputs.file(start + sample),
                    )
                )
        result.samples += size

    try:
        for feed in inputs.more().batches(step):
            measure(feed)
        for start in range(0, len(inputs), step):
            progress(ProgressStep(f"verifying: outputs, sample {start} of {len(inputs)}", start / len(inputs)))
            check(start)
    except KeyboardInterrupt:
        result.interrupted = True
    result.worst = [sample for of_output in worst for sample in of_output]
    classified = [classifier.result(inputs.class_names) for classifier in classifiers]
    result.classification = [one for one in classified if one is not None]
    for output in result.outputs:
        if output.close < CLOSE_SHARE * output.samples:
            result.errors.append(
                f"{output.backend}: only {output.close} of {output.samples} samples have outputs within "
                f"{tolerances.float_relative:g} of the float model's (needed: {CLOSE_SHARE:.0%})"
            )
    return inputs, result
