"""checkpoint -> module -> float ONNX -> passes -> binary ONNX; ONNX models and Darknet networks skip two steps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from bnn_deploy import __version__
from bnn_deploy.architectures import ARCHITECTURES
from bnn_deploy.errors import BnnDeployError, InputError, option
from bnn_deploy.files import is_file, require_outputs, write_files
from bnn_deploy.image_input import ImageInput
from bnn_deploy.json_form import json_form
from bnn_deploy.kept import file_digest, keep_conversion
from bnn_deploy.notebook import NotebookResult
from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.layout.lower_quantized import LowerQuantized
from bnn_deploy.passes.layout.quantize_edges import quantize_edges
from bnn_deploy.passes.layout.unfold_stride import UnfoldStride
from bnn_deploy.passes.lower.pack_weights import packed_layers
from bnn_deploy.passes.outcome import Decline
from bnn_deploy.passes.pipeline import finish, to_binary, to_web
from bnn_deploy.passes.recognise.binarize_weights import Weights
from bnn_deploy.preprocessing import Preprocessing
from bnn_deploy.progress import ProgressStep
from bnn_deploy.proof.values import require_values
from bnn_deploy.provenance import ZERO_WEIGHTS_KEY, FileStamp, Origin, in_utf8, name_outputs, shape_metadata
from bnn_deploy.report.canonical import Canonical
from bnn_deploy.report.layers import layer_reports
from bnn_deploy.report.summary import (
    LayerReport,
    Report,
    ZeroCount,
    binary_layers,
    constant_channels,
    join_reasons,
    quantized,
    quantized_layers,
    report_bytes,
)
from bnn_deploy.runtime.inputs import (
    Data,
    Inputs,
    InputSpec,
    batch_size,
    has_batch,
    load_data,
    random_feed,
    whole_batches,
)
from bnn_deploy.runtime.trial import require_runs
from bnn_deploy.runtime.zero_counts import count_zeros
from bnn_deploy.source.accept_images import accept_images
from bnn_deploy.source.darknet.network import XnorPadding, darknet_network
from bnn_deploy.source.float_source import FloatSource, read_source
from bnn_deploy.source.input_sizes import SampleShape
from bnn_deploy.source.module_inputs import ExampleInputs
from bnn_deploy.source.onnx_file import OnnxSource, is_onnx
from bnn_deploy.source.torch_source import TorchInput
from bnn_deploy.source.zero_weights import ZeroWeights, fill_zero_weights


@dataclass(frozen=True, repr=False)
class Conversion(NotebookResult):
    """The result of `convert`.

    Attributes:
        output: the converted model's file.
        float_output: the float ONNX file, if one was asked for.
        web_output: the file for runtimes that take no operator library, if one was asked for.
        binary_layers: names of the layers that became binary, in order.
        binary_weights: names of the layers whose input is real-valued (or that have no binary form) and whose binary
            weights are stored in one bit each, in order.
        left_float: every other convolution and linear layer that stayed float, with the reason; and the layers of
            `binary_weights` whose input is a sign.
        not_fused: the nodes that the passes declined to fuse between binary layers, with the reason.
        binarized: the parameters (of an ONNX model, the layers) whose latent weights were binarised.
        constant_channels: each binarisation with channels whose bit never changes, as (name, number of these channels,
            number of channels).
        report: the outcome of each layer, for users: see `layers`.
    """

    JSON_OMITTED: ClassVar = ("report",)

    output: Path
    float_output: Path | None
    web_output: Path | None
    binary_layers: tuple[str, ...]
    binary_weights: tuple[str, ...]
    left_float: tuple[Decline, ...]
    not_fused: tuple[Decline, ...]
    binarized: tuple[str, ...]
    constant_channels: tuple[tuple[str, int, int], ...]
    report: Report

    shown_columns: ClassVar[tuple[str, ...]] = ("name", "operator", "status", "becomes", "reason")

    def headline(self) -> str:
        """How many layers became binary, and the file."""
        packed = f", {len(self.binary_weights)} with binary weights only" if self.binary_weights else ""
        return f"{self.output}: {len(self.binary_layers)} layers binary{packed}, {len(self.left_float)} left float"

    def rows(self) -> list[dict[str, Any]]:
        """One for each convolution and linear layer."""
        return [asdict(layer) for layer in self.layers]

    def details(self) -> tuple[str, ...]:
        """The remarks."""
        return self.report.notes

    @property
    def layers(self) -> tuple[LayerReport, ...]:
        """One entry per convolution and linear layer, in the order of the float graph."""
        return self.report.layers

    def to_json(self) -> dict[str, Any]:
        """Plain types, for json.dumps: the content of `--report`, and the attributes."""
        return {**self.report.to_json(), **json_form(self)}


def convert(
    source: TorchInput | OnnxSource,
    output: str | os.PathLike[str],
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    key: str | None = None,
    prefix: str | None = None,
    input_shape: SampleShape | None = None,
    example_inputs: ExampleInputs | None = None,
    image_input: ImageInput | None = None,
    preprocessing: Preprocessing | None = None,
    float_output: str | os.PathLike[str] | None = None,
    web_output: str | os.PathLike[str] | None = None,
    output_names: Sequence[str] = (),
    classes: Sequence[str] = (),
    weights: Weights = "auto",
    darknet_weights: str | os.PathLike[str] | None = None,
    xnor_padding: XnorPadding | None = None,
    decode: bool = False,
    data: Data | None = None,
    calibration: Data | None = None,
    samples: int | None = None,
    sign_zero: Literal["plus", "exact"] = "plus",
    zero_weights: ZeroWeights | None = None,
    strict: bool = False,
    report: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] = lambda step: None,
    examine: Callable[[bytes, bytes], None] = lambda binary, original: None,
) -> Conversion:
    """Convert a trained binary network to an ONNX model with binary operators.

    Args:
        source: a torch module, the path of a checkpoint or its content, such as a state dict, a float ONNX model: the
            path of one (.onnx), an onnx.ModelProto or an onnx_ir.Model; or the path of a Darknet network (.cfg).
        output: the .onnx file to write; replaced only if the conversion succeeds, and then all files are written, or,
            if one cannot be, none. Links are followed; a device or FIFO is written through.
        arch: for a checkpoint: a name of `architectures.ARCHITECTURES`, or FILE.py:NAME, a class or function.
        arch_args: keyword arguments of that class or function, of plain types; None or empty for none.
        key: for a checkpoint with several state dicts: where the network's is, such as "ema.model".
        prefix: for a checkpoint with several networks in one state dict: what its keys begin with, such as "student".
        input_shape: one sample without the batch dimension, or one of each input by name; None takes the module's
            `input_shape`, or the ONNX model's. Of a module, the names are forward()'s parameters, and may have a type:
            {"images": (3, 32, 32), "ids:int64": (16,)}. None in it leaves a size open: (3, None, None).
        example_inputs: of a module, instead: what it is called with, each [N, ...]: a tensor, a tuple of the arguments,
            or a dict of them by name, see `module_inputs`.
        image_input: let both models take images of bytes, and normalise them; None leaves the input as it is.
        preprocessing: how images become the network's input, to note in both models: `verify` then reads folders of
            images and bytes; without mean and std if `image_input` has them.
        float_output: also write the float ONNX (with binarised weights) here, to compare against.
        web_output: also write the same network here for runtimes that take no operator library, as those of browsers
            and Node.js: see `passes.pipeline.to_web`.
        output_names: names of the outputs of both models; none keeps the source's: of an ONNX model its own, of a
            module the keys of the dict that it returns, if it returns one.
        classes: names of the classes, in the order of the output's numbers, to note in both models.
        weights: how to binarise real-valued weights of layers whose input is a sign, see `Weights`. "auto" applies the
            XNOR-Net-PyTorch recipe to the recipe's own architectures; of other networks it leaves them real if the
            network binarises other weights itself, and else refuses to guess.
        darknet_weights: the .weights file of a Darknet network.
        xnor_padding: what its xnor layers are padded with: -1, as Darknet's inference on a CPU does, or 0, as its
            training on a GPU; None for -1.
        decode: whether the boxes of its detection layers are outputs, too: "boxes" and "scores", see `read_darknet`.
        data: real inputs, as `load_data` takes them, on which exact zeros are counted, see `LayerReport.exact_zeros`;
            None takes `calibration`, else a few random ones where the graph says that there may be zeros.
        calibration: real inputs, as `load_data` takes them, to quantise the layers that stay float to 8 bits.
        samples: number of inputs of `data` and `calibration` to use, see `load_data`; None for all.
        sign_zero: what becomes of signs that are 0 at 0, as torch.sign: "plus" makes them +1 there, "exact" keeps the 0
            in front of binary layers, by a second plane of bits, at twice the layer's cost.
        zero_weights: what becomes of weights that are exactly 0 among ±alpha, as torch.sign(0): "plus" makes them
            +alpha, "minus" -alpha, which is another network, that `verify` holds against the source; None keeps the
            0, in a second basis.
        strict: fail if a layer whose input is a sign or has few levels stays float.
        report: also write the outcome of each layer here, as JSON (see `report.summary.Report`), even if `strict` fails
            or no layer is binary, when it is needed most.
        progress: called with a line of text before each step.
        examine: called with the converted model and the float one before any file is written; if it raises, none is.

    Returns:
        The binary layers, and the layers that stayed float with the reasons.

    Raises:
        InputError: the checkpoint, model, architecture or shape cannot be used, or no layer is binary.
        BnnDeployError: `strict`, and a layer whose input is a sign or has few levels stays float; or the converted
            model does not run, which is a fault of this package.
    """
    if image_input is not None and preprocessing is not None and preprocessing.normalisation() is not None:
        raise InputError("image_input says the mean and std of images of bytes: leave them out of preprocessing")
    kind = "model" if is_onnx(source) else "checkpoint" if darknet_weights is None else "network"
    read = {
        kind: source,
        "file of its weights": darknet_weights,
        "file of its class": None if arch is None else arch.rpartition(":")[0] or None,
        "file of inputs": data,
        "file of calibration inputs": calibration,
    }
    require_outputs(
        {"binary model": output, "float model": float_output, "model for the web": web_output, "report": report},
        {what: file for what, file in read.items() if isinstance(file, str | os.PathLike)},
    )
    darknet = darknet_network(source, darknet_weights, xnor_padding, decode)
    original = read_source(
        darknet or source, arch, arch_args, key, prefix, input_shape, example_inputs, weights, progress
    )
    if image_input is not None:
        taking, examples = accept_images(original.model, original.examples, image_input, original.name)
        original = replace(original, model=taking, examples=examples)
    _require_classes(original.model, classes, original.name)
    progress(ProgressStep("running the passes", 0.45))
    seen = Canonical()
    kept: set[str] = set()
    model, notes, filled = original.model, original.notes, dict[str, int]()
    if zero_weights is not None:
        model, filled = fill_zero_weights(model, zero_weights)
        notes = (*notes, _filled_note(filled, zero_weights))
    try:
        binary, left_float, not_fused = to_binary(
            model,
            float_edges=calibration is None,
            look=seen.look,
            kept_zeros=kept if sign_zero == "exact" else None,
        )
    except InputError as error:
        raise InputError(f"{original.name}: {error}") from error
    scheme = "xnor-centred" if weights == "auto" else weights
    reports = layer_reports(original.model, seen, binary, left_float, scheme, original.binarized, kept)
    reports = tuple(replace(layer, filled_zeros=filled.get(layer.name, 0)) for layer in reports)
    counted = calibration if data is None else data
    reports = _with_zeros(original, seen, reports, counted, samples, preprocessing, progress)
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else original.name
    result = Report(name, reports, tuple(not_fused), tuple(constant_channels(binary)), notes)
    layers, packed = binary_layers(binary), packed_layers(binary)
    left_float = [left for left in left_float if left.has_sign_input or left.node not in packed]
    declined = [decline for decline in left_float if decline.has_sign_input]
    failed: BnnDeployError | None = None
    advised = f"{option('report', example='FILE.json')} says what could be changed"
    see = advised if report is None else f"see {os.fspath(report)}"
    if strict and declined:
        what = f"{len(declined)} {'layer' if len(declined) == 1 else 'layers'} whose input is a sign or has few levels"
        stays = "stays" if len(declined) == 1 else "stay"
        failed = BnnDeployError(f"{option('strict', True)}: {what} {stays} float: {join_reasons(declined)}; {see}")
    elif not layers and not packed:
        reasons = join_reasons(left_float) or "it has no convolution and no linear layer that a pass knows"
        failed = InputError(f"no layer of {original.name} is binary: {reasons}; {see}")
    if failed is not None:
        if report is not None:
            write_files({report: report_bytes(result)})
        raise failed
    if calibration is not None:
        wanted = float_inputs(original.model, original.examples.shapes, preprocessing)
        inputs = whole_batches(load_data(calibration, None, samples, wanted), batch_size(wanted))
        progress(f"quantising the float layers with {len(inputs)} inputs")
        UnfoldStride()(binary)
        binary = quantize_edges(binary, inputs.batches(batch_size(wanted) or 1))
        LowerQuantized()(binary)
        finish(binary)
        result = replace(result, layers=quantized(result.layers, quantized_layers(binary)))
    origin = _origin(source, arch, arch_args, key, prefix, weights, classes)
    origin = replace(origin, accuracy=original.accuracy)
    title = Path(original.name).name
    for model, graph in ((binary, "{}"), (original.model, "{}_float")):
        model.metadata_props.update(shape_metadata(original.examples.shapes) | origin.metadata(arch in ARCHITECTURES))
        model.producer_name, model.producer_version = "bnn-deploy", origin.version
        model.graph.name = graph.format(in_utf8(title.split(".")[0]))
        if image_input is not None:
            model.metadata_props.update(image_input.metadata())
        if preprocessing is not None:
            model.metadata_props.update(preprocessing.metadata())
    if filled and zero_weights is not None:
        binary.metadata_props[ZERO_WEIGHTS_KEY] = zero_weights
    _name_outputs(binary, original, output_names)
    progress(ProgressStep("running the converted model once", 0.75))
    compared = original.model if zero_weights is None else fill_zero_weights(original.model, zero_weights)[0]
    converted = {output: binary}
    if web_output is not None:
        web = converted[web_output] = to_web(compared)
        web.graph.name, web.producer_version = binary.graph.name, binary.producer_version
        web.metadata_props.update(binary.metadata_props)
    floats = ir.to_proto(original.model).SerializeToString()
    files = {path: ir.to_proto(model).SerializeToString() for path, model in converted.items()}
    for path, model in converted.items():
        bodies = sum(node.domain == DOMAIN for node in model.graph)
        for shapes in filter(None, (original.examples.shapes, original.examples.others)):
            require_runs(files[path], bodies, floats, float_inputs(original.model, shapes), original.name)
    progress(ProgressStep("comparing the converted model's layers with the float model's", 0.8))
    reference = floats if compared is original.model else ir.to_proto(compared).SerializeToString()
    few = list(_few_inputs(original, counted, samples, preprocessing))
    left_open = [note for content in files.values() for note in require_values(content, reference, few, original.name)]
    result = replace(result, notes=(*result.notes, *dict.fromkeys(left_open)))
    examine(files[output], floats)
    progress(ProgressStep("writing", 0.95))
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    result = replace(result, sha256=digests[output])
    also = {float_output: floats, report: report_bytes(result)}
    write_files({path: content for path, content in (files | also).items() if path is not None})
    if origin.source is not None and isinstance(source, str | os.PathLike):
        file, _, name = (arch or "").rpartition(":")
        places = {
            "source": str(Path(source).absolute()),
            "arch": arch if origin.arch_file is None else f"{Path(file).absolute()}:{name}",
        }
        for digest in digests.values():
            keep_conversion(digest, places)
    return Conversion(
        Path(output),
        None if float_output is None else Path(float_output),
        None if web_output is None else Path(web_output),
        tuple(layers),
        tuple(packed),
        tuple(left_float),
        result.not_fused,
        tuple(original.binarized),
        result.constant_channels,
        result,
    )


def _few_inputs(
    source: FloatSource, data: Data | None, samples: int | None, preprocessing: Preprocessing | None
) -> Iterator[Inputs]:
    """Two samples of each kind, or one batch, if that is fixed: random ones of each example's sizes, and real ones."""
    for shapes in filter(None, (source.examples.shapes, source.examples.others)):
        wanted = float_inputs(source.model, shapes)
        batch = batch_size(wanted)
        whole = frozenset(item.name for item in wanted if not has_batch(item, batch))
        yield Inputs(random_feed(wanted, batch or 2), whole, None, "random inputs")
    if data is not None:
        wanted = float_inputs(source.model, source.examples.shapes, preprocessing)
        batch = batch_size(wanted)
        yield whole_batches(load_data(data, None, samples, wanted), batch).first(batch or 2)


