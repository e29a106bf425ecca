"""Bundles: archives whose members, headers, manifest or bytes are others, and unpacked ones."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path

import numpy as np
from numpy.random import Generator

from bnn_deploy.board.archive import check_bundle, read_member
from bnn_deploy.board.manifest import CHECKSUMS, FOLDER, GOLDEN, MANIFEST, MODEL, RUN
from fuzz.doors import absurd, call, change_bytes, change_json, pick, run
from support.bundles import compress, pack, unpack

TYPES = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
TYPES += (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.XGLTYPE)
NAMES = ("../x", "/etc/x", f"{FOLDER}/../../x", f"{FOLDER}/wheels/../../x", f"{FOLDER}//x", f"./{FOLDER}/x", "", ".")
NAMES += (f"{FOLDER}/{MODEL}", f"{FOLDER}/{MANIFEST}", f"{FOLDER}/\u00e9", f"{FOLDER}/" + "x" * 90, f"{FOLDER}/a\nb")

Member = tuple[tarfile.TarInfo, bytes]


def case(seed: int, folder: Path, shared: Path) -> None:
    """A changed archive is read whole or refused; nothing of it is written anywhere."""
    rng = np.random.default_rng(seed)
    good, path = shared / "bundle.tar.gz", folder / "a" / "b" / "b.tar.gz"
    path.parent.mkdir(parents=True)
    kind = int(rng.integers(0, 5))
    if kind == 4:
        unpacked(rng, good, folder)
        return
    if kind == 0:
        path.write_bytes(change_bytes(rng, good.read_bytes()))
    elif kind == 1:
        path.write_bytes(compress(change_bytes(rng, gzip.decompress(good.read_bytes()))))
    else:
        with tarfile.open(good) as archive:
            members = [(info, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
        for _ in range(int(rng.integers(1, 3))):
            change_members(rng, members)
        form = pick(rng, (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
        try:
            pack(path, members, form)
        except (ValueError, UnicodeError):  # no such header can be written
            return
    manifest = call(check_bundle, path)
    call(read_member, path, pick(rng, (MODEL, MANIFEST, "wheels", "")))
    assert manifest is None or manifest.files
    assert sorted(folder.rglob("*")) == [path.parent.parent, path.parent, path]


def change_members(rng: Generator, members: list[Member]) -> None:
    """Another type, name, size, mode or content of a member; or one more, less, or at another place."""
    at = int(rng.integers(0, len(members))) if members else 0
    added = tarfile.TarInfo(pick(rng, NAMES))
    match int(rng.integers(0, 9)) if members else 0:
        case 0:
            added.type = pick(rng, (tarfile.REGTYPE, *TYPES))
            added.linkname = pick(rng, ("", "/etc/passwd", "..", MODEL))
            members.insert(at, (added, b""))
        case 1:
            members[at][0].type = pick(rng, TYPES)
            members[at][0].linkname = pick(rng, ("/etc/passwd", "../..", ""))
        case 2:
            members[at][0].name = pick(rng, NAMES)
        case 3:
            members[at][0].size = abs(absurd(rng)) % 2**33
        case 4:
            members[at][0].mode, members[at][0].uid = pick(rng, (0, 0o4755, 0o777)), pick(rng, (0, 1000))
        case 5:
            del members[at]
        case 6:
            members.insert(at, members[int(rng.integers(0, len(members)))])
        case 7:
            rename(members, at, change_bytes(rng, members[at][1]))
        case _:  # a manifest of other content, and the checksums of that
            at = next((i for i, (info, _) in enumerate(members) if info.name == f"{FOLDER}/{MANIFEST}"), at)
            try:
                changed = json.dumps(change_json(rng, json.loads(members[at][1])), indent=2)
                rename(members, at, changed.encode(errors="surrogatepass") + b"\n")
            except ValueError:
                rename(members, at, b"[" * 100_000)


def rename(members: list[Member], at: int, content: bytes) -> None:
    """Give a member other content, and its size."""
    info = tarfile.TarInfo.frombuf(members[at][0].tobuf(), "utf-8", "strict") if members[at][0].name else members[at][0]
    info.size = len(content)
    members[at] = (info, content)


def unpacked(rng: Generator, good: Path, folder: Path) -> None:
    """`run-bundle` on a folder of which one file is another one."""
    there = unpack(good, folder)
    path = there / pick(rng, (MANIFEST, MODEL, GOLDEN, RUN, CHECKSUMS))
    match int(rng.integers(0, 5)):
        case 0:
            path.unlink()
        case 1:
            path.unlink()
            path.mkdir()
        case 2:
            path.unlink()
            path.symlink_to(pick(rng, ("/etc/passwd", "/dev/full", path.name, "nowhere")))
        case 3 if path.name == MANIFEST:
            path.write_text(json.dumps(change_json(rng, json.loads(path.read_text()))))
        case _:
            path.write_bytes(change_bytes(rng, path.read_bytes()))
    report = folder / "report.json"
    run(["run-bundle", there, "--report", report, "--runs", "1"], folder)
    if report.exists():
        json.loads(report.read_text())
