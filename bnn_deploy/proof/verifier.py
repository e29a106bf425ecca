"""The proof layer by layer: operators, layers and outputs of one model against one reference."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.errors import InputError, about, option, reading_metadata
from bnn_deploy.operators.contract import relative_tolerance
from bnn_deploy.progress import Progress, ProgressStep
from bnn_deploy.proof.backends import (
    BATCH,
    BATCH_BYTES,
    EVALUATOR_SECONDS,
    Arrays,
    Backends,
    RunError,
    Runner,
    one_by_one,
    run_session,
)
from bnn_deploy.proof.chain import Fed, run_chain
from bnn_deploy.proof.constants import has_large_bits
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
from bnn_deploy.proof.pieces import (
    data_inputs,
    has_kernels,
    operator_nodes,
    single_node,
    split,
    tensors_of_samples,
    unknown_source,
    with_outputs,
)
from bnn_deploy.proof.results import (
    Disagreement,
    OperatorResult,
    OutputResult,
    Tolerances,
    Verification,
    WorstSample,
)
from bnn_deploy.proof.rounding import sum_bound
from bnn_deploy.proof.samples import Tally, add_worst
from bnn_deploy.runtime.inputs import MORE_SAMPLES, Inputs
from bnn_deploy.system import release_memory

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from bnn_deploy.proof.cuts import Cut
    from bnn_deploy.proof.pieces import Segment
    from bnn_deploy.proof.reference import Reference


@dataclass(frozen=True)
class _Flip:
    """The first bit tensor, running free, in which a bit of a sample flips, and the bit with the largest margin there.

    Attributes:
        tensor: its name; "" if no bit flips.
        margin: the margin.
        zero: whether, instead of a flip, a sign is exactly 0: from there on the model and the reference differ.
        place: of the bit in the reference's tensor, [channel, ...]; empty if no bit flips.
        pre_activation: the reference's value in front of the sign there.
    """

    tensor: str = ""
    margin: float = 0.0
    zero: bool = False
    place: tuple[int, ...] = ()
    pre_activation: float | None = None


class Verifier:
    """Compares one converted model with one reference, batch by batch."""

    def __init__(
        self,
        name: str,
        proto: ModelProto,
        reference: Reference,
        sessions: Backends,
        tolerances: Tolerances,
        inputs: Inputs,
        few: int,
        some: int,
        batch: int | None,
    ) -> None:
        """For a model and its reference.

        Args:
            name: the model's name in reports.
            proto: the model.
            reference: the float network.
            sessions: makes the backends.
            tolerances: the largest differences that count as rounding.
            inputs: the samples, in whole batches.
            few: how many of them the ReferenceEvaluator runs.
            some: how many of them the slow backends run, rounded up to whole batches.
            batch: the model's batch; None if it leaves that open.

        Raises:
            InputError: the model was not made from this reference.
        """
        self.proto = proto
        self.reference = reference
        self.sessions = sessions
        self.tolerances = tolerances
        self.inputs = inputs
        self.few = few
        self.some = some
        self.seconds = math.inf
        self.pace = 0.0
        self.least = few
        self.fixed = batch
        with reading_metadata(name):
            self.pieces = split(proto, reference.names)
        self.cuts = {piece.output.tensor: piece.output for piece in self.pieces}
        self.of_samples = tensors_of_samples(proto)
        self.bit_cuts = [cut for cut in self.cuts.values() if cut.is_bits]
        unknown = unknown_source(self.pieces, [info.name for info in proto.graph.output], reference.names)
        if unknown is not None:
            raise InputError(
                f"{name}: layer '{unknown.name}' stands for the tensor '{unknown.output.source}', which the reference "
                "does not have: it is not what this model was converted from"
            )
        self.backends = [*sessions.onnxruntime, *([sessions.EVALUATOR] if few else [])]
        self.result = Verification(
            name,
            reference.description,
            inputs.origin,
            0,
            few,
            [],
            tolerances,
            planned=len(inputs),
            class_names=inputs.class_names,
        )
        outputs = [info.name for info in proto.graph.output]
        self.names = outputs if len(outputs) > 1 else [""]
        self.expectations = Expectations(
            reference, list(self.cuts.values()), dict(zip(outputs, reference.outputs, strict=True))
        )
        self.wanted = self.expectations.wanted | set(reference.outputs)
        self.layers = {
            piece.output.tensor: LayerCheck(piece, self.cuts, self.expectations, tolerances, sessions.own)
            for piece in self.pieces
        }
        self.scales = [Magnitudes() for _ in outputs]
        self.outputs = {backend: [OutputResult(backend, output) for output in self.names] for backend in self.backends}
        self.worst: list[list[WorstSample]] = [[] for _ in outputs]
        self.runners: dict[str, dict[str, Runner]] = {}
        self.free: dict[str, Runner] = {}
        self.first: dict[str, list[NDArray[Any]]] = {}
        self.broken: set[str] = set()
        self.found: dict[int, list[NDArray[Any]]] = {}
        self.classifiers: list[Tally] = []
        if reference.source is not None:
            own = reference.source.description
            self.result.source = [OutputResult(own, output) for output in self.names]
            self.result.replaced, self.result.filled = reference.source.replaced, reference.source.filled

    def run(self, progress: Progress, in_time: bool) -> Verification:
        """Answer the three questions; what Ctrl-C leaves open stays so, see `Verification.interrupted`.

        Args:
            progress: called before each step.
            in_time: whether the ReferenceEvaluator runs fewer samples if they would take it too long.
        """
        result = self.result
        try:
            self._check(progress, in_time)
        except KeyboardInterrupt:
            result.interrupted = True
        result.layers = [layer.result for layer in self.layers.values() if layer.result.values]
        result.outputs = [output for outputs in self.outputs.values() for output in outputs if output.samples]
        result.source = [output for output in result.source if output.samples]
        result.worst = [sample for worst in self.worst for sample in worst]
        found = [classifier.result(result.class_names) for classifier in self.classifiers]
        result.classification = [one for one in found if one is not None]
        self._remark()
        return result

    def _check(self, progress: Progress, in_time: bool) -> None:
        inputs, result = self.inputs, self.result
        nodes = operator_nodes(self.proto)
        batches = self._batches()
        first = batches[0]
        release_memory()  # what reading the model and the reference took
        ahead = self._source_parts(batches)
        total = len(ahead) + len(nodes) + len(batches) * len(self.pieces)
        done = 0

        def step(what: str) -> None:
            nonlocal done
            done += 1
            progress(ProgressStep(f"verifying: {what} ({done} of {total})", (done - 1) / total))

        self._run_source(ahead, step)
        try:
            feeds = self._run_bodies(nodes, inputs.part(0, self.fixed or BATCH), len(first))
        except RunError as error:
            # The comparison layer by layer shows which layer does not run.
            result.errors.append(f"the function bodies do not run as a whole: {error}")
            nodes, feeds = [], {}
        self.seconds = EVALUATOR_SECONDS / 2 if in_time else math.inf  # the other half is for question 2
        for node in nodes:
            step(f"operator {node.name}")
            result.operators += [self._check_operator(node, i, feeds) for i, tensor in enumerate(node.output) if tensor]
        feeds.clear()
        if in_time and self.few:
            self._limit_evaluator()
        release_memory()

        self._start_free(inputs.part(0, len(first)))
        self.runners = {backend: {} for backend in self.backends}
        for piece in self.pieces:
            for backend in sorted(self.backends, key=lambda backend: backend != self.sessions.EVALUATOR):
                self.runners[backend][piece.output.tensor] = self._runner(piece, backend)
        # The units of the tolerances are those of some samples, also where a batch is smaller.
        alone = len(inputs) < MORE_SAMPLES or len(first) >= MORE_SAMPLES
        units = inputs.more() if alone else inputs.first(MORE_SAMPLES)
        for feed in units.batches(len(first)):
            self._measure(self._values(feed))
        for samples in batches:
            start = samples.start
            whole = self._batch_of(start, samples.stop)
            self._measure(whole.values)
            slow = self.sessions.slow if start >= self.some else ()
            each = {backend: whole for backend in self.sessions.onnxruntime if backend not in slow}
            # The ReferenceEvaluator runs the first few samples only. The reference runs them apart: what has no sample
            # for its first dimension, [N * T, C] say, cannot be cut out.
            few = min(whole.size, self.few - start)
            if few > 0:
                each[self.sessions.EVALUATOR] = whole if few == whole.size else self._batch_of(start, start + few)
            self.runners = {backend: self.runners[backend] for backend in each}  # the other sessions go now
            fed: dict[str, dict[str, Fed]] = {backend: {} for backend in each}
            for tensor, layer in self.layers.items():
                step(f"layer {layer.piece.name}, samples {start} to {start + whole.size - 1}")
                own = {backend: self.runners[backend][tensor] for backend in each}
                for backend, ran in layer.check(own, each).items():
                    fed[backend][tensor] = ran
            for backend, batch in each.items():
                if backend not in self.broken:
                    self._check_outputs(backend, batch, start, fed[backend])
            self._check_source(whole, start)
            result.samples += whole.size
            release_memory()

    def _runner(self, piece: Segment, backend: str) -> Runner:
        """What runs a segment; without an operator that has kernels, the backends of onnxruntime share a session."""
        tensor = piece.output.tensor
        if backend == self.sessions.EVALUATOR:
            run = self.sessions.make(piece.model, backend)
            # It copies each value of an image once for every filter tap that reads it.
            return one_by_one(run) if {tensor, *piece.inputs} <= self.of_samples else run
        made = self.runners[self.sessions.BODIES].get(tensor)
        return self.sessions.make(piece.model, backend) if made is None or has_kernels(piece.model) else made

    def _batches(self) -> list[range]:
        """The samples that run at a time: as many as have values of the reference of about BATCH_BYTES.

        Of a model with large weights, which each run reads as a whole, twice as many; but half as many, as long as the
        function bodies are there, which have these weights as floats.
        """
        count, first = len(self.inputs), self.fixed or self._batch()
        later = first
        if self.fixed is None and has_large_bits(self.proto) and self.sessions.BODIES in self.sessions.slow:
            first, later = max(1, first // 2), min(BATCH, 2 * first)
        slow = min(count, -(-self.some // first) * first)
        starts = [*range(0, slow, first), *range(slow, count, later), count]
        return [range(start, stop) for start, stop in pairwise(starts)]

    def _batch(self) -> int:
        """How many samples have values of the reference of about BATCH_BYTES; at most BATCH."""
        values = self._values(self.inputs.part(0, 1))
        return max(1, min(BATCH, BATCH_BYTES // max(1, sum(value.nbytes for value in values.values()))))

    def _batch_of(self, start: int, stop: int) -> Batch:
        """Some of the samples, with the reference's values."""
        x = self.inputs.part(start, stop)
        indices = [self.inputs.index(sample) for sample in range(start, stop)]
        return Batch(indices, x, self._values(x))

    def _values(self, x: Arrays) -> Arrays:
        """The reference's values of the wanted tensors for some inputs."""
        with about(self.inputs.origin):
            return self.reference.run(x, self.wanted)

    def _labels(self, start: int, count: int) -> NDArray[Any] | None:
        return None if self.inputs.labels is None else self.inputs.labels[start : start + count]

    def _remark(self) -> None:
        """Add what is to say about the whole."""
        result = self.result
        for source in [] if result.replaced or result.filled else result.source:
            if source.close < CLOSE_SHARE * source.samples:
                result.errors.append(
                    f"{source.backend} gives other outputs than its export, against which the layers were held: "
                    f"{source.output and f'of {source.output}, '}only {source.close} of {source.samples} samples agree "
                    f"within {self.tolerances.float_relative:g} (needed: {CLOSE_SHARE:.0%}), the largest difference is "
                    f"{source.max_error:.3g}"
                )
        slow = [output.samples for output in result.outputs if output.backend in self.sessions.slow]
        ran = min(slow, default=result.samples)
        if ran < result.samples:
            result.notes.append(
                f"{'; '.join(sorted(self.sessions.slow))}: these are slow, and ran the first {ran:,} of "
                f"{result.samples:,} samples ({option('slow_samples', example='N')})"
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

    def _measure(self, values: Arrays) -> None:
        for layer in self.layers.values():
            layer.measure(values)
        for scale, name in zip(self.scales, self.reference.outputs, strict=True):
            scale.add(values[name])

    def _source_parts(self, batches: Sequence[range]) -> list[list[range]]:
        """The batches that a source with large weights runs at a time, all before the sessions come; else none.

        They are several, as it keeps no tensor but its outputs, and each run reads all of its weights, which for a few
        samples takes as long as all else.
        """
        if self.reference.source is None or not has_large_bits(self.proto):
            return []
        names = {*self.inputs.arrays, *(info.name for info in self.proto.graph.output)}
        most = min(BATCH, 2 * max(map(len, batches))) if names <= self.of_samples else 0
        parts: list[list[range]] = []
        for samples in batches:
            if parts and samples.stop - parts[-1][0].start <= most:
                parts[-1].append(samples)
            else:
                parts.append([samples])
        return parts

    def _run_source(self, parts: Sequence[Sequence[range]], step: Callable[[str], None]) -> None:
        """Let the source run all samples now, so that its weights go before the sessions come.

        Not if its outputs would be large themselves: then it stays, and runs batch by batch.
        """
        source = self.reference.source
        if source is None or not parts:
            return
        size = 0
        for batches in parts:
            begin = batches[0].start
            step(f"{source.description}, samples from {begin} on")
            found = source.run(self.inputs.part(begin, batches[-1].stop))
            size += sum(output.nbytes for output in found)
            if size > BATCH_BYTES:
                self.found.clear()
                return
            for samples in batches:
                rows = slice(samples.start - begin, samples.stop - begin)
                self.found[samples.start] = found if len(batches) == 1 else [output[rows] for output in found]
        self.reference.source = None
        release_memory()

    def _start_free(self, x: Arrays) -> None:
        """Let the backends run the model free, as a whole, on the first samples `x`.

        What would run it here goes on to do so, and the others go on segment by segment, see `run_chain`: as a whole,
        they would compute most of what question 2 has them compute a second time.
        """
        sessions = self.sessions
        for backend in sessions.onnxruntime:
            try:
                if backend == sessions.BODIES and backend not in self.first:
                    session = sessions.make_whole_bodies(self.proto.SerializeToString())
                    self.first[backend] = [np.asarray(output) for output in run_session(session, None, x)]
                elif backend != sessions.BODIES:
                    run = sessions.make(self.proto, backend)
                    self.first[backend] = run(x)
                    self.free |= {backend: run} if backend == sessions.own else {}
            except RunError as error:
                self._break(backend, error)

    def _break(self, backend: str, error: RunError) -> None:
        self.result.errors.append(f"{backend}, running free: {error}")
        self.broken.add(backend)

    def _run_free(self, backend: str, batch: Batch, start: int, fed: Mapping[str, Fed]) -> list[NDArray[Any]]:
        """The outputs of a batch, from the sample `start` on, when a backend runs the model free."""
        if start == 0 and backend in self.first:
            return self.first[backend]
        if backend in self.free:
            return self.free[backend](batch.x)
        tensors = run_chain(self.pieces, self.runners[backend], batch.x, fed, self.of_samples)
        return [tensors[info.name] for info in self.proto.graph.output]

    def _run_bodies(self, nodes: list[NodeProto], x: Arrays, size: int) -> Arrays:
        """Let the function bodies run the whole model, once, for question 1 and for the first batch of question 3.

        Args:
            nodes: the operators.
            x: samples for question 1, at least a batch of them, or all.
            size: of a batch.

        Returns:
            The data inputs of the operators by tensor name: most are outputs of others.
        """
        outputs = [str(info.name) for info in self.proto.graph.output]
        tensors = {name for node in nodes for name in data_inputs(self.proto, node)}
        names = sorted({*tensors, *outputs} - x.keys())
        session = self.sessions.make_whole_bodies(with_outputs(self.proto, names))
        values = x | dict(zip(names, map(np.asarray, run_session(session, names, x)), strict=True))
        if len(self.inputs) <= size:
            self.first[self.sessions.BODIES] = [values[name] for name in outputs]
        elif self.of_samples.issuperset(outputs):
            self.first[self.sessions.BODIES] = [values[name][:size] for name in outputs]
        return {name: value for name, value in values.items() if name in tensors}

    def _affordable(self, run: Runner, inputs: Arrays) -> int:
        """How many samples of a node the ReferenceEvaluator runs: `few`, or what it can in half of its remaining time.

        Raises:
            RunError: it does not run one.
        """
        batch = self.fixed or 1
        begin = time.process_time()
        run({name: array[:batch] for name, array in inputs.items()})
        seconds = max(time.process_time() - begin, 1e-9)
        self.pace += seconds / batch
        count = min(self.few, max(batch, int(min(self.seconds / 2 / seconds, self.few)) * batch))
        self.seconds -= seconds * (1 + count / batch)
        return count

    def _limit_evaluator(self) -> None:
        """Let the ReferenceEvaluator run fewer samples in question 2, if by its pace in question 1 it must."""
        batch = self.fixed or 1
        most = max(batch, int(min(EVALUATOR_SECONDS / 2 / max(self.pace * batch, 1e-9), self.few)) * batch)
        if min(self.least, most) < self.few:
            planned, self.few = self.few, min(self.few, most)
            self.result.reference_samples = min(self.least, self.few)
            self.result.notes.append(
                f"the ReferenceEvaluator ran {self.result.reference_samples} samples of each node at least, and not "
                f"{planned}, which would take it longer than {EVALUATOR_SECONDS:g} s "
                f"({option('reference_samples', example='N')})"
            )

    def _check_operator(self, node: NodeProto, output: int, feeds: Arrays) -> OperatorResult:
        """Question 1 for one output of one node."""
        inputs = {name: feeds[name] for name in data_inputs(self.proto, node)}
        model = single_node(self.proto, node, output, inputs)
        everything = feeds.get(node.output[output])
        if everything is None:
            (everything,) = self.sessions.make(model, self.sessions.BODIES)(inputs)
        channels = inputs[node.input[0]].shape[1] if node.input[0] in inputs else 0
        tolerance = relative_tolerance(node, output, channels)
        rounding = sum_bound(self.proto, node, inputs, lambda alone: self.sessions.make(alone, self.sessions.BODIES))
        differing, rounded = dict[str, int](), dict[str, int]()
        for backend in self.backends[1:]:
            count = len(everything)
            expected = everything
            try:
                run = self.sessions.make(model, backend)
                if backend == self.sessions.EVALUATOR:
                    count = self._affordable(run, inputs)
                    self.least = min(self.least, count)
                    expected = everything[:count]
                # Slice the output, too: UnpackWeights has no data input, so it returns all its weights.
                (got,) = run({name: array[:count] for name, array in inputs.items()})
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

    def _check_outputs(self, backend: str, batch: Batch, start: int, fed: Mapping[str, Fed]) -> None:
        """Question 3 for one batch, from the sample `start` on; `fed` is what question 2 has shown of its segments."""
        try:
            results = self._run_free(backend, batch, start, fed)
            for got, name in zip(results, self.reference.outputs, strict=True):
                require_form(got, batch.values[name])
        except RunError as error:
            self._break(backend, error)
            return
        labels = self._labels(start, batch.size)
        trace: Arrays | None = None
        for i, (got, name) in enumerate(zip(results, self.reference.outputs, strict=True)):
            expected, result = batch.values[name], self.outputs[backend][i]
            agree = add_output(result, got, expected, labels, self.tolerances, self.scales[i], batch.size)
            if backend == self.sessions.own:
                what = (backend, result.output)
                add_worst(self.worst[i], what, got, expected, self.scales[i], self.inputs, start)
                if labels is not None and has_classes(expected):
                    self._classify(result, got, expected, labels)
            if has_classes(expected):
                labels = None  # they are those of the first output with classes
            if not agree.all():
                if trace is None:
                    try:
                        trace = run_chain(self.pieces, self.runners[backend], batch.x, fed, self.of_samples)
                    except RunError:
                        trace = {}
                self._explain(result, i, np.flatnonzero(~agree), batch, start, got, trace)

    def _classify(self, result: OutputResult, got: NDArray[Any], expected: NDArray[Any], labels: NDArray[Any]) -> None:
        """Count how the reference and the model classify a batch."""
        if not self.classifiers:
            self.classifiers = [
                Tally("reference", self.reference.description, result.output),
                Tally("model", result.backend, result.output),
            ]
        for classifier, scores in zip(self.classifiers, (expected, got), strict=True):
            classifier.add(scores, labels)

    def _check_source(self, batch: Batch, start: int) -> None:
        """The reference's outputs against those of the network that it was made from, for one batch."""
        source = self.reference.source
        if source is None and start not in self.found:
            return
        labels = self._labels(start, batch.size)
        found = self.found[start] if source is None else source.run(batch.x)
        if len(found) != len(self.reference.outputs):
            raise InputError(
                f"{self.result.source[0].backend} gives {len(found)} outputs, its export "
                f"{len(self.reference.outputs)}: it is not what this model was converted from"
            )
        for i, (own, name) in enumerate(zip(found, self.reference.outputs, strict=True)):
            expected = batch.values[name]
            add_output(self.result.source[i], own, expected, labels, self.tolerances, self.scales[i], batch.size)
            if has_classes(expected):
                labels = None  # they are those of the first output with classes

    def _explain(
        self,
        result: OutputResult,
        output: int,
        wrong: NDArray[np.intp],
        batch: Batch,
        start: int,
        got: NDArray[Any],
        traced: Arrays,
    ) -> None:
        """Find, for each sample that does not agree, the first layer that flips a bit when the model runs free."""
        expected = batch.values[self.reference.outputs[output]]
        named = has_classes(expected) and len(expected) == batch.size
        labels = self._labels(start, batch.size)
        for i in map(int, wrong):
            flip = self._first_flip(i, batch, traced)
            rounded = bool(flip.tensor) and self._is_rounded(flip.tensor)
            allowed = self.tolerances.margin(rounded) if flip.tensor else self.tolerances.float_relative
            margin = flip.margin if flip.tensor else self._tie(i, output, batch, traced, got, expected)
            result.zeros += flip.zero
            self.result.disagreements.append(
                Disagreement(
                    result.backend,
                    result.output,
                    batch.indices[i],
                    int(classes(expected)[i]) if named else None,
                    int(classes(got)[i]) if named else None,
                    self.layers[flip.tensor].piece.name if flip.tensor else "",
                    margin,
                    flip.zero,
                    margin <= allowed,
                    channel=flip.place[0] if flip.place else None,
                    position=flip.place[1:],
                    pre_activation=flip.pre_activation,
                    label=None if labels is None else int(labels[i]),
                    file=self.inputs.file(start + i),
                )
            )

    def _first_flip(self, sample: int, batch: Batch, traced: Arrays) -> _Flip:
        """Where a sample begins to differ, running free."""
        for cut in self.bit_cuts:
            check = self.layers[cut.tensor]
            signs = self.expectations.value(cut, batch.values)
            rows = rows_of(sample, batch.size, len(signs))
            if cut.levels is None and (signs[rows] == 0).any():
                first = np.argwhere(signs[rows] == 0)[0]
                return _Flip(cut.tensor, 0.0, True, tuple(int(i) for i in first[1:]), 0.0)
            try:
                before = self.expectations.before(cut, batch.values)
                flips = differences(cut, traced[cut.tensor], signs, before, check.scale_of(batch.values))
            except (ValueError, KeyError):  # another shape, or it does not run: no rounding explains that
                return _Flip(cut.tensor, float("inf"))
            if len(flips.of(rows)):
                # No bit flipped before this one, so that an exact sum of bits is the reference's.
                signed = check.signs_of(batch)
                if signed is not None and is_exact_sum(self.proto, signed):
                    flips = flips.infinite(zero_flips(flips, signs, before))
                place, margin = flips.of(rows).largest()
                if self.tolerances.margin(self._is_rounded(cut.tensor)) < margin < np.inf:
                    margin = self._from_exact_sums(cut, batch, traced, rows, margin)
                return _Flip(cut.tensor, margin, False, place[1:], float(before[place]))
        return _Flip()

    def _from_exact_sums(self, cut: Cut, batch: Batch, traced: Arrays, rows: slice, margin: float) -> float:
        """The margin of some rows' flips from the reference with exact sums; `margin` if it has none."""
        check = self.layers[cut.tensor]
        exact = check.sum_exactly(batch)
        if exact is None:
            return margin
        signs, before = (of(cut, exact.values) for of in (self.expectations.value, self.expectations.before))
        flips = differences(cut, traced[cut.tensor], signs, before, check.scale_of(batch.values)).of(rows)
        return float(flips.margins.max(initial=0.0))

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
            if cuts[0].tensor not in traced:
                return float("inf")
            got, expected = traced[cuts[0].tensor], scores[0]
        return tie_margin(got[sample], expected[sample])

    def _is_rounded(self, tensor: str) -> bool:
        """Whether, running free, an 8-bit layer lies between a cut and the bit cuts before it."""
        piece = next(piece for piece in self.pieces if piece.output.tensor == tensor)
        floats = [name for name in piece.inputs if name in self.cuts and not self.cuts[name].is_bits]
        return piece.quantized or any(map(self._is_rounded, floats))
