"""The wheels of a real installation, for all tests that install a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bundles import make_all_wheels


@pytest.fixture(scope="session")
def all_wheels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with bnn-deploy's wheel and those of all packages that it needs."""
    folder = tmp_path_factory.mktemp("all_wheels")
    make_all_wheels(folder)
    yield folder
    shutil.rmtree(folder)
