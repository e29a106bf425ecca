"""The equivalence proof: a converted model against the float network that it came from.

Three questions, each answered on the same inputs:

1. Operators. Do the C++ kernels (every instruction set of this machine), the function bodies in stock onnxruntime and
   the function bodies in onnx's ReferenceEvaluator agree on every node, exactly, in every bit, integer and float (but
   for the last bits of a mean over channels, whose order of summation is unspecified, and of the sums of a float layer,
   which may differ by the rounding of two orders of summation, and bits of them where they are so near the threshold)?
2. Layers. Fed with the reference's own activations, does each layer give the reference's result? A bit may differ only
   where the float pre-activation is within rounding of the threshold; a float only by rounding.
3. Outputs. Running free from the input, does the model predict the same class? Each disagreement must be explained by a
   first bit that flipped within that margin.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bnn_deploy.errors import InputError, option, reading_metadata
from bnn_deploy.files import model_sha256, require_file
from bnn_deploy.operators.contract import OPERATORS
from bnn_deploy.preprocessing import Preprocessing
from bnn_deploy.progress import Progress, ProgressStep
from bnn_deploy.proof.backends import EVALUATOR_SAMPLES, SLOW_SAMPLES, Backends
from bnn_deploy.proof.origin import Original, find_original
from bnn_deploy.proof.outputs import verify_outputs
from bnn_deploy.proof.results import Interrupted, Tolerances, Verification
from bnn_deploy.proof.samples import add_pictures
from bnn_deploy.provenance import properties, read_classes
from bnn_deploy.runtime.inputs import ArrayLike, Data, batch_size, load_data, whole_batches
from bnn_deploy.runtime.session import library_info


def verify(
    model: str | os.PathLike[str],
    against: Any = None,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    key: str | None = None,
    prefix: str | None = None,
    data: Data | None = None,
    labels: ArrayLike | None = None,
    samples: int | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int | None = None,
    pictures: int = 0,
    slow_samples: int = SLOW_SAMPLES,
    reference_samples: int | None = None,
    isas: Sequence[str] | None = None,
    threads: int | None = None,
    tolerances: Tolerances | None = None,
    progress: Progress = lambda step: None,
) -> Verification:
    """Prove that a converted model computes what the float network computes.

    Args:
        model: the converted .onnx file.
        against: a checkpoint or state dict, a float ONNX model (the path of one, an onnx.ModelProto or an
            onnx_ir.Model), or a torch module in eval mode. None finds the file that the model was converted from, where
            it was, beside the model or in the current folder, see `proof.origin`.
        arch: for a checkpoint or state dict: its architecture; None takes the one that the model's metadata records, if
            it has a name, or FILE.py if this user has converted this model with it here.
        arch_args: keyword arguments of the architecture; None takes the arguments that the metadata records.
        key: for a checkpoint with several state dicts: where the network's is, as for `convert`; None takes what the
            metadata records for this file.
        prefix: what the keys of its tensors begin with, as for `convert`; likewise.
        data: inputs [N, ...], float32 and normalised as in training, or images of bytes if the model takes them; the
            path of a .npy, .npz or IDX file, or of a folder of images with a sub-folder per class (see `load_data`);
            None for 32 random normal inputs. Files are read in parts, and never held as a whole.
        labels: classes [N], for accuracy; files may hold them.
        samples: number of inputs to use, from the first, or drawn with `seed`; None for all.
        preprocessing: how images become the model's input; what it leaves out is as the model's metadata records.
        seed: draw the samples at random; None takes the first, and 0 of a folder with classes.
        pictures: the largest number of samples of which the result holds a picture, if the data is images.
        slow_samples: number of inputs that what is slow runs, rounded up to whole batches: the function bodies in
            onnxruntime and the scalar kernels (neither if nothing else runs the model).
        reference_samples: number of inputs that the ReferenceEvaluator runs; 0 leaves it out; None for as many as it
            can in EVALUATOR_SECONDS, at least one batch and at most EVALUATOR_SAMPLES.
        isas: instruction sets to run; None runs all of this machine's.
        threads: intra-op threads.
        tolerances: the largest differences that count as rounding; None for the defaults.
        progress: called with a line of text before each step, a `ProgressStep`, which says how much is done.

    Returns:
        The result; `passed` says whether the model is equivalent.

    Raises:
        Interrupted: Ctrl-C was pressed; it holds what was known then.
        InputError: a file, shape or architecture cannot be used, or `model` was not converted from `against`, or there
            is no `against` and what it was converted from is not found.
        SetupError: the library or a package is missing, or an instruction set is unknown.
    """
    tolerances = tolerances or Tolerances()
    info = library_info()
    isas = list(isas or info.isas)
    for isa in isas:
        library_info(isa)  # an unknown name is an error now, not after minutes
    require_file(model)
    sessions = Backends(isas, threads)
    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnx_ir") is None:
        if against is None:
            raise InputError(f"{model}: without the package onnx, give its float model: {option('against')}")
        content = Path(model).read_bytes()
        if not any(row.has_kernel and _op_type(row.name) in content for row in OPERATORS.values()):
            isas = []
            sessions = Backends(isas, threads)
        inputs, result = verify_outputs(
            model, against, data, labels, samples, sessions, tolerances, progress, preprocessing, seed
        )
    else:
        from bnn_deploy.proof.pieces import has_kernels, load_model, model_inputs, require_converted
        from bnn_deploy.proof.reference import make_reference
        from bnn_deploy.proof.verifier import Verifier

        progress(ProgressStep("reading the model and the inputs", 0.0))
        proto = load_model(model)
        require_converted(proto, model)
        if not has_kernels(proto):
            isas = []  # binary weights only: the library has nothing to run
            sessions = Backends(isas, threads)
        with reading_metadata(model):
            wanted, classes = model_inputs(proto), read_classes(properties(proto))
        inputs = load_data(data, labels, samples, wanted, preprocessing=preprocessing, seed=seed)
        batch = batch_size(wanted)
        inputs = whole_batches(inputs, batch).named(classes)
        progress(ProgressStep("loading the reference", 0.0))
        given = Original(against, arch, arch_args, key, prefix)
        original = find_original(model, properties(proto), given)
        inputs = replace(inputs, class_names=inputs.class_names or original.classes)
        reference = make_reference(
            original.against, original.arch, original.arch_args, original.key, original.prefix, proto
        )
        few = min(EVALUATOR_SAMPLES if reference_samples is None else reference_samples, len(inputs))
        if batch is not None:
            few = -(-few // batch) * batch
        verifier = Verifier(str(model), proto, reference, sessions, tolerances, inputs, few, slow_samples, batch)
        result = verifier.run(progress, in_time=reference_samples is None)
        result.notes += original.notes
        del verifier, reference  # their sessions and weights
    result.sha256 = model_sha256(model)
    after = library_info().calls
    result.isas = [isa for isa in isas if after.get(isa, 0) > info.calls.get(isa, 0)]
    idle = [isa for isa in isas if isa not in result.isas]
    if idle:
        result.errors.append(f"the kernels of {', '.join(idle)} did not run, by the library's own count")
    add_pictures(result, inputs, pictures)
    if result.interrupted:
        raise Interrupted(result)
    return result


def _op_type(name: str) -> bytes:
    """An operator's name in the bytes of an ONNX file: field 4 of a node, with its length."""
    return bytes([4 << 3 | 2, len(name)]) + name.encode()