def _name_outputs(binary: ir.Model, original: FloatSource, wanted: Sequence[str]) -> None:
    """Name the outputs of both models as their user wants, or else as the module calls them.

    Raises:
        InputError: the user's names are too few or too many, or one cannot be given.
    """
    count = len(original.model.graph.outputs)
    if not wanted:
        if len(original.outputs) == count:
            name_outputs(binary, original.model, original.outputs)
        return
    said = option("output_names", tuple(wanted))
    if len(wanted) != count or len(set(wanted)) != count:
        raise InputError(f"{original.name}: {said}: give {count} different names, one for each output")
    if left := name_outputs(binary, original.model, wanted):
        raise InputError(
            f"{original.name}: {said}: {left[0]} cannot be given, because of another tensor's name: choose another"
        )


def _require_classes(model: ir.Model, classes: Sequence[str], name: str) -> None:
    """Refuse names of classes that are too few or too many for every output [N, classes]."""
    shapes = [value.shape for value in model.graph.outputs if value.shape is not None and len(value.shape) == 2]
    counts = [shape[1] for shape in shapes if isinstance(shape[1], int)]
    if classes and counts and len(classes) not in counts:
        found = " and ".join(map(str, counts))
        raise InputError(f"{name}: {option('classes')} has {len(classes)} names, but the network has {found} classes")


