"""Deploy trained XNOR (binary) networks on CPUs through onnxruntime, with a proof that they compute the same thing.

    import bnn_deploy

    bnn_deploy.convert("nin.pth.tar", "nin.onnx", arch="nin", float_output="nin_float.onnx")
    assert bnn_deploy.verify("nin.onnx", "nin.pth.tar").passed
    session = bnn_deploy.load_session("nin.onnx", threads=4)
    (logits,) = session.run(None, {"input": images})
    print(bnn_deploy.Classifier("nin.onnx").predict("cat.jpg"))
    print(bnn_deploy.profile("nin.onnx", compare="nin_float.onnx"))

Running, verifying and profiling need onnxruntime and numpy; `convert`, and `verify` layer by layer, need the extra
'convert'.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from bnn_deploy.errors import BnnDeployError, InputError, SetupError

if TYPE_CHECKING:
    from bnn_deploy.conversion import Conversion, convert
    from bnn_deploy.image_input import ImageInput
    from bnn_deploy.preprocessing import Preprocessing
    from bnn_deploy.proof.results import Tolerances, Verification
    from bnn_deploy.proof.verification import verify
    from bnn_deploy.runtime.classifier import Classifier, Prediction
    from bnn_deploy.runtime.profile_results import ProfileReport
    from bnn_deploy.runtime.profiling import profile
    from bnn_deploy.runtime.session import LibraryInfo, library_info, load_session, register

try:
    __version__ = version("bnn-deploy")
except PackageNotFoundError:  # running from a source tree that is not installed
    __version__ = "0+unknown"

# Imported on first use: conversion needs torch, which a board does not have, and a command handles Ctrl-C before that.
_LAZY = {
    **dict.fromkeys(("LibraryInfo", "library_info", "load_session", "register"), "runtime.session"),
    "Classifier": "runtime.classifier",
    "Prediction": "runtime.classifier",
    "Preprocessing": "preprocessing",
    "Conversion": "conversion",
    "convert": "conversion",
    "ImageInput": "image_input",
    "ProfileReport": "runtime.profile_results",
    "profile": "runtime.profiling",
    "Tolerances": "proof.results",
    "Verification": "proof.results",
    "verify": "proof.verification",
}

__all__ = [
    "BnnDeployError",
    "Classifier",
    "Conversion",
    "ImageInput",
    "InputError",
    "LibraryInfo",
    "Prediction",
    "Preprocessing",
    "ProfileReport",
    "SetupError",
    "Tolerances",
    "Verification",
    "__version__",
    "convert",
    "library_info",
    "load_session",
    "profile",
    "register",
    "verify",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"bnn_deploy.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'bnn_deploy' has no attribute '{name}'")
