"""What is told of single samples: how they are classified, and which differ most."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.data.pictures import has_pillow, png
from bnn_deploy.proof.margins import Magnitudes, absolute_error, among_highest, classes, has_classes, in_units
from bnn_deploy.proof.results import WORST, ClassAccuracy, Classification, Verification, WorstSample
from bnn_deploy.runtime.inputs import Inputs

PICTURE_SIDE = 96
"""The largest side of a sample's picture in a result, in pixels."""


class Tally:
    """Counts how a network classifies labelled samples, batch by batch."""

    def __init__(self, network: str, backend: str, output: str) -> None:
        """For the fields of Classification with these names."""
        self._what = network, backend, output
        self._pairs: Counter[tuple[int, int]] = Counter()
        self._top5: int | None = None

    def add(self, scores: NDArray[Any], labels: NDArray[Any]) -> None:
        """Add a batch of outputs with classes and their labels."""
        self._pairs.update(zip(labels.astype(int).tolist(), classes(scores).tolist(), strict=True))
        among = among_highest(scores, labels)
        if among is not None:
            self._top5 = (self._top5 or 0) + int(among.sum())

    def result(self, names: Sequence[str]) -> Classification | None:
        """The result; None if there was no batch."""
        if not self._pairs:
            return None
        samples, correct = Counter[int](), Counter[int]()
        for (label, predicted), count in self._pairs.items():
            samples[label] += count
            correct[label] += count if label == predicted else 0
        return Classification(
            *self._what,
            samples=samples.total(),
            correct=correct.total(),
            correct_top5=self._top5,
            classes=[
                ClassAccuracy(label, names[label] if 0 <= label < len(names) else "", samples[label], correct[label])
                for label in sorted(samples)
            ],
            confusion=[(*pair, self._pairs[pair]) for pair in sorted(self._pairs)],
        )


def add_worst(
    worst: list[WorstSample],
    what: tuple[str, str],
    got: NDArray[Any],
    expected: NDArray[Any],
    scale: Magnitudes,
    inputs: Inputs,
    start: int,
) -> None:
    """Add the samples of a batch to those whose outputs differ most, and keep WORST of them, the worst first.

    Args:
        worst: those so far.
        what: the names of backend and output.
        got: the model's output; nothing is added if its first dimension is not the sample's.
        expected: the reference's.
        scale: the magnitudes of the reference's output.
        inputs: all samples.
        start: the batch's first sample among them.
    """
    samples = min(len(got), len(inputs) - start) if got.ndim else 0
    if got.shape != expected.shape or samples != len(got) or not got.size:
        return
    error = absolute_error(got, expected)
    relative = in_units(error, expected, scale).reshape(samples, -1).max(axis=1)
    least = worst[-1].relative_error if len(worst) == WORST else 0.0
    named = has_classes(expected)
    for i in map(int, np.flatnonzero(relative > least)):
        worst.append(
            WorstSample(
                *what,
                sample=inputs.index(start + i),
                file=inputs.file(start + i),
                max_error=float(error[i].max()),
                relative_error=float(relative[i]),
                label=None if inputs.labels is None else int(inputs.labels[start + i]),
                reference_class=int(classes(expected)[i]) if named else None,
                model_class=int(classes(got)[i]) if named else None,
            )
        )
    worst.sort(key=lambda sample: -sample.relative_error)
    del worst[WORST:]


def add_pictures(result: Verification, inputs: Inputs, most: int) -> None:
    """Add pictures of the samples that a result tells of, at most so many; none if the data is none of images."""
    told = [*(d.sample for d in result.disagreements), *(sample.sample for sample in result.worst)]
    if not most or inputs.pictures is None or not told:
        return
    if not has_pillow():
        result.notes.append("no pictures of samples: they are made with Pillow, which is not installed")
        return
    for sample in list(dict.fromkeys(told))[:most]:
        picture = png(inputs.pictures.open(sample), PICTURE_SIDE)
        result.pictures[str(sample)] = base64.b64encode(picture).decode()
