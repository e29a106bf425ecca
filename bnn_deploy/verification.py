"""The equivalence proof: a converted model against the float network that it came from.

Three questions, each answered on the same inputs:

1. Operators. Do the C++ kernels (every instruction set of this machine), the function bodies in stock onnxruntime and
   the function bodies in onnx's ReferenceEvaluator agree on every node, exactly, in every bit, integer and float (but
   for the last bits of a mean over channels, whose order of summation is open)?
2. Layers. Fed with the reference's own activations, does each layer give the reference's result? A bit may differ only
   where the float pre-activation is within rounding of the threshold; a float only by rounding.
3. Outputs. Running free from the input, does the model predict the same class? Each disagreement must be explained by a
   first bit that flipped within that margin.
"""

from __future__ import annotations

import importlib.util
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from bnn_deploy.errors import InputError, SetupError, one_line
from bnn_deploy.session import library_info, load_session

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from bnn_deploy.reference import Reference
    from bnn_deploy.segments import Cut, Segment

Arrays = dict[str, NDArray[Any]]
Runner = Callable[[Arrays], NDArray[Any]]
"""Runs a model with one output on named inputs."""

Progress = Callable[[str], None]
"""Called with what is being done."""


class RunError(Exception):
    """A backend cannot run a model on the inputs that it was given, or gives another shape than the reference."""


CLOSE_SHARE = 0.5
"""Where only outputs can be compared, this share of the samples must have outputs that differ by rounding alone."""

BATCH = 50
"""Samples that run at a time: bounds the memory that a large network's activations need."""


@dataclass(frozen=True)
class Tolerances:
    """What counts as rounding between a model and its reference.

    Kernels and function bodies have no tolerance, but for the one sum of floats whose order is open: A of
    BinarizeAbsMean may differ in its last bits, see `segments.relative_tolerance`.

    Attributes:
        flip_margin: a bit may differ from the reference's sign where |pre-activation| <= this times the root mean
            square of its channel's pre-activations.
        float_relative: a float may differ by this times the largest magnitude in its channel of the reference's tensor
            (or by a hundredth of this times the largest in the whole tensor, where that is more).
        quantized_flip_margin: the same as flip_margin for a layer with 8-bit weights and activations.
        quantized_float_relative: the same as float_relative for such a layer.
    """

    flip_margin: float = 1e-4
    float_relative: float = 1e-4
    quantized_flip_margin: float = 0.25
    quantized_float_relative: float = 0.05

    def margin(self, quantized: bool) -> float:
        """The flip margin of a layer."""
        return self.quantized_flip_margin if quantized else self.flip_margin

    def relative(self, quantized: bool) -> float:
        """The relative error of a layer's floats."""
        return self.quantized_float_relative if quantized else self.float_relative


