"""Every tampering with a bundle is refused, and every bomb."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnn_deploy.board import archive as archive_module
from bnn_deploy.board.archive import _Unzipper, check_bundle
from bnn_deploy.board.manifest import FOLDER, MANIFEST, MODEL
from bnn_deploy.errors import InputError
from support.bundles import compress, member, pack


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


@pytest.mark.parametrize("index", range(1, 7))
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
    at = [info.name for info, _ in members].index(f"{FOLDER}/{MODEL}")
    info = tarfile.TarInfo.frombuf(members[at][0].tobuf(tarfile.USTAR_FORMAT), "utf-8", "strict")
    setattr(info, attribute, value)
    path = pack(tmp_path / "b.tar.gz", [*members[:at], (info, members[at][1]), *members[at + 1 :]])
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
    "no format": (lambda m: m.pop("format") and None, f"not a bundle's {MANIFEST} (KeyError: 'format')"),
    "target": (lambda m: m.update(target="riscv64"), "target riscv64: this bnn-deploy knows aarch64 and x86_64"),
    "target a list": (lambda m: m.update(target=["x86_64"]), "target is ['x86_64'], not str"),
    "no model": (lambda m: m["files"].pop(MODEL) and None, f"it lists no {MODEL}"),
    "no service": (lambda m: m.update(app="http"), "it lists no app.service, service.sh"),
    "an unknown application": (
        lambda m: m.update(app="ftp"),
        "its application is 'ftp'; this bnn-deploy knows camera, folder, http",
    ),
    "an application that is a number": (lambda m: m.update(app=1), "app is 1, not str"),
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
        patch.setattr(archive_module, "_Unzipper", Counting)
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
