"""The results of the proof, and its tolerances."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from bnn_deploy.errors import option
from bnn_deploy.json_form import JsonDocument
from bnn_deploy.notebook import NotebookResult
from bnn_deploy.proof.histogram import Histogram

WORST = 8
"""The largest number of WorstSamples that are kept of an output."""


@dataclass(frozen=True)
class Tolerances:
    """The largest differences between a model and its reference that count as rounding.

    Kernels and function bodies must agree exactly, except in a sum of floats whose order is unspecified: output A of
    BinarizeAbsMean may differ in its last bits, see `operators.contract.relative_tolerance`, and the sums of a float
    layer by the rounding of two orders, see `proof.rounding`.

    Attributes:
        flip_margin: a bit may differ from the reference's sign where |pre-activation| <= this times the root mean
            square of its channel's pre-activations.
        float_relative: a float may differ by this times the largest magnitude in its channel of the reference's tensor
            (or by a hundredth of this times the largest in the whole tensor, where that is more).
        quantized_flip_margin: the same as flip_margin for a layer with 8-bit weights and activations.
        quantized_float_relative: the same as float_relative for a layer with 8-bit weights and activations.
        min_agreement: running free, at least this share of the samples must agree with the reference, see
            `margins.agreeing`; one sample may always differ, unless it is 1. Each flip may be rounding's fault, or an
            exact zero's, and yet too many make another network.
    """

    flip_margin: float = 1e-4
    float_relative: float = 1e-4
    quantized_flip_margin: float = 0.25
    quantized_float_relative: float = 0.05
    min_agreement: float = 0.75

    def margin(self, quantized: bool) -> float:
        """The flip margin of a layer."""
        return self.quantized_flip_margin if quantized else self.flip_margin

    def relative(self, quantized: bool) -> float:
        """The relative error of a layer's floats."""
        return self.quantized_float_relative if quantized else self.float_relative

    def may_differ(self, samples: int) -> int:
        """The number of samples, out of `samples`, that need not agree with the reference."""
        share = int((1 - self.min_agreement) * samples + 1e-9)
        return share if self.min_agreement == 1 else max(1, share)


@dataclass(frozen=True)
class OperatorResult:
    """One node, run alone by every backend on the same inputs.

    Attributes:
        node: its name.
        op_type: its operator.
        values: number of words or floats compared (fewer for the ReferenceEvaluator).
        differing: values that differ from the function body in onnxruntime by more than the tolerance, per backend.
        tolerance: relative; 0 except for output A of BinarizeAbsMean, see `operators.contract.relative_tolerance`.
        rounded: of sums of float products, or bits of them, the values that differ by no more than the rounding of two
            orders, per backend, see `proof.rounding`; empty for exact operators.
    """

    node: str
    op_type: str
    values: int
    differing: dict[str, int]
    tolerance: float = 0.0
    rounded: dict[str, int] = field(default_factory=dict)

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
        kind: "bits", "levels", "floats" or "integers".
        quantized: whether it has 8-bit weights and activations, and so the wider tolerances.
        values: bits, levels or floats compared, per backend.
        differing: bits or levels that differ from the reference's (the largest number over the backends).
        margin: the largest |pre-activation| of a differing bit, or distance from a threshold of a differing level, in
            units of its channel's root mean square; 0 if none.
        worst: the position of the largest margin or error, with the values there.
        zeros: pre-activations that are exactly 0, where PyTorch's sign is 0 and the paper's is +1.
        behind_zeros: values that depend on such zeros in the layer's inputs; each must lie between the results for -1
            and for +1 in place of the zeros.
        max_error: largest absolute error of a float.
        relative_error: largest error in units of the largest magnitude in its channel, see Tolerances.
        reference_rounding: the largest margin or error that only the order of the reference's sums explains: the
            reference with its sums of products in float64, rounded once, is within the tolerances, and the margin and
            the relative error above are those from it; 0 if none.
        error: why the layer could not be compared: it does not run, or its output has another shape; else "".
        passed: whether margin and relative error are within the tolerances, and `error` is "".
        histogram: of the margins of the bits or levels that differ, or of the relative errors of all floats, in the
            units of `margin` and `relative_error`; by the kernels of the best instruction set, or the bodies if there
            are none.
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
    reference_rounding: float = 0.0
    error: str = ""
    passed: bool = True
    histogram: Histogram = field(default_factory=lambda: Histogram(0.0))