@dataclass(frozen=True)
class OperatorResult:
    """One node, run alone by every backend on the same inputs.

    Attributes:
        node: its name.
        op_type: its operator.
        values: number of words or floats compared (fewer for the ReferenceEvaluator).
        differing: values that differ from the function body in onnxruntime by more than the tolerance, per backend.
        tolerance: relative; 0 but for A of BinarizeAbsMean, see `segments.relative_tolerance`.
    """

    node: str
    op_type: str
    values: int
    differing: dict[str, int]
    tolerance: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every backend agrees in every value, to within the tolerance."""
        return not any(self.differing.values())


@dataclass
class LayerResult:
    """One layer, fed with the reference's activations, over all backends.

    Attributes:
        layer: its name.
        source: the tensor of the float graph that its output stands for.
        kind: "bits", "levels" or "floats".
        quantized: whether it has 8-bit weights and activations, and so the wider tolerances.
        values: bits, levels or floats compared, per backend.
        differing: bits that differ from the reference's sign, or levels (the largest number over the backends).
        margin: the largest |pre-activation| of a differing bit, or distance from a threshold of a differing level, in
            units of its channel's root mean square; 0 if none.
        worst: where that is and what the reference has there.
        zeros: pre-activations that are exactly 0, where PyTorch's sign is 0 and the paper's is +1.
        behind_zeros: values that depend on such zeros of the layers before; each must lie between what -1 and what +1
            in their place give.
        max_error: largest absolute error of a float.
        relative_error: largest error in units of the largest magnitude in its channel, see Tolerances.
        error: why it could not be compared: it does not run, or its output has another shape.
        passed: whether both are within the tolerances.
    """

    layer: str
    source: str
    kind: str
    quantized: bool = False
    values: int = 0
    differing: int = 0
    margin: float = 0.0
    worst: str = ""
    zeros: int = 0
    behind_zeros: int = 0
    max_error: float = 0.0
    relative_error: float = 0.0
    error: str = ""
    passed: bool = True


@dataclass
class OutputResult:
    """One backend running free from the input to the output.

    Attributes:
        backend: what ran.
        samples: how many.
        max_error: largest absolute difference from the reference's output.
        close: samples whose outputs are all within Tolerances.float_relative of the largest magnitude in the batch.
        same_class: samples for which the largest output is the same; None if the output is not [N, classes].
        correct: samples classified right; None without labels.
        reference_correct: the same for the reference.
    """

    backend: str
    samples: int = 0
    max_error: float = 0.0
    close: int = 0
    same_class: int | None = None
    correct: int | None = None
    reference_correct: int | None = None


@dataclass(frozen=True)
class Disagreement:
    """A sample whose predicted class differs from the reference's.

    Attributes:
        backend: what ran.
        sample: its index in the data.
        reference_class: what the reference predicts.
        model_class: what the converted model predicts.
        layer: the first layer, running free, with a bit that differs; "" if none has.
        margin: the largest margin of the bits that differ there, as in LayerResult; if no layer has one, how far the
            two classes are apart in the reference's output, in units of the largest magnitude there.
        explained: whether that margin is within the tolerance.
    """

    backend: str
    sample: int
    reference_class: int
    model_class: int
    layer: str
    margin: float
    explained: bool


@dataclass
class Verification:
    """The result of `verify`.

    Attributes:
        model: the converted model's file.
        reference: what it was measured against.
        data: where the inputs came from.
        samples: inputs used; the ReferenceEvaluator, which is slow, ran the first `reference_samples` of them.
        reference_samples: see `samples`.
        isas: instruction sets whose kernels ran (as the library counted, not as asked).
        tolerances: what counted as rounding.
        operators: question 1; empty when onnx is not installed.
        layers: question 2; empty when onnx is not installed.
        outputs: question 3.
        disagreements: samples with another class than the reference's.
        errors: what could not be run.
        notes: what the reader must know.
    """

    model: str
    reference: str
    data: str
    samples: int
    reference_samples: int
    isas: list[str]
    tolerances: Tolerances
    operators: list[OperatorResult] = field(default_factory=list)
    layers: list[LayerResult] = field(default_factory=list)
    outputs: list[OutputResult] = field(default_factory=list)
    disagreements: list[Disagreement] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """One line for everything that failed, with the layer's name."""
        lines = list(self.errors)
        for op in self.operators:
            for backend, count in op.differing.items():
                if count:
                    lines.append(
                        f"{op.op_type} '{op.node}': {backend} differs from the function body in onnxruntime "
                        f"in {count} of {op.values} values"
                    )
        for layer in self.layers:
            if layer.error:
                lines.append(f"layer '{layer.layer}': {layer.error}")
            elif not layer.passed and layer.kind != "floats":
                lines.append(
                    f"layer '{layer.layer}': {layer.differing} of {layer.values} {layer.kind} differ from the "
                    f"reference, by up to {layer.margin:.2g} (allowed {self.tolerances.margin(layer.quantized):g}); "
                    f"{layer.worst}"
                )
            elif not layer.passed:
                lines.append(
                    f"layer '{layer.layer}': floats differ by up to {layer.relative_error:.2g} of the largest in their "
                    f"channel (allowed {self.tolerances.relative(layer.quantized):g}); {layer.worst}"
                )
        unexplained = [d for d in self.disagreements if not d.explained]
        if unexplained:
            first = unexplained[0]
            lines.append(
                f"{len(unexplained)} predictions differ for no reason within the tolerances; first: sample "
                f"{first.sample}, class {first.model_class} instead of {first.reference_class} ({first.backend})"
            )
        return lines

    @property
    def complete(self) -> bool:
        """Whether operators and layers were compared, not only outputs."""
        return bool(self.layers)

    @property
    def passed(self) -> bool:
        """Whether all three questions are answered with yes."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """All of it, for `--json`; JSON has no infinity and no NaN, they become null."""
        return {**finite(asdict(self)), "passed": self.passed, "failures": self.failures}


def finite(value: Any) -> Any:
    """`value`, of plain types, with None for floats that are not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


class _Sessions:
    """The backends, by name: each runs a model given as a proto."""

    BODIES = "bodies, onnxruntime"
    EVALUATOR = "bodies, ReferenceEvaluator"

    def __init__(self, isas: Sequence[str], threads: int | None) -> None:
        self.isas = isas
        self.threads = threads
        self.onnxruntime = [self.BODIES, *(f"kernels, {isa}" for isa in isas)]

    def make(self, model: ModelProto | str, backend: str) -> Runner:
        """A function that runs `model`, which has one output, on named inputs."""
        if backend == self.EVALUATOR:
            from onnx.reference import ReferenceEvaluator

            evaluator = ReferenceEvaluator(model)

            def evaluate(inputs: Arrays) -> NDArray[Any]:
                try:
                    with np.errstate(all="ignore"):
                        (output,) = evaluator.run(None, inputs)
                except Exception as error:  # whatever numpy or the evaluator raises for shapes that do not fit
                    raise RunError(one_line(error)) from error
                return np.asarray(output)

            return evaluate
        isa = None if backend == self.BODIES else backend.removeprefix("kernels, ")
        data = model if isinstance(model, str) else model.SerializeToString()
        session = load_session(data, self.threads, isa=isa, kernels=isa is not None)
        return lambda inputs: np.asarray(run_session(session, None, inputs)[0])


