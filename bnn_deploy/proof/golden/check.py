"""Checking golden results: onnxruntime and numpy only, which a board has."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.errors import InputError, one_line
from bnn_deploy.files import require_file
from bnn_deploy.json_form import JsonDocument
from bnn_deploy.operators.bits import WORD, words
from bnn_deploy.progress import Progress
from bnn_deploy.proof.backends import Backends, RunError, kernels_of, run_session
from bnn_deploy.proof.golden.record import (
    GOLDEN_BATCH,
    Golden,
    GoldenTensor,
    GoldenValues,
    checksums,
    feed,
    read_golden,
)
from bnn_deploy.proof.margins import absolute_error, classes, has_classes, magnitudes, relative_error
from bnn_deploy.runtime.session import library_info, load_session

FLIPPED_SHARE = 0.25
"""At most this share of a layer's near bits may flip, so that `near` does not excuse an operator that is wrong just at
the threshold. Rounding moves floats by about a hundredth of the flip margin, and so flips about that share."""

QUANTIZED_FLIPPED_SHARE = 0.001
"""FLIPPED_SHARE behind a layer with 8-bit activations: sums are exact; one value in a million rounds otherwise."""

FLIPPED_LEAST = 8
"""Near bits that may flip in any case."""


@dataclass
class GoldenLayer:
    """One layer fed with golden bits, over all backends.

    Attributes:
        layer: its name.
        tensor: the name of its bit tensor.
        made_from: "integers" (no tolerance) or "floats".
        quantized: whether these floats come from a layer with 8-bit activations.
        bits: bits compared, per backend.
        near: bits among them that another machine's rounding may flip.
        differing: bits that differ (the largest number over the backends).
        wrong: differing bits that are not near.
        worst: the position of the first wrong bit, or the reason why the layer failed; "" if it passed.
    """

    layer: str
    tensor: str
    made_from: str
    quantized: bool
    bits: int = 0
    near: int = 0
    differing: int = 0
    wrong: int = 0
    worst: str = ""

    @property
    def passed(self) -> bool:
        """Whether only near bits differ, and few of those."""
        return not self.worst


@dataclass
class GoldenFloatLayer:
    """One binary layer that makes floats, fed with golden bits, over all backends.

    Attributes:
        layer: its name.
        values: floats compared, per backend.
        differing: samples with a float that differs (the largest number over the backends).
        worst: the first such sample.
    """

    layer: str
    values: int = 0
    differing: int = 0
    worst: str = ""

    @property
    def passed(self) -> bool:
        """Whether all floats equal the golden floats."""
        return self.differing == 0


@dataclass
class GoldenOutput:
    """One output of one backend on the golden inputs, running free.

    Attributes:
        backend: its name.
        output: the output's name; "" if the model has only one.
        samples: number of inputs that it ran.
        identical: samples whose bits are golden in every layer.
        flipped: samples whose first differing layer has only near flips, which explain all later differences.
        max_error: largest absolute error: over the identical samples, and over all fed with golden bits.
        relative_error: the same in units of the largest magnitude in the output's channel.
        differing: of an output that is not of floats, the values that differ among these; None for floats.
        same_class: samples whose largest output is the same; None if the output is not [N, classes].
    """

    backend: str
    output: str = ""
    samples: int = 0
    identical: int = 0
    flipped: int = 0
    max_error: float = 0.0
    relative_error: float = 0.0
    differing: int | None = None
    same_class: int | None = None


@dataclass
class GoldenVerification(JsonDocument):
    """The result of `check_golden`; true if it passed.

    Attributes:
        model: the model's file.
        golden: the golden file.
        samples: inputs in the golden file; the function bodies, which are slow, ran the first `body_samples` of them.
        body_samples: see `samples`.
        isas: instruction sets whose kernels ran (as the library counted, not as asked).
        float_relative: the largest relative error that an output's floats may have.
        made_with: the versions and the machine that computed the golden results.
        layers: results of question 1 (see `proof.golden`) for bits.
        float_layers: results of question 1 for the floats of binary layers.
        outputs: results of question 2.
        errors: one line for each other failure.
        sha256: of the model's file.
    """

    JSON_FORMAT = "golden verification"
    JSON_PROPERTIES: ClassVar = ("passed", "failures")

    model: str
    golden: str
    samples: int
    body_samples: int
    isas: list[str]
    float_relative: float
    made_with: dict[str, str]
    layers: list[GoldenLayer] = field(default_factory=list)
    float_layers: list[GoldenFloatLayer] = field(default_factory=list)
    outputs: list[GoldenOutput] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    sha256: str = ""

    def __bool__(self) -> bool:
        return self.passed

    @property
    def failures(self) -> list[str]:
        """One line for everything that failed, with the layer's name."""
        lines = []
        for layer in self.layers:
            if layer.wrong:
                lines.append(
                    f"layer '{layer.layer}': {layer.wrong} of {layer.bits} bits made from {layer.made_from} differ "
                    f"beyond rounding; {layer.worst}"
                )
            elif not layer.passed:
                lines.append(f"layer '{layer.layer}': {layer.worst}")
        lines += [
            f"layer '{floats.layer}': the floats that it makes of the golden bits differ in {floats.differing} of "
            f"{self.samples} samples; {floats.worst}"
            for floats in self.float_layers
            if not floats.passed
        ]
        return [*lines, *self.errors]

    @property
    def passed(self) -> bool:
        """Whether both questions are answered with yes."""
        return not self.failures


