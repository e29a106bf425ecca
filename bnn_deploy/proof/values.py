"""Question 2 of the proof on a few samples: what `convert` asks of a model before its file gets its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from bnn_deploy.errors import BnnDeployError, InputError, one_line
from bnn_deploy.proof.backends import Arrays, Backends, RunError, Runner
from bnn_deploy.proof.cuts import Cut
from bnn_deploy.proof.layers import Batch, Expectations, LayerCheck
from bnn_deploy.proof.pieces import Segment, has_kernels, side_by_side, split, unknown_source
from bnn_deploy.proof.reference import OnnxReference
from bnn_deploy.proof.results import Tolerances
from bnn_deploy.quantities import plural
from bnn_deploy.runtime.inputs import Inputs
from bnn_deploy.runtime.session import library_info

TOGETHER = 200
"""Segments that run in one session: of many more, onnxruntime would take long to load them."""


def require_values(converted: bytes, source: bytes, data: Sequence[Inputs], name: str) -> tuple[str, ...]:
    """Hold each layer of a converted model, fed with its float model's activations, against the float model.

    As in `verify`, a bit may differ where its pre-activation is within rounding of the threshold, and what depends on
    a sign of exactly 0 lies between what -1 and +1 give. The kernels of the best instruction set run the layers; of a
    model with binary weights alone, onnxruntime.

    Args:
        converted: the model.
        source: the float model, with the weights that were converted.
        data: a few inputs of one kind or more, all of which run at once.
        name: the source's name in errors.

    Returns:
        What could not be compared, and why, one line each; empty if all was.

    Raises:
        BnnDeployError: a layer gives something else, which is a fault of this package.
    """
    fault = f"{name}: a fault of bnn-deploy, please report it"
    proto = onnx.load_from_string(converted)
    reference = OnnxReference(onnx.load_from_string(source), name, lambda: onnx.load_from_string(source))
    pieces = split(proto, reference.names)
    outputs = dict(zip((info.name for info in proto.graph.output), reference.outputs, strict=True))
    unknown = unknown_source(pieces, outputs, reference.names)
    if unknown is not None:
        raise BnnDeployError(
            f"{fault}: layer '{unknown.name}' of the converted model stands for the tensor '{unknown.output.source}', "
            "which the float model does not have; nothing was written"
        )
    sessions = Backends(library_info().isas[:1] if has_kernels(proto) else (), 1)
    cuts = {piece.output.tensor: piece.output for piece in pieces}
    expectations = Expectations(reference, list(cuts.values()), outputs)
    parts = [pieces[start : start + TOGETHER] for start in range(0, len(pieces), TOGETHER)]
    together = [_Together(proto, part, cuts, sessions) for part in parts]
    tolerances = Tolerances()
    notes = []
    quantized = sum(piece.quantized for piece in pieces)
    if quantized:
        notes.append(
            f"the values of {plural(quantized, 'layer')} in 8 bits were not compared with the float model's: "
            "their rounding has no bound that holds for every network; verify judges them"
        )
    left = dict[str, None]()
    for inputs in data:
        x = inputs.part(0, None)
        try:
            units = [reference.run(feed, expectations.wanted) for feed in inputs.more().batches(len(inputs))]
            batch = Batch(range(len(inputs)), x, reference.run(x, expectations.wanted))
        except InputError as error:
            notes.append(f"the values were not compared with the float model's on {inputs.origin}: {one_line(error)}")
            continue
        for part in together:
            part.run(expectations, batch)
        for i, piece in enumerate(pieces):
            if piece.quantized:
                continue
            layer = LayerCheck(piece, cuts, expectations, tolerances, sessions.own)
            for values in (*units, batch.values):
                layer.measure(values)
            try:
                layer.check({sessions.own: together[i // TOGETHER].runner(piece)}, {sessions.own: batch})
            except InputError as error:  # the model runs as a whole, but this part of it cannot be had alone
                notes.append(f"layer '{piece.name}' was not compared with the float model: {one_line(error)}")
                continue
            found = layer.result
            if found.passed:
                continue
            if not found.error and not all(np.isfinite(value).all() for value in layer.values_of(batch)):
                left[piece.name] = None
                continue
            raise BnnDeployError(
                f"{fault}: layer '{piece.name}' of the converted model gives other {found.kind} than the float "
                f"model on {inputs.origin}: {found.error or found.worst}; nothing was written"
            )
    if left:
        notes.append(
            f"the values of {', '.join(left)} were not compared with the float model's: there are infinities or NaN "
            "among them"
        )
    return tuple(notes)


class _Together:
    """Runs segments at once: a session for each of thousands would take longer than all else."""

    def __init__(
        self, model: ModelProto, pieces: Sequence[Segment], cuts: Mapping[str, Cut], sessions: Backends
    ) -> None:
        """For some segments of a model with these cuts."""
        self._sessions = sessions
        self._read = list(dict.fromkeys(name for piece in pieces for name in piece.inputs))
        self._made = [piece.output.tensor for piece in pieces]
        self._run: Runner | None = None
        with suppress(InputError):  # else each of them runs alone
            self._run = sessions.make(side_by_side(model, pieces, cuts), sessions.own)
        self._results: list[tuple[Arrays, Arrays]] = []

    def run(self, expectations: Expectations, batch: Batch) -> None:
        """Run them on the reference's values of a batch, and with -1 for its signs of exactly 0."""
        self._results.clear()
        if self._run is None:
            return
        try:
            feed = expectations.stored(self._read, batch)
            negative = expectations.zeros_negative(self._read, batch.values)
            for fed in [feed, *([feed | negative] if negative else [])]:
                self._results.append((fed, dict(zip(self._made, self._run(fed), strict=True))))
        except (RunError, ValueError, IndexError):  # the segments, each alone, will tell which it is
            self._results.clear()

    def runner(self, piece: Segment) -> Runner:
        """What runs one of them: it knows what came of what all were fed with, and else runs it alone."""

        def run(feed: Arrays) -> list[NDArray[Any]]:
            for fed, made in self._results:
                if all(np.array_equal(fed[name], array) for name, array in feed.items()):
                    return [made[piece.output.tensor]]
            return self._sessions.make(piece.model, self._sessions.own)(feed)

        return run
