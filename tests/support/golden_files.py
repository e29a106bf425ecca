"""Golden files with changed contents."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from bnn_deploy.proof.golden.check import GoldenVerification, check_golden
from bnn_deploy.proof.golden.record import Golden, read_golden, write_golden
from bnn_deploy.runtime.session import library_info
from support.converted import Converted

ISAS = list(library_info().isas)
BEST = ISAS[:1]


def rewrite(path: Path, golden: Golden, model: Path | None = None, **changes: Any) -> Path:
    """Write a golden file with some of its fields changed; with `model`, also with the checksum of that model."""
    if model is not None:
        changes["model_sha256"] = hashlib.sha256(model.read_bytes()).hexdigest()
    write_golden(dataclasses.replace(golden, **changes), path)
    return path


# Damage. The golden file is recorded from the right model and then gets the checksum of the damaged one.


def check_damaged(
    converted: Converted, model: Path, golden: Path, folder: Path, isas: list[str] = BEST
) -> GoldenVerification:
    return check_golden(model, rewrite(folder / "golden.npz", read_golden(golden), model), isas=isas, body_samples=0)