def run_session(session: ort.InferenceSession, names: list[str] | None, inputs: Arrays) -> list[Any]:
    """Run a session.

    Raises:
        RunError: with what onnxruntime says.
    """
    try:
        outputs: list[Any] = session.run(names, inputs)
    except Exception as error:  # onnxruntime's exception types are not public
        raise RunError(one_line(error)) from error
    return outputs


def verify(
    model: str | os.PathLike[str],
    against: Any,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    data: NDArray[np.float32] | str | os.PathLike[str] | None = None,
    labels: NDArray[Any] | None = None,
    samples: int | None = None,
    reference_samples: int = 8,
    isas: Sequence[str] | None = None,
    threads: int | None = None,
    tolerances: Tolerances | None = None,
    progress: Progress = lambda step: None,
) -> Verification:
    """Prove that a converted model computes what the float network computes.

    Args:
        model: the converted .onnx file.
        against: a checkpoint, a float ONNX model (the path of one, an onnx.ModelProto or an onnx_ir.Model), or a torch
            module in eval mode.
        arch: for a checkpoint: its architecture; None takes the one that the model was converted with.
        arch_args: keyword arguments of the architecture; None takes those that the model was converted with.
        data: inputs [N, ...] float32 as the network was trained on, a .npy or .npz file of them (see `load_data`), or
            None for 32 random normal ones.
        labels: classes [N], for accuracy; a .npz file may hold them.
        samples: use only the first so many inputs.
        reference_samples: how many of them the ReferenceEvaluator runs; 0 leaves it out.
        isas: instruction sets to run; None means all that this machine has.
        threads: intra-op threads.
        tolerances: what counts as rounding.
        progress: called as work proceeds.

    Returns:
        The result; `passed` says whether the model is equivalent.

    Raises:
        InputError: a file, shape or architecture cannot be used, or `against` is not what `model` was converted from.
        SetupError: the library or a package is missing, or an instruction set is unknown.
    """
    tolerances = tolerances or Tolerances()
    info = library_info()
    isas = list(isas or info.isas)
    for isa in isas:
        library_info(isa)  # an unknown name is an error now, not after minutes
    if not Path(model).is_file():
        raise InputError(f"{model}: no such file")
    sessions = _Sessions(isas, threads)
    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnx_ir") is None:
        result = _verify_outputs(model, against, data, labels, samples, sessions, tolerances, progress)
    else:
        from bnn_deploy import segments

        proto = segments.load_model(model)
        segments.require_converted(proto, model)
        if not segments.has_kernels(proto):
            isas = []  # binary weights only: the library has nothing to run
            sessions = _Sessions(isas, threads)
        shape = tuple(d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim)[1:]
        inputs = load_data(data, labels, samples, proto.graph.input[0].name, shape)
        batch = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None
        inputs = _whole_batches(inputs, batch)
        reference = _reference(against, arch, arch_args, proto, shape)
        few = min(reference_samples, len(inputs.x))
        if batch is not None:
            few = -(-few // batch) * batch
        verifier = _Verifier(str(model), proto, reference, sessions, tolerances, few, batch or BATCH)
        result = verifier.run(inputs, progress)
    after = library_info().calls
    result.isas = [isa for isa in isas if after.get(isa, 0) > info.calls.get(isa, 0)]
    idle = [isa for isa in isas if isa not in result.isas]
    if idle:
        result.errors.append(f"the kernels of {', '.join(idle)} did not run, by the library's own count")
    return result


@dataclass(frozen=True)
class Inputs:
    """What the network is run on.

    Attributes:
        x: [N, ...] float32.
        labels: classes [N], or None.
        origin: where they came from, for reports.
    """

    x: NDArray[np.float32]
    labels: NDArray[Any] | None
    origin: str


def load_data(
    data: NDArray[np.float32] | str | os.PathLike[str] | None,
    labels: NDArray[Any] | None,
    samples: int | None,
    name: str,
    shape: tuple[int, ...] | None,
) -> Inputs:
    """Get inputs for a model.

    Args:
        data: an array, a .npy file, a .npz file, or None for 32 random normal inputs. In a .npz file the inputs are the
            array called like the model's input, or 'images', 'x', 'data', or the only one; the labels are 'labels' or
            'y'.
        labels: classes [N]; these win over the file's.
        samples: keep only the first so many.
        name: the model's input.
        shape: one sample's shape; None checks it later.

    Raises:
        InputError: no such file, no such array, or not float32 [N, *shape].
    """
    origin = "given array"
    if data is None:
        assert shape is not None
        data = np.random.default_rng(0).standard_normal((32, *shape)).astype(np.float32)
        origin = "random normal inputs (give --data for real ones)"
    elif not isinstance(data, np.ndarray):
        origin = str(data)
        data, found = _read_arrays(Path(data), name)
        labels = found if labels is None else labels
    if data.dtype != np.float32:
        raise InputError(
            f"{origin}: the inputs are {data.dtype}; the network needs float32, normalised as in its training"
        )
    if not np.isfinite(data).all():
        raise InputError(f"{origin}: the inputs hold NaN or infinity")
    if data.ndim == 0 or len(data) == 0 or (shape is not None and data.shape[1:] != shape):
        raise InputError(
            f"{origin}: the inputs have shape {list(data.shape)}; the model needs {['N', *(shape or ['...'])]}, N >= 1"
        )
    if labels is not None and np.shape(labels) != (len(data),):
        raise InputError(
            f"{origin}: the labels have shape {list(np.shape(labels))}; {len(data)} inputs need [{len(data)}]"
        )
    return Inputs(data[:samples], None if labels is None else np.asarray(labels)[:samples], origin)


def _whole_batches(inputs: Inputs, batch: int | None) -> Inputs:
    """As many of the inputs as a model runs that takes exactly `batch` at a time.

    Raises:
        InputError: there are fewer.
    """
    if batch is None or len(inputs.x) % batch == 0:
        return inputs
    count = len(inputs.x) // batch * batch
    if count == 0:
        raise InputError(
            f"{inputs.origin}: {len(inputs.x)} inputs, but the model was exported for batches of exactly {batch}; "
            "give more --data, or export it with a dynamic batch dimension"
        )
    labels = None if inputs.labels is None else inputs.labels[:count]
    return Inputs(inputs.x[:count], labels, inputs.origin)


def _read_arrays(path: Path, name: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        arrays = {key: loaded[key] for key in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not a .npy or .npz file of plain arrays ({one_line(error, 120)})") from error
    labels = next((arrays.pop(key) for key in ("labels", "y") if key in arrays), None)
    key = next((key for key in (name, "images", "x", "data") if key in arrays), None)
    if key is None and len(arrays) == 1:
        key = next(iter(arrays))
    if key is None:
        raise InputError(
            f"{path}: which array holds the inputs? It has {', '.join(arrays) or 'none'}; call it '{name}'"
        )
    return arrays[key], labels


def _reference(
    against: Any, arch: str | None, arch_args: Mapping[str, Any] | None, proto: ModelProto, shape: tuple[int, ...]
) -> Reference:
    """The reference that `against` names: PyTorch for a checkpoint or module, onnxruntime for a float .onnx file."""
    from bnn_deploy import onnx_source, reference

    metadata = {p.key: p.value for p in proto.metadata_props}
    if onnx_source.is_onnx(against):
        name = Path(against).name if isinstance(against, str | os.PathLike) else "the float model"
        model = onnx_source.read(against)
        dims = model.graph.input[0].type.tensor_type.shape.dim
        own = tuple(d.dim_value for d in dims)[1:]
        if len(own) != len(shape) or any(size not in (0, other) for size, other in zip(own, shape, strict=True)):
            raise InputError(
                f"{against}: its input is {['N', *own]}, the converted model's {['N', *shape]}: "
                "it is not what this model was converted from"
            )
        scheme: Any = metadata.get("bnn_deploy.weights", "auto")
        if scheme not in ("auto", "as-is"):
            # The file may hold latent weights: they are binarised as they were in the conversion.
            import onnx_ir

            from bnn_deploy.conversion import float_model

            model = onnx_ir.to_proto(float_model(against, shape, scheme)[0])
        return reference.OnnxReference(model, name)
    from bnn_deploy.checkpoint import load_module
    from bnn_deploy.conversion import float_module

    if isinstance(against, str | os.PathLike):
        if arch is None:
            arch = metadata.get("bnn_deploy.arch")
            arch_args = arch_args or json.loads(metadata.get("bnn_deploy.arch_args", "{}"))
        if arch is None:
            raise InputError(f"{against}: the model does not say what architecture it is; give --arch FILE.py:CLASS")
        against = load_module(against, arch, arch_args)
    weights: Any = metadata.get("bnn_deploy.weights", "auto")
    return reference.TorchReference(float_module(against, shape, weights).program)


class _Verifier:
    """Compares one converted model with one reference, batch by batch."""

    def __init__(
        self,
        name: str,
        proto: ModelProto,
        reference: Reference,
        sessions: _Sessions,
        tolerances: Tolerances,
        few: int,
        batch: int,
    ) -> None:
        from bnn_deploy import segments

        self.segments = segments
        self.proto = proto
        self.input: str = proto.graph.input[0].name
        self.reference = reference
        self.sessions = sessions
        self.tolerances = tolerances
        self.few = few
        self.batch = batch
        self.pieces = segments.split(proto, reference.names)
        self.cuts = {piece.output.tensor: piece.output for piece in self.pieces}
        self.bit_cuts = [cut for cut in self.cuts.values() if cut.is_bits]
        for piece in self.pieces:
            cut = piece.output
            if not cut.is_bits and cut.source in {info.name for info in proto.graph.output}:
                continue  # the reference's only output may be called otherwise
            if cut.source not in reference.names:
                raise InputError(
                    f"{name}: layer '{piece.name}' stands for the tensor '{cut.source}', which the reference "
                    "does not have: it is not what this model was converted from"
                )
        self.backends = [*sessions.onnxruntime, *([sessions.EVALUATOR] if few else [])]
        self.result = Verification(name, reference.description, "", 0, few, [], tolerances)
        self.layers = {
            piece.output.tensor: LayerResult(piece.name, piece.output.source, _kind(piece.output), piece.quantized)
            for piece in self.pieces
        }
        self.outputs = {backend: OutputResult(backend) for backend in self.backends}

    def run(self, inputs: Inputs, progress: Progress) -> Verification:
        """Answer the three questions."""
        result, x = self.result, inputs.x
        result.data, result.samples = inputs.origin, len(x)
        nodes = self.segments.operator_nodes(self.proto)
        try:
            feeds = self._operator_inputs(nodes, x[: self.batch])
        except RunError as error:
            # The layers, each alone, will show which one it is.
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
            values = self.reference.run(part, wanted)
            for piece in self.pieces:
                done += 1
                progress(
                    f"verifying: layer {piece.name}, samples {start} to {start + len(part) - 1} ({done} of {total})"
                )
                self._check_layer(piece, runners[piece.output.tensor], start, part, values)
            labels = None if inputs.labels is None else inputs.labels[start : start + self.batch]
            self._check_outputs(free, start, part, values, labels)
        result.layers = list(self.layers.values())
        result.outputs = list(self.outputs.values())
        zeros = sum(layer.zeros for layer in result.layers)
        if zeros:
            behind = sum(layer.behind_zeros for layer in result.layers)
            result.notes.append(
                f"{zeros} pre-activations are exactly 0: PyTorch's sign gives 0 there, the operators +1, as the paper; "
                f"{behind} values of the next layers depend on that, and were held to lie between what -1 and +1 give"
            )
        return result

    def _source(self, cut: Cut) -> str:
        """The reference's name for a cut: the model's output is the reference's output, whatever it is called."""
        return cut.source if cut.source in self.reference.names else self.reference.output

    def _value(self, cut: Cut, values: Arrays) -> NDArray[Any]:
        """The reference's value of a cut."""
        return cut.moved(values[self._source(cut)])

    def _before_name(self, cut: Cut) -> str | None:
        """The reference's tensor of which a bit cut is a sign; None behind a pool of signs."""
        return str(cut.before[0]) if cut.before else self.reference.before_sign(cut.source)

    def _before(self, cut: Cut, values: Arrays) -> NDArray[Any]:
        """The pre-activations of a bit cut. Behind a pool of signs there are none: no rounding explains a bit there."""
        value = self._value(cut, values)
        if cut.before:
            return cut.pre_activation(values, value.shape)
        name = self._before_name(cut)
        return value if name is None else values[name]

    def _runners(self, model: ModelProto) -> dict[str, Runner]:
        return {backend: self.sessions.make(model, backend) for backend in self.backends}

    def _share(self, backend: str, start: int, count: int) -> int:
        """How many samples of a batch a backend runs: the ReferenceEvaluator is slow and runs only the first few."""
        return count if backend != self.sessions.EVALUATOR else max(0, min(self.few - start, count))

    def _operator_inputs(self, nodes: list[NodeProto], x: NDArray[np.float32]) -> Arrays:
        """What flows into each operator when the function bodies run the whole model."""
        names = sorted({name for node in nodes for name in self.segments.data_inputs(self.proto, node)} - {self.input})
        if not names:
            return {self.input: x}
        session = load_session(
            self.segments.with_outputs(self.proto, names).SerializeToString(), self.sessions.threads, kernels=False
        )
        return {self.input: x, **dict(zip(names, run_session(session, names, {self.input: x}), strict=True))}

    def _check_operator(self, node: NodeProto, output: int, feeds: Arrays) -> OperatorResult:
        """Question 1 for one output of one node."""
        inputs = {name: feeds[name] for name in self.segments.data_inputs(self.proto, node)}
        model = self.segments.single_node(self.proto, node, output, inputs)
        everything = self.sessions.make(model, self.sessions.BODIES)(inputs)
        tolerance = self.segments.relative_tolerance(node, output, inputs)
        differing = {}
        for backend in self.backends[1:]:
            count = self._share(backend, 0, len(everything))
            expected = everything[:count]
            try:
                # Unpacked weights have no inputs, and so no samples: all of them come.
                got = self.sessions.make(model, backend)({name: array[:count] for name, array in inputs.items()})[
                    :count
                ]
            except RunError as error:
                self.result.errors.append(f"{node.op_type} '{node.name}': {backend}: {error}")
                got = expected[:0]
            same_form = got.shape == expected.shape and got.dtype == expected.dtype
            differing[backend] = int(_differs(got, expected, tolerance).sum()) if same_form else expected.size
        name = node.name if output == 0 else f"{node.name} (output {output})"
        return OperatorResult(name, node.op_type, everything.size, differing, tolerance)

    def _check_layer(
        self, piece: Segment, runners: dict[str, Runner], start: int, x: NDArray[np.float32], values: Arrays
    ) -> None:
        """Question 2 for one layer and one batch."""
        cut = piece.output
        layer = self.layers[cut.tensor]
        expected = self._value(cut, values)
        worst = replace(layer, differing=0, behind_zeros=0)
        for backend, run in runners.items():
            count = self._share(backend, start, len(x))
            if count == 0:
                continue
            try:
                feed = {
                    name: self.cuts[name].encode(self._value(self.cuts[name], values)) if name in self.cuts else x
                    for name in piece.inputs
                }
                got = run({name: array[:count] for name, array in feed.items()})
                if other := self._with_zeros_negative(piece, feed, values):
                    low = run({name: array[:count] for name, array in other.items()})
                    worst.behind_zeros = max(worst.behind_zeros, _count_differing(cut, got, low))
                    got = _between(cut, got, low, expected[:count])
                if cut.is_bits:
                    now = self._compare_bits(
                        cut, piece.quantized, got, expected[:count], self._before(cut, values), start
                    )
                else:
                    now = self._compare_floats(piece.quantized, got, expected[:count], start)
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
        worst.values += expected.size
        worst.differing += layer.differing
        worst.behind_zeros += layer.behind_zeros
        worst.zeros += int((expected == 0).sum()) if cut.is_bits and cut.levels is None else 0
        self.layers[cut.tensor] = worst

    def _with_zeros_negative(self, piece: Segment, feed: Arrays, values: Arrays) -> Arrays:
        """What feeds a piece, with -1 instead of +1 where the reference's sign is 0; empty if it is so nowhere."""
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
        self, cut: Cut, quantized: bool, got: NDArray[Any], expected: NDArray[Any], before: NDArray[Any], start: int
    ) -> LayerResult:
        """Bits against the reference's signs, or levels; `before` are the pre-activations of the whole batch."""
        result = LayerResult("", cut.source, "bits")
        flips, margin = differences(cut, got, expected, before)
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
        """Floats against the reference's."""
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
        values: Arrays,
        labels: NDArray[Any] | None,
    ) -> None:
        """Question 3 for one batch."""
        expected = values[self.reference.output]
        for backend, run in list(free.items()):
            count = self._share(backend, start, len(x))
            if count == 0:
                continue
            try:
                got = run({self.input: x[:count]})
                if got.shape != expected[:count].shape:
                    raise RunError(f"its output has shape {list(got.shape)}, the reference's {list(expected.shape)}")
            except RunError as error:
                self.result.errors.append(f"{backend}, running free: {error}")
                del free[backend]
                continue
            part = None if labels is None else labels[:count]
            add_output(self.outputs[backend], got, expected[:count], part, self.tolerances)
            wrong = other_class(got, expected[:count])
            if len(wrong):
                self._explain(backend, wrong, start, x[:count], got, values)

    def _explain(
        self,
        backend: str,
        wrong: NDArray[np.intp],
        start: int,
        x: NDArray[np.float32],
        got: NDArray[Any],
        values: Arrays,
    ) -> None:
        """Find, for each sample with another class, the first layer that flips a bit when the model runs free."""
        logits = values[self.reference.output]
        expected, predicted = classes(logits), classes(got)
        traced = {
            cut.tensor: self.sessions.make(self.segments.with_outputs(self.proto, [cut.tensor]), backend)(
                {self.input: x}
            )
            for cut in self.bit_cuts
        }
        for i in wrong:
            layer, margin, allowed = "", 0.0, 0.0
            for cut in self.bit_cuts:
                signs = self._value(cut, values)[: len(x)]
                if cut.levels is None and (signs[i] == 0).any():
                    # Not rounding, but a sign(0): from here on the two go different ways.
                    layer = self.layers[cut.tensor].layer
                    break
                try:
                    flips, margins = differences(cut, traced[cut.tensor], signs, self._before(cut, values))
                except ValueError:  # another shape: no rounding explains that
                    layer, margin = self.layers[cut.tensor].layer, float("inf")
                    break
                if flips[i].any():
                    layer, margin = self.layers[cut.tensor].layer, float(margins[i][flips[i]].max())
                    allowed = self.tolerances.margin(self._is_rounded(cut.tensor))
                    break
            if not layer:
                margin, allowed = tie_margin(got[i], logits[i]), self.tolerances.float_relative
            explained = margin <= allowed
            self.result.disagreements.append(
                Disagreement(backend, start + int(i), int(expected[i]), int(predicted[i]), layer, margin, explained)
            )

    def _is_rounded(self, tensor: str) -> bool:
        """Whether 8-bit layers stand, running free, between the bits before a cut and it."""
        piece = next(piece for piece in self.pieces if piece.output.tensor == tensor)
        floats = [name for name in piece.inputs if name in self.cuts and not self.cuts[name].is_bits]
        return piece.quantized or any(map(self._is_rounded, floats))


def _between(cut: Cut, got: NDArray[Any], low: NDArray[Any], expected: NDArray[Any]) -> NDArray[Any]:
    """`got`, but where it depends on zeros, what of the interval that they span is nearest to what is expected.

    A layer is linear in its input and what follows it monotone, so a 0 gives something between what -1 and +1 give.
    """
    if not cut.is_bits:
        got, low = got.reshape(expected.shape), low.reshape(expected.shape)
        return np.where(got == low, got, np.clip(expected, np.minimum(got, low), np.maximum(got, low)))
    if cut.levels is not None:
        return got
    unsettled = got ^ low
    words: NDArray[Any] = (got & ~unsettled) | (cut.encode(expected).reshape(got.shape) & unsettled)
    return words


def _count_differing(cut: Cut, got: NDArray[Any], low: NDArray[Any]) -> int:
    """How many floats, or bits, are not the same in two results of a piece."""
    return int(np.unpackbits((got ^ low).view(np.uint8)).sum()) if cut.is_bits else int((got != low).sum())


def _differs(got: NDArray[Any], expected: NDArray[Any], tolerance: float) -> NDArray[np.bool_]:
    """Where values are not equal, or, with a tolerance, further apart than this times the expected magnitude."""
    differing: NDArray[np.bool_] = got != expected
    if tolerance:
        differing &= ~(absolute_error(got, expected) <= tolerance * np.abs(expected.astype(np.float64)))
    return differing


def _kind(cut: Cut) -> str:
    """What LayerResult calls a cut."""
    return "floats" if not cut.is_bits else "bits" if cut.levels is None else "levels"


def differences(
    cut: Cut, got: NDArray[Any], expected: NDArray[Any], before: NDArray[Any]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Where bits are not the reference's signs, or levels not its levels, and how far the pre-activations are there.

    Args:
        cut: what the tensor stands for.
        got: the tensor.
        expected: the reference's, [N, C, spatial...].
        before: the pre-activations, at least as many samples.

    Returns:
        bool, and the relative margin (see `relative_margin`) where that is True, both shaped as `expected`. A level
        that differs has passed thresholds, each of which is a bit: its margin is the largest of theirs.
    """
    if cut.levels is None:
        flips = cut.decode(got, expected.shape) != (expected >= 0)
        return flips, relative_margin(before)[: len(expected)] if flips.any() else np.zeros(flips.shape)
    found, wanted = cut.decode_levels(got, expected.shape), cut.levels.encode(expected)
    margin = np.zeros(expected.shape)
    if (found == wanted).all():
        return found != wanted, margin
    thresholds = cut.levels.columns(before.ndim)
    for level in range(1, 2**cut.levels.bits):
        passed = (found >= level) != (wanted >= level)
        if not passed.any():
            continue
        # No rounding explains a level that the reference never has, or a threshold that nothing reaches.
        distance = np.full(expected.shape, np.inf)
        if level <= len(thresholds):
            finite_thresholds = np.isfinite(thresholds[level - 1])
            shifted = before - np.where(finite_thresholds, thresholds[level - 1], np.float32(0))
            distance = np.where(finite_thresholds, relative_margin(shifted)[: len(expected)], np.inf)
        margin = np.where(passed, np.maximum(margin, distance), margin)
    return found != wanted, margin


def relative_margin(before: NDArray[Any]) -> NDArray[np.float64]:
    """|pre-activation| in units of its channel's root mean square; pre-activations are [N, C, ...]."""
    magnitude = np.abs(before.astype(np.float64))
    axes = (0, *range(2, before.ndim))
    rms = np.sqrt((magnitude**2).mean(axis=axes, keepdims=True))
    margin: NDArray[np.float64] = magnitude / np.maximum(rms, np.finfo(np.float64).tiny)
    return margin


def absolute_error(got: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """|got - expected|, infinite where one of them is NaN."""
    error = np.abs(got.astype(np.float64) - expected)
    infinite: NDArray[np.float64] = np.where(np.isnan(error), np.inf, error)
    return infinite


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """The absolute error in units of the largest |expected| in the channel; tensors are [N, C, ...].

    With one unit for the whole tensor, a wrong filter whose alpha is small would hide behind the others. A hundredth of
    the tensor's largest value is the least unit: a channel may be 0 on all the data.
    """
    magnitude = np.abs(expected.astype(np.float64))
    channel = magnitude.max(axis=(0, *range(2, expected.ndim)), keepdims=True)
    unit = np.maximum(channel, 0.01 * magnitude.max())
    relative: NDArray[np.float64] = absolute_error(got, expected) / np.maximum(unit, np.finfo(np.float64).tiny)
    return relative


def classes(output: NDArray[Any]) -> NDArray[np.intp]:
    """The predicted classes [N] of outputs [N, classes], with any number of unit dimensions behind."""
    predicted: NDArray[np.intp] = output.reshape(len(output), -1).argmax(axis=1)
    return predicted


def has_classes(output: NDArray[Any]) -> bool:
    """Whether an output is [N, classes]: not a map, not a single number per sample."""
    return output.ndim >= 2 and output.shape[1] > 1 and output[0].size == output.shape[1]


def tie_margin(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """How far from a tie a sample's classes are that differ though no bit does, as sums of few levels can tie.

    Args:
        got: the model's outputs for the sample.
        expected: the reference's.

    Returns:
        The largest of the gap between both classes in the reference, and of the error of an output, in units of the
        sample's largest output.
    """
    got, expected = got.reshape(-1).astype(np.float64), expected.reshape(-1).astype(np.float64)
    unit = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    gap = float(expected.max() - expected[got.argmax()])
    return max(gap, float(absolute_error(got, expected).max())) / unit


def other_class(got: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.intp]:
    """The samples whose predicted class differs; none if the output is not [N, classes]."""
    if not has_classes(expected):
        return np.zeros(0, dtype=np.intp)
    return np.flatnonzero(classes(got) != classes(expected))


def add_output(
    result: OutputResult,
    got: NDArray[Any],
    expected: NDArray[Any],
    labels: NDArray[Any] | None,
    tolerances: Tolerances,
) -> None:
    """Add a batch of free-running outputs to a backend's result."""
    error = absolute_error(got, expected)
    result.samples += len(got)
    result.max_error = max(result.max_error, float(error.max()))
    limit = tolerances.float_relative * float(np.abs(expected).max())
    result.close += int((error.reshape(len(error), -1).max(axis=1) <= limit).sum())
    if has_classes(expected):
        result.same_class = (result.same_class or 0) + len(got) - len(other_class(got, expected))
        if labels is not None:
            result.correct = (result.correct or 0) + int((classes(got) == labels).sum())
            result.reference_correct = (result.reference_correct or 0) + int((classes(expected) == labels).sum())


def _verify_outputs(
    model: str | os.PathLike[str],
    against: Any,
    data: Any,
    labels: NDArray[Any] | None,
    samples: int | None,
    sessions: _Sessions,
    tolerances: Tolerances,
    progress: Progress,
) -> Verification:
    """The part of `verify` that a board without onnx can do: the outputs, against a float .onnx file.

    Kernels and function bodies must give the same outputs but for rounding. Against the float model a sign that flips
    within rounding changes a sample's outputs, but only few samples have one: most must be close.
    """
    if not str(against).endswith(".onnx"):
        raise SetupError(
            f"{against}: to verify against a checkpoint, install torch and onnx: pip install 'bnn-deploy[convert]'; "
            "without them, verify against a float .onnx file"
        )
    float_session = load_session(against, sessions.threads, kernels=False)
    graph_input = float_session.get_inputs()[0]
    batch = graph_input.shape[0] if isinstance(graph_input.shape[0], int) else None
    inputs = load_data(data, labels, samples, graph_input.name, tuple(graph_input.shape[1:]))
    inputs = _whole_batches(inputs, batch)
    step = batch or BATCH
    result = Verification(
        str(model),
        f"onnxruntime {ort.__version__} running {Path(against).name}",
        inputs.origin,
        len(inputs.x),
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
    for start in range(0, len(inputs.x), step):
        progress(f"verifying: outputs, sample {start} of {len(inputs.x)}")
        x = inputs.x[start : start + step]
        part_labels = None if inputs.labels is None else inputs.labels[start : start + step]
        expected = bodies = np.asarray(float_session.run(None, {name: x})[0])
        for output in result.outputs:
            got = runners[output.backend]({name: x})
            if got.shape != expected.shape:
                raise InputError(
                    f"{model}: its output has shape {list(got.shape)}, that of {against} {list(expected.shape)}: "
                    "it is not what this model was converted from"
                )
            add_output(output, got, expected, part_labels, tolerances)
            bodies = got if output.backend == sessions.BODIES else bodies
            spread = float(relative_error(got, bodies).max())
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