def _origin(
    source: TorchInput | OnnxSource,
    arch: str | None,
    arch_args: Mapping[str, Any] | None,
    key: str | None,
    prefix: str | None,
    weights: Weights,
    classes: Sequence[str],
) -> Origin:
    """What a model is converted from, by the arguments of `convert`; of files, their names and contents alone."""

    def stamp(path: str | os.PathLike[str]) -> FileStamp:
        return FileStamp(Path(path).name, file_digest(path))

    file, colon, name = ("", "", "") if arch is None else arch.rpartition(":")
    program = stamp(file) if colon else None
    return Origin(
        __version__,
        weights,
        stamp(source) if isinstance(source, str | os.PathLike) and is_file(source) else None,
        arch if program is None else f"{program.name}:{name}",
        program,
        dict(arch_args or {}),
        key,
        prefix,
        tuple(classes),
    )


def _filled_note(filled: Mapping[str, int], zero_weights: ZeroWeights) -> str:
    """What was done to weights of exactly 0."""
    chosen = option("zero_weights", zero_weights)
    if not filled:
        return f"{chosen}: no weight of a binary layer is exactly 0"
    layers = ", ".join(f"{count:,} of {name}" for name, count in filled.items())
    alpha = "+alpha" if zero_weights == "plus" else "-alpha"
    return f"{chosen}: weights that are exactly 0 became {alpha}: {layers}; verify judges the outputs"


