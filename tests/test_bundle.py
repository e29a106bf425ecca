"""Bundles: the same bytes again, every tampering refused, and run.sh on a machine where something is missing."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import importlib.metadata
import io
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import Converted

import bnn_deploy
from bnn_deploy.board import bundle as bundle_module
from bnn_deploy.board.archive import _Unzipper, check_bundle, read_member
from bnn_deploy.board.bundle import write_bundle
from bnn_deploy.board.manifest import CHECKSUMS, FOLDER, GOLDEN, MANIFEST, MODEL, RUN, Manifest, read_manifest
from bnn_deploy.board.wheels import collect_wheels, missing_wheels
from bnn_deploy.cli import main
from bnn_deploy.errors import InputError
from bnn_deploy.proof.golden.check import GoldenVerification
from bnn_deploy.proof.golden.record import read_golden

ROOT = Path(__file__).parents[1]
VERSION = "0.1.0" if bnn_deploy.__version__ == "0+unknown" else bnn_deploy.__version__
WHEEL = f"bnn_deploy-{VERSION}-py3-none-manylinux_2_28_x86_64.whl"


def fake_wheel(path: Path, machine: int | None = None, requires: tuple[str, ...] = ()) -> Path:
    """A wheel with metadata only, or with a library of nothing but an ELF header for the machine."""
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        if machine is not None:
            header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, machine)
            archive.writestr("bnn_deploy/_lib/libbnn_deploy_ops.so", header)
        name, version, *_ = path.name.split("-")
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n\ntext\n")
    return path


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    fake_wheel(folder / WHEEL, 62)
    return folder


@pytest.fixture(scope="module")
def bundle(lenet5: Converted, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle of LeNet-5, with a wheel that cannot be installed."""
    folder = tmp_path_factory.mktemp("bundle")
    np.save(folder / "x.npy", lenet5.images)
    output = folder / "lenet5.tar.gz"
    write_bundle(lenet5.model, output, target="x86_64", data=folder / "x.npy", samples=2, wheels=wheels)
    return output


