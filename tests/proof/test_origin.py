"""What verify finds by itself, and what it never runs: a model's metadata is a stranger's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from bnn_deploy import convert, verify
from bnn_deploy.errors import InputError
from bnn_deploy.image_input import ImageInput
from bnn_deploy.kept import CACHE_VARIABLE, file_digest
from bnn_deploy.preprocessing import Preprocessing
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.results import Verification
from bnn_deploy.provenance import (
    ARCH_FILE_KEY,
    ARCH_KEY,
    CLASSES_KEY,
    PREPROCESSING_KEY,
    SHAPE_KEY,
    SOURCE_FILE_KEY,
    FileStamp,
    Origin,
    properties,
    read_origin,
)
from bnn_deploy.runtime.profiling import profile
from support.converted import Converted
from support.golden_files import BEST
from support.networks import DEMO_DATA
from support.user_network import times_run, write_network


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder


def proof(model: Path, *against: Any, **options: Any) -> Verification:
    return verify(model, *against, samples=2, reference_samples=0, isas=[BEST[0]], **options)


def changed(model: Path, **entries: str) -> Path:
    """The model with other metadata."""
    proto = onnx.load(model)
    onnx.helper.set_model_props(proto, properties(proto) | {key.replace("__", "."): v for key, v in entries.items()})
    onnx.save(proto, model)
    return model


def converted(folder: Path, output: Path) -> tuple[Path, str]:
    checkpoint, arch = write_network(folder)
    convert(checkpoint, output, arch=arch, arch_args={"width": 8})
    return checkpoint, arch


def test_verify_needs_nothing_again_where_the_model_was_converted(tmp_path: Path, cache: Path, elsewhere: Path) -> None:
    model = tmp_path / "out.onnx"
    checkpoint, _ = converted(tmp_path / "own", model)
    result = proof(model)
    assert result and result.notes == [] and result.source[0].agreeing == 2
    # A copy is the same model; it is not held against another checkpoint.
    shutil.copy(model, elsewhere / "copy.onnx")
    assert proof(Path("copy.onnx"))
    state = torch.load(checkpoint)
    torch.save({name: -tensor for name, tensor in state.items()}, checkpoint)
    with pytest.raises(InputError, match=r"net\.pth has changed since the conversion \(it was net\.pth, SHA-256 "):
        proof(model)
    checkpoint.unlink()
    with pytest.raises(InputError, match=r"out\.onnx: it was converted from net\.pth, SHA-256 .*, which is not here"):
        proof(model)


def test_the_last_of_two_places_counts(tmp_path: Path, cache: Path, elsewhere: Path) -> None:
    """The same network, converted again after it has moved, is the same model."""
    converted(tmp_path / "old", tmp_path / "old.onnx")
    (tmp_path / "old").rename(tmp_path / "new")
    moved = tmp_path / "new"
    convert(moved / "net.pth", tmp_path / "new.onnx", arch=f"{moved / 'net.py'}:Net", arch_args={"width": 8})
    assert (tmp_path / "old.onnx").read_bytes() == (tmp_path / "new.onnx").read_bytes()
    assert proof(tmp_path / "old.onnx")


def test_code_named_by_a_models_metadata_does_not_run(tmp_path: Path, cache: Path, elsewhere: Path) -> None:
    """The model, its checkpoint and its FILE.py come from a stranger, and lie in the current folder."""
    folder = tmp_path / "stranger"
    model = folder / "m.onnx"
    converted(folder, model)
    shutil.rmtree(cache)  # this user has not converted it
    for file in ("m.onnx", "net.pth", "net.py"):
        shutil.copy(folder / file, elsewhere / file)
    how = r"it was converted with the class in net\.py, .*; code is run only if you name it: give arch='net\.py:Net'$"
    for against in ((), (Path("net.pth"),)):
        with pytest.raises(InputError, match=how):
            proof(Path("m.onnx"), *against)
    for name in ("net.py:Net", str(elsewhere / "net.py:Net"), "../elsewhere/net.py:Net", "torchscript"):
        for key in ("bnn_deploy__arch", "bnn_deploy__arch_file"):
            text = name if key == "bnn_deploy__arch" else json.dumps({"arch": name})
            with pytest.raises(InputError, match="code is run only if you name it"):
                proof(changed(Path("m.onnx"), **{key: text}))
    assert times_run(elsewhere) == 0
    # It is a program, and runs for whoever names it.
    shutil.copy(model, "m.onnx")
    assert proof(Path("m.onnx"), arch="net.py:Net")
    assert times_run(elsewhere) > 0


def test_code_that_has_changed_does_not_run(tmp_path: Path, cache: Path, elsewhere: Path) -> None:
    model = tmp_path / "out.onnx"
    _, arch = converted(tmp_path / "own", model)
    with (tmp_path / "own" / "net.py").open("a") as file:
        file.write("# changed\n")
    before = times_run(tmp_path / "own")
    with pytest.raises(InputError, match=r"net\.py has changed since the conversion, or is gone; code is run only"):
        proof(model)
    assert times_run(tmp_path / "own") == before
    # Named, it runs, and the change is said.
    result = proof(model, arch=arch)
    assert result and len(result.notes) == 1
    assert "net.py is not the file that the model was converted with, net.py, SHA-256 " in result.notes[0]


def test_a_cache_that_others_can_write_is_not_believed(tmp_path: Path, cache: Path, elsewhere: Path) -> None:
    model = tmp_path / "out.onnx"
    converted(tmp_path / "own", model)
    cache.chmod(0o777)
    with pytest.raises(InputError, match="which is not here"):
        proof(model)
    cache.chmod(0o700)
    assert proof(model)


def test_a_checkpoint_of_a_known_network_is_found_beside_the_model(tmp_path: Path, elsewhere: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    shutil.copy(DEMO_DATA / "lenet5.pth.tar", folder / "lenet5.pth.tar")
    convert(folder / "lenet5.pth.tar", folder / "m.onnx", arch="lenet5")
    assert proof(folder / "m.onnx")
    torch.save({"conv1.weight": torch.zeros(1)}, folder / "lenet5.pth.tar")
    with pytest.raises(InputError, match=r"lenet5\.pth\.tar has changed since the conversion"):
        proof(folder / "m.onnx")
    result = proof(folder / "m.onnx", DEMO_DATA / "lenet5.pth.tar")
    assert result and result.notes == []


@pytest.mark.parametrize("name", ["../secret.pth", "/secret.pth", "C:secret.pth", "a\\secret.pth", "..", ""])
def test_a_name_with_folders_is_not_looked_for(name: str, tmp_path: Path, elsewhere: Path) -> None:
    """Not even opened: a model must not make verify read files of its choice."""
    shutil.copy(DEMO_DATA / "lenet5.pth.tar", tmp_path / "secret.pth")
    convert(DEMO_DATA / "lenet5.pth.tar", elsewhere / "m.onnx", arch="lenet5")
    stamp = {"name": name, "sha256": file_digest(tmp_path / "secret.pth")}
    changed(elsewhere / "m.onnx", bnn_deploy__source_file=json.dumps(stamp))
    with pytest.raises(InputError, match=r"which is not here; say what it is held against: against=FILE$"):
        proof(elsewhere / "m.onnx")


@pytest.mark.parametrize("entry", ['"text"', "[1]", "{", '{"name": 1}', "null", "[" * 5000])
def test_damaged_metadata_is_one_line(entry: str, tmp_path: Path) -> None:
    convert(DEMO_DATA / "lenet5.pth.tar", tmp_path / "m.onnx", arch="lenet5")
    with pytest.raises(InputError, match=r"m\.onnx: (its metadata is damaged: convert it again|it does not say which)"):
        proof(changed(tmp_path / "m.onnx", bnn_deploy__source_file=entry))


DAMAGED = {
    CLASSES_KEY: ["3", "{", "[" * 5000],
    PREPROCESSING_KEY: ["3", "{", '{"size": "x"}', '{"mean": [0.5, "x"]}'],
    SHAPE_KEY: ["{", "[" * 5000],
}
"""Key of a model's metadata -> what it cannot be."""


