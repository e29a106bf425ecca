"""What is in a bundle, and that the same bytes come again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from bnn_deploy.board.archive import check_bundle, read_member
from bnn_deploy.board.bundle import write_bundle
from bnn_deploy.board.manifest import (
    CHECKSUMS,
    FOLDER,
    GOLDEN,
    MANIFEST,
    MODEL,
    REQUIREMENTS,
    RUN,
    Manifest,
    read_manifest,
)
from bnn_deploy.errors import InputError
from bnn_deploy.proof.golden.record import read_golden
from support.bundles import VERSION, WHEEL, unpack
from support.converted import Converted


def test_contents(bundle: Path, members: list[tuple[tarfile.TarInfo, bytes]], lenet5: Converted, wheels: Path) -> None:
    contents = {info.name.removeprefix(f"{FOLDER}/"): content for info, content in members}
    assert list(contents) == [MANIFEST, CHECKSUMS, GOLDEN, MODEL, REQUIREMENTS, RUN, f"wheels/{WHEEL}"]
    assert all((i.mtime, i.uid, i.gid, i.uname, i.gname, i.type) == (0, 0, 0, "", "", b"0") for i, _ in members)
    assert [oct(info.mode) for info, _ in members] == ["0o644", "0o644", "0o644", "0o644", "0o644", "0o755", "0o644"]
    assert contents[MODEL] == lenet5.model.read_bytes()
    assert contents[f"wheels/{WHEEL}"] == (wheels / WHEEL).read_bytes()
    manifest = json.loads(contents[MANIFEST])
    assert {
        key: manifest[key] for key in ("format", "bnn_deploy", "target", "model", "offline", "samples", "wheel")
    } == {
        "format": 1,
        "bnn_deploy": VERSION,
        "target": "x86_64",
        "model": "lenet5.onnx",
        "offline": False,
        "samples": 2,
        "wheel": f"wheels/{WHEEL}",
    }
    assert sorted(manifest["made_with"]) == ["cpu", "isa", "numpy", "onnxruntime"]
    pinned = dict(line.split("==") for line in contents[REQUIREMENTS].decode().splitlines())
    assert {name: pinned[name] for name in ("onnxruntime", "numpy")} == {
        name: manifest["made_with"][name] for name in ("onnxruntime", "numpy")
    }
    del contents[CHECKSUMS]
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == {
        name: digest for name, digest in sums.items() if name != MANIFEST
    }


def test_check_bundle(bundle: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    manifest = check_bundle(bundle)
    contents = {info.name.removeprefix(f"{FOLDER}/"): content for info, content in members}
    assert isinstance(manifest, Manifest)
    assert manifest.sha256 == hashlib.sha256(contents[MANIFEST]).hexdigest()
    assert manifest == read_manifest(contents[MANIFEST], "")
    assert manifest.unpacked_bytes == sum(len(contents[name]) for name in manifest.files)
    assert all(read_member(bundle, name) == content for name, content in contents.items())
    with pytest.raises(InputError, match="holds no other"):
        read_member(bundle, "other")


def test_sha256sum_agrees(bundle: Path, tmp_path: Path) -> None:
    folder = unpack(bundle, tmp_path)
    done = subprocess.run(["sha256sum", "-c", "--strict", CHECKSUMS], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count(": OK\n")) == (0, 6)


def test_the_golden_file_is_for_the_model(bundle: Path, tmp_path: Path, lenet5: Converted) -> None:
    golden = read_golden(unpack(bundle, tmp_path) / GOLDEN)
    assert (golden.inputs.arrays["input"] == lenet5.images[:2]).all()


def test_the_same_bytes_again(lenet5: Converted, wheels: Path, bundle: Path, tmp_path: Path) -> None:
    """From other folders, by other processes, with another umask, time zone and hash seed, after all was touched."""
    np.savez(tmp_path / "data.npz", input=lenet5.images, labels=np.zeros(len(lenet5.images)))
    made = []
    for i, umask in enumerate((0o022, 0o077)):
        folder = tmp_path / f"folder {i}"
        folder.mkdir()
        model = folder / "lenet5.onnx"
        shutil.copy(lenet5.model, model)
        shutil.copytree(wheels, folder / "dist")
        for path in folder.rglob("*"):
            os.utime(path, (1e9 * i, 1e9 * i))
        done = subprocess.run(
            [
                *(sys.executable, "-c", "from bnn_deploy.cli import main; main()"),
                *("bundle", model.name if i else str(model), "--target", "x86_64", "-o", "out.tar.gz"),
                *("--data", str(tmp_path / "data.npz"), "--samples", "2"),
            ],
            cwd=folder,
            umask=umask,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "PYTHONHASHSEED": str(i),
                "TZ": ("UTC", "Asia/Tokyo")[i],
            },
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        made.append((folder / "out.tar.gz").read_bytes())
        assert sorted(path.name for path in folder.iterdir()) == ["dist", "lenet5.onnx", "out.tar.gz"]
        assert (folder / "out.tar.gz").stat().st_mode & 0o777 == 0o666 & ~umask
    assert made[0] == made[1] == bundle.read_bytes()


def test_other_inputs_give_other_bytes(lenet5: Converted, wheels: Path, bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", lenet5.images[1:])
    output = tmp_path / "b.tar.gz"
    write_bundle(lenet5.model, output, target="x86_64", data=tmp_path / "x.npy", samples=2, wheels=wheels)
    assert output.read_bytes() != bundle.read_bytes()
    assert check_bundle(output).files[MODEL] == check_bundle(bundle).files[MODEL]
