"""A picture in, its likeliest classes out. Needs onnxruntime and numpy, and Pillow for pictures in files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bnn_deploy.errors import InputError, option, reading_metadata
from bnn_deploy.preprocessing import Preprocessing
from bnn_deploy.provenance import read_classes
from bnn_deploy.runtime.inputs import (
    ArrayLike,
    as_array,
    batch_size,
    fits,
    load_data,
    preprocessing_of,
    read_inputs,
)
from bnn_deploy.runtime.model_nodes import read_nodes
from bnn_deploy.runtime.session import load_session

_MOVED = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that leave the numbers of their first input as they are."""

_PROBABILITIES = ("Sigmoid", "Softmax")
"""Operators whose outputs are probabilities."""


@dataclass(frozen=True)
class Prediction:
    """A class that a picture may be of.

    Attributes:
        label: the name of the class; its number, as text, where nobody gave the model names.
        index: its number: the place in the model's output.
        score: the number there.
        probability: the softmax of the scores of all classes; the score itself of a network that ends in Softmax or
            Sigmoid.
    """

    label: str
    index: int
    score: float
    probability: float


class Classifier:
    """A model that tells the class of a picture, with all that its metadata says of pictures and classes.

        classifier = Classifier("nin.onnx", threads=1)
        best, *others = classifier.predict("cat.jpg")
        print(best.label, best.probability)

    Attributes:
        session: the onnxruntime session that `predict` runs.
        classes: the names of the classes, in the order of the output's numbers; empty if nobody gave them.
    """

    session: ort.InferenceSession
    classes: tuple[str, ...]

    def __init__(
        self,
        model: str | os.PathLike[str],
        threads: int | None = None,
        *,
        preprocessing: Preprocessing | None = None,
        classes: Sequence[str] = (),
        options: ort.SessionOptions | None = None,
    ) -> None:
        """Load a model.

        Args:
            model: the converted .onnx file, with one input, of pictures, and one output, a number for each class.
            threads: as `load_session` takes it.
            preprocessing: how pictures become the model's input; what it leaves out is as the model's metadata records.
            classes: names of the classes in place of those in the metadata.
            options: session options to start from, as `load_session` takes them.

        Raises:
            InputError: as `load_session`; the model has several inputs or outputs, or a fixed batch of more than one;
                `preprocessing` has a mean or std and the model takes bytes.
            SetupError: as `load_session`.
        """
        self._model = os.fspath(model)
        self.session = load_session(model, threads, options=options)
        with reading_metadata(model):
            inputs = read_inputs(self.session)
            noted = read_classes(self.session.get_modelmeta().custom_metadata_map)
        outputs = [info.name for info in self.session.get_outputs()]
        if len(inputs) != 1 or len(outputs) != 1:
            raise InputError(
                f"{self._model}: a classifier has one input and one output; this model has "
                f"{', '.join(item.name for item in inputs)} and {', '.join(outputs)}: run it by load_session"
            )
        if batch_size(inputs) not in (None, 1):
            raise InputError(
                f"{self._model}: takes batches of exactly {batch_size(inputs)}, and a classifier one picture: export "
                "it with a dynamic batch dimension"
            )
        self._input = replace(inputs[0], preprocessing=preprocessing_of(inputs[0], preprocessing, self._model))
        self._ends_in_probabilities = _ends_in_probabilities(self._model, outputs[0])
        self.classes = tuple(classes) or noted

    def predict(self, image: ArrayLike | str | os.PathLike[str] | bytes, top: int = 5) -> tuple[Prediction, ...]:
        """The likeliest classes of a picture, the likeliest first.

        Args:
            image: one picture: the path of a file that Pillow reads; the content of a BMP, JPEG, PNG, PPM, TIFF or WebP
                file; an array of bytes, uint8 [H, W], [H, W, C] or [C, H, W] of 1 or 3 channels, in the order red,
                green, blue; or what the model itself takes, with or without the batch, such as normalised floats. A
                tensor of torch and an image of Pillow are taken for the array of the same numbers.
            top: how many classes; all if there are fewer.

        Raises:
            InputError: the file cannot be read; the array is no such picture, or more than one; nothing says how
                pictures are normalised; the model's output is not one number for each class; `top` is below 1.
            SetupError: a file is to be read or an array to be resized, and Pillow is not installed.
        """
        if top < 1:
            raise InputError(f"top is {top}: it must be at least 1")
        scores = self._scores(self._feed(image))
        probabilities = scores if self._ends_in_probabilities else softmax(scores)
        best = np.argsort(-scores, kind="stable")[:top]
        return tuple(
            Prediction(
                self.classes[index] if self.classes else str(index),
                int(index),
                float(scores[index]),
                float(probabilities[index]),
            )
            for index in best
        )

    def _feed(self, image: ArrayLike | str | os.PathLike[str] | bytes) -> NDArray[Any]:
        """A picture as the model's input, a batch of 1."""
        data: Any = image
        if not isinstance(image, str | os.PathLike | bytes):
            array = as_array(image, "image")
            own = fits(array.shape, (None, *self._input.shape[1:]))
            data = array if own or array.ndim > 3 else array[np.newaxis]
        inputs = load_data(data, None, None, [self._input])
        if len(inputs) != 1:
            raise InputError(f"{inputs.origin}: these are {len(inputs)} pictures: give one")
        return inputs.part(0, 1)[self._input.name]

    def _scores(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """What the model says of each class."""
        (output,) = self.session.run(None, {self._input.name: x})
        scores: NDArray[np.float64] = np.asarray(output, np.float64).reshape(-1)
        classes = len(self.classes) or len(scores)
        if output.shape[:2] != (1, len(scores)) or len(scores) < 2 or len(scores) != classes:
            wanted = f"{classes} classes" if self.classes else "2 classes or more"
            raise InputError(
                f"{self._model}: its output has shape {list(output.shape)}, which is not one number for each of "
                f"{wanted}: give {option('classes')} that fit, or run it by load_session"
            )
        return scores


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(score) by the sum of all of them."""
    powers = np.exp(scores - scores.max())
    shares: NDArray[np.float64] = powers / powers.sum()
    return shares


def _ends_in_probabilities(model: str, output: str) -> bool:
    """Whether an operator that makes probabilities makes the output, whatever moves them then."""
    makers = {name: node for node in read_nodes(model) for name in node.outputs}
    node = makers.get(output)
    while node is not None and node.domain == "" and node.op_type in _MOVED:
        node = makers.get(node.inputs[0])
    return node is not None and node.domain == "" and node.op_type in _PROBABILITIES
