"""Fixtures that several test files share. The ARM64 tests run without torch, so fixtures import it themselves."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it at import; the other core has a worker, too
os.environ["BNN_DEPLOY_CACHE"] = ""  # what one test leaves there must not help another
pytest.register_assert_rewrite("support")

from support.converted import Converted, convert_network  # noqa: E402


@pytest.fixture
def rng() -> np.random.Generator:
    """A new numpy generator with a fixed seed for each test."""
    return np.random.default_rng(20161016)


@pytest.fixture
def seeded_torch() -> None:
    """Fix torch's global seed, which module initialisation, dropout and torch.randn draw from."""
    import torch

    torch.manual_seed(20161016)


@pytest.fixture(scope="session", autouse=True)
def shared_exports() -> Iterator[None]:
    """Let the session export each network once."""
    if "bnn_deploy.source.latent_weights" not in sys.modules:  # no collected test exports a network
        yield
        return
    from support.exports import SharedExports, keep_exporter_tables

    with pytest.MonkeyPatch.context() as patch:
        keep_exporter_tables(patch)
        patch.setattr("bnn_deploy.source.latent_weights.export_float", SharedExports())
        yield


@pytest.fixture(scope="session", autouse=True)
def no_noise() -> Iterator[None]:
    """Let no run of `profile` count as noisy: what tests compare with stderr must not depend on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NOISY_SPREAD", "NOISY_WAIT", "NOISY_INTERVAL"):
            patch.setattr(f"bnn_deploy.runtime.profile_results.{name}", float("inf"))
        yield


@pytest.fixture
def own_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the shared exports: every call of export_float exports anew."""
    from bnn_deploy.source.torch_export import export_float

    monkeypatch.setattr("bnn_deploy.source.latent_weights.export_float", export_float)


@pytest.fixture
def small_sums_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert sums of binary convolutions of any size: most layers of the tests are smaller than those that pay."""
    from bnn_deploy.passes.lower import bases

    monkeypatch.setattr(bases, "PIXEL_PRODUCTS", 0)
    monkeypatch.setattr(bases, "WINDOW_PRODUCTS", 0)


@pytest.fixture(scope="session")
def lenet5(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The trained LeNet-5 of the demo. Only to be read: tests that change a file copy it."""
    return convert_network("lenet5", tmp_path_factory.mktemp("lenet5"), 32)


@pytest.fixture(scope="session")
def nin(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The NIN that was trained on CIFAR-10. Only to be read."""
    return convert_network("nin", tmp_path_factory.mktemp("nin"), 8)


@pytest.fixture(scope="session")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """An AlexNet with seeded weights and calibrated BatchNorm. Only to be read."""
    return convert_network("alexnet", tmp_path_factory.mktemp("alexnet"), 2, calibration=8)


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what `support.command_lines` reads. Only to be read."""
    from support.command_lines import make_files

    return make_files(tmp_path_factory.mktemp("given"))
