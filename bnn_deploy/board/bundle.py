"""A bundle: one file with all that a board needs to install, verify and profile one model.

A .tar.gz with plain files under one folder: the manifest, checksums, the model, golden inputs and results, run.sh,
wheels, and the versions of the other packages. The same inputs give the same bytes: the archive holds no time, user,
host or path. So each byte around the files has one valid value, and `check_bundle` refuses an archive with links, with
paths that leave the folder, with additional, missing or changed files, or that unpacks to more than it declares.

Writing needs onnx, for the golden results; reading does not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from bnn_deploy.board.apps import APPS, UNIT, require_app
from bnn_deploy.board.archive import make_archive
from bnn_deploy.board.manifest import (
    CHECKSUMS,
    FLOAT_MODEL,
    GOLDEN,
    MANIFEST,
    MODEL,
    REQUIREMENTS,
    RUN,
    SERVICE,
    TARGETS,
    WHEELS,
    Manifest,
    checksum_lines,
    file_entry,
    manifest_bytes,
    with_checksum,
)
from bnn_deploy.board.wheels import collect_wheels, missing_wheels, pinned_requirements
from bnn_deploy.errors import BnnDeployError, InputError
from bnn_deploy.files import require_file, require_outputs, temporary_folder, write_files
from bnn_deploy.json_form import JsonDocument
from bnn_deploy.preprocessing import Preprocessing
from bnn_deploy.progress import Progress


@dataclass(frozen=True)
class Bundle(JsonDocument):
    """The result of `bnn-deploy bundle`.

    Attributes:
        bundle: the file.
        bytes: its size.
        manifest: what is in it.
    """

    JSON_FORMAT = "bundle"

    bundle: str
    bytes: int
    manifest: Manifest


def write_bundle(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    target: str,
    data: str | os.PathLike[str] | None = None,
    samples: int = 16,
    preprocessing: Preprocessing | None = None,
    seed: int | None = None,
    float_model: str | os.PathLike[str] | None = None,
    wheels: str | os.PathLike[str] = "dist",
    app: str | None = None,
    app_options: str | None = None,
    progress: Progress = lambda step: None,
) -> Manifest:
    """Write a bundle, or nothing.

    Args:
        model: the converted .onnx file.
        output: the .tar.gz file to write.
        target: the board's architecture, one of TARGETS.
        data: inputs for the golden results, as `bnn_deploy.verify` takes them; None for random normal inputs.
        samples: number of inputs to use, from the first or drawn with `seed`.
        preprocessing: how images become the model's input, as `bnn_deploy.verify` takes it.
        seed: likewise.
        float_model: the float .onnx file that the board measures beside the model; None for none.
        wheels: folder with bnn-deploy's wheel for the target and, for offline boards, its dependencies' wheels.
        app: the application that the board shall run as a service, one of APPS; None for none.
        app_options: its arguments behind the model, in words with blanks between them; None for those of APPS.
        progress: called with the name of each step as it begins.

    Raises:
        InputError: a file cannot be used, or the wheel is missing, or the application takes no such model or options.
        SetupError: the application's check of the model needs a package that is not installed.
        BnnDeployError: this machine does not reproduce its own golden results.
    """
    if target not in TARGETS:
        raise InputError(f"target {target}: choose {' or '.join(TARGETS)}")
    require_outputs({"bundle": output}, {"model": model, "float model": float_model, "file of inputs": data})
    require_file(model)
    if float_model is not None:
        require_file(float_model)
    unit = None if app is None else require_app(app, app_options, model)
    progress("reading the wheels")
    version, wheel, wheel_files = collect_wheels(Path(wheels), target)
    extra = None if app is None else APPS[app].extra
    offline = not missing_wheels(wheel_files, extra)
    results = _golden(Path(model), data, samples, preprocessing, seed, progress)
    scripts = resources.files("bnn_deploy") / "board" / "scripts"
    files = {
        MODEL: Path(model).read_bytes(),
        GOLDEN: results.content,
        **({} if float_model is None else {FLOAT_MODEL: Path(float_model).read_bytes()}),
        RUN: (scripts / RUN).read_bytes(),
        **({} if unit is None else {UNIT: unit, SERVICE: (scripts / SERVICE).read_bytes()}),
        REQUIREMENTS: pinned_requirements(wheel_files, extra),
        **{f"{WHEELS}/{name}": content for name, content in wheel_files.items()},
    }
    manifest = with_checksum(
        Manifest(
            bnn_deploy=version,
            target=target,
            model=Path(model).name,
            offline=offline,
            samples=results.samples,
            wheel=f"{WHEELS}/{wheel}",
            made_with=results.made_with,
            files={name: file_entry(content) for name, content in sorted(files.items())},
            sha256="",
            app=app,
        )
    )
    files[MANIFEST] = manifest_bytes(manifest)
    files[CHECKSUMS] = checksum_lines(manifest)
    progress("compressing")
    write_files({output: make_archive(files)})
    return manifest


@dataclass(frozen=True)
class _Results:
    """The golden file that goes into a bundle."""

    content: bytes
    samples: int
    made_with: dict[str, str]


def _golden(
    model: Path,
    data: str | os.PathLike[str] | None,
    samples: int,
    preprocessing: Preprocessing | None,
    seed: int | None,
    progress: Progress,
) -> _Results:
    """Compute the golden results, and check at once that all kernels of this machine reproduce them."""
    from bnn_deploy.proof.golden.check import check_golden
    from bnn_deploy.proof.golden.make import make_golden
    from bnn_deploy.proof.golden.record import write_golden

    made = make_golden(model, data, samples, preprocessing=preprocessing, seed=seed, progress=progress)
    with temporary_folder() as folder:
        path = folder / GOLDEN
        write_golden(made, path)
        result = check_golden(model, path, progress=progress)
        if not result.passed:
            raise BnnDeployError(
                f"{model}: no bundle was written, this machine itself does not give its results again: "
                f"{result.failures[0]}"
            )
        return _Results(path.read_bytes(), len(made.inputs), made.made_with)