def check_golden(
    model: str | os.PathLike[str],
    golden: str | os.PathLike[str],
    *,
    isas: Sequence[str] | None = None,
    threads: int | None = None,
    body_samples: int = 2,
    progress: Progress = lambda step: None,
) -> GoldenVerification:
    """Check that this machine reproduces the results in a golden file.

    Args:
        model: the converted .onnx file.
        golden: the golden file that was made from it.
        isas: instruction sets to run; None runs all of this machine's.
        threads: intra-op threads; None is one per core.
        body_samples: number of inputs that the function bodies run in plain onnxruntime; 0 leaves them out.
        progress: called with a line of text before each batch.

    Returns:
        The result; `passed` says whether this machine computes the same.

    Raises:
        InputError: a file cannot be used, or the golden file is not this model's.
        SetupError: the library is missing, or an instruction set is unknown.
    """
    info = library_info()
    isas = list(isas or info.isas)
    for isa in isas:
        library_info(isa)  # an unknown name is an error now, not after minutes
    require_file(model)
    content = Path(model).read_bytes()
    expected = read_golden(golden)
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected.model_sha256:
        raise InputError(
            f"{golden}: made from another model than {model}: SHA-256 {expected.model_sha256[:12]}... "
            f"instead of {digest[:12]}...; take the model it was made from, or make a new bundle"
        )
    few = min(body_samples, len(expected.inputs))
    relative = max(output.relative for output in expected.outputs)
    result = GoldenVerification(
        str(model), str(golden), len(expected.inputs), few, [], relative, expected.made_with, sha256=digest
    )
    result.layers = [
        GoldenLayer(
            tensor.layer,
            tensor.tensor,
            "integers" if tensor.near is None else "floats",
            tensor.quantized,
            len(expected.inputs) * math.prod(tensor.bits.shape[1:-1]) * tensor.channels * tensor.planes,
            0 if tensor.near is None else _count(tensor.near),
        )
        for tensor in expected.tensors
    ]
    result.float_layers = [
        GoldenFloatLayer(floats.layer, len(expected.inputs) * math.prod(floats.shape)) for floats in expected.floats
    ]
    for isa in isas:
        _check_backend(result, expected, content, isa, threads, len(expected.inputs), progress)
    if few:
        _check_backend(result, expected, content, None, threads, few, progress)
    after = library_info().calls
    result.isas = [isa for isa in isas if after.get(isa, 0) > info.calls.get(isa, 0)]
    idle = [isa for isa in isas if isa not in result.isas]
    if idle:
        result.errors.append(f"the kernels of {', '.join(idle)} did not run, by the library's own count")
    return result