@pytest.fixture(scope="module")
def members(bundle: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    """What is in it, read by the standard library."""
    with tarfile.open(bundle) as archive:
        return [(info, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]


def unpack(bundle: Path, folder: Path) -> Path:
    with tarfile.open(bundle) as archive:
        archive.extractall(folder, filter="data")
    return folder / FOLDER


def pack(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    """Write an archive as `write_bundle` does, of whatever members."""
    raw = io.BytesIO()
    for info, content in members:
        raw.write(info.tobuf(form, "utf-8", "strict"))
        raw.write(content + bytes(-len(content) % 512))
    raw.write(bytes(1024))
    path.write_bytes(compress(raw.getvalue()))
    return path


def compress(raw: bytes, more: bytes = b"") -> bytes:
    """A .gz file as `write_bundle` makes it, with its own checksum right, and `more` behind its end."""
    rest = gzip.compress(raw, 9, mtime=0)[10:] + more
    return b"\x1f\x8b\x08\x04\0\0\0\0\x02\xff\x24\0BD\x20\0" + hashlib.sha256(rest).digest() + rest


def member(name: str, content: bytes = b"", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# What is in it.


def test_contents(bundle: Path, members: list[tuple[tarfile.TarInfo, bytes]], lenet5: Converted, wheels: Path) -> None:
    contents = {info.name.removeprefix(f"{FOLDER}/"): content for info, content in members}
    assert list(contents) == [MANIFEST, CHECKSUMS, GOLDEN, MODEL, RUN, f"wheels/{WHEEL}"]
    assert all((i.mtime, i.uid, i.gid, i.uname, i.gname, i.type) == (0, 0, 0, "", "", b"0") for i, _ in members)
    assert [oct(info.mode) for info, _ in members] == ["0o644", "0o644", "0o644", "0o644", "0o755", "0o644"]
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
    assert (done.returncode, done.stdout.count(": OK\n")) == (0, 5)


def test_the_golden_file_is_for_the_model(bundle: Path, tmp_path: Path, lenet5: Converted) -> None:
    golden = read_golden(unpack(bundle, tmp_path) / GOLDEN)
    assert (golden.input == lenet5.images[:2]).all()


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
                *(sys.executable, "-P", "-c", "from bnn_deploy.cli import main; main()"),
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


# Tampering.


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        check_bundle(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text


def test_the_untampered_archive_passes(members: list[tuple[tarfile.TarInfo, bytes]], tmp_path: Path) -> None:
    """What the tests below change is all that is refused: the same members, packed by their means, are accepted."""
    assert check_bundle(pack(tmp_path / "b.tar.gz", members)).model == "lenet5.onnx"


def test_one_byte_changed_anywhere(bundle: Path, tmp_path: Path) -> None:
    good = bundle.read_bytes()
    rng = random.Random(0)
    places = {*range(64), *range(len(good) - 64, len(good)), *rng.sample(range(len(good)), 400)}
    path = tmp_path / "b.tar.gz"
    for place in places:
        changed = bytearray(good)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        refused(path)


def test_one_byte_changed_inside(members: list[tuple[tarfile.TarInfo, bytes]], tmp_path: Path) -> None:
    """Of what the archive holds, packed again with a right checksum of the whole: headers, files and their padding."""
    good = gzip.decompress(pack(tmp_path / "b.tar.gz", members).read_bytes())
    rng = random.Random(0)
    starts = [i * 512 for i in range(len(good) // 512) if good[i * 512 :].startswith(FOLDER.encode())]
    assert len(starts) == len(members)
    places = {start + i for start in starts for i in range(0, 512, 23)} | set(rng.sample(range(len(good)), 60))
    places |= set(range(len(good) - 1100, len(good), 90))
    for place in places:
        changed = bytearray(good)
        changed[place] ^= rng.randrange(1, 256)
        (tmp_path / "b.tar.gz").write_bytes(compress(bytes(changed)))
        refused(tmp_path / "b.tar.gz")


def test_truncated(bundle: Path, tmp_path: Path) -> None:
    good = bundle.read_bytes()
    path = tmp_path / "b.tar.gz"
    for length in (0, 5, 10, 11, 300, len(good) // 2, len(good) - 20, len(good) - 8, len(good) - 1):
        path.write_bytes(good[:length])
        assert "truncated" in refused(path) or length < 16
    raw = gzip.decompress(good)
    for length in (0, 100, 512, 5000, len(raw) - 1024, len(raw) - 512, len(raw) - 1):
        path.write_bytes(compress(raw[:length]))
        assert "truncated" in refused(path)


def test_something_behind_the_end(bundle: Path, tmp_path: Path) -> None:
    good = bundle.read_bytes()
    path = tmp_path / "b.tar.gz"
    for more in (b"\0", b"x", bytes(512), good):
        path.write_bytes(good + more)
        assert "damaged" in refused(path)
        path.write_bytes(compress(gzip.decompress(good), more))
        assert "behind its end" in refused(path)
        path.write_bytes(compress(gzip.decompress(good) + more))
        assert "behind its end" in refused(path)


def evil(name: str, **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, b"" if attributes else b"evil", **attributes)


ADDED = {
    "leaves the folder": evil(f"{FOLDER}/../evil.sh"),
    "leaves the folder at once": evil("../evil.sh"),
    "leaves the folder by a wheel": evil(f"{FOLDER}/wheels/../../evil.whl"),
    "has an absolute path": evil("/etc/evil.sh"),
    "is a link: symbolic": evil(f"{FOLDER}/{MODEL}", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "is a link: to a folder": evil(f"{FOLDER}/wheels", type=tarfile.SYMTYPE, linkname=".."),
    "is a link: hard": evil(f"{FOLDER}/{MODEL}", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "is not a plain file: a folder": evil(f"{FOLDER}/wheels", type=tarfile.DIRTYPE),
    "is not a plain file: a fifo": evil(f"{FOLDER}/{MODEL}", type=tarfile.FIFOTYPE),
    "is not a plain file: a device": evil(f"{FOLDER}/{MODEL}", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "is not a plain file: a long name": evil("././@LongLink", type=tarfile.GNUTYPE_LONGNAME),
    "is not a plain file: an extended header": evil(f"{FOLDER}/x", type=tarfile.XHDTYPE),
    "is not in the folder": evil("evil.sh"),
    "is not in the folder: nearly": evil(f"{FOLDER}-2/evil.sh"),
    "is there twice: the model": member(f"{FOLDER}/{MODEL}", b"evil"),
    "is there twice: the manifest": member(f"{FOLDER}/{MANIFEST}", b"evil"),
    "is not in the manifest": member(f"{FOLDER}/evil.sh", b"evil"),
    "is not in the manifest: a wheel": member(f"{FOLDER}/wheels/numpy-99.0-py3-none-any.whl", b"evil"),
    "is not in the manifest: no name": member(f"{FOLDER}/", b"evil", mode=0o755),
}


@pytest.mark.parametrize("reason", ADDED)
def test_a_member_that_does_not_belong(
    members: list[tuple[tarfile.TarInfo, bytes]], reason: str, tmp_path: Path
) -> None:
    """Wherever it stands, also in front of the manifest."""
    added = ADDED[reason]
    for place in (len(members), 3, 1):
        path = pack(tmp_path / "b.tar.gz", [*members[:place], added, *members[place:]])
        text = refused(path)
        wanted = reason.split(":")[0].removesuffix(" at once").removesuffix(" by a wheel")
        if "twice" not in reason and "no name" not in reason:
            assert wanted in text
            assert added[0].name.split("/", 1)[-1] in text
        elif place == len(members):
            assert "is there twice" in text or "no name" in reason
    refused(pack(tmp_path / "b.tar.gz", [added, *members]))


@pytest.mark.parametrize("index", range(1, 6))
def test_a_missing_member(members: list[tuple[tarfile.TarInfo, bytes]], index: int, tmp_path: Path) -> None:
    name = members[index][0].name.removeprefix(f"{FOLDER}/")
    path = pack(tmp_path / "b.tar.gz", [*members[:index], *members[index + 1 :]])
    assert refused(path).endswith(f"refused: '{name}' is missing, which the manifest lists")


def test_a_missing_manifest(members: list[tuple[tarfile.TarInfo, bytes]], tmp_path: Path) -> None:
    assert "its first member is 'SHA256SUMS'" in refused(pack(tmp_path / "b.tar.gz", members[1:]))
    assert "its first member is 'SHA256SUMS'" in refused(pack(tmp_path / "b.tar.gz", members[1:] + members[:1]))


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("mode", 0o4755), ("mtime", 1), ("uid", 1000), ("gid", 5), ("uname", "root"), ("gname", "x"), ("linkname", "x")],
)
def test_a_header_of_another_make(
    members: list[tuple[tarfile.TarInfo, bytes]], attribute: str, value: Any, tmp_path: Path
) -> None:
    info = tarfile.TarInfo.frombuf(members[3][0].tobuf(tarfile.USTAR_FORMAT), "utf-8", "strict")
    setattr(info, attribute, value)
    path = pack(tmp_path / "b.tar.gz", [*members[:3], (info, members[3][1]), *members[4:]])
    assert f"the header of member '{FOLDER}/{MODEL}' is not as bnn-deploy writes it" in refused(path)


def with_manifest(
    members: list[tuple[tarfile.TarInfo, bytes]], edit: Callable[[dict[str, Any]], Any]
) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members with another manifest, and checksums that belong to it."""
    values = json.loads(members[0][1])
    result = edit(values)
    content = json.dumps(values if result is None else result).encode()
    sums = members[1][1].decode().splitlines()
    sums = [f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}" if line.endswith(MANIFEST) else line for line in sums]
    listed = "\n".join(sums).encode() + b"\n"
    return [member(members[0][0].name, content), member(members[1][0].name, listed), *members[2:]]


def test_another_manifest_that_fits_is_accepted(members: list[tuple[tarfile.TarInfo, bytes]], tmp_path: Path) -> None:
    """So what is refused below is refused for the reason that it gives."""
    changed = with_manifest(members, lambda manifest: manifest.update(model="other.onnx"))
    assert check_bundle(pack(tmp_path / "b.tar.gz", changed)).model == "other.onnx"


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "size too small": (
        lambda m: m["files"][MODEL].update(bytes=m["files"][MODEL]["bytes"] - 1),
        f"member '{MODEL}' has ",
    ),
    "size too large": (lambda m: m["files"][MODEL].update(bytes=10**6), "bytes; the manifest says 1,000,000"),
    "size negative": (lambda m: m["files"][MODEL].update(bytes=-1), f"size or checksum of '{MODEL}'"),
    "size enormous": (lambda m: m["files"][MODEL].update(bytes=10**13), f"size or checksum of '{MODEL}'"),
    "size true": (lambda m: m["files"][MODEL].update(bytes=True), "bytes is True, not int"),
    "checksum": (
        lambda m: m["files"][MODEL].update(sha256="0" * 64),
        "member 'SHA256SUMS' has another checksum than the manifest says",
    ),
    "no checksum": (lambda m: m["files"][MODEL].update(sha256="x"), f"size or checksum of '{MODEL}'"),
    "format": (lambda m: m.update(format=2), "a bundle of format 2; this bnn-deploy knows format 1"),
    "no format": (lambda m: m.pop("format") and None, f"not a bundle's {MANIFEST}: KeyError: 'format'"),
    "target": (lambda m: m.update(target="riscv64"), "target riscv64: this bnn-deploy knows aarch64 and x86_64"),
    "target a list": (lambda m: m.update(target=["x86_64"]), "target is ['x86_64'], not str"),
    "no model": (lambda m: m["files"].pop(MODEL) and None, f"it lists no {MODEL}"),
    "no wheel": (lambda m: m.update(wheel="wheels/other.whl"), "it lists no wheels/other.whl"),
    "a file outside": (
        lambda m: m["files"].update({"../evil": m["files"][MODEL]}),
        "it lists '../evil', which no bundle has",
    ),
    "an odd name": (
        lambda m: m["files"].update({"wheels/a b.whl": m["files"][MODEL]}),
        "it lists 'wheels/a b.whl', which no bundle has",
    ),
    "a file without content": (
        lambda m: m["files"].update({"wheels/x.whl": {"sha256": "0" * 64, "bytes": 0}}),
        "member 'SHA256SUMS' has ",
    ),
    "not an object": (lambda m: [m], f"not a bundle's {MANIFEST}"),
    "made with nothing": (lambda m: m.update(made_with={}), f"not a bundle's {MANIFEST}"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_does_not_fit(members: list[tuple[tarfile.TarInfo, bytes]], case: str, tmp_path: Path) -> None:
    edit, message = MANIFESTS[case]
    assert message in refused(pack(tmp_path / "b.tar.gz", with_manifest(members, edit)))


def test_a_manifest_that_is_no_json(members: list[tuple[tarfile.TarInfo, bytes]], tmp_path: Path) -> None:
    for content in (b"", b"\xff\xfe", b"{", b"[" * 100_000):
        path = pack(tmp_path / "b.tar.gz", [member(f"{FOLDER}/{MANIFEST}", content), *members[1:]])
        assert f"not a bundle's {MANIFEST}" in refused(path)


def test_bombs(members: list[tuple[tarfile.TarInfo, bytes]], tmp_path: Path) -> None:
    """Archives of little that unpack to much are refused without unpacking more than the manifest announces."""
    path = tmp_path / "b.tar.gz"
    zeros = bytes(50_000_000)
    read: list[int] = []
    real = _Unzipper.read

    class Counting(_Unzipper):
        def read(self, count: int) -> bytes:
            read.append(count)
            return real(self, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "_Unzipper", Counting)
        for bomb in (
            [member(f"{FOLDER}/{MANIFEST}", zeros)],
            [*members[:3], member(f"{FOLDER}/{MODEL}", zeros)],
            [*members, member(f"{FOLDER}/evil", zeros)],
        ):
            assert pack(path, bomb).stat().st_size < 1_000_000
            read.clear()
            refused(path)
            assert sum(read) < 1_000_000
    path.write_bytes(compress(gzip.decompress(pack(path, members).read_bytes()) + zeros))
    assert "behind its end" in refused(path)


def test_not_a_bundle(tmp_path: Path, wheels: Path) -> None:
    assert refused(tmp_path / "none.tar.gz").endswith("no such file")
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as archive:
        archive.add(wheels)
    assert "not a bundle of bnn-deploy" in refused(tmp_path / "other.tar.gz")
    for content in (b"", b"hello", compress(b""), compress(b"hello"), compress(bytes(10240)), compress(b"x" * 10240)):
        (tmp_path / "b.tar.gz").write_bytes(content)
        refused(tmp_path / "b.tar.gz")


# Wheels.


def collect(folder: Path, target: str = "x86_64") -> tuple[str, str, dict[str, bytes]]:
    return collect_wheels(folder, target)


def test_which_wheels_go_in(tmp_path: Path) -> None:
    fitting = [
        "numpy-2.0.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "onnxruntime-1.27.0-cp313-cp313-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        "click-8.1.8-py3-none-any.whl",
        "rich-14.0.0-1-py3-none-any.whl",
        "local-1.0-py3-none-linux_x86_64.whl",
    ]
    others = [
        "numpy-2.0.0-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl",
        "numpy-2.0.0-cp311-cp311-musllinux_1_2_x86_64.whl",
        "numpy-2.0.0-cp311-cp311-macosx_14_0_x86_64.whl",
        "numpy-2.0.0-cp311-cp311-win_amd64.whl",
        "not-a-wheel.whl",
        "bnn_deploy-0.0.1-py3-none-any.whl",
    ]
    for name in (*fitting, *others):
        fake_wheel(tmp_path / name)
    fake_wheel(tmp_path / WHEEL, 62)
    fake_wheel(tmp_path / WHEEL.replace("x86_64", "aarch64"), 183)
    version, wheel, contents = collect(tmp_path)
    assert (version, wheel) == (VERSION, WHEEL)
    assert sorted(contents) == sorted([WHEEL, *fitting])
    assert contents[WHEEL] == (tmp_path / WHEEL).read_bytes()
    assert collect(tmp_path, "aarch64")[1] == WHEEL.replace("x86_64", "aarch64")


def test_no_wheel(tmp_path: Path) -> None:
    def message(target: str = "x86_64") -> str:
        with pytest.raises(InputError) as caught:
            collect(tmp_path / "dist", target)
        return str(caught.value)

    assert "no such folder; it must hold the wheel of bnn-deploy for x86_64: build one in the source" in message()
    (tmp_path / "dist").mkdir()
    assert re.search(
        r"holds no bnn_deploy-.*-py3-none-manylinux_\*_x86_64.whl: build one in the source tree: ", message()
    )
    assert message().endswith(f": pip wheel --no-deps -w {tmp_path / 'dist'} .")
    if os.uname().machine == "x86_64":
        assert message("aarch64").endswith(f": BNN_DEPLOY_TARGET=aarch64 pip wheel --no-deps -w {tmp_path / 'dist'} .")
    fake_wheel(tmp_path / "dist" / WHEEL.replace("x86_64", "aarch64"), 183)
    assert "holds no bnn_deploy" in message()
    wheel = fake_wheel(tmp_path / "dist" / WHEEL, 183)
    assert "its bnn_deploy/_lib/libbnn_deploy_ops.so is not one for x86_64" in message()
    fake_wheel(wheel)
    assert "not a wheel of bnn-deploy" in message()
    wheel.write_bytes(b"hello")
    assert "not a wheel of bnn-deploy" in message()
    fake_wheel(wheel, 62)
    fake_wheel(tmp_path / "dist" / WHEEL.replace("2_28", "2_17"), 62)
    assert "which wheel of bnn-deploy shall go in?" in message()


def test_a_wheel_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wheel(tmp_path / WHEEL, 62)
    monkeypatch.setattr(bnn_deploy, "__version__", VERSION)
    assert collect(tmp_path)[0] == VERSION
    monkeypatch.setattr(bnn_deploy, "__version__", "9.9")
    with pytest.raises(InputError, match=r"holds no bnn_deploy-9\.9-py3-none-manylinux_\*_x86_64\.whl \(it has bnn_"):
        collect(tmp_path)


def test_offline_means_every_package(tmp_path: Path) -> None:
    requires = {
        WHEEL: ("click>=8.1", "numpy>=1.26", "onnxruntime>=1.19", "rich>=13", "torch>=2.8; extra == 'convert'"),
        "click-8.1.8-py3-none-any.whl": ("colorama; platform_system == 'Windows'",),
        "numpy-2.0.0-cp311-cp311-manylinux_2_17_x86_64.whl": (),
        "onnxruntime-1.27.0-cp311-cp311-manylinux_2_28_x86_64.whl": ("flatbuffers", "numpy>=1.21.6"),
        "rich-14.0.0-py3-none-any.whl": ("markdown-it-py>=2.2.0", "pygments<3.0.0,>=2.13.0"),
        "markdown_it_py-4.0.0-py3-none-any.whl": ("mdurl~=0.1",),
        "mdurl-0.1.2-py3-none-any.whl": (),
        "pygments-2.19.0-py3-none-any.whl": (),
        "flatbuffers-25.1-py2.py3-none-any.whl": (),
    }
    for name, needed in requires.items():
        fake_wheel(tmp_path / name, 62 if name == WHEEL else None, needed)
    contents = collect(tmp_path)[2]
    assert missing_wheels(contents) == []
    for name in requires.keys() - {WHEEL}:
        fewer = {key: content for key, content in contents.items() if key != name}
        assert missing_wheels(fewer) == [name.partition("-")[0].replace("_", "-")]
    assert missing_wheels({WHEEL: contents[WHEEL]}) == ["click", "numpy", "onnxruntime", "rich"]


# Commands.


def test_the_command(lenet5: Converted, wheels: Path, tmp_path: Path) -> None:
    output = tmp_path / "b.tar.gz"
    arguments = ["bundle", lenet5.model, "--target", "x86_64", "-o", output, "--samples", "2", "--wheels", wheels]
    result = invoke(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    manifest = check_bundle(output)
    assert f"({output.stat().st_size:,} bytes)" in lines[1]
    assert any(line.startswith(f"{MODEL} ") and manifest.files[MODEL].sha256[:16] in line for line in lines)
    assert lines[-1] == f"On the board: tar -xzf b.tar.gz && sh {FOLDER}/run.sh"
    report = json.loads(invoke(*arguments, "--json").stdout)
    assert report == {"bundle": str(output), "bytes": output.stat().st_size, **manifest.to_json()}


def test_the_command_writes_nothing_when_it_fails(
    lenet5: Converted, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "b.tar.gz"

    def fails(code: int, message: str, *changes: str | Path) -> None:
        options = {"--target": "x86_64", "-o": output, "--wheels": wheels, "--samples": "1"}
        options |= dict(zip(changes[::2], changes[1::2], strict=True))
        result = invoke("bundle", lenet5.model, *(part for option in options.items() for part in option))
        assert (result.exit_code, result.stdout) == (code, "")
        assert message in result.stderr
        assert list(tmp_path.iterdir()) == []

    fails(2, "holds no bnn_deploy", "--target", "aarch64")
    fails(2, "'riscv64' is not one of", "--target", "riscv64")
    fails(2, "no such file", "--data", tmp_path / "none.npz")
    fails(2, "its folder does not exist", "-o", tmp_path / "none" / "b.tar.gz")
    failed = GoldenVerification("", "", 1, 0, [], 0, {}, errors=["layer 'x' is wrong"])
    monkeypatch.setattr("bnn_deploy.proof.golden.check.check_golden", lambda *a, **k: failed)
    fails(1, "no bundle was written, this machine itself does not give its results again: layer 'x' is wrong")


def test_the_float_model_is_measured_beside_it(lenet5: Converted, wheels: Path, tmp_path: Path) -> None:
    output, report_file = tmp_path / "b.tar.gz", tmp_path / "report.json"
    options = ("--target", "x86_64", "-o", output, "--samples", "2", "--wheels", wheels)
    result = invoke("bundle", lenet5.model, *options, "--float", tmp_path / "none.onnx")
    assert (result.exit_code, output.exists()) == (2, False)
    assert "none.onnx: no such file" in result.stderr
    assert invoke("bundle", lenet5.model, *options, "--float", lenet5.float_model).exit_code == 0
    folder = unpack(output, tmp_path)
    assert (folder / "float.onnx").read_bytes() == lenet5.float_model.read_bytes()
    assert invoke("run-bundle", folder, "--report", report_file, "--runs", "3").exit_code == 0
    measured = json.loads(report_file.read_text())["profile"]
    ratio = measured["compare"]["timing"]["median_ms"] / measured["model"]["timing"]["median_ms"]
    assert measured["speedup"]["median"] == pytest.approx(ratio)


def test_a_float_model_alone_is_refused(lenet5: Converted, wheels: Path, tmp_path: Path) -> None:
    output = tmp_path / "b.tar.gz"
    result = invoke("bundle", lenet5.float_model, "--target", "x86_64", "-o", output, "--wheels", wheels)
    assert result.exit_code == 2
    assert "not one that bnn-deploy converted" in result.stderr


def test_run_bundle(bundle: Path, tmp_path: Path) -> None:
    folder = unpack(bundle, tmp_path)
    report_file = tmp_path / "report.json"
    result = invoke("run-bundle", folder, "--report", report_file, "--runs", "3", "--threads", "1")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines.index("PASSED") < next(i for i, line in enumerate(lines) if line.startswith("ISA that ran"))
    report = json.loads(report_file.read_text())
    assert (report["format"], report["passed"], report["model"], report["target"]) == (1, True, "lenet5.onnx", "x86_64")
    assert report["manifest_sha256"] == check_bundle(bundle).sha256
    assert (report["golden"]["passed"], report["golden"]["samples"]) == (True, 2)
    assert (report["profile"]["runs"], report["profile"]["threads"]) == (3, 1)
    assert report["profile"]["compare"] is None
    assert sorted(report["versions"]) == ["bnn_deploy", "numpy", "onnxruntime", "python"]


def test_run_bundle_fails(bundle: Path, tmp_path: Path) -> None:
    """The golden results of other inputs: exit code 1, a report that says so, and no profile."""
    from bnn_deploy.proof.golden.record import write_golden

    folder = unpack(bundle, tmp_path)
    golden = read_golden(folder / GOLDEN)
    write_golden(dataclasses.replace(golden, input=golden.input[::-1]), folder / GOLDEN)
    result = invoke("run-bundle", folder, "--report", tmp_path / "report.json")
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.splitlines()[-1] == "FAILED"
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["passed"], report["profile"]) == (False, None)
    assert report["golden"]["failures"][0].startswith("layer 'conv1'")


def test_run_bundle_elsewhere(tmp_path: Path) -> None:
    result = invoke("run-bundle", tmp_path, "--report", tmp_path / "report.json")
    assert result.exit_code == 2
    assert "manifest.json: no such file; give the folder of an unpacked bundle" in result.stderr
    assert list(tmp_path.iterdir()) == []


# run.sh, with a Python that only says that it did something.

TOOLS = ("sh", "sha256sum", "cut", "grep", "sed", "dirname", "uname", "rm", "cat", "mkdir", "setsid", "flock", "sleep")

FAKE_PYTHON = r"""#!/bin/sh
# Called as python3, and as what it puts into the environment: python and bnn-deploy.
say() { printf '%s\n' "$*" >>"$LOG"; }
case "${0##*/} $1 $2" in
    *"-c import struct"*) printf '%s\n' "${FAKE_VERSION:-3.11 64}" ;;
    *"-c import venv"*) exit "${FAKE_NO_VENV:-0}" ;;
    *"-m venv")
        say "venv"
        mkdir -p "$3/bin"
        if [ "${FAKE_HANG:-}" = venv ]; then
            # A child that goes on writing into the folder, as ensurepip would.
            (while :; do mkdir -p "$3/lib"; : >"$3/lib/$$"; sleep 0.02; done) &
            printf '%s\n' $! >>"$CHILDREN"
            sleep 60
        fi
        [ "${FAKE_FAIL:-}" != venv ] || exit 1
        cp "$0" "$3/bin/python"
        cp "$0" "$3/bin/bnn-deploy"
        ;;
    "python -m pip")
        say "pip $*"
        [ "${FAKE_HANG:-}" != pip ] || sleep 60
        [ "${FAKE_FAIL:-}" != pip ]
        ;;
    "bnn-deploy "*)
        say "run $*"
        : >report.json
        exit "${FAKE_EXIT:-0}"
        ;;
esac
"""


@dataclasses.dataclass
class Board:
    """A machine that has only what is in `bin`, and an unpacked bundle."""

    folder: Path
    bin: Path

    @property
    def log(self) -> list[str]:
        path = self.bin / "log"
        return path.read_text().splitlines() if path.exists() else []

    def script(self, name: str, text: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        def as_in_a_terminal() -> None:
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)

        return subprocess.Popen(
            ["/bin/sh", str(self.folder / "run.sh"), *arguments],
            env={"PATH": str(self.bin), "LOG": str(self.bin / "log"), "CHILDREN": str(self.bin / "children")}
            | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=as_in_a_terminal,
        )

    def run(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Exit code and what it said."""
        process = self.start(*arguments, **variables)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    def wait_for(self, line: str) -> None:
        """Until the fake Python has said so."""
        deadline = time.monotonic() + 30
        while not any(entry.startswith(line) for entry in self.log):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def board(bundle: Path, tmp_path: Path) -> Board:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for tool in (*TOOLS, "cp"):
        path = shutil.which(tool)
        assert path is not None
        (bin_folder / tool).symlink_to(path)
    result = Board(unpack(bundle, tmp_path / "a folder"), bin_folder)
    result.script("uname", "#!/bin/sh\necho x86_64\n")
    result.script("python3", FAKE_PYTHON)
    return result


def test_run_sh(board: Board) -> None:
    code, errors = board.run("--threads", "3", "--runs", "7")
    assert (code, errors.splitlines()) == (
        0,
        [
            "[1/5] checking the files",
            "[2/5] looking at this machine",
            "[3/5] making a virtual environment with Python 3.11",
            "[4/5] installing bnn-deploy; what it needs comes from the network",
            "[5/5] verifying and profiling",
            "wrote report.json",
        ],
    )
    assert board.log == [
        "venv",
        "pip -m pip install --quiet --disable-pip-version-check --no-input --find-links wheels "
        f"--only-binary :all: wheels/{WHEEL}",
        "run run-bundle . --report report.json --threads 3 --runs 7",
    ]


def test_run_sh_again_uses_the_environment(board: Board) -> None:
    assert board.run()[0] == 0
    code, errors = board.run()
    assert code == 0
    assert "[3/5] the virtual environment is there" in errors
    assert [line.split()[0] for line in board.log] == ["venv", "pip", "run", "run"]
    # Another Python, another bundle, or an environment that does not run: it is made anew.
    board.run(FAKE_VERSION="3.13 64")
    assert [line.split()[0] for line in board.log[4:]] == ["venv", "pip", "run"]
    board.run(FAKE_VERSION="3.13 64")
    (board.folder / "venv" / "bin" / "python").unlink()
    board.run(FAKE_VERSION="3.13 64")
    assert [line.split()[0] for line in board.log[7:]] == ["run", "venv", "pip", "run"]
    (board.folder / "venv" / "complete").unlink()
    (board.folder / "venv" / "leftover").touch()
    board.run(FAKE_VERSION="3.13 64")
    assert [line.split()[0] for line in board.log[11:]] == ["venv", "pip", "run"]
    assert not (board.folder / "venv" / "leftover").exists()


@pytest.mark.parametrize("code", [1, 2, 3])
def test_run_sh_has_the_exit_code_of_the_check(board: Board, code: int) -> None:
    assert board.run(FAKE_EXIT=str(code))[0] == code
    assert (board.folder / "venv" / "complete").exists()


def test_run_sh_options(board: Board) -> None:
    for arguments, message in (
        (["--threads"], "usage: sh run.sh"),
        (["--threads", "0"], "--threads is '0': it must be a number from 1 on"),
        (["--runs", "1; evil"], "--runs is '1; evil': it must be a number"),
        (["--evil", "1"], "unknown option '--evil'"),
        (["-h"], "usage: sh run.sh"),
    ):
        code, errors = board.run(*arguments)
        assert code == 2
        assert message in errors
    assert board.log == []


def change(path: Path, place: int = 1000) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


TAMPERING: dict[str, tuple[Callable[[Path], Any], str]] = {
    "model": (lambda folder: change(folder / MODEL), "model.onnx: FAILED"),
    "golden file": (lambda folder: change(folder / GOLDEN), "golden.npz: FAILED"),
    "wheel": (lambda folder: change(folder / "wheels" / WHEEL, 50), f"wheels/{WHEEL}: FAILED"),
    "manifest": (lambda folder: change(folder / MANIFEST, 100), "manifest.json: FAILED"),
    "comment in run.sh": (lambda folder: change(folder / RUN, 20), "run.sh: FAILED"),
    "a file gone": (lambda folder: (folder / MODEL).unlink(), "model.onnx: FAILED open or read"),
    "checksums gone": (lambda folder: (folder / CHECKSUMS).unlink(), "SHA256SUMS"),
    "checksums empty": (lambda folder: (folder / CHECKSUMS).write_text(""), "SHA256SUMS"),
    "checksums damaged": (lambda folder: change(folder / CHECKSUMS, 64), "improperly formatted"),
    "an added wheel": (
        lambda folder: (folder / "wheels" / "numpy-99-py3-none-any.whl").touch(),
        "wheels/numpy-99-py3-none-any.whl is not in SHA256SUMS",
    ),
    "an added wheel that looks like a pattern": (
        lambda folder: (folder / "wheels" / f"b{'.' * (len(WHEEL) - 5)}.whl").touch(),
        ".whl is not in SHA256SUMS",
    ),
    "a line less": (
        lambda folder: (folder / CHECKSUMS).write_text(
            "".join(line for line in (folder / CHECKSUMS).read_text().splitlines(True) if MODEL not in line)
        ),
        "model.onnx is not in SHA256SUMS",
    ),
}


@pytest.mark.parametrize("case", TAMPERING)
def test_run_sh_checks_before_anything_runs(board: Board, case: str) -> None:
    edit, message = TAMPERING[case]
    edit(board.folder)
    before = sorted(path.name for path in board.folder.rglob("*"))
    code, errors = board.run()
    assert code == 2
    assert message in errors
    assert "nothing was run" in errors.splitlines()[-1]
    assert board.log == []
    assert sorted(path.name for path in board.folder.rglob("*")) == before


def nothing(board: Board) -> dict[str, str]:
    return {}


def without(*tools: str) -> Callable[[Board], dict[str, str]]:
    def remove(board: Board) -> dict[str, str]:
        for tool in tools:
            (board.bin / tool).unlink()
        return {}

    return remove


def machine(name: str) -> Callable[[Board], dict[str, str]]:
    def rename(board: Board) -> dict[str, str]:
        board.script("uname", f"#!/bin/sh\necho {name}\n")
        return {}

    return rename


MISSING: dict[str, tuple[Callable[[Board], dict[str, str]], str]] = {
    "python": (without("python3"), "python3 is missing: sudo apt install python3 python3-venv"),
    "named python": (lambda b: {"PYTHON": "python3.12"}, "python3.12 is missing: sudo apt install"),
    "python 3.10": (lambda b: {"FAKE_VERSION": "3.10 64"}, "python3 is Python 3.10: 3.11 or newer is needed"),
    "python 3.9": (lambda b: {"FAKE_VERSION": "3.9 64"}, "python3 is Python 3.9: 3.11 or newer is needed"),
    "python 2": (lambda b: {"FAKE_VERSION": "2.7 64"}, "python3 is Python 2.7: 3.11 or newer is needed"),
    "32-bit python": (lambda b: {"FAKE_VERSION": "3.11 32"}, "python3 is a 32-bit program: install a 64-bit system"),
    "venv": (lambda b: {"FAKE_NO_VENV": "1"}, "the module venv of python3 is missing: sudo apt install python3-venv"),
    "a python that runs": (
        lambda b: b.script("python3", "#!/bin/sh\nexit 1\n") or {},  # type: ignore[func-returns-value]
        "python3 does not run",
    ),
    "the right machine": (
        machine("aarch64"),
        "this machine is aarch64, the bundle is for x86_64: make one with --target aarch64",
    ),
    "another machine": (machine("armv7l"), "this machine is armv7l, the bundle is for x86_64"),
    "sha256sum": (without("sha256sum"), "sha256sum is missing: sudo apt install coreutils"),
    "disk": (lambda b: {"FAKE_FAIL": "venv"}, "the virtual environment cannot be made here"),
    "network": (
        lambda b: {"FAKE_FAIL": "pip"},
        "the installation failed: see above; without a network, make the bundle",
    ),
}


@pytest.mark.parametrize("case", MISSING)
def test_run_sh_says_what_is_missing(board: Board, case: str) -> None:
    edit, message = MISSING[case]
    code, errors = board.run(**edit(board))
    assert code == 3
    assert errors.splitlines()[-1].startswith(f"error: {message}")
    assert not (board.folder / "venv").exists()
    assert not any(line.startswith("run") for line in board.log)


@pytest.mark.parametrize("version", ["3.11 64", "3.12 64", "3.13 64", "3.20 64"])
def test_run_sh_takes_newer_pythons(board: Board, version: str) -> None:
    assert board.run(FAKE_VERSION=version)[0] == 0


@pytest.mark.parametrize("tools", [("setsid",), ("flock",), ("setsid", "flock")])
def test_run_sh_without_tools_that_it_can_do_without(board: Board, tools: tuple[str, ...]) -> None:
    without(*tools)(board)
    assert board.run()[0] == 0


@pytest.mark.parametrize("step", ["venv", "pip"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGTERM, 143)])
def test_interrupted_run_sh_leaves_no_environment(board: Board, step: str, number: int, code: int) -> None:
    process = board.start(FAKE_HANG=step)
    board.wait_for(step)
    if step == "venv":
        while not (board.folder / "venv" / "lib").exists():
            time.sleep(0.01)
    process.send_signal(number)
    start = time.monotonic()
    process.communicate(timeout=30)
    assert process.returncode == code
    assert time.monotonic() - start < 10
    time.sleep(0.1)  # a child that were still writing would make the folder again
    assert not (board.folder / "venv").exists()
    for child in (board.bin / "children").read_text().split() if step == "venv" else []:
        assert not Path(f"/proc/{child}").exists() or "zombie" in Path(f"/proc/{child}/status").read_text()
    assert board.run()[0] == 0


def test_run_sh_whose_reader_went_away(board: Board) -> None:
    """The connection that it ran over is lost: what it says next ends it."""
    process = board.start(FAKE_HANG="venv")
    board.wait_for("venv")
    assert process.stderr is not None and process.stdout is not None
    process.stderr.close()
    process.stdout.close()
    for child in subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split():
        os.killpg(int(child), signal.SIGTERM)  # the step ends, and run.sh wants to say so
    assert process.wait(30) == 141
    assert not (board.folder / "venv").exists()


def test_killed_run_sh_is_begun_anew(board: Board) -> None:
    """Nothing can be cleaned up after SIGKILL; the environment that it leaves is not taken for a complete one."""
    process = board.start(FAKE_HANG="venv")
    while not (board.folder / "venv" / "lib").exists():
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    process.kill()
    process.wait(30)
    assert (board.folder / "venv").exists()
    code, errors = board.run()  # its child is still at work
    assert (code, "another run.sh is at work in this folder" in errors) == (3, True)
    for child in children:
        os.killpg(int(child), signal.SIGKILL)
    time.sleep(0.1)
    assert board.run()[0] == 0
    assert not (board.folder / "venv" / "lib").exists()


def test_two_run_sh_at_once(board: Board) -> None:
    process = board.start(FAKE_HANG="venv")
    board.wait_for("venv")
    code, errors = board.run()
    assert (code, errors.splitlines()[-1]) == (
        3,
        "error: another run.sh is at work in this folder: wait for it",
    )
    assert (board.folder / "venv").exists()
    process.terminate()
    process.communicate(timeout=30)
    assert board.run()[0] == 0


# The whole way, with the real wheel and no network.


def repack(name: str, folder: Path) -> list[str]:
    """Make a wheel of an installed package again; returns the packages that it needs."""
    distribution = importlib.metadata.distribution(name)
    metadata = distribution.read_text("WHEEL")
    assert metadata is not None and distribution.files is not None
    tags = [line.split()[1].split("-") for line in metadata.splitlines() if line.startswith("Tag:")]
    python, abi, platform = (".".join(sorted({tag[i] for tag in tags})) for i in range(3))
    stem = f"{re.sub('[-_.]+', '_', name)}-{distribution.version}"
    with zipfile.ZipFile(
        folder / f"{stem}-{python}-{abi}-{platform}.whl", "w", zipfile.ZIP_DEFLATED, compresslevel=1
    ) as wheel:
        records = []
        for file in distribution.files:
            path = Path(str(distribution.locate_file(file)))
            if ".." in file.parts or file.suffix == ".pyc" or file.name in ("RECORD", "INSTALLER", "REQUESTED"):
                continue
            wheel.write(path, str(file))
            records.append([str(file), "", ""])
        info = next(file.parent for file in distribution.files if file.name == "METADATA")
        buffer = io.StringIO()
        csv.writer(buffer).writerows([*records, [f"{info}/RECORD", "", ""]])
        wheel.writestr(f"{info}/RECORD", buffer.getvalue())
    lines = [line for line in distribution.requires or [] if ";" not in line]
    return [match[0] for line in lines if (match := re.match(r"[A-Za-z0-9._-]+", line))]


@pytest.fixture(scope="session")
def all_wheels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """bnn-deploy's wheel, built from the sources, and those of all packages that it needs."""
    folder = tmp_path_factory.mktemp("all_wheels")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)],
        check=True,
    )
    needed, done = ["click", "numpy", "onnxruntime", "rich"], set()
    while needed:
        name = needed.pop()
        if name.lower() not in done:
            done.add(name.lower())
            needed += repack(name, folder)
    yield folder
    shutil.rmtree(folder)