@pytest.mark.parametrize(("key", "entry"), [(key, entry) for key, entries in DAMAGED.items() for entry in entries])
def test_other_damaged_metadata_is_one_line(key: str, entry: str, lenet5: Converted, tmp_path: Path) -> None:
    """In every command that reads it."""
    shutil.copy(lenet5.model, tmp_path / "m.onnx")
    model = changed(tmp_path / "m.onnx", **{key.replace(".", "__"): entry})
    message = r"m\.onnx: its metadata .*: convert (it|the model) again"
    with pytest.raises(InputError, match=message):
        proof(model, lenet5.float_model)
    if key != CLASSES_KEY:
        with pytest.raises(InputError, match=message):
            make_golden(model, samples=1)
        with pytest.raises(InputError, match=message):
            profile(model, runs=1)


CLASSES = tuple(f"größer als {number}" for number in range(10))


def test_names_of_classes_are_as_many_as_the_classes(tmp_path: Path) -> None:
    checkpoint, arch = write_network(tmp_path)
    with pytest.raises(InputError, match=r"net\.pth: classes has 2 names, but the network has 10 classes$"):
        convert(checkpoint, tmp_path / "m.onnx", arch=arch, classes=CLASSES[:2])


def test_what_a_model_remembers(tmp_path: Path) -> None:
    checkpoint, arch = write_network(tmp_path)
    other = {"other": {"x": torch.ones(1)}, "best_acc1": torch.tensor(71.5), "epoch": 3}
    torch.save({"ema": torch.load(checkpoint)} | other, checkpoint)
    made = convert(
        checkpoint,
        tmp_path / "m.onnx",
        arch=arch,
        arch_args={"width": 8},
        key="ema",
        classes=CLASSES,
        float_output=tmp_path / "f.onnx",
    )
    expected = Origin(
        onnx.load(tmp_path / "m.onnx").producer_version,
        "auto",
        FileStamp("net.pth", file_digest(checkpoint)),
        "net.py:Net",
        FileStamp("net.py", file_digest(tmp_path / "net.py")),
        {"width": 8},
        "ema",
        None,
        CLASSES,
        {"best_acc1": 71.5},
    )
    for path, graph in ((made.output, "net"), (tmp_path / "f.onnx", "net_float")):
        proto = onnx.load(path)
        assert read_origin(properties(proto)) == expected
        assert (proto.producer_name, proto.graph.name) == ("bnn-deploy", graph)
        assert str(tmp_path) not in str(proto.metadata_props), "no folder of this machine is in it"
        assert ARCH_KEY not in properties(proto) and {ARCH_FILE_KEY, SOURCE_FILE_KEY} <= properties(proto).keys()
    np.testing.assert_equal(read_origin({}), Origin("", "auto"))


