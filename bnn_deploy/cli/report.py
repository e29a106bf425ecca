"""`bnn-deploy report`: what is known about a converted model as one HTML page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import click

from bnn_deploy.cli import CHECK_FAILED
from bnn_deploy.cli.config import config_option
from bnn_deploy.cli.console import print_json, progress, show
from bnn_deploy.cli.options import Proof, example, proof_options
from bnn_deploy.cli.page_file import PICTURES, make_record, require_page, write_page
from bnn_deploy.errors import SetupError
from bnn_deploy.installation import install_command
from bnn_deploy.page.record import merge, read_record
from bnn_deploy.system import let_waiting_threads_sleep

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    name="report",
    short_help="Make one HTML page of a model, its proof and its profile.",
    epilog=example("bnn-deploy report lenet5.onnx --against lenet5.pth.tar -o lenet5.html", in_demo=True),
)
@click.argument("sources", nargs=-1, required=True, type=_FILE, metavar="MODEL.onnx|FILE.json...")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.html", help="The page to write."
)
@proof_options
@click.option("--compare", type=_FILE, metavar="FLOAT.onnx", help="Profile it: the model to measure beside it.")
@click.option("--threads", type=click.IntRange(1), default=1, help="Intra-op threads of the profile.")
@click.option("--runs", type=click.IntRange(1), default=50, help="Timed runs of the profile.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the record that a page can be made of, as JSON.")
def command(
    sources: tuple[Path, ...],
    output: Path | None,
    proof: Proof,
    compare: Path | None,
    threads: int,
    runs: int,
    as_json: bool,
) -> int:
    """Make one self-contained HTML page of what is known about a converted model.

    Of MODEL.onnx it shows the network; with --against or --data it verifies it, with --compare it profiles it. Each
    FILE.json adds what is in it: a record (`report --json`), what verify, profile, inspect or convert printed with
    --json, what convert wrote to --report, or what a board wrote. All must be about the same model. The page says what
    it lacks.

    Exit code 1 if it verified, and that failed.
    """
    if (output is None) != as_json:
        raise click.UsageError("give -o FILE.html for a page, or --json for the record; one of the two")
    files = [path for path in sources if path.suffix == ".json"]
    models = [path for path in sources if path.suffix != ".json"]
    if len(models) > 1:
        raise click.UsageError("give one MODEL.onnx; every further file is a FILE.json about it")
    if not models and (proof.against or proof.data or compare):
        raise click.UsageError("--against, --data and --compare are about a model: give MODEL.onnx")
    read = {"model": models[0] if models else None, "source": proof.against, "file of inputs": proof.data}
    require_page(output, {**read, "compared model": compare, **{f"file {path}": path for path in files}})
    records = {str(path): read_record(path) for path in files}
    parts: dict[str, dict[str, Any]] = {}
    passed = True
    if proof.against is not None or proof.data is not None:
        from bnn_deploy.proof.verification import verify

        let_waiting_threads_sleep()
        with progress() as step:
            result = verify(models[0], **vars(proof), pictures=PICTURES, progress=step)
        parts["verification"], passed = result.to_json(), result.passed
    if compare is not None:
        from bnn_deploy.runtime.profiling import profile

        with progress(measuring=True) as step:
            parts["profile"] = profile(models[0], compare, threads=threads, runs=runs, progress=step).to_json()
    if models:
        if not parts and importlib.util.find_spec("onnx") is None:
            raise SetupError(f"showing a network needs the onnx package: run {install_command('convert')}")
        records[str(models[0])] = make_record(models[0], parts)
    record = merge(records)
    if output is None:
        print_json(record)
    else:
        write_page(output, record)
        show(f"wrote {output}", result=True)
    return 0 if passed else CHECK_FAILED