@dataclass
class OutputResult:
    """One backend running free from the input to the output.

    Attributes:
        backend: its name.
        output: the name of the model's output; "" if it has only one.
        samples: number of samples that it ran.
        max_error: largest absolute difference from the reference's output.
        close: samples whose floats are all within Tolerances.float_relative of the largest magnitude in the batch, and
            whose integers are all equal.
        agreeing: samples that agree with the reference, see `margins.agreeing`.
        zeros: samples among the others whose first difference comes from a sign of exactly 0, and not from rounding.
        same_class: samples for which the largest output is the same; None if the output is not [N, classes].
        correct: samples classified correctly; None without labels.
        reference_correct: the same for the reference.
        correct_top5: samples whose label is among the five classes with the highest scores, of which the lower class
            comes first among equals; None without labels, and of five classes or fewer.
        reference_correct_top5: the same for the reference.
    """

    backend: str
    output: str = ""
    samples: int = 0
    agreeing: int = 0
    zeros: int = 0
    max_error: float = 0.0
    close: int = 0
    same_class: int | None = None
    correct: int | None = None
    reference_correct: int | None = None
    correct_top5: int | None = None
    reference_correct_top5: int | None = None


@dataclass(frozen=True)
class Disagreement:
    """A sample that does not agree with the reference, see `margins.agreeing`.

    Attributes:
        backend: the name of the backend.
        output: the name of the model's output; "" if it has only one.
        sample: its index in the data.
        reference_class: the class that the reference predicts; None if the output is not [N, classes].
        model_class: the class that the converted model predicts; None likewise.
        layer: the first layer, running free, with a bit that differs; "" if no bit differs.
        margin: the largest margin of the bits that differ there, as in LayerResult; if no bit differs, the sample's
            `margins.tie_margin`.
        zero: whether that layer has a pre-activation of exactly 0, where PyTorch's sign is 0.
        explained: whether that margin is within the tolerance.
        channel: the channel of the bit with that margin, or of the first such 0; None if no bit differs.
        position: its place in the channel, such as [row, column]; empty of a fully connected layer.
        pre_activation: the reference's value in front of the sign there; None if no bit differs.
        label: the sample's class; None without labels.
        file: the sample's file, in its folder; "" if it has none of its own.
    """

    backend: str
    output: str
    sample: int
    reference_class: int | None
    model_class: int | None
    layer: str
    margin: float
    zero: bool
    explained: bool
    channel: int | None = None
    position: tuple[int, ...] = ()
    pre_activation: float | None = None
    label: int | None = None
    file: str = ""


@dataclass(frozen=True)
class WorstSample:
    """A sample among those whose outputs differ most from the reference's.

    Attributes:
        backend: the name of the backend: the kernels of the best instruction set, or the bodies if there are none.
        output: the name of the model's output; "" if it has only one.
        sample: its index in the data.
        file: its file, in its folder; "" if it has none of its own.
        max_error: the largest absolute difference from the reference's outputs.
        relative_error: the same in units of the largest magnitude in its channel, as in LayerResult.
        label: its class; None without labels.
        reference_class: the class that the reference predicts; None if the output is not [N, classes].
        model_class: the class that the converted model predicts; None likewise.
    """

    backend: str
    output: str
    sample: int
    file: str
    max_error: float
    relative_error: float
    label: int | None
    reference_class: int | None
    model_class: int | None


@dataclass(frozen=True)
class ClassAccuracy:
    """The samples of one class.

    Attributes:
        label: the class.
        name: its name; "" if it is not known.
        samples: number of samples with this label.
        correct: those of them that are predicted to be of this class.
    """

    label: int
    name: str
    samples: int
    correct: int


@dataclass(frozen=True)
class Classification:
    """How a network classifies the labelled samples, by its first output with classes.

    Attributes:
        network: "reference", or "model": the converted one, by the kernels of the best instruction set, or by the
            function bodies if there are none.
        backend: the software that ran it.
        output: the name of the output; "" if the model has only one.
        samples: number of samples.
        correct: those whose highest score is that of their label.
        correct_top5: those whose label is among the five highest scores, see OutputResult; None of five classes or
            fewer.
        classes: one entry for each label that occurs, in order.
        confusion: the confusion matrix: [label, predicted class, number of samples] for each pair that occurs, in
            order.
    """

    network: str
    backend: str
    output: str
    samples: int
    correct: int
    correct_top5: int | None
    classes: list[ClassAccuracy]
    confusion: list[tuple[int, int, int]]


