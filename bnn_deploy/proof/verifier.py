"""The proof layer by layer: operators, layers and outputs of one model against one reference."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.errors import InputError, one_line
from bnn_deploy.operators.contract import relative_tolerance
from bnn_deploy.progress import Progress
from bnn_deploy.proof.backends import Arrays, Backends, RunError, Runner, run_session
from bnn_deploy.proof.margins import (
    absolute_error,
    classes,
    count_differing,
    cut_kind,
    differences,
    differing_values,
    other_class,
    relative_error,
    rows_of,
    settle_zeros,
    tie_margin,
)
from bnn_deploy.proof.outputs import CLOSE_SHARE, add_output
from bnn_deploy.proof.pieces import data_inputs, operator_nodes, single_node, split, with_outputs
from bnn_deploy.proof.results import Disagreement, LayerResult, OperatorResult, OutputResult, Tolerances, Verification
from bnn_deploy.runtime.inputs import Inputs
from bnn_deploy.runtime.session import load_session

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from bnn_deploy.proof.cuts import Cut
    from bnn_deploy.proof.pieces import Segment
    from bnn_deploy.proof.reference import Reference


class Verifier:
    """Compares one converted model with one reference, batch by batch."""

    def __init__(
        self,
        name: str,
        proto: ModelProto,
        reference: Reference,
        sessions: Backends,
        tolerances: Tolerances,
        few: int,
        batch: int,
    ) -> None:
        self.proto = proto
        self.input: str = proto.graph.input[0].name
        self.reference = reference
        self.sessions = sessions
        self.tolerances = tolerances
        self.few = few
        self.batch = batch
        self.pieces = split(proto, reference.names)
        self.cuts = {piece.output.tensor: piece.output for piece in self.pieces}
        self.bit_cuts = [cut for cut in self.cuts.values() if cut.is_bits]
        for piece in self.pieces:
            cut = piece.output
            if not cut.is_bits and cut.source in {info.name for info in proto.graph.output}:
                continue  # the reference's only output may have another name
            if cut.source not in reference.names:
                raise InputError(
                    f"{name}: layer '{piece.name}' stands for the tensor '{cut.source}', which the reference "
                    "does not have: it is not what this model was converted from"
                )
        self.backends = [*sessions.onnxruntime, *([sessions.EVALUATOR] if few else [])]
        self.result = Verification(name, reference.description, "", 0, few, [], tolerances)
        self.layers = {
            piece.output.tensor: LayerResult(piece.name, piece.output.source, cut_kind(piece.output), piece.quantized)
            for piece in self.pieces
        }
        self.outputs = {backend: OutputResult(backend) for backend in self.backends}
        if reference.source is not None:
            self.result.source = OutputResult(reference.source.description)
            self.result.replaced = reference.source.replaced

    def run(self, inputs: Inputs, progress: Progress) -> Verification:
        """Answer the three questions."""
        result, x = self.result, inputs.arrays[self.input]
        result.data, result.samples = inputs.origin, len(x)
        nodes = operator_nodes(self.proto)
        try:
            feeds = self._operator_inputs(nodes, x[: self.batch])
        except RunError as error:
            # The comparison layer by layer shows which layer does not run.
            result.errors.append(f"the function bodies do not run as a whole: {error}")
            nodes, feeds = [], {}
        starts = range(0, len(x), self.batch)
        total = len(nodes) + len(starts) * len(self.pieces)
        done = 0
        for node in nodes:
            done += 1
            progress(f"verifying: operator {node.name} ({done} of {total})")
            result.operators += [self._check_operator(node, i, feeds) for i, tensor in enumerate(node.output) if tensor]

        runners = {piece.output.tensor: self._runners(piece.model) for piece in self.pieces}
        free = self._runners(self.proto)
        wanted = {self._source(cut) for cut in self.cuts.values()} | {self.reference.output}
        wanted |= {name for cut in self.bit_cuts if (name := self._before_name(cut)) is not None}
        for start in starts:
            part = x[start : start + self.batch]
            # Run apart, not cut out: what has no sample for its first dimension, [N * T, C] say, cannot be cut.
            few = self._share(self.sessions.EVALUATOR, start, len(part))
            values = {count: self.reference.run(part[:count], wanted) for count in {len(part), few} - {0}}
            for piece in self.pieces:
                done += 1
                progress(
                    f"verifying: layer {piece.name}, samples {start} to {start + len(part) - 1} ({done} of {total})"
                )
                self._check_layer(piece, runners[piece.output.tensor], start, part, values)
            labels = None if inputs.labels is None else inputs.labels[start : start + self.batch]
            self._check_outputs(free, start, part, values, labels)
            self._check_source(part, values[len(part)], labels)
        result.layers = list(self.layers.values())
        result.outputs = list(self.outputs.values())
        source = result.source
        if source is not None and not result.replaced and source.close < CLOSE_SHARE * source.samples:
            result.errors.append(
                f"{source.backend} gives other outputs than its export, against which the layers were held: only "
                f"{source.close} of {source.samples} samples agree within {self.tolerances.float_relative:g} (needed: "
                f"{CLOSE_SHARE:.0%}), the largest difference is {source.max_error:.3g}"
            )
        zeros = sum(layer.zeros for layer in result.layers)
        if zeros:
            behind = sum(layer.behind_zeros for layer in result.layers)
            result.notes.append(
                f"{zeros} pre-activations are exactly 0: PyTorch's sign gives 0 there, the operators +1, as the paper; "
                f"{behind} values of the next layers depend on that, and were held to lie between what -1 and +1 give"
            )
        return result

    def _source(self, cut: Cut) -> str:
        """The reference's tensor for a cut; for the model's output, the reference's output, whatever its name."""
        return cut.source if cut.source in self.reference.names else self.reference.output

    def _value(self, cut: Cut, values: Arrays) -> NDArray[Any]:
        """The reference's value of a cut."""
        return cut.place.apply(values[self._source(cut)])

    def _before_name(self, cut: Cut) -> str | None:
        """The reference's tensor whose sign a bit cut holds; None behind a pool of signs."""
        return cut.before.tensor if cut.before is not None else self.reference.before_sign(cut.source)

    def _before(self, cut: Cut, values: Arrays) -> NDArray[Any]:
        """The pre-activations of a bit cut; behind a pool of signs the signs themselves, which no rounding flips."""
        value = self._value(cut, values)
        if cut.before is not None:
            return cut.pre_activation(values, value.shape)
        name = self._before_name(cut)
        return value if name is None else values[name]

    def _runners(self, model: ModelProto) -> dict[str, Runner]:
        return {backend: self.sessions.make(model, backend) for backend in self.backends}

    def _share(self, backend: str, start: int, count: int) -> int:
        """The number of samples of a batch that a backend runs: the slow ReferenceEvaluator runs only the first few."""
        return count if backend != self.sessions.EVALUATOR else max(0, min(self.few - start, count))

    def _operator_inputs(self, nodes: list[NodeProto], x: NDArray[np.float32]) -> Arrays:
        """The data inputs of all operators, by tensor name, when the function bodies run the whole model."""
        names = sorted({name for node in nodes for name in data_inputs(self.proto, node)} - {self.input})
        if not names:
            return {self.input: x}
        session = load_session(
            with_outputs(self.proto, names).SerializeToString(), self.sessions.threads, kernels=False
        )
        return {self.input: x, **dict(zip(names, run_session(session, names, {self.input: x}), strict=True))}

    def _check_operator(self, node: NodeProto, output: int, feeds: Arrays) -> OperatorResult:
        """Question 1 for one output of one node."""
        inputs = {name: feeds[name] for name in data_inputs(self.proto, node)}
        model = single_node(self.proto, node, output, inputs)
        everything = self.sessions.make(model, self.sessions.BODIES)(inputs)
        channels = inputs[node.input[0]].shape[1] if node.input[0] in inputs else 0
        tolerance = relative_tolerance(node, output, channels)
        differing = {}
        for backend in self.backends[1:]:
            count = self._share(backend, 0, len(everything))
            expected = everything[:count]
            try:
                # Slice the output, too: UnpackWeights has no data input, so it returns all its weights.
                got = self.sessions.make(model, backend)({name: array[:count] for name, array in inputs.items()})[
                    :count
                ]
            except RunError as error:
                self.result.errors.append(f"{node.op_type} '{node.name}': {backend}: {error}")
                got = expected[:0]
            same_form = got.shape == expected.shape and got.dtype == expected.dtype
            differing[backend] = int(differing_values(got, expected, tolerance).sum()) if same_form else expected.size
        name = node.name if output == 0 else f"{node.name} (output {output})"
        return OperatorResult(name, node.op_type, everything.size, differing, tolerance)

    def _check_layer(
        self, piece: Segment, runners: dict[str, Runner], start: int, x: NDArray[np.float32], values: dict[int, Arrays]
    ) -> None:
        """Question 2 for one layer and one batch; `values` are the reference's for so many samples of it."""
        cut = piece.output
        layer = self.layers[cut.tensor]
        whole = values[len(x)]
        worst = replace(layer, differing=0, behind_zeros=0)
        for backend, run in runners.items():
            count = self._share(backend, start, len(x))
            if count == 0:
                continue
            try:
                own = values[count]
                expected = self._value(cut, own)
                feed = {
                    name: self.cuts[name].encode(self._value(self.cuts[name], own)) if name in self.cuts else x[:count]
                    for name in piece.inputs
                }
                got = run(feed)
                if other := self._with_zeros_negative(piece, feed, own):
                    low = run(other)
                    worst.behind_zeros = max(worst.behind_zeros, count_differing(cut, got, low))
                    got = settle_zeros(cut, got, low, expected)
                if cut.is_bits:
                    before = self._before(cut, own), self._before(cut, whole)
                    now = self._compare_bits(cut, piece.quantized, got, expected, *before, start)
                else:
                    now = self._compare_floats(piece.quantized, got, expected, start)
            except (RunError, ValueError, IndexError) as error:  # from numpy: shapes that do not fit
                worst.error, worst.passed = f"it does not fit the reference: {one_line(error)} ({backend})", False
                continue
            worst.differing = max(worst.differing, now.differing)
            for name in ("margin", "relative_error"):
                if getattr(now, name) > getattr(worst, name):
                    setattr(worst, name, getattr(now, name))
                    worst.worst = f"{now.worst} ({backend})"
            worst.max_error = max(worst.max_error, now.max_error)
            worst.passed &= now.passed
        expected = self._value(cut, whole)
        worst.values += expected.size
        worst.differing += layer.differing
        worst.behind_zeros += layer.behind_zeros
        worst.zeros += int((expected == 0).sum()) if cut.is_bits and cut.levels is None else 0
        self.layers[cut.tensor] = worst

    def _with_zeros_negative(self, piece: Segment, feed: Arrays, values: Arrays) -> Arrays:
        """The inputs of a piece with -1 instead of +1 where the reference's sign is 0; empty if no sign is 0."""
        changed = dict(feed)
        found = False
        for name in piece.inputs:
            cut = self.cuts.get(name)
            if cut is None or not cut.is_bits or cut.levels is not None:
                continue
            value = self._value(cut, values)
            if (value == 0).any():
                found = True
                changed[name] = cut.encode(np.where(value == 0, np.float32(-1), value))
        return changed if found else {}

    def _compare_bits(
        self,
        cut: Cut,
        quantized: bool,
        got: NDArray[Any],
        expected: NDArray[Any],
        before: NDArray[Any],
        whole: NDArray[Any],
        start: int,
    ) -> LayerResult:
        """Compare bits or levels with the reference's; see `differences`."""
        result = LayerResult("", cut.source, "bits")
        flips, margin = differences(cut, got, expected, before, whole)
        result.differing = int(flips.sum())
        if result.differing:
            index = np.unravel_index(int(np.where(flips, margin, -1).argmax()), flips.shape)
            result.margin = float(margin[index])
            place = [int(i) for i in index]
            result.worst = (
                f"worst at sample {start + place[0]}, channel {place[1]}"
                f"{f', position {place[2:]}' if place[2:] else ''}: pre-activation {float(before[index]):.3g}"
            )
            result.passed = result.margin <= self.tolerances.margin(quantized)
        return result

    def _compare_floats(self, quantized: bool, got: NDArray[Any], expected: NDArray[Any], start: int) -> LayerResult:
        """Compare floats with the reference's."""
        result = LayerResult("", "", "floats")
        got = got.reshape(expected.shape)
        relative = relative_error(got, expected)
        index = np.unravel_index(int(relative.argmax()), relative.shape)
        result.relative_error = float(relative[index])
        result.max_error = float(absolute_error(got, expected).max())
        place = [int(i) for i in index]
        result.worst = (
            f"worst at sample {start + place[0]}, index {place[1:]}: "
            f"{float(got[index]):.6g} instead of {float(expected[index]):.6g}"
        )
        result.passed = result.relative_error <= self.tolerances.relative(quantized)
        return result

    def _check_outputs(
        self,
        free: dict[str, Runner],
        start: int,
        x: NDArray[np.float32],
        values: dict[int, Arrays],
        labels: NDArray[Any] | None,
    ) -> None:
        """Question 3 for one batch; `values` as in `_check_layer`."""
        for backend, run in list(free.items()):
            count = self._share(backend, start, len(x))
            if count == 0:
                continue
            expected = values[count][self.reference.output]
            try:
                got = run({self.input: x[:count]})
                if got.shape != expected.shape:
                    raise RunError(f"its output has shape {list(got.shape)}, the reference's {list(expected.shape)}")
            except RunError as error:
                self.result.errors.append(f"{backend}, running free: {error}")
                del free[backend]
                continue
            part = None if labels is None else labels[:count]
            add_output(self.outputs[backend], got, expected, part, self.tolerances)
            wrong = other_class(got, expected)
            if len(wrong):
                self._explain(backend, wrong, start, x[:count], got, values[count], values[len(x)])

    def _check_source(self, x: NDArray[np.float32], values: Arrays, labels: NDArray[Any] | None) -> None:
        """The reference against the network that it was made from, for one batch."""
        if self.reference.source is not None and self.result.source is not None:
            own = self.reference.source.run(x)
            add_output(self.result.source, own, values[self.reference.output], labels, self.tolerances)

    def _explain(
        self,
        backend: str,
        wrong: NDArray[np.intp],
        start: int,
        x: NDArray[np.float32],
        got: NDArray[Any],
        values: Arrays,
        whole: Arrays,
    ) -> None:
        """Find, for each sample with another class, the first layer that flips a bit when the model runs free."""
        logits = values[self.reference.output]
        expected, predicted = classes(logits), classes(got)
        traced = {
            cut.tensor: self.sessions.make(with_outputs(self.proto, [cut.tensor]), backend)({self.input: x})
            for cut in self.bit_cuts
        }
        for i in wrong:
            layer, margin, allowed = "", 0.0, 0.0
            for cut in self.bit_cuts:
                signs = self._value(cut, values)
                rows = rows_of(int(i), len(logits), len(signs))
                if cut.levels is None and (signs[rows] == 0).any():
                    # A sign(0), not rounding: from here on the model and the reference differ.
                    layer = self.layers[cut.tensor].layer
                    break
                try:
                    before = self._before(cut, values), self._before(cut, whole)
                    flips, margins = differences(cut, traced[cut.tensor], signs, *before)
                except ValueError:  # another shape: no rounding explains that
                    layer, margin = self.layers[cut.tensor].layer, float("inf")
                    break
                if flips[rows].any():
                    layer, margin = self.layers[cut.tensor].layer, float(margins[rows][flips[rows]].max())
                    allowed = self.tolerances.margin(self._is_rounded(cut.tensor))
                    break
            if not layer:
                margin, allowed = tie_margin(got[i], logits[i]), self.tolerances.float_relative
            explained = margin <= allowed
            self.result.disagreements.append(
                Disagreement(backend, start + int(i), int(expected[i]), int(predicted[i]), layer, margin, explained)
            )

    def _is_rounded(self, tensor: str) -> bool:
        """Whether, running free, an 8-bit layer lies between a cut and the bit cuts before it."""
        piece = next(piece for piece in self.pieces if piece.output.tensor == tensor)
        floats = [name for name in piece.inputs if name in self.cuts and not self.cuts[name].is_bits]
        return piece.quantized or any(map(self._is_rounded, floats))
