"""A board behind a real OpenSSH server on loopback, and bundles for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from bnn_deploy.board import deployment
from bnn_deploy.board.apps import APPS, UNIT, unit_file
from bnn_deploy.board.archive import check_bundle, make_archive
from bnn_deploy.board.manifest import SERVICE, Manifest, checksum_lines, file_entry, manifest_bytes, with_checksum
from bnn_deploy.runtime.profiling import profile
from support.deployment import MACHINE, WORKS, MakeBundle
from support.small_models import save_binary
from support.ssh_server import SshServer, wait_for


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    server = SshServer(tmp_path_factory.mktemp("ssh server"))
    yield server
    server.stop()


@pytest.fixture
def board(server: SshServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SshServer]:
    """An empty board, with this process as the laptop. At the end, nothing may be running or half-installed."""
    server.reset()
    (server.folder / "go").unlink(missing_ok=True)
    monkeypatch.setenv("PATH", f"{server.client}:{os.environ['PATH']}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield server
    wait_for(lambda: not server.left_over(), "no process and no connection is left")
    assert [path for path in server.tree() if ".partial" in path] == []
    # No temporary file and no socket on the laptop either.
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in (".gz", ".json")] == []


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save_binary(tmp_path_factory.mktemp("model") / "small.onnx").read_bytes()


@pytest.fixture(scope="session")
def small_profile(tmp_path_factory: pytest.TempPathFactory, small_model: bytes) -> Any:
    path = tmp_path_factory.mktemp("profile") / "model.onnx"
    path.write_bytes(small_model)
    return profile(path, runs=2)


@pytest.fixture
def make(tmp_path: Path, small_model: bytes, small_profile: Any, monkeypatch: pytest.MonkeyPatch) -> MakeBundle:
    """Makes bundles with a run.sh of the test. The laptop's profile is measured once for all tests."""
    monkeypatch.setattr(deployment, "profile", lambda model, threads, runs: small_profile)

    def make(
        run: str = WORKS,
        target: str = MACHINE,
        name: str = "bundle.tar.gz",
        ballast: int = 1000,
        float_model: bytes | None = None,
        app: str | None = None,
    ) -> Path:
        wheel = f"wheels/bnn_deploy-1-py3-none-manylinux_2_17_{target}.whl"
        files = {
            "model.onnx": small_model,
            "golden.npz": os.urandom(ballast),
            "run.sh": f"#!/bin/sh\n{run}".encode(),
            "requirements.txt": b"",
            wheel: b"wheel",
            **({} if float_model is None else {"float.onnx": float_model}),
        }
        if app is not None:
            files[UNIT] = unit_file(app, APPS[app].options)
            files[SERVICE] = (resources.files("bnn_deploy") / "board" / "scripts" / SERVICE).read_bytes()
        manifest = Manifest(
            bnn_deploy="1",
            target=target,
            model="small net.onnx",
            offline=True,
            samples=1,
            wheel=wheel,
            made_with={"onnxruntime": "1", "numpy": "1", "cpu": "x", "isa": "x"},
            files={name: file_entry(content) for name, content in files.items()},
            sha256="",
            app=app,
        )
        manifest = with_checksum(manifest)
        files["manifest.json"] = manifest_bytes(manifest)
        files["SHA256SUMS"] = checksum_lines(manifest)
        path = tmp_path / name
        path.write_bytes(make_archive(files))
        assert check_bundle(path) == manifest
        return path

    return make