@dataclass(repr=False)
class Verification(NotebookResult, JsonDocument):
    """The result of `verify`; true if it passed.

    Attributes:
        model: the converted model's file.
        reference: description of the reference.
        data: origin of the inputs.
        samples: inputs used; the ReferenceEvaluator, which is slow, ran the first `reference_samples` of them.
        planned: inputs that were to be used: as many, unless it was interrupted.
        reference_samples: see `samples`.
        isas: instruction sets whose kernels ran (as the library counted, not as asked).
        tolerances: the largest differences that counted as rounding.
        operators: results of question 1 (see `verification`); empty when onnx is not installed.
        layers: results of question 2; empty when onnx is not installed.
        outputs: results of question 3.
        source: the outputs of the source as its user runs it, against those of the reference that was made from it;
            empty if it is the reference.
        replaced: the weights of the source that the reference has binarised instead, by name.
        filled: the layers whose weights of exactly 0 became ±alpha in the reference, by --zero-weights, with their
            number: `source` has the 0, and as many of its samples must agree as of the model's.
        disagreements: samples that do not agree with the reference.
        worst: the samples whose outputs differ most, at most WORST of each output, the worst first.
        classification: how the reference and the model classify the samples, in this order; empty without labels.
        class_names: of the classes, from 0 on; empty if they are not known.
        pictures: small PNG files, in base64, of samples among `disagreements` and `worst`, by their index in the data
            as text; empty unless `verify` was asked for them.
        interrupted: whether Ctrl-C ended it: then `samples` are those that were compared until then, and it has not
            passed.
        errors: one line for each failure that the other attributes do not show, such as a backend that does not run.
        notes: remarks for the reader, such as that only outputs were compared.
        sha256: of the converted model, see `files.model_sha256`.
    """

    JSON_FORMAT = "verification"
    JSON_PROPERTIES: ClassVar = ("passed", "complete", "failures")

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
    source: list[OutputResult] = field(default_factory=list)
    replaced: tuple[str, ...] = ()
    filled: dict[str, int] = field(default_factory=dict)
    disagreements: list[Disagreement] = field(default_factory=list)
    worst: list[WorstSample] = field(default_factory=list)
    classification: list[Classification] = field(default_factory=list)
    class_names: tuple[str, ...] = ()
    pictures: dict[str, str] = field(default_factory=dict)
    planned: int = 0
    interrupted: bool = False
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sha256: str = ""

    shown_columns: ClassVar[tuple[str, ...]] = (
        "layer",
        "kind",
        "values",
        "differing",
        "margin",
        "relative_error",
        "passed",
        "backend",
        "output",
        "samples",
        "agreeing",
    )

    def __bool__(self) -> bool:
        return self.passed

    def headline(self) -> str:
        """PASSED or FAILED, of what."""
        verdict = "PASSED" if self.passed else "FAILED"
        return f"{self.model} {verdict} against {self.reference}, {self.samples:,} samples, {len(self.layers)} layers"

    def rows(self) -> list[dict[str, Any]]:
        """One for each layer, or, if only outputs were compared, for each output of each backend."""
        return [asdict(result) for result in (self.layers or self.outputs)]

    def details(self) -> list[str]:
        """What failed, and the remarks."""
        return [*(f"FAILED: {failure}" for failure in self.failures), *self.notes]

    @property
    def failures(self) -> list[str]:
        """One line for everything that failed, with the layer's name."""
        lines = list(self.errors)
        if self.interrupted:
            lines.append(f"it was interrupted after {self.samples} of {self.planned} samples: what is known is partial")
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
                f"{first.sample}{_classes(first)} ({first.backend}{first.output and f', output {first.output}'})"
            )
        lines += filter(None, map(self.disagreement, self.outputs))
        for source in self.source if self.filled else []:
            if not self._agrees(source):
                lines.append(
                    f"with the weights that {option('zero_weights')} changed, only {source.agreeing} of "
                    f"{source.samples} samples agree with {source.backend}"
                    f"{source.output and f', output {source.output}'} (needed: {self.tolerances.min_agreement:.0%}): "
                    f"convert without it, or accept it with {option('min_agreement')}"
                )
        return lines

    def _agrees(self, output: OutputResult) -> bool:
        return output.samples - output.agreeing <= self.tolerances.may_differ(output.samples)

    def disagreement(self, output: OutputResult) -> str:
        """That too few samples agree, why, and what can be done; "" if enough do."""
        if self._agrees(output):
            return ""
        where = f"{output.backend}{output.output and f', output {output.output}'}"
        differing = output.samples - output.agreeing
        why = "each difference begins within rounding, but they add up"
        if output.zeros:
            exact = option("sign_zero", "exact")
            zeros = f"PyTorch's sign is exactly 0 first, and the model's +1 (convert with {exact})"
            why = f"in {output.zeros} of the other {differing} {zeros}"
        return (
            f"{where}: only {output.agreeing} of {output.samples} samples agree with the reference (needed: "
            f"{self.tolerances.min_agreement:.0%}): {why}; accept it with {option('min_agreement')}"
        )

    @property
    def complete(self) -> bool:
        """Whether operators and layers were compared, not only outputs."""
        return bool(self.layers)

    @property
    def passed(self) -> bool:
        """Whether all three questions are answered with yes."""
        return not self.failures


def _classes(disagreement: Disagreement) -> str:
    if disagreement.model_class is None:
        return ""
    return f", class {disagreement.model_class} instead of {disagreement.reference_class}"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended `verify`.

    Attributes:
        result: what was known until then; it has not passed, and says so.
    """

    def __init__(self, result: Verification) -> None:
        super().__init__()
        self.result = result
