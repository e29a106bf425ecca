"""The proof layer by layer: operators, layers and outputs of one model against one reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.errors import InputError
from bnn_deploy.operators.contract import relative_tolerance
from bnn_deploy.progress import Progress
from bnn_deploy.proof.backends import Arrays, Backends, RunError, Runner, run_session
from bnn_deploy.proof.layers import Batch, Expectations, LayerCheck
from bnn_deploy.proof.margins import (
    Magnitudes,
    classes,
    differences,
    differing_values,
    other_class,
    rows_of,
    tie_margin,
)
from bnn_deploy.proof.outputs import CLOSE_SHARE, add_output
from bnn_deploy.proof.pieces import data_inputs, operator_nodes, single_node, split, with_outputs
from bnn_deploy.proof.results import Disagreement, OperatorResult, OutputResult, Tolerances, Verification
from bnn_deploy.runtime.inputs import Inputs
from bnn_deploy.runtime.session import load_session

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

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
        self.expectations = Expectations(reference, list(self.cuts.values()))
        self.layers = {
            piece.output.tensor: LayerCheck(piece, self.cuts, self.expectations, tolerances) for piece in self.pieces
        }
        self.output_scale = Magnitudes()
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
        wanted = self.expectations.wanted | {self.reference.output}
        for feed in inputs.more().batches(self.batch):
            self._measure(self.reference.run(feed[self.input], wanted))
        for start in starts:
            part = x[start : start + self.batch]
            values = self.reference.run(part, wanted)
            self._measure(values)
            # The slow ReferenceEvaluator runs the first few samples only. The reference runs them apart: what has no
            # sample for its first dimension, [N * T, C] say, cannot be cut out.
            few = part[: max(0, self.few - start)]
            batches = dict.fromkeys(self.sessions.onnxruntime, Batch(start, part, values))
            if len(few):
                of_few = values if len(few) == len(part) else self.reference.run(few, wanted)
                batches[self.sessions.EVALUATOR] = Batch(start, few, of_few)
            for tensor, layer in self.layers.items():
                done += 1
                progress(
                    f"verifying: layer {layer.piece.name}, samples {start} to {start + len(part) - 1} "
                    f"({done} of {total})"
                )
                layer.check(runners[tensor], batches)
            labels = None if inputs.labels is None else inputs.labels[start : start + self.batch]
            self._check_outputs(free, batches, labels)
            self._check_source(part, values, labels)
        result.layers = [layer.result for layer in self.layers.values()]
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

    def _measure(self, values: Arrays) -> None:
        for layer in self.layers.values():
            layer.measure(values)
        self.output_scale.add(values[self.reference.output])

    def _runners(self, model: ModelProto) -> dict[str, Runner]:
        return {backend: self.sessions.make(model, backend) for backend in self.backends}

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
            count = self.few if backend == self.sessions.EVALUATOR else len(everything)
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

    def _check_outputs(self, free: dict[str, Runner], batches: dict[str, Batch], labels: NDArray[Any] | None) -> None:
        """Question 3 for one batch; backends that failed vanish from `free`."""
        for backend, batch in batches.items():
            if backend not in free:
                continue
            expected = batch.values[self.reference.output]
            try:
                got = free[backend]({self.input: batch.x})
                if got.shape != expected.shape:
                    raise RunError(f"its output has shape {list(got.shape)}, the reference's {list(expected.shape)}")
            except RunError as error:
                self.result.errors.append(f"{backend}, running free: {error}")
                del free[backend]
                continue
            part = None if labels is None else labels[: len(batch.x)]
            add_output(self.outputs[backend], got, expected, part, self.tolerances, self.output_scale)
            wrong = other_class(got, expected)
            if len(wrong):
                self._explain(backend, wrong, batch, got)

    def _check_source(self, x: NDArray[np.float32], values: Arrays, labels: NDArray[Any] | None) -> None:
        """The reference against the network that it was made from, for one batch."""
        if self.reference.source is not None and self.result.source is not None:
            own = self.reference.source.run(x)
            expected = values[self.reference.output]
            add_output(self.result.source, own, expected, labels, self.tolerances, self.output_scale)

    def _explain(self, backend: str, wrong: NDArray[np.intp], batch: Batch, got: NDArray[Any]) -> None:
        """Find, for each sample with another class, the first layer that flips a bit when the model runs free."""
        logits = batch.values[self.reference.output]
        expected, predicted = classes(logits), classes(got)
        traced = {
            cut.tensor: self.sessions.make(with_outputs(self.proto, [cut.tensor]), backend)({self.input: batch.x})
            for cut in self.bit_cuts
        }
        for i in wrong:
            layer, margin, allowed = "", 0.0, 0.0
            for cut in self.bit_cuts:
                check = self.layers[cut.tensor]
                signs = self.expectations.value(cut, batch.values)
                rows = rows_of(int(i), len(logits), len(signs))
                if cut.levels is None and (signs[rows] == 0).any():
                    # A sign(0), not rounding: from here on the model and the reference differ.
                    layer = check.piece.name
                    break
                try:
                    before = self.expectations.before(cut, batch.values)
                    flips, margins = differences(cut, traced[cut.tensor], signs, before, check.scale_of(batch.values))
                except ValueError:  # another shape: no rounding explains that
                    layer, margin = check.piece.name, float("inf")
                    break
                if flips[rows].any():
                    layer, margin = check.piece.name, float(margins[rows][flips[rows]].max())
                    allowed = self.tolerances.margin(self._is_rounded(cut.tensor))
                    break
            if not layer:
                margin, allowed = tie_margin(got[i], logits[i]), self.tolerances.float_relative
            explained = margin <= allowed
            self.result.disagreements.append(
                Disagreement(
                    backend, batch.start + int(i), int(expected[i]), int(predicted[i]), layer, margin, explained
                )
            )

    def _is_rounded(self, tensor: str) -> bool:
        """Whether, running free, an 8-bit layer lies between a cut and the bit cuts before it."""
        piece = next(piece for piece in self.pieces if piece.output.tensor == tensor)
        floats = [name for name in piece.inputs if name in self.cuts and not self.cuts[name].is_bits]
        return piece.quantized or any(map(self._is_rounded, floats))
