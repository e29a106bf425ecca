"""Files that cases change, made once: by a child, because onnxruntime's threads do not survive a fork."""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import suppress
from pathlib import Path

from torch import nn

from bnn_deploy.board.bundle import write_bundle
from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.golden.record import write_golden
from bnn_deploy.proof.verification import verify
from fuzz.doors import EXPORTS
from support.bundles import WHEEL, fake_wheel
from support.small_models import save_binary

MODULES = "modules.json"
CONVERTED = ("larq_quicknet", "larq_dorefa_2_bits")


def make(folder: Path) -> None:
    """A small model, its golden file and its bundle, exports of other frameworks, converted; and what that imported."""
    model = save_binary(folder / "small.onnx")
    write_golden(make_golden(model, None, 2), folder / "golden.npz")
    fake_wheel(folder / "dist" / WHEEL, 62)
    write_bundle(model, folder / "bundle.tar.gz", target="x86_64", samples=2, wheels=folder / "dist")
    for name in CONVERTED:
        convert(EXPORTS / f"{name}.onnx", folder / f"{name}.onnx")
    with suppress(InputError):  # it has no binary layer
        convert(nn.Sequential(nn.Linear(4, 2)), folder / "none.onnx", input_shape=(4,))
    verify(folder / f"{CONVERTED[0]}.onnx", EXPORTS / f"{CONVERTED[0]}.onnx", samples=1)
    (folder / MODULES).write_text(json.dumps(list(sys.modules)))


def import_modules(folder: Path) -> None:
    """Import in this process what `make` imported in its own, so that not each case does."""
    for module in json.loads((folder / MODULES).read_text()):
        with suppress(Exception):  # a module that others made
            importlib.import_module(module)
