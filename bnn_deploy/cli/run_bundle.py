"""`bnn-deploy run-bundle`: the last step of a bundle's run.sh, check and profile after the installation."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort

from bnn_deploy import __version__
from bnn_deploy.board.manifest import FLOAT_MODEL, GOLDEN, MANIFEST, MODEL, read_manifest
from bnn_deploy.board.report import BoardReport
from bnn_deploy.cli import CHECK_FAILED
from bnn_deploy.cli.console import progress, show
from bnn_deploy.cli.options import example
from bnn_deploy.cli.profile import print_report
from bnn_deploy.cli.verify import print_golden
from bnn_deploy.errors import InputError, reading
from bnn_deploy.files import is_file, require_outputs, write_files
from bnn_deploy.proof.golden.check import check_golden
from bnn_deploy.runtime.profile_results import ProfileReport
from bnn_deploy.runtime.profiling import profile


@click.command(name="run-bundle", epilog=example("bnn-deploy run-bundle bnn-deploy-bundle --report report.json"))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="The JSON file to write.",
)
@click.option("--threads", type=click.IntRange(1), default=1, help="Intra-op threads of the profile.")
@click.option("--runs", type=click.IntRange(1), default=50, help="Timed runs of the profile.")
def command(folder: Path, report: Path, threads: int, runs: int) -> int:
    """Check that this machine computes the golden results in FOLDER, an unpacked bundle; if so, profile the model.

    Prints both, and writes both to the report. Exit code 1 if the check fails.
    """
    manifest_file = folder / MANIFEST
    if not is_file(manifest_file):
        raise InputError(f"{manifest_file}: no such file; give the folder of an unpacked bundle")
    packed = {name: folder / name for name in (MANIFEST, MODEL, GOLDEN, FLOAT_MODEL)}
    require_outputs({"report": report}, packed)
    with reading(manifest_file, "it cannot be read"):
        manifest = read_manifest(manifest_file.read_bytes(), str(manifest_file))
    model = folder / MODEL
    with progress() as step:
        golden = check_golden(model, folder / GOLDEN, progress=step)
    print_golden(golden)
    measured: ProfileReport | None = None
    if golden.passed:
        with progress(measuring=True) as step:
            compare = folder / FLOAT_MODEL if FLOAT_MODEL in manifest.files else None
            measured = profile(model, compare, threads=threads, runs=runs, progress=step)
        show("")
        print_report(measured)
    versions = {
        "bnn_deploy": __version__,
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    result = BoardReport(manifest.model, manifest.target, manifest.sha256, golden, measured, versions)
    write_files({report: json.dumps(result.to_json(), indent=2).encode() + b"\n"})
    return 0 if golden.passed else CHECK_FAILED