def _check_backend(
    result: GoldenVerification,
    golden: Golden,
    model: bytes,
    isa: str | None,
    threads: int | None,
    samples: int,
    progress: Progress,
) -> None:
    """Answer both questions for the kernels of one instruction set, or (isa None) for the function bodies."""
    backend = Backends.BODIES if isa is None else kernels_of(isa)
    plain = load_session(model, threads, isa=isa, kernels=isa is not None)
    probed = load_session(model + golden.probe, threads, isa=isa, kernels=isa is not None)
    names = [name for tensor in golden.tensors for name in (tensor.tensor, tensor.fed)]
    names += [*(floats.tensor for floats in golden.floats), *(output.fed for output in golden.outputs)]
    names = list(dict.fromkeys(names))
    outputs = [output.name for output in golden.outputs]
    wanted = {info.name for info in probed.get_inputs()}
    compared = _Compared(golden)
    free: list[list[NDArray[Any]]] = []
    fed: list[list[NDArray[Any]]] = []
    try:
        for start in range(0, samples, GOLDEN_BATCH):
            stop = min(start + GOLDEN_BATCH, samples)
            progress(f"checking golden results: {backend}, samples {start} to {stop - 1} of {samples}")
            free.append(run_session(plain, outputs, golden.inputs.part(start, stop)))
            inputs = {name: array for name, array in feed(golden, start, stop).items() if name in wanted}
            values = dict(zip(names, run_session(probed, names, inputs), strict=True))
            fed.append([values[output.fed] for output in golden.outputs])
            compared.add(values, start, stop)
    except RunError as error:
        result.errors.append(f"{backend}: {error}")
        return
    except ValueError as error:
        result.errors.append(f"{backend}: its results do not have the golden ones' shapes: {one_line(error)}")
        return
    compared.check_shares(samples)
    for layer, now in zip(result.layers, compared.layers, strict=True):
        layer.differing = max(layer.differing, now.differing)
        if now.worst and (not layer.worst or now.wrong > layer.wrong):
            layer.wrong, layer.worst = now.wrong, f"{now.worst} ({backend})"
    for floats, found in zip(result.float_layers, compared.float_layers, strict=True):
        if found.differing > floats.differing:
            floats.differing, floats.worst = found.differing, f"{found.worst} ({backend})"
    result.errors += [f"{backend}, running free: {line}" for line in compared.unexplained]
    for i, expected in enumerate(golden.outputs):
        output = GoldenOutput(backend, expected.name if len(golden.outputs) > 1 else "", samples)
        output.identical, output.flipped = len(compared.identical), compared.flipped
        ran, given = (np.concatenate([np.atleast_1d(np.asarray(part[i])) for part in parts]) for parts in (free, fed))
        _compare_output(result, output, expected, ran, given, compared.identical)
        result.outputs.append(output)


