"""Models, and their golden files, each made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bnn_deploy.conversion import convert
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.golden.record import write_golden
from support.converted import Converted, convert_network


@pytest.fixture(scope="module")
def birealnet18(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_network("birealnet18", tmp_path_factory.mktemp("birealnet18"), 3, calibration=16)


@pytest.fixture(scope="module")
def nin_int8(nin: Converted, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """NIN with 8-bit first and last layers."""
    path = tmp_path_factory.mktemp("int8") / "nin_int8.onnx"
    conversion = convert(nin.checkpoint, path, arch="nin", calibration=nin.images)
    return Converted(nin.checkpoint, conversion, nin.images)


@pytest.fixture(scope="module")
def goldens(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Converted, int], Path]:
    """A function that makes the golden file of a model, once."""
    made: dict[Path, Path] = {}

    def write(converted: Converted, samples: int) -> Path:
        path = made.get(converted.model)
        if path is None:
            path = made[converted.model] = tmp_path_factory.mktemp("golden") / "golden.npz"
            write_golden(make_golden(converted.model, converted.images[:samples]), path)
        return path

    return write
