"""`bnn-deploy demo`: the whole job on a LeNet-5 that was really trained, with real test images."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import click
import numpy as np

from bnn_deploy.cli import CHECK_FAILED
from bnn_deploy.cli.console import TIMES, exact_bytes, plural, print_json, progress, show
from bnn_deploy.cli.convert import print_conversion
from bnn_deploy.cli.profile import print_report
from bnn_deploy.cli.verify import print_verification

MEAN, STD = np.float32(0.1307), np.float32(0.3081)
"""How the network's training normalised its inputs."""


@click.command(name="demo", short_help="Do the whole job on a trained LeNet-5 that comes with the package.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("bnn-deploy-demo"),
    help="Folder to leave the files in.",
)
@click.option("--threads", type=click.IntRange(1), default=1, help="Intra-op threads of the profile.")
@click.option("--runs", type=click.IntRange(1), default=200, help="Timed runs of the profile.")
@click.option("--json", "as_json", is_flag=True, help="Print the full result as JSON.")
def command(output: Path, threads: int, runs: int, as_json: bool) -> int:
    """Convert, verify and profile an XNOR LeNet-5 trained on MNIST (99.30 % on the 10,000 test images).

    The checkpoint and 1,000 MNIST test images come with the package; nothing is downloaded.
    """
    from bnn_deploy.conversion import convert
    from bnn_deploy.inspection import inspect_model
    from bnn_deploy.profiling import profile
    from bnn_deploy.verification import verify

    output.mkdir(parents=True, exist_ok=True)
    checkpoint, data = output / "lenet5.pth.tar", output / "mnist_1000.npz"
    model, float_model = output / "lenet5.onnx", output / "lenet5_float.onnx"
    with resources.as_file(resources.files("bnn_deploy") / "demo_data") as folder:
        shutil.copyfile(folder / "lenet5.pth.tar", checkpoint)
        with np.load(folder / "mnist_1000.npz") as embedded:
            images, labels = embedded["images"], embedded["labels"]
    inputs = (images.astype(np.float32) / np.float32(255) - MEAN) / STD
    np.savez_compressed(data, input=inputs, labels=labels)

    with progress() as step:
        conversion = convert(checkpoint, model, arch="lenet5", float_output=float_model, progress=step)
        before, after = inspect_model(float_model), inspect_model(model)
    if not as_json:
        show(f"$ bnn-deploy convert {checkpoint} --arch lenet5 -o {model} --float {float_model}")
        print_conversion(checkpoint, "auto", conversion, before, after)
        show(f"$ bnn-deploy verify {model} --against {checkpoint} --data {data}")
    with progress() as step:
        verification = verify(model, checkpoint, data=data, progress=step)
    if not as_json:
        print_verification(verification)
        show("")
        show(f"$ bnn-deploy profile {model} --compare {float_model} --threads {threads} --runs {runs}")
    with progress(measuring=True) as step:
        report = profile(model, float_model, threads=threads, runs=runs, progress=step)
    if as_json:
        print_json(
            {"conversion": conversion.to_json(), "verification": verification.to_json(), "profile": report.to_json()}
        )
        return 0 if verification.passed else CHECK_FAILED
    print_report(report)
    kernels = verification.outputs[1]
    assert kernels.correct is not None and kernels.reference_correct is not None
    speedup = report.speedup
    assert speedup is not None
    show("")
    show("In short")
    show(f"  equivalent    {'yes: verify PASSED' if verification.passed else 'NO: verify FAILED'}")
    show(f"  same class    {kernels.same_class} of {kernels.samples} images, PyTorch against the binary model")
    accuracies = [_percent(count, kernels.samples) for count in (kernels.reference_correct, kernels.correct)]
    show(f"  accuracy      {accuracies[0]} PyTorch, {accuracies[1]} binary")
    show(f"  size          {exact_bytes(before.file_bytes)} float, {exact_bytes(after.file_bytes)} binary")
    how = f"{plural(report.threads, 'thread')}, {report.isa}"
    show(f"  speed         {speedup.median:.2f}{TIMES} the float model in onnxruntime, {how}")
    show("")
    show(f"Files in {output}:")
    for path, what in (
        (model, "the converted model; it also runs in any onnxruntime without our library"),
        (float_model, "the float model that it is equivalent to"),
        (checkpoint, "the trained checkpoint"),
        (data, "1,000 MNIST test images, normalised, with labels"),
    ):
        show(f"  {path.name:<18} {what}")
    return 0 if verification.passed else CHECK_FAILED


def _percent(count: int, of: int) -> str:
    return f"{100 * count / of:.2f} %"
