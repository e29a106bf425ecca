"""`bnn-deploy demo`: the whole job, on a trained LeNet-5 with real test images, or on a network of the user's."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import click
import numpy as np

from bnn_deploy.cli import CHECK_FAILED
from bnn_deploy.cli.console import print_json, progress, show, show_command
from bnn_deploy.cli.convert import print_conversion
from bnn_deploy.cli.options import DATA_PATH, example
from bnn_deploy.cli.page_file import PICTURES, html_option, make_record, require_page, write_page
from bnn_deploy.cli.profile import print_report
from bnn_deploy.cli.verify import print_verification
from bnn_deploy.errors import SetupError
from bnn_deploy.files import write_files
from bnn_deploy.page.view import kernels_output
from bnn_deploy.quantities import TIMES, exact_bytes, percent, plural
from bnn_deploy.system import let_waiting_threads_sleep

MEAN, STD = np.float32(0.1307), np.float32(0.3081)
"""The normalisation of images x in [0, 1] in the embedded network's training: (x - MEAN) / STD."""

_EMBEDDED = resources.files("bnn_deploy") / "demo_data"
"""The trained LeNet-5 and its images; the package that a bundle brings to a board leaves them out."""

_PATH = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class _Network:
    """The network to convert, verify and profile.

    Attributes:
        source: a checkpoint, or a float .onnx file.
        arch: the architecture of a checkpoint.
        data: file of inputs, and perhaps labels; None for random inputs.
        embedded: path and description of each file that was copied out of the package.
    """

    source: Path
    arch: str | None
    data: Path | None
    embedded: tuple[tuple[Path, str], ...] = ()

    @property
    def own_arch(self) -> str | None:
        """The architecture to pass to `verify`: FILE.py:NAME; None for a name, which the converted model records."""
        return self.arch if self.arch is not None and ":" in self.arch else None


