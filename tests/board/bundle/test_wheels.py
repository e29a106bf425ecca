"""Which wheels go into a bundle."""

from __future__ import annotations

import importlib.metadata
import io
import os
import re
import zipfile
from pathlib import Path

import pytest

import bnn_deploy
from bnn_deploy.board.wheels import DEMO_DATA, collect_wheels, missing_wheels, pinned_requirements
from bnn_deploy.errors import InputError
from support.bundles import DEPENDENCIES, VERSION, WHEEL, fake_wheel


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
        "numpy-two-cp311-cp311-manylinux_2_17_x86_64.whl",
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
        WHEEL: (*DEPENDENCIES, "torch>=2.8; extra == 'convert'"),
        "click-8.1.8-py3-none-any.whl": ("colorama; platform_system == 'Windows'",),
        "numpy-2.0.0-cp311-cp311-manylinux_2_17_x86_64.whl": (),
        "onnxruntime-1.27.0-cp311-cp311-manylinux_2_28_x86_64.whl": ("flatbuffers", "numpy>=1.21.6", "packaging"),
        "rich-14.0.0-py3-none-any.whl": ("markdown-it-py>=2.2.0", "pygments<3.0.0,>=2.13.0"),
        "markdown_it_py-4.0.0-py3-none-any.whl": ("mdurl~=0.1",),
        "mdurl-0.1.2-py3-none-any.whl": (),
        "pygments-2.19.0-py3-none-any.whl": (),
        "flatbuffers-25.1-py2.py3-none-any.whl": (),
        "packaging-26.4-py3-none-any.whl": (),
    }
    for name, needed in requires.items():
        fake_wheel(tmp_path / name, 62 if name == WHEEL else None, needed)
    contents = collect(tmp_path)[2]
    assert missing_wheels(contents) == []
    for name in requires.keys() - {WHEEL}:
        fewer = {key: content for key, content in contents.items() if key != name}
        assert missing_wheels(fewer) == [name.partition("-")[0].replace("_", "-")]
    assert missing_wheels({WHEEL: contents[WHEEL]}) == ["click", "numpy", "onnxruntime", "packaging", "rich"]


def test_the_board_gets_the_versions_of_this_machine_or_of_the_bundle(tmp_path: Path) -> None:
    fake_wheel(tmp_path / WHEEL, 62, DEPENDENCIES)
    here = dict(line.split("==") for line in pinned_requirements(collect(tmp_path)[2]).decode().splitlines())
    assert here == {name: importlib.metadata.version(name) for name in here}
    assert {"click", "numpy", "onnxruntime", "packaging", "rich", "pygments", "markdown-it-py", "mdurl"} <= set(here)
    for name in (
        "click-8.0-py3-none-any.whl",
        "numpy-2.2.0-cp310-cp310-manylinux_2_17_x86_64.whl",
        "numpy-2.5.0-cp313-cp313-manylinux_2_17_x86_64.whl",
        "onnxruntime-1.27.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        "onnxruntime-1.27.0-cp313-cp313-manylinux_2_28_x86_64.whl",
    ):
        fake_wheel(tmp_path / name)
    mixed = dict(line.split("==") for line in pinned_requirements(collect(tmp_path)[2]).decode().splitlines())
    assert (mixed["click"], mixed["onnxruntime"], mixed["rich"]) == ("8.0", "1.27.0", here["rich"])
    assert "numpy" not in mixed  # which of them is for the board, its Python says


def test_the_packages_of_an_application(tmp_path: Path) -> None:
    """Those of its extra: in the version of this machine or of the bundle, and if neither has one, as pip chooses."""
    extras = ('pillow>=10; extra == "images"', 'no-such-package>=4.5; extra == "camera"')
    fake_wheel(tmp_path / WHEEL, 62, [*DEPENDENCIES, *extras])
    contents = collect(tmp_path)[2]
    plain, images, camera = (pinned_requirements(contents, extra).decode() for extra in (None, "images", "camera"))
    version = importlib.metadata.version("pillow")
    assert set(images.splitlines()) - set(plain.splitlines()) == {f"pillow=={version}"}
    assert set(camera.splitlines()) - set(plain.splitlines()) == {"no-such-package>=4.5"}
    assert "pillow" not in plain
    assert set(missing_wheels(contents, "images")) - set(missing_wheels(contents)) == {"pillow"}
    fake_wheel(tmp_path / "pillow-10.1-cp311-cp311-manylinux_2_17_x86_64.whl")
    contents = collect(tmp_path)[2]
    assert "pillow==10.1" in pinned_requirements(contents, "images").decode().splitlines()
    assert missing_wheels(contents, "images") == missing_wheels(contents)


def test_a_boards_wheel_has_no_demo(tmp_path: Path) -> None:
    fake_wheel(tmp_path / WHEEL, 62, DEPENDENCIES)
    record = f"bnn_deploy-{VERSION}.dist-info/RECORD"
    rows = [
        "bnn_deploy/__init__.py,sha256=a,1",
        '"bnn_deploy/a,b.py",,',
        f"{DEMO_DATA}net.pth,sha256=b,9",
        f"{record},,",
    ]
    with zipfile.ZipFile(tmp_path / WHEEL, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{DEMO_DATA}net.pth", os.urandom(100_000))
        archive.writestr("bnn_deploy/__init__.py", "x = 1\n" * 100)
        archive.writestr(record, "\n".join(rows) + "\n")
    with zipfile.ZipFile(tmp_path / WHEEL) as archive:
        given = {info.filename: (info, archive.read(info)) for info in archive.infolist()}
    (content,) = collect(tmp_path)[2].values()
    assert content == collect(tmp_path)[2][WHEEL]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == [name for name in given if not name.startswith(DEMO_DATA)]
        assert archive.read(record).decode().splitlines() == [rows[0], rows[1], rows[3]]
        for info in archive.infolist():
            was, bytes_of_it = given[info.filename]
            assert (info.date_time, info.compress_type, info.external_attr) == (
                was.date_time,
                was.compress_type,
                was.external_attr,
            )
            assert info.filename == record or archive.read(info) == bytes_of_it
    assert len(content) < (tmp_path / WHEEL).stat().st_size - 100_000


def test_requirements_in_every_form(tmp_path: Path) -> None:
    lines = (
        "A_b.C",
        "d[x]>=1,<2",
        "e (>=1)",
        "f @ https://example.org/f.whl",
        "g; extra == 'g'",
        "h;python_version<'3'",
    )
    wheel = fake_wheel(tmp_path / "z-1-1-py3-none-any.whl", requires=(*lines, "Z"))
    assert missing_wheels({wheel.name: wheel.read_bytes()}) == ["a-b-c", "d", "e", "f"]


def test_metadata_that_cannot_be_read(tmp_path: Path) -> None:
    path = fake_wheel(tmp_path / "z-1-py3-none-any.whl", requires=("good>=1",))
    content = path.read_bytes()
    assert missing_wheels({path.name: content}) == ["good"]
    fake_wheel(path, requires=("good>=1", "bad>>1"))
    with pytest.raises(InputError, match=r"^z-1-py3-none-any.whl: its metadata cannot be read: .* bad>>1 "):
        missing_wheels({path.name: path.read_bytes()})
    with pytest.raises(InputError, match=r"^z-1-py3-none-any.whl: its metadata cannot be read: File is not a zip file"):
        missing_wheels({path.name: content[:-30]})
    with pytest.raises(InputError, match=r"^z-1-py3-none-any.whl: not a wheel: it has no .dist-info/METADATA"):
        missing_wheels({path.name: content.replace(b"METADATA", b"METADATE")})