def test_a_model_says_how_pictures_are_read_and_what_its_classes_are_called(tmp_path: Path) -> None:
    """The images of the data are bytes; nothing is said of them to verify."""
    names = [f"digit {number}" for number in range(10)]
    correct = {}
    for mean in (0.1307, 1.5):
        steps = Preprocessing(mean=(mean,), std=(0.3081,))
        source = DEMO_DATA / "lenet5.pth.tar"
        convert(source, tmp_path / "m.onnx", arch="lenet5", preprocessing=steps, classes=names)
        data = DEMO_DATA / "mnist_1000.npz"
        result = verify(tmp_path / "m.onnx", source, data=data, samples=64, reference_samples=0, isas=[BEST[0]])
        assert result.class_names == tuple(names)
        correct[mean] = result.outputs[0].correct or 0
    assert correct[0.1307] >= 62 > correct[1.5], "with another mean the same bytes are other images"
    image = ImageInput((0.1307,), (0.3081,))
    with pytest.raises(InputError, match="leave them out of preprocessing"):
        convert(source, tmp_path / "u.onnx", arch="lenet5", image_input=image, preprocessing=steps)


def test_outputs_keep_the_sources_names(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.layer(torch.sign(x))
            return {"logits": y.flatten(1), "map": y}

    module = Named().eval()
    module.layer.weight.data.sign_()
    made = convert(module, tmp_path / "m.onnx", input_shape=(3, 8, 8), float_output=tmp_path / "f.onnx")
    for path in (made.output, tmp_path / "f.onnx"):
        assert [value.name for value in onnx.load(path).graph.output] == ["logits", "map"]
    assert proof(made.output, module) and proof(made.output, tmp_path / "f.onnx")
    again = convert(tmp_path / "f.onnx", tmp_path / "again.onnx")
    assert [value.name for value in onnx.load(again.output).graph.output] == ["logits", "map"]


def test_the_platforms_folder_is_used_if_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from bnn_deploy.kept import kept_folder

    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept_folder() == tmp_path / "bnn-deploy"
    assert (tmp_path / "bnn-deploy").stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv(CACHE_VARIABLE, "")
    assert kept_folder() is None
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "x"))
    assert kept_folder() is None
