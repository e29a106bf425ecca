"""A small bundle of LeNet-5, for all tests of bundles."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from bnn_deploy.board.bundle import write_bundle
from support.bundles import DEPENDENCIES, WHEEL, fake_wheel
from support.converted import Converted


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    fake_wheel(folder / WHEEL, 62, DEPENDENCIES)
    return folder


@pytest.fixture(scope="session")
def bundle(lenet5: Converted, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle of LeNet-5, with a wheel that cannot be installed."""
    folder = tmp_path_factory.mktemp("bundle")
    np.save(folder / "x.npy", lenet5.images)
    output = folder / "lenet5.tar.gz"
    write_bundle(lenet5.model, output, target="x86_64", data=folder / "x.npy", samples=2, wheels=wheels)
    return output


@pytest.fixture(scope="session")
def members(bundle: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    """What is in it, read by the standard library."""
    with tarfile.open(bundle) as archive:
        return [(info, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
