"""`bnn-deploy convert`: a trained checkpoint becomes an ONNX model with binary operators."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
import numpy as np

from bnn_deploy.cli.config import config_option
from bnn_deploy.cli.console import print_json, printable, progress, show, table
from bnn_deploy.cli.layer_table import print_layers, ratio
from bnn_deploy.cli.options import (
    DATA_PATH,
    checkpoint_options,
    example,
    parse_arch_args,
    parse_numbers,
    parse_preprocessing,
)
from bnn_deploy.cli.page_file import note_result
from bnn_deploy.errors import InputError, reading
from bnn_deploy.files import is_file
from bnn_deploy.progress import ProgressStep
from bnn_deploy.quantities import exact_bytes, human_bytes, human_count, plural
from bnn_deploy.runtime.inputs import batch_size, load_data, read_inputs, whole_batches
from bnn_deploy.runtime.session import load_session
from bnn_deploy.system import let_waiting_threads_sleep

if TYPE_CHECKING:
    from bnn_deploy.conversion import Conversion
    from bnn_deploy.image_input import ImageInput
    from bnn_deploy.inspection import ModelReport
    from bnn_deploy.passes.recognise.binarize_weights import Weights

_PATH = click.Path(dir_okay=False, path_type=Path)

WEIGHTS = ("auto", "xnor", "xnor-centred", "sign", "as-is")


def parse_shapes(texts: Sequence[str]) -> tuple[int | None, ...] | dict[str, tuple[int | None, ...]] | None:
    """['3,?,32'] -> (3, None, 32); ['x=3,32,32', 'm=16'] -> {'x': (3, 32, 32), 'm': (16,)}; [] -> None."""
    named: dict[str, tuple[int | None, ...]] = {}
    for text in texts:
        name, _, numbers = text.rpartition("=")
        try:
            shape = tuple(None if part == "?" else int(part) for part in numbers.replace("x", ",").split(","))
        except ValueError:
            shape = ()
        if not shape or min(1 if size is None else size for size in shape) < 1:
            raise InputError(f"--input-shape {text}: give one sample's shape as C,H,W, for example 3,32,32")
        if name in named or (len(texts) > 1 and not name):
            raise InputError(f"--input-shape {text}: of several shapes, each is that of one input: NAME=C,H,W")
        named[name] = shape
    return named.get("", named or None)


def parse_names(text: str | None) -> tuple[str, ...]:
    """'cat,dog', '["cat", "dog"]', or a file with a name in each line -> ("cat", "dog"); None -> ()."""
    if text is None:
        return ()
    if text.startswith("["):
        with reading(text, "not a JSON array of names"):
            return tuple(map(str, json.loads(text)))
    if not is_file(text):
        return tuple(name.strip() for name in text.split(","))
    with reading(text, "not a text file in UTF-8"):
        return tuple(line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip())


def parse_image(layout: Literal["nchw", "nhwc"] | None, mean: str | None, std: str | None) -> ImageInput:
    """('nhwc', '0.5', '0.2,0.3,0.2') -> ImageInput; what is None is its default."""
    from bnn_deploy.image_input import ImageInput

    numbers = parse_numbers("--mean", mean) or (0.0,), parse_numbers("--std", std) or (1.0,)
    return ImageInput(*numbers, layout or "nchw")


@click.command(
    name="convert", epilog=example("bnn-deploy convert lenet5.pth.tar --arch lenet5 -o lenet5.onnx", in_demo=True)
)
@click.argument("source", type=_PATH)
@click.option(
    "--arch",
    metavar="NAME",
    help="Of a checkpoint: lenet5, nin, alexnet, birealnet18, xnor-alexnet, binarynet-vgg, binarynet-mlp, reactnet, "
    "dorefa-vgg, or FILE.py:NAME; torchscript or exported-program for a file that holds its program, which is run.",
)
@click.option("--arch-args", metavar="JSON", help="Keyword arguments of the class or function, a JSON object.")
@checkpoint_options
@click.option("-o", "--output", required=True, type=_PATH, metavar="MODEL.onnx", help="The file to write.")
@click.option(
    "--float", "float_output", type=_PATH, metavar="FLOAT.onnx", help="Also write the float model, to compare."
)
@click.option(
    "--web",
    "web_output",
    type=_PATH,
    metavar="WEB.onnx",
    help="Also write the model for browsers and Node.js, where no operators can be registered: the float one, with its "
    "binary weights in one bit each.",
)
@click.option(
    "--input-shape",
    "input_shapes",
    multiple=True,
    metavar="[NAME[:TYPE]=]C,H,W",
    help="One sample's shape, if SOURCE does not say it; of several inputs, once for each. Of a checkpoint, NAME is a "
    "parameter of forward(), and TYPE its type, if not float32, such as ids:int64=16; 3,?,? leaves sizes open.",
)
@click.option(
    "--input",
    "input_type",
    type=click.Choice(["float32", "uint8"]),
    default="float32",
    help="What the model takes: float32, as the network does, or uint8: images of bytes, as a camera or decoder gives "
    "them, which the model normalises: (byte / 255 - mean) / std, as torchvision's ToTensor and Normalize do.",
)
@click.option(
    "--layout",
    type=click.Choice(["nchw", "nhwc"]),
    help="Of images of bytes: channels first (the default), or last, as decoders give them.",
)
@click.option(
    "--mean",
    metavar="M[,M...]",
    help="How images are normalised: one number, or one per channel. A model of bytes does it itself, with 0 if left "
    "out; in one of floats it is noted for verify, as --std, --size and --crop are.",
)
@click.option(
    "--std", metavar="S[,S...]", help="Likewise: what they are divided by; in a model of bytes 1 if left out."
)
@click.option("--size", metavar="N or HxW", help="Of the images that become inputs, to note for verify: their size.")
@click.option("--crop", metavar="N or HxW", help="Likewise: the middle that is cut out of them.")
@click.option("--output-names", metavar="NAME,NAME...", help="Names of the outputs, instead of the source's.")
@click.option(
    "--classes",
    metavar="NAME,NAME... or FILE",
    help="Names of the classes, in the order of the output's numbers, or a text file with one a line; the model keeps "
    "them.",
)
@click.option(
    "--weights",
    type=click.Choice(WEIGHTS),
    default="auto",
    help="Real-valued weights of layers whose input is a sign: how they are binarised. auto: by the recipe in its own "
    "architectures, else not at all (an error if the network binarises no weights itself); xnor: mean |W| times sign; "
    "xnor-centred: centred and clamped first; sign; as-is: they stay real.",
)
@click.option("--darknet-weights", type=_PATH, metavar="FILE.weights", help="The weights of a Darknet network.")
@click.option(
    "--xnor-padding",
    type=click.Choice(["-1", "0"]),
    help="What the xnor layers of a Darknet network are padded with: -1, as its inference on a CPU does (the default), "
    "or 0, as its training on a GPU.",
)
@click.option(
    "--decode", is_flag=True, help="Also give the boxes of a Darknet network's detection layers, and their scores."
)
@click.option(
    "--sign-zero",
    type=click.Choice(["plus", "exact"]),
    default="plus",
    help="Signs that are 0 at 0, as torch.sign: +1 there (plus, the default), or 0 (exact), at twice the layer's cost.",
)
@click.option(
    "--zero-weights",
    type=click.Choice(["plus", "minus"]),
    help="Weights of exactly 0 among ±alpha, as torch.sign(0): make them +alpha or -alpha. Left out, they stay 0, by a "
    "second basis, at up to twice the layer's cost.",
)
@click.option(
    "--data",
    type=DATA_PATH,
    metavar="PATH",
    help="Real inputs, as for verify, on which signs of exactly 0 are counted.",
)
@click.option(
    "--edges",
    type=click.Choice(["float", "int8"]),
    default="float",
    help="What to do with the layers that are not binary; int8 needs --calibration.",
)
@click.option("--calibration", type=DATA_PATH, metavar="PATH", help="Real inputs for int8, as for verify.")
@click.option("--samples", type=click.IntRange(1), help="Use only so many inputs of --data and --calibration.")
@click.option("--strict", is_flag=True, help="Fail if a layer whose input is a sign stays float.")
@click.option(
    "--report",
    type=_PATH,
    metavar="FILE.json",
    help="Also write what became of each layer, and why; written also if --strict fails.",
)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the full result as JSON.")
def command(
    source: Path,
    arch: str | None,
    arch_args: str | None,
    key: str | None,
    prefix: str | None,
    output: Path,
    float_output: Path | None,
    web_output: Path | None,
    input_shapes: tuple[str, ...],
    input_type: str,
    layout: Literal["nchw", "nhwc"] | None,
    mean: str | None,
    std: str | None,
    size: str | None,
    crop: str | None,
    output_names: str | None,
    classes: str | None,
    weights: Weights,
    darknet_weights: Path | None,
    xnor_padding: str | None,
    decode: bool,
    sign_zero: Literal["plus", "exact"],
    zero_weights: Literal["plus", "minus"] | None,
    data: Path | None,
    edges: str,
    calibration: Path | None,
    samples: int | None,
    strict: bool,
    report: Path | None,
    as_json: bool,
) -> None:
    """Convert a trained binary network to an ONNX model whose binary layers are one bit per weight.

    SOURCE is a float .onnx file of any exporter, a checkpoint with --arch, or a Darknet .cfg file with
    --darknet-weights. The checkpoint holds latent weights, as the XNOR-Net-PyTorch recipe saves them; no code in it is
    run. FILE.py, which --arch names, is run.
    """
    let_waiting_threads_sleep()
    if (edges == "int8") != (calibration is not None):
        raise click.UsageError("--edges int8 and --calibration PATH go together")
    if input_type != "uint8" and layout is not None:
        raise click.UsageError("--layout says how images of bytes are read: give --input uint8, too")
    images = input_type == "uint8"  # which the model normalises itself
    shape = parse_shapes(input_shapes)
    arguments = parse_arch_args(arch_args)
    reports: list[ModelReport] = []
    cost = None

    with progress() as step:
        from bnn_deploy.conversion import convert
        from bnn_deploy.inspection import inspect_model

        def examine(binary: bytes, original: bytes) -> None:
            nonlocal cost
            step(ProgressStep("counting", 0.85))
            reports.extend((inspect_model(float_output or source, original), inspect_model(output, binary)))
            cost = None if calibration is None else quantization_cost(original, binary, calibration, samples, step)

        result = convert(
            source,
            output,
            arch=arch,
            arch_args=arguments,
            key=key,
            prefix=prefix,
            input_shape=shape,
            image_input=parse_image(layout, mean, std) if images else None,
            preprocessing=parse_preprocessing(size, crop, *((None, None) if images else (mean, std))),
            float_output=float_output,
            web_output=web_output,
            output_names=parse_names(output_names),
            classes=parse_names(classes),
            weights=weights,
            darknet_weights=darknet_weights,
            xnor_padding=None if xnor_padding is None else -1 if xnor_padding == "-1" else 0,
            decode=decode,
            data=data,
            calibration=calibration,
            samples=samples,
            sign_zero=sign_zero,
            zero_weights=zero_weights,
            strict=strict,
            report=report,
            progress=step,
            examine=examine,
        )
    before, after = reports
    note_result("conversion", result.to_json())
    if as_json:
        sizes = {"before": before.to_json(), "after": after.to_json(), "quantization": cost}
        print_json(result.to_json() | sizes)
    else:
        print_conversion(source, weights, result, before, after)
        if cost is not None:
            show(f"8-bit edges, measured on the {cost['samples']:,} calibration inputs against the float model:")
            show(f"  same class    {cost['same_class']:,} of {cost['samples']:,}")
            if cost["accuracy"] is not None:
                show(f"  accuracy      {cost['float_accuracy']:.2f} % float, {cost['accuracy']:.2f} % with 8-bit edges")
            show("")
        written = [f"{output}, {exact_bytes(after.file_bytes)}"]
        if float_output is not None:
            written.append(f"{float_output}, {exact_bytes(before.file_bytes)}")
        if web_output is not None:
            written.append(f"{web_output}, {exact_bytes(web_output.stat().st_size)}")
        if report is not None:
            written.append(str(report))
        show(f"wrote {', and '.join(written)}", result=True)


def quantization_cost(
    float_model: bytes, model: bytes, calibration: Path, samples: int | None, step: Callable[[str], None]
) -> dict[str, float | int | None]:
    """The cost of 8-bit edges: predictions of the float and the converted model on the calibration inputs."""
    sessions = [load_session(float_model, kernels=False), load_session(model)]
    wanted = read_inputs(sessions[0])
    inputs = whole_batches(load_data(calibration, None, samples, wanted), batch_size(wanted))
    classes = []
    for session in sessions:
        step("measuring what 8-bit edges cost")
        parts = [session.run(None, feed)[0] for feed in inputs.batches(batch_size(wanted) or 50)]
        classes.append(np.concatenate(parts).argmax(-1))
    accuracies = [None if inputs.labels is None else 100 * float((c == inputs.labels).mean()) for c in classes]
    return {
        "samples": len(inputs),
        "same_class": int((classes[0] == classes[1]).sum()),
        "float_accuracy": accuracies[0],
        "accuracy": accuracies[1],
    }


def print_conversion(
    source: Path, weights: Weights, result: Conversion, before: ModelReport, after: ModelReport
) -> None:
    """Print the result of a conversion: totals, operators, layers, and the layers that stayed float."""
    packed = f"{len(result.binary_weights)} with binary weights only, " if result.binary_weights else ""
    binary = plural(len(result.binary_layers), "layer")
    show(f"{source}: {binary} binary, {packed}{len(result.left_float)} left float")
    if result.binarized:
        show(f"{plural(len(result.binarized), 'latent weight')} binarised {_SCHEMES[weights]}")
    for note in result.report.notes:
        show(f"note: {printable(note)}")
    show("")
    totals = table(None, ["", "float", "binary", "smaller"], {"float", "binary", "smaller"}, optional=["smaller"])
    totals.add_row(
        "file",
        human_bytes(before.file_bytes),
        human_bytes(after.file_bytes),
        ratio(before.file_bytes, after.file_bytes),
    )
    totals.add_row(
        "weights and constants",
        human_bytes(before.constant_bytes),
        human_bytes(after.constant_bytes),
        ratio(before.constant_bytes, after.constant_bytes),
    )
    totals.add_row("float MACs per sample", human_count(before.float_macs), human_count(after.float_macs), "")
    totals.add_row("binary MACs per sample", human_count(before.binary_macs), human_count(after.binary_macs), "")
    totals.add_row("operators", str(len(before.layers)), str(len(after.layers)), "")
    counts = [Counter(layer.op_type for layer in report.layers) for report in (before, after)]
    for op_type in sorted(counts[0] | counts[1]):
        totals.add_row(f"  {printable(op_type)}", *(str(count[op_type] or "-") for count in counts), "")
    show(totals)
    show("")

    print_layers(result.report, before, after)


_RECIPE = "by the recipe (centre over the input channels, clamp to [-1, 1], alpha times sign)"
_SCHEMES: dict[Weights, str] = {
    "auto": _RECIPE,
    "xnor-centred": _RECIPE,
    "xnor": "as in the XNOR-Net paper (alpha times sign)",
    "sign": "by their sign alone",
}