def _with_zeros(
    source: FloatSource,
    canonical: Canonical,
    layers: tuple[LayerReport, ...],
    data: Data | None,
    samples: int | None,
    preprocessing: Preprocessing | None,
    progress: Callable[[str], None],
) -> tuple[LayerReport, ...]:
    """The same reports with the number of exact zeros of each sign that is 0 there and +1 in the converted model."""
    wanted = float_inputs(source.model, source.examples.shapes, preprocessing)
    inputs = None if data is None else whole_batches(load_data(data, None, samples, wanted), batch_size(wanted))
    signs = {}
    for layer in layers:
        seen = canonical.layers.get(layer.same_as or layer.name)
        lost = layer.sign_of_zero != layer.converted_sign_of_zero
        if lost and seen is not None and seen.source is not None and (inputs is not None or layer.zero_cause):
            signs[layer.name] = seen.source
    if not signs:
        return layers
    model = source.model.clone()
    made = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs[:] = [made[name] for name in dict.fromkeys(signs.values())]
    found = count_zeros(ir.to_proto(model).SerializeToString(), source.name, wanted, inputs, progress)
    counts = {
        name: ZeroCount(found.zeros[sign], found.values[sign], found.samples, found.inputs)
        for name, sign in signs.items()
    }
    return tuple(replace(layer, exact_zeros=counts.get(layer.name)) for layer in layers)


def float_inputs(
    model: ir.Model, examples: Mapping[str, tuple[int, ...]], preprocessing: Preprocessing | None = None
) -> list[InputSpec]:
    """The inputs of a float model, as `load_data` wants them, with example shapes without the batch."""
    found = []
    for value in model.graph.inputs:
        assert value.dtype is not None and value.shape is not None
        dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
        name = value.name or ""
        found.append(InputSpec(name, str(value.dtype.numpy()), tuple(dims), examples[name], preprocessing))
    return found