def test_from_the_model_to_the_report(lenet5: Converted, all_wheels: Path, tmp_path: Path) -> None:
    target = os.uname().machine
    output = tmp_path / "b.tar.gz"
    manifest = write_bundle(lenet5.model, output, target=target, samples=4, wheels=all_wheels)
    assert manifest.offline
    assert manifest == check_bundle(output)
    subprocess.run(["tar", "-xzf", str(output)], cwd=tmp_path, check=True)
    folder = tmp_path / FOLDER
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}
    environment |= {"PYTHON": sys.executable, "PIP_INDEX_URL": "http://127.0.0.1:9", "PYTHONPATH": "/nowhere"}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(folder / RUN), "--runs", "3"], capture_output=True, text=True, env=environment, cwd="/"
        )

    done = run()
    assert done.returncode == 0, done.stderr
    assert "[4/5] installing bnn-deploy from the bundle" in done.stderr.splitlines()
    assert "PASSED" in done.stdout.splitlines()
    report = json.loads((folder / "report.json").read_text())
    assert (report["passed"], report["target"], report["model"]) == (True, target, "lenet5.onnx")
    assert report["versions"]["bnn_deploy"] == manifest.bnn_deploy
    assert report["manifest_sha256"] == manifest.sha256
    assert report["profile"]["runs"] == 3
    assert all(result["identical"] == result["samples"] for result in report["golden"]["outputs"])
    # There is no torch and no onnx in the environment that it ran in.
    code = (
        "import importlib.util as u; print([n for n in ('torch', 'onnx', 'onnx_ir', 'bnn_deploy') if u.find_spec(n)])"
    )
    found = subprocess.run([str(folder / "venv/bin/python"), "-I", "-c", code], capture_output=True, text=True)
    assert found.stdout == "['bnn_deploy']\n"
    (folder / "report.json").unlink()
    done = run()
    assert done.returncode == 0, done.stderr
    assert "[3/5] the virtual environment is there" in done.stderr
    assert (folder / "report.json").exists()
    change(folder / MODEL)
    done = run()
    assert done.returncode == 2
    assert "the bundle is damaged, nothing was run" in done.stderr


def test_the_wheel_has_run_sh(all_wheels: Path) -> None:
    (wheel,) = all_wheels.glob("bnn_deploy-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"bnn_deploy/board/scripts/{RUN}") == (ROOT / "bnn_deploy/board/scripts" / RUN).read_bytes()
