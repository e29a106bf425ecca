"""`bnn-deploy bundle`: one file with all that a board needs."""

from __future__ import annotations

from pathlib import Path

import click

from bnn_deploy.board.apps import APPS
from bnn_deploy.board.bundle import Bundle, write_bundle
from bnn_deploy.board.manifest import FOLDER, RUN, SERVICE, TARGETS, Manifest
from bnn_deploy.board.playbook import require_ansible_folder, write_ansible
from bnn_deploy.cli.config import config_option
from bnn_deploy.cli.console import facts, print_json, progress, show, table
from bnn_deploy.cli.options import DATA_PATH, data_options, example
from bnn_deploy.errors import InputError
from bnn_deploy.preprocessing import Preprocessing
from bnn_deploy.quantities import exact_bytes, human_bytes, plural

_PATH = click.Path(dir_okay=False, path_type=Path)


@click.command(
    name="bundle", epilog=example("bnn-deploy bundle lenet5.onnx --target aarch64 -o lenet5.tar.gz", in_demo=True)
)
@click.argument("model", type=_PATH, metavar="MODEL.onnx")
@click.option("--target", type=click.Choice(TARGETS), required=True, help="The board's architecture (uname -m).")
@click.option("-o", "--output", type=_PATH, required=True, metavar="BUNDLE.tar.gz", help="The file to write.")
@click.option("--data", type=DATA_PATH, metavar="PATH", help="Inputs, as for verify; random if left out.")
@click.option("--samples", type=click.IntRange(1), default=16, help="Use only so many inputs.")
@data_options
@click.option(
    "--float", "float_model", type=_PATH, metavar="FLOAT.onnx", help="Float model for the board to measure beside it."
)
@click.option(
    "--wheels",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("dist"),
    metavar="FOLDER",
    help="Has bnn-deploy's wheel for the target and, for boards without a network, of what it needs.",
)
@click.option(
    "--ansible",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Also write an Ansible playbook and role with the bundle, for many boards.",
)
@click.option(
    "--app", type=click.Choice(list(APPS)), help="What the board shall run as a service: deploy --install-service."
)
@click.option("--app-options", metavar="TEXT", help="Its options, as in: --app-options='--host 0.0.0.0 --port 8000'.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the full result as JSON.")
def command(
    model: Path,
    target: str,
    output: Path,
    data: Path | None,
    samples: int,
    preprocessing: Preprocessing | None,
    seed: int | None,
    float_model: Path | None,
    wheels: Path,
    ansible: Path | None,
    app: str | None,
    app_options: str | None,
    as_json: bool,
) -> None:
    """Pack MODEL.onnx for a board: model, wheel, golden inputs with this machine's results bit by bit, and run.sh.

    On the board, unpack it and run `sh run.sh`; or let `bnn-deploy deploy` do it. The same inputs give the same bytes.
    """
    if ansible is not None:
        require_ansible_folder(ansible)
    if app is None and app_options is not None:
        raise InputError("--app-options are those of an application: give --app")
    with progress() as step:
        manifest = write_bundle(
            model,
            output,
            target=target,
            data=data,
            samples=samples,
            preprocessing=preprocessing,
            seed=seed,
            float_model=float_model,
            wheels=wheels,
            app=app,
            app_options=app_options,
            progress=step,
        )
    if ansible is not None:
        write_ansible(ansible, output, manifest)
    if as_json:
        print_json(Bundle(str(output), output.stat().st_size, manifest).to_json())
    else:
        print_manifest(output, manifest)
        if ansible is not None:
            show(
                f"On many boards: name them in {ansible}/inventory.yml, like {ansible}/inventory.example.yml, and run "
                f"ansible-playbook -i {ansible}/inventory.yml {ansible}/playbook.yml",
                result=True,
            )


def print_manifest(path: Path, manifest: Manifest) -> None:
    """Print the content of a bundle and the command that runs it."""
    made = manifest.made_with
    network = "none needed: all wheels are in it"
    if not manifest.offline:
        network = "needed on the board: pip gets what is not in wheels/"
    show(
        facts(
            [
                ("bundle", str(path)),
                ("size", exact_bytes(path.stat().st_size)),
                ("model", manifest.model),
                ("target", f"{manifest.target}, bnn-deploy {manifest.bnn_deploy}"),
                ("golden", f"{plural(manifest.samples, 'sample')}, made with {made['cpu']}, kernels {made['isa']}"),
                ("network", network),
                *([] if manifest.service is None else [("service", manifest.service)]),
            ]
        )
    )
    show("")
    rows = table(None, ["file", "size", "SHA-256"], {"size"}, {"SHA-256"}, optional=["SHA-256"])
    for name, entry in manifest.files.items():
        rows.add_row(name, human_bytes(entry.bytes), f"{entry.sha256[:16]}...")
    show(rows)
    show("")
    service = "" if manifest.service is None else f" && sh {FOLDER}/{SERVICE}"
    show(f"On the board: tar -xzf {path.name} && sh {FOLDER}/{RUN}{service}", result=True)
