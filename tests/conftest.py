"""Fixtures that several test files share."""

from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture
def rng() -> np.random.Generator:
    """A numpy generator with a fixed seed, anew for each test."""
    return np.random.default_rng(20161016)


@pytest.fixture
def seeded_torch() -> None:
    """Fix torch's global seed, which module initialisation, dropout and torch.randn draw from."""
    torch.manual_seed(20161016)