class _Compared:
    """The comparison of one backend with the golden bits and floats, batch by batch.

    Attributes:
        layers: one result per bit tensor, fed with golden bits.
        float_layers: one result per binary layer that makes floats, fed with golden bits.
        identical: indices of the samples whose bits are all golden, running free.
        flipped: number of samples whose first differing layer, running free, has only near flips.
        unexplained: one line per layer that is the first to differ in some sample, running free, by a bit not near.
    """

    def __init__(self, golden: Golden) -> None:
        self.golden = golden
        self.layers = [GoldenLayer(t.layer, t.tensor, "", t.quantized) for t in golden.tensors]
        self.float_layers = [GoldenFloatLayer(floats.layer) for floats in golden.floats]
        self.identical: list[int] = []
        self.flipped = 0
        self.unexplained: list[str] = []
        self._reported: set[str] = set()

    def add(self, values: dict[str, Any], start: int, stop: int) -> None:
        """Compare the samples from `start` to `stop`.

        Raises:
            ValueError: a tensor has another shape than the golden one.
        """
        open_samples = dict.fromkeys(range(start, stop))
        for tensor, layer in zip(self.golden.tensors, self.layers, strict=True):
            differing, wrong = self._differences(tensor, values[tensor.fed], start, stop)
            layer.differing += _count(differing)
            layer.wrong += _count(wrong)
            if wrong.any() and not layer.worst:
                layer.worst = f"first: {_place(wrong, start, tensor)}"
            if tensor.fed != tensor.tensor:
                differing, wrong = self._differences(tensor, values[tensor.tensor], start, stop)
            for sample in list(open_samples):
                if differing[sample - start].any():
                    del open_samples[sample]  # later differences follow from this one
                    if not wrong[sample - start].any():
                        self.flipped += 1
                    elif tensor.tensor not in self._reported:
                        self._reported.add(tensor.tensor)
                        place = _place(wrong[sample - start : sample - start + 1], sample, tensor)
                        self.unexplained.append(
                            f"layer '{tensor.layer}' is the first with other bits, and not by rounding; {place}"
                        )
        self.identical += open_samples
        for floats, found in zip(self.golden.floats, self.float_layers, strict=True):
            got = values[floats.tensor]
            if got.shape[1:] != floats.shape:
                raise ValueError(f"layer '{floats.layer}' gives {list(got.shape[1:])}, not {list(floats.shape)}")
            samples = start + np.flatnonzero(checksums(got) != floats.checksums[start:stop])
            if len(samples) and not found.differing:
                found.worst = f"first: sample {samples[0]}"
            found.differing += len(samples)

    @staticmethod
    def _differences(
        tensor: GoldenTensor, got: Any, start: int, stop: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Masks in the packing of the bits: 1 for each differing bit, and 1 for each differing bit that is not near."""
        expected = tensor.bits[start:stop]
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise ValueError(
                f"layer '{tensor.layer}' gives {got.dtype} {list(got.shape)}, not {expected.dtype} "
                f"{list(expected.shape)}"
            )
        differing = got ^ expected
        return differing, differing if tensor.near is None else differing & ~tensor.near[start:stop]

    def check_shares(self, samples: int) -> None:
        """After all samples are added, fail each layer in which too many of the near bits flipped."""
        for tensor, layer in zip(self.golden.tensors, self.layers, strict=True):
            near = 0 if tensor.near is None else _count(tensor.near[:samples])
            share = QUANTIZED_FLIPPED_SHARE if tensor.quantized else FLIPPED_SHARE
            if not layer.worst and layer.differing > max(FLIPPED_LEAST, share * near):
                layer.worst = (
                    f"{layer.differing} of the {near} bits near the threshold flipped; rounding flips at most "
                    f"{share:.1%} of them"
                )


def _compare_output(
    result: GoldenVerification,
    output: GoldenOutput,
    golden: GoldenValues,
    free: NDArray[Any],
    fed: NDArray[Any],
    identical: list[int],
) -> None:
    """Compare one output of all samples fed with golden bits, and of the identical samples running free."""
    expected = golden.values[: output.samples]
    which = f"output '{output.output}'" if output.output else "the output"
    for name, got, chosen in (("fed with golden bits", fed, list(range(len(fed)))), ("running free", free, identical)):
        if got.shape != expected.shape or got.dtype != expected.dtype:
            result.errors.append(
                f"{output.backend}, {name}: {which} is {got.dtype} {list(got.shape)} instead of {expected.dtype} "
                f"{list(expected.shape)}"
            )
            continue
        if not chosen:
            continue
        # The unit of the relative error is taken over all samples, whichever are compared.
        relative = relative_error(got, expected, magnitudes(expected))[chosen]
        wrong = relative > golden.relative
        if expected.dtype.kind == "f":
            output.max_error = max(output.max_error, float(absolute_error(got, expected)[chosen].max()))
            output.relative_error = max(output.relative_error, float(relative.max()))
            how = f"by up to {float(relative.max()):.2g} of the largest in their channel (allowed {golden.relative:g})"
        else:
            output.differing = (output.differing or 0) + int(wrong.sum())
            how = f"in {int(wrong.sum())} of {wrong.size} values, which are no floats"
        if wrong.any():
            worst = np.unravel_index(int(relative.argmax()), relative.shape)
            place = (chosen[int(worst[0])], *map(int, worst[1:]))
            what = f"the values of {which}" if output.output else "outputs"
            result.errors.append(
                f"{output.backend}, {name}: {what} differ {how}; worst at sample {place[0]}, index {list(place[1:])}: "
                f"{got[place].item():.6g} instead of {expected[place].item():.6g}"
            )
    if free.shape == expected.shape and has_classes(expected):
        output.same_class = int((classes(free) == classes(expected)).sum())


def _count(array: NDArray[np.uint32]) -> int:
    """Number of bits that are 1."""
    return int(np.unpackbits(np.ascontiguousarray(array).view(np.uint8)).sum())


def _place(bits: NDArray[np.uint32], start: int, tensor: GoldenTensor) -> str:
    """The position of the first 1 as text for a message; `bits` begins with sample `start`."""
    sample, *position, word = (int(i) for i in np.unravel_index(int((bits != 0).argmax()), bits.shape))
    at = (sample, *position, word)
    value = int(bits[at])
    plane, word = divmod(word, words(tensor.channels))
    channel = word * WORD + (value & -value).bit_length() - 1
    return (
        f"sample {start + sample}, channel {channel}{f', position {position}' if position else ''}"
        f"{f', bit {plane} of the level' if tensor.planes > 1 else ''}"
    )