@click.command(name="demo", epilog=example("bnn-deploy demo"))
@click.argument("source", required=False, type=_PATH)
@click.option("--arch", metavar="NAME", help="Of a checkpoint SOURCE: as for convert.")
@click.option("--data", type=DATA_PATH, metavar="PATH", help="Inputs for SOURCE, as for verify; random if left out.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("bnn-deploy-demo"),
    help="Folder to leave the files in.",
)
@click.option("--threads", type=click.IntRange(1), default=1, help="Intra-op threads of the profile.")
@click.option("--runs", type=click.IntRange(1), default=200, help="Timed runs of the profile.")
@html_option
@click.option("--json", "as_json", is_flag=True, help="Print the full result as JSON.")
def command(
    source: Path | None,
    arch: str | None,
    data: Path | None,
    output: Path,
    threads: int,
    runs: int,
    html: Path | None,
    as_json: bool,
) -> int:
    """Convert, verify and profile a network, and say in short what came of it.

    Without SOURCE it is an XNOR LeNet-5 trained on MNIST (99.30 % on the 10,000 test images): the checkpoint and 1,000
    test images come with the package; nothing is downloaded. With SOURCE, a checkpoint or a float .onnx file, it is
    yours.
    """
    let_waiting_threads_sleep()
    from bnn_deploy.conversion import convert
    from bnn_deploy.inspection import inspect_model
    from bnn_deploy.proof.verification import verify
    from bnn_deploy.runtime.profiling import profile

    if source is None and (arch is not None or data is not None):
        raise click.UsageError("--arch and --data belong to a SOURCE; without one, the embedded LeNet-5 is used")
    if source is None and not _EMBEDDED.is_dir():
        raise SetupError(
            "the package of a bundle has no network for the demo: give a SOURCE, or install another package"
        )
    require_page(html, {"source": source, "file of inputs": data})
    output.mkdir(parents=True, exist_ok=True)
    network = _embedded(output) if source is None else _Network(source, arch, data)
    # nin.pth.tar, the recipe's suffix, becomes nin.onnx.
    name = network.source.name.split(".")[0]
    model, float_model = output / f"{name}.onnx", output / f"{name}_float.onnx"

    with progress() as step:
        conversion = convert(network.source, model, arch=network.arch, float_output=float_model, progress=step)
        before, after = inspect_model(float_model), inspect_model(model)
    if not as_json:
        _echo("convert", network.source, "--arch", network.arch, "-o", model, "--float", float_model)
        print_conversion(network.source, "auto", conversion, before, after)
        _echo("verify", model, "--against", network.source, "--arch", network.own_arch, "--data", network.data)
    with progress() as step:
        verification = verify(
            model,
            network.source,
            arch=network.own_arch,
            data=network.data,
            pictures=0 if html is None else PICTURES,
            progress=step,
        )
    if not as_json:
        print_verification(verification)
        show("")
        _echo("profile", model, "--compare", float_model, "--threads", threads, "--runs", runs)
    with progress(measuring=True) as step:
        report = profile(model, float_model, threads=threads, runs=runs, progress=step)
    sizes = {"before": before.to_json(), "after": after.to_json(), "quantization": None}
    record = make_record(
        model,
        {
            "model": after.to_json(),
            "conversion": conversion.to_json() | sizes,
            "verification": verification.to_json(),
            "profile": report.to_json(),
        },
    )
    if html is not None:
        write_page(html, record)
    if as_json:
        print_json(record)
        return 0 if verification.passed else CHECK_FAILED
    print_report(report)
    kernels = kernels_output(record["verification"])
    assert kernels is not None
    speedup = report.speedup
    assert speedup is not None
    show("")
    show("In short", result=True)
    show(f"  equivalent    {'yes: verify PASSED' if verification.passed else 'NO: verify FAILED'}", result=True)
    samples = kernels["samples"]
    if kernels["same_class"] is not None:
        images = f"{kernels['same_class']:,} of {samples:,} {'images' if network.data else 'random inputs'}"
        show(f"  same class    {images}, the source against the binary model", result=True)
    if kernels["correct"] is not None:
        accuracies = [percent(kernels[count], samples) for count in ("reference_correct", "correct")]
        show(f"  accuracy      {accuracies[0]} source, {accuracies[1]} binary", result=True)
    show(f"  size          {exact_bytes(before.file_bytes)} float, {exact_bytes(after.file_bytes)} binary", result=True)
    how = f"{plural(report.threads, 'thread')}, {report.isa}"
    show(f"  speed         {speedup.median:.2f}{TIMES} the float model in onnxruntime, {how}", result=True)
    show("")
    show(f"Files in {output}:")
    for path, what in (
        (model, "the converted model; it also runs in any onnxruntime without our library"),
        (float_model, "the float model that it is equivalent to"),
        *network.embedded,
    ):
        show(f"  {path.name:<18} {what}")
    if html is not None:
        show(f"The page of all this: {html}")
    return 0 if verification.passed else CHECK_FAILED


def _embedded(folder: Path) -> _Network:
    """Copy the embedded network and its images out of the package."""
    checkpoint, data = folder / "lenet5.pth.tar", folder / "mnist_1000.npz"
    with resources.as_file(_EMBEDDED) as package:
        trained = (package / "lenet5.pth.tar").read_bytes()
        with np.load(package / "mnist_1000.npz") as embedded:
            images, labels = embedded["images"], embedded["labels"]
    inputs = (images.astype(np.float32) / np.float32(255) - MEAN) / STD
    packed = io.BytesIO()
    np.savez_compressed(packed, input=inputs, labels=labels)
    write_files({checkpoint: trained, data: packed.getvalue()})
    described = ((checkpoint, "the trained checkpoint"), (data, "1,000 MNIST test images, normalised, with labels"))
    return _Network(checkpoint, "lenet5", data, described)


def _echo(command: str, *words: object) -> None:
    """Show the command that does this step alone; an option whose value is None is left out."""
    shown = ["$ bnn-deploy", command]
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word is not None and following is not None:
            shown.append(str(word))
    show_command(" ".join(shown))
