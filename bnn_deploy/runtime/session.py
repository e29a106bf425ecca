"""onnxruntime sessions with the operator library registered. Needs onnxruntime and numpy only."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.file_kind import ORT_FORMAT, not_onnx
from bnn_deploy.files import require_file, require_utf8
from bnn_deploy.system import library_name, usable_cpus

MINIMUM_ONNXRUNTIME = (1, 19)

ISA_VARIABLE = "BNN_DEPLOY_ISA"

PROVIDERS = ["CPUExecutionProvider"]

FATAL = 4
"""onnxruntime's log severity that leaves errors out."""

SPINNING = "session.intra_op.allow_spinning"
"""onnxruntime's session configuration entry: whether threads without work spin for a while before they sleep."""

_REGISTERED = "bnn_deploy.registered"
"""Session configuration entry that marks options which have the library: a second registration would be refused."""

# BNN_DEPLOY_ISA belongs to the process and is read while a session is made: two threads must not make sessions at once.
_isa_lock = threading.RLock()


@dataclass(frozen=True)
class LibraryInfo:
    """The operator library's report about itself.

    Attributes:
        version: the library's version.
        isas: the instruction sets that it has kernels for and this machine can run, best first.
        selected: the instruction set that a session made now would use.
        calls: micro-kernel calls in this process so far, per instruction set: they prove which kernels ran.
        integer_bits: bits that ImageConvThreshold made by integer sums in this process so far.
        undecided_bits: those of them that the integer sums left undecided, so that they were summed as floats.
    """

    version: str
    isas: tuple[str, ...]
    selected: str
    calls: dict[str, int]
    integer_bits: int
    undecided_bits: int


def library_path() -> Path:
    """Path of the operator library.

    Raises:
        SetupError: it is not where the installation puts it.
    """
    path = Path(str(resources.files("bnn_deploy") / "_lib" / library_name(sys.platform)))
    if not path.is_file():
        raise SetupError(
            f"the operator library {path} is missing: "
            "reinstall bnn-deploy with 'pip install .' (it needs a C++ compiler)"
        )
    return path


def check_onnxruntime(version: str | None = None) -> None:
    """Check that onnxruntime is recent enough for the models' IR and opset version.

    Raises:
        SetupError: it is too old.
    """
    version = version or ort.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_ONNXRUNTIME:
        wanted = ".".join(map(str, MINIMUM_ONNXRUNTIME))
        raise SetupError(f"onnxruntime {version} is too old: run 'pip install \"onnxruntime>={wanted}\"'")


def register(options: ort.SessionOptions) -> ort.SessionOptions:
    """Register the operator library with session options, unless they have it, and return the options.

    Raises:
        SetupError: onnxruntime is too old, or the library is missing or does not load.
    """
    check_onnxruntime()
    path = library_path()
    if _has_library(options):
        return options
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime's exception types are not public
        raise SetupError(f"onnxruntime {ort.__version__} could not load {path}: {_first_line(error)}") from error
    options.add_session_config_entry(_REGISTERED, "1")
    return options


def _has_library(options: ort.SessionOptions) -> bool:
    try:
        options.get_session_config_entry(_REGISTERED)
    except Exception:  # how onnxruntime says that there is no such entry
        return False
    return True


@contextmanager
def _forced_isa(isa: str | None) -> Iterator[None]:
    with _isa_lock:
        before = os.environ.get(ISA_VARIABLE)
        try:
            if isa is not None:
                os.environ[ISA_VARIABLE] = isa
            yield
        finally:
            if before is None:
                os.environ.pop(ISA_VARIABLE, None)
            else:
                os.environ[ISA_VARIABLE] = before


def load_session(
    model: str | os.PathLike[str] | bytes,
    threads: int | None = None,
    *,
    isa: str | None = None,
    kernels: bool = True,
    fold: bool = True,
    options: ort.SessionOptions | None = None,
) -> ort.InferenceSession:
    """Make an onnxruntime session that runs `model` with the C++ kernels.

    Args:
        model: path of an .onnx file, or its bytes.
        threads: intra-op threads, at least 1; None leaves onnxruntime's default (one per core). More than this process
            has CPUs sleep while they wait, instead of spinning.
        isa: force an instruction set (see `library_info().isas`), like BNN_DEPLOY_ISA but for this session only.
        kernels: False leaves the library out, so that onnxruntime runs the function bodies in the file.
        fold: False lets onnxruntime compute constants, such as weights from their bits, in each run: that is slow, and
            takes less memory.
        options: session options to start from.

    Returns:
        An ordinary onnxruntime.InferenceSession on the CPU.

    Raises:
        InputError: the file is missing, truncated or not a model that onnxruntime accepts; `threads` is below 1.
        SetupError: onnxruntime is too old, the library is missing, the instruction set is unknown or not on this
            machine.
    """
    check_onnxruntime()
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}: it must be at least 1")
    options = options or ort.SessionOptions()
    if options.log_severity_level < 0:  # not set: errors arrive as exceptions, and need no log
        options.log_severity_level = FATAL
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if threads > usable_cpus():
            # A waiting thread that spins would keep the CPU from the one that it waits for.
            options.add_session_config_entry(SPINNING, "0")
    if kernels:
        register(options)
    name = "the model"
    if not isinstance(model, bytes):
        name = str(model)
        require_file(model)
        require_utf8(model)
        model = str(model)
    with _forced_isa(isa):
        try:
            unused = [] if fold else ["ConstantFolding"]
            session = ort.InferenceSession(model, options, providers=PROVIDERS, disabled_optimizers=unused)
        except Exception as error:  # onnxruntime's exception types are not public
            _raise_isa_error(error)
            what = None if isinstance(model, bytes) else not_onnx(Path(model))
            if what is None or what == ORT_FORMAT:
                what = f"onnxruntime cannot load it: {_first_line(error)}"
            raise InputError(f"{name}: {what}") from error
    release_bytes(session)
    return session


def release_bytes(session: ort.InferenceSession) -> None:
    """Let a session go without the bytes that it was made of: it keeps them for other providers, and has none."""
    session._model_bytes = b""


def library_info(isa: str | None = None) -> LibraryInfo:
    """Ask the operator library for its version, the ISAs that this machine can run, and the kernel calls so far.

    Raises:
        SetupError: as `load_session`.
    """
    model = (resources.files("bnn_deploy") / "_lib" / "library_info.onnx").read_bytes()
    with _forced_isa(isa):  # the operator reads BNN_DEPLOY_ISA when it runs
        session = load_session(model, threads=1)
        try:
            (text,) = session.run(None, {"X": np.zeros(1, dtype=np.int64)})
        except Exception as error:  # onnxruntime's exception types are not public
            _raise_isa_error(error)
            raise
    info: dict[str, Any] = json.loads(np.asarray(text).tobytes().decode())
    return LibraryInfo(**info | {"isas": tuple(info["isas"])})


def _raise_isa_error(error: Exception) -> None:
    """Turn the library's complaint about BNN_DEPLOY_ISA into a SetupError; return if `error` is something else."""
    _, name, rest = _first_line(error).partition(f"{ISA_VARIABLE} = ")
    if name:
        raise SetupError(name + rest) from error


def _first_line(error: Exception) -> str:
    """The first line of onnxruntime's message, without the prefix "[ONNXRuntimeError] : 1 : FAIL : "."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
