"""The proof layer by layer: operators, layers and outputs of one model against one reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.errors import InputError
from bnn_deploy.operators.contract import relative_tolerance
from bnn_deploy.progress import Progress
from bnn_deploy.proof.backends import Arrays, Backends, RunError, Runner, run_session
from bnn_deploy.proof.exact_zero import is_exact_sum
from bnn_deploy.proof.layers import Batch, Expectations, LayerCheck
from bnn_deploy.proof.margins import (
    Magnitudes,
    classes,
    differences,
    differing_values,
    has_classes,
    rows_of,
    tie_margin,
    zero_flips,
)
from bnn_deploy.proof.outputs import CLOSE_SHARE, add_output, require_form
from bnn_deploy.proof.pieces import data_inputs, operator_nodes, single_node, split, with_outputs
from bnn_deploy.proof.results import Disagreement, OperatorResult, OutputResult, Tolerances, Verification
from bnn_deploy.proof.rounding import sum_bound
from bnn_deploy.runtime.inputs import Inputs
from bnn_deploy.runtime.session import load_session

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from bnn_deploy.proof.cuts import Cut
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
                continue  # the reference's output may have another name
            if cut.source not in reference.names:
                raise InputError(
                    f"{name}: layer '{piece.name}' stands for the tensor '{cut.source}', which the reference "
                    "does not have: it is not what this model was converted from"
                )
        self.backends = [*sessions.onnxruntime, *([sessions.EVALUATOR] if few else [])]
        self.result = Verification(name, reference.description, "", 0, few, [], tolerances)
        outputs = [info.name for info in proto.graph.output]
        self.expectations = Expectations(
            reference, list(self.cuts.values()), dict(zip(outputs, reference.outputs, strict=True))
        )
        self.layers = {
            piece.output.tensor: LayerCheck(piece, self.cuts, self.expectations, tolerances) for piece in self.pieces
        }
        self.scales = [Magnitudes() for _ in outputs]
        self.outputs = {
            backend: [OutputResult(backend, name if len(outputs) > 1 else "") for name in outputs]
            for backend in self.backends
        }
        self.traces: dict[str, Runner] = {}
        if reference.source is not None:
            own = reference.source.description
            self.result.source = [OutputResult(own, name if len(outputs) > 1 else "") for name in outputs]
            self.result.replaced, self.result.filled = reference.source.replaced, reference.source.filled

    def run(self, inputs: Inputs, progress: Progress) -> Verification:
        """Answer the three questions."""
        result = self.result
        result.data, result.samples = inputs.origin, len(inputs)
        nodes = operator_nodes(self.proto)
        try:
            feeds = self._operator_inputs(nodes, inputs.part(0, self.batch))
        except RunError as error:
            # The comparison layer by layer shows which layer does not run.
            result.errors.append(f"the function bodies do not run as a whole: {error}")
            nodes, feeds = [], {}
        starts = range(0, len(inputs), self.batch)
        total = len(nodes) + len(starts) * len(self.pieces)
        done = 0
        for node in nodes:
            done += 1
            progress(f"verifying: operator {node.name} ({done} of {total})")
            result.operators += [self._check_operator(node, i, feeds) for i, tensor in enumerate(node.output) if tensor]

        runners = {piece.output.tensor: self._runners(piece.model) for piece in self.pieces}
        free = self._runners(self.proto)
        wanted = self.expectations.wanted | set(self.reference.outputs)
        for feed in inputs.more().batches(self.batch):
            self._measure(self.reference.run(feed, wanted))
        for start in starts:
            size = min(self.batch, len(inputs) - start)
            part = inputs.part(start, start + size)
            whole = Batch(start, size, part, self.reference.run(part, wanted))
            self._measure(whole.values)
            # The slow ReferenceEvaluator runs the first few samples only. The reference runs them apart: what has no
            # sample for its first dimension, [N * T, C] say, cannot be cut out.
            batches = dict.fromkeys(self.sessions.onnxruntime, whole)
            few = min(size, self.few - start)
            if few > 0:
                part = inputs.part(start, start + few)
                batches[self.sessions.EVALUATOR] = (
                    whole if few == size else Batch(start, few, part, self.reference.run(part, wanted))
                )
            for tensor, layer in self.layers.items():
                done += 1
                progress(
                    f"verifying: layer {layer.piece.name}, samples {start} to {start + size - 1} ({done} of {total})"
                )
                layer.check(runners[tensor], batches)
            labels = None if inputs.labels is None else inputs.labels[start : start + self.batch]
            self._check_outputs(free, batches, labels)
            self._check_source(whole, labels)
        result.layers = [layer.result for layer in self.layers.values()]
        result.outputs = [output for outputs in self.outputs.values() for output in outputs]
        for source in [] if result.replaced or result.filled else result.source:
            if source.close < CLOSE_SHARE * source.samples:
                result.errors.append(
                    f"{source.backend} gives other outputs than its export, against which the layers were held: "
                    f"{source.output and f'of {source.output}, '}only {source.close} of {source.samples} samples agree "
                    f"within {self.tolerances.float_relative:g} (needed: {CLOSE_SHARE:.0%}), the largest difference is "
                    f"{source.max_error:.3g}"
                )
        zeros = sum(layer.zeros for layer in result.layers)
        if zeros:
            behind = sum(layer.behind_zeros for layer in result.layers)
            result.notes.append(
                f"{zeros} pre-activations are exactly 0: PyTorch's sign gives 0 there, the operators +1, as the paper; "
                f"{behind} values of the next layers depend on that, and were held to lie between what -1 and +1 give"
            )
        for judged in result.layers:
            if judged.reference_rounding:
                result.notes.append(
                    f"layer '{judged.layer}': a difference of up to {judged.reference_rounding:.2g} comes from the "
                    f"order in which {self.reference.description} adds products in float32; the layer was held against "
                    "the same products added in float64"
                )
        return result

    def _measure(self, values: Arrays) -> None:
        for layer in self.layers.values():
            layer.measure(values)
        for scale, name in zip(self.scales, self.reference.outputs, strict=True):
            scale.add(values[name])

    def _runners(self, model: ModelProto) -> dict[str, Runner]:
        return {backend: self.sessions.make(model, backend) for backend in self.backends}

    def _operator_inputs(self, nodes: list[NodeProto], x: Arrays) -> Arrays:
        """The data inputs of all operators, by tensor name, when the function bodies run the whole model."""
        names = sorted({name for node in nodes for name in data_inputs(self.proto, node)} - x.keys())
        if not names:
            return x
        session = load_session(
            with_outputs(self.proto, names).SerializeToString(), self.sessions.threads, kernels=False
        )
        return x | dict(zip(names, run_session(session, names, x), strict=True))

    def _check_operator(self, node: NodeProto, output: int, feeds: Arrays) -> OperatorResult:
        """Question 1 for one output of one node."""
        inputs = {name: feeds[name] for name in data_inputs(self.proto, node)}
        model = single_node(self.proto, node, output, inputs)
        (everything,) = self.sessions.make(model, self.sessions.BODIES)(inputs)
        channels = inputs[node.input[0]].shape[1] if node.input[0] in inputs else 0
        tolerance = relative_tolerance(node, output, channels)
        rounding = sum_bound(self.proto, node, inputs, lambda alone: self.sessions.make(alone, self.sessions.BODIES))
        differing, rounded = dict[str, int](), dict[str, int]()
        for backend in self.backends[1:]:
            count = self.few if backend == self.sessions.EVALUATOR else len(everything)
            expected = everything[:count]
            try:
                # Slice the output, too: UnpackWeights has no data input, so it returns all its weights.
                (got,) = self.sessions.make(model, backend)({name: array[:count] for name, array in inputs.items()})
                got = got[:count]
            except RunError as error:
                self.result.errors.append(f"{node.op_type} '{node.name}': {backend}: {error}")
                got = expected[:0]
            same_form = got.shape == expected.shape and got.dtype == expected.dtype
            differing[backend] = int(differing_values(got, expected, tolerance).sum()) if same_form else expected.size
            if rounding is not None and same_form:
                beyond = int(rounding.differing(got, expected).sum())
                rounded[backend], differing[backend] = differing[backend] - beyond, beyond
        name = node.name if output == 0 else f"{node.name} (output {output})"
        return OperatorResult(name, node.op_type, everything.size, differing, tolerance, rounded)

    def _check_outputs(self, free: dict[str, Runner], batches: dict[str, Batch], labels: NDArray[Any] | None) -> None:
        """Question 3 for one batch; backends that failed vanish from `free`."""
        for backend, batch in batches.items():
            if backend not in free:
                continue
            try:
                results = free[backend](batch.x)
                for got, name in zip(results, self.reference.outputs, strict=True):
                    require_form(got, batch.values[name])
            except RunError as error:
                self.result.errors.append(f"{backend}, running free: {error}")
                del free[backend]
                continue
            part = None if labels is None else labels[: batch.size]
            for i, (got, name) in enumerate(zip(results, self.reference.outputs, strict=True)):
                expected, result = batch.values[name], self.outputs[backend][i]
                agree = add_output(result, got, expected, part, self.tolerances, self.scales[i], batch.size)
                if has_classes(expected):
                    part = None  # the labels are those of the first output with classes
                if not agree.all():
                    self._explain(result, i, np.flatnonzero(~agree), batch, got)

    def _check_source(self, batch: Batch, labels: NDArray[Any] | None) -> None:
        """The reference's outputs against those of the network that it was made from, for one batch."""
        if self.reference.source is None:
            return
        found = self.reference.source.run(batch.x)
        if len(found) != len(self.reference.outputs):
            raise InputError(
                f"{self.reference.source.description} gives {len(found)} outputs, its export "
                f"{len(self.reference.outputs)}: it is not what this model was converted from"
            )
        for i, (own, name) in enumerate(zip(found, self.reference.outputs, strict=True)):
            expected = batch.values[name]
            add_output(self.result.source[i], own, expected, labels, self.tolerances, self.scales[i], batch.size)
            if has_classes(expected):
                labels = None  # they are those of the first output with classes

    def _explain(
        self, result: OutputResult, output: int, wrong: NDArray[np.intp], batch: Batch, got: NDArray[Any]
    ) -> None:
        """Find, for each sample that does not agree, the first layer that flips a bit when the model runs free."""
        expected = batch.values[self.reference.outputs[output]]
        tensors = [cut.tensor for cut in self.cuts.values()]
        if result.backend not in self.traces:
            self.traces[result.backend] = self.sessions.make(with_outputs(self.proto, tensors), result.backend)
        traced = dict(zip(tensors, self.traces[result.backend](batch.x), strict=True))
        named = has_classes(expected) and len(expected) == batch.size
        for i in map(int, wrong):
            layer, margin, zero = self._first_flip(i, batch, traced)
            allowed = self.tolerances.margin(self._is_rounded(layer)) if layer else self.tolerances.float_relative
            if not layer:
                margin = self._tie(i, output, batch, traced, got, expected)
            result.zeros += zero
            self.result.disagreements.append(
                Disagreement(
                    result.backend,
                    result.output,
                    batch.start + i,
                    int(classes(expected)[i]) if named else None,
                    int(classes(got)[i]) if named else None,
                    self.layers[layer].piece.name if layer else "",
                    margin,
                    zero,
                    margin <= allowed,
                )
            )

    def _first_flip(self, sample: int, batch: Batch, traced: Arrays) -> tuple[str, float, bool]:
        """The first bit tensor, running free, in which a bit of a sample flips.

        Returns:
            Its name, or "" if no bit flips; the largest margin of its flips; and whether, instead of a flip, a sign is
            exactly 0: from there on the model and the reference differ.
        """
        for cut in self.bit_cuts:
            check = self.layers[cut.tensor]
            signs = self.expectations.value(cut, batch.values)
            rows = rows_of(sample, batch.size, len(signs))
            if cut.levels is None and (signs[rows] == 0).any():
                return cut.tensor, 0.0, True
            try:
                before = self.expectations.before(cut, batch.values)
                flips, margins = differences(cut, traced[cut.tensor], signs, before, check.scale_of(batch.values))
            except ValueError:  # another shape: no rounding explains that
                return cut.tensor, float("inf"), False
            if flips[rows].any():
                # No bit flipped before this one, so that an exact sum of bits is the reference's.
                signed = check.signs_of(batch)
                if signed is not None and is_exact_sum(self.proto, signed):
                    margins = np.where(zero_flips(flips, signs, before), np.inf, margins)
                margin = float(margins[rows][flips[rows]].max())
                if self.tolerances.margin(self._is_rounded(cut.tensor)) < margin < np.inf:
                    margin = self._from_exact_sums(cut, batch, traced, rows, margin)
                return cut.tensor, margin, False
        return "", 0.0, False

    def _from_exact_sums(self, cut: Cut, batch: Batch, traced: Arrays, rows: slice, margin: float) -> float:
        """The margin of some rows' flips from the reference with exact sums; `margin` if it has none."""
        check = self.layers[cut.tensor]
        exact = check.sum_exactly(batch)
        if exact is None:
            return margin
        signs, before = (of(cut, exact.values) for of in (self.expectations.value, self.expectations.before))
        flips, margins = differences(cut, traced[cut.tensor], signs, before, check.scale_of(batch.values))
        return float(margins[rows][flips[rows]].max(initial=0.0))

    def _tie(
        self, sample: int, output: int, batch: Batch, traced: Arrays, got: NDArray[Any], expected: NDArray[Any]
    ) -> float:
        """The `tie_margin` of a sample none of whose bits flips; of integers, that of the scores they come from."""
        if len(expected) != batch.size or got.shape != expected.shape:
            return float("inf")
        if expected.dtype.kind != "f":
            piece = self.layers[self.proto.graph.output[output].name].piece
            cuts = [self.cuts[name] for name in piece.inputs if name in self.cuts and self.cuts[name].is_float]
            scores = [self.expectations.value(cut, batch.values) for cut in cuts]
            if len(cuts) != 1 or not has_classes(scores[0]) or len(scores[0]) != batch.size:
                return float("inf")
            got, expected = traced[cuts[0].tensor], scores[0]
        return tie_margin(got[sample], expected[sample])

    def _is_rounded(self, tensor: str) -> bool:
        """Whether, running free, an 8-bit layer lies between a cut and the bit cuts before it."""
        piece = next(piece for piece in self.pieces if piece.output.tensor == tensor)
        floats = [name for name in piece.inputs if name in self.cuts and not self.cuts[name].is_bits]
        return piece.quantized or any(map(self._is_rounded, floats))
