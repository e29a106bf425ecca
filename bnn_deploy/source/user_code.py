"""The user's code: the surroundings it runs in, and what PyTorch says of it, on one line with the line of that code."""

from __future__ import annotations

import io
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from bnn_deploy.errors import BnnDeployError, InputError, one_line
from bnn_deploy.source.on_cpu import OnCpu

_PACKAGES = Path(torch.__file__).parent.parent

_LIBRARIES = (
    *(str(_PACKAGES / name) for name in ("torch", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "numpy")),
    str(Path(__file__).parent.parent),
    str(Path(io.__file__).parent) + "/",
)
"""The folders of torch, its exporter, this package and Python: what is not in them is the user's code."""


def is_own(file: str) -> bool:
    """Whether a file is the user's code, or that of a package that is none of the libraries here."""
    # Packages may be in a folder of Python's own.
    library = file.startswith(_LIBRARIES[:-1]) or (file.startswith(_LIBRARIES[-1]) and "-packages" not in file)
    return not library and not file.startswith("<")


def user_line(stack: str) -> str:
    """The innermost line of the user's code in a stack trace that PyTorch noted, as "net.py, line 12"; "" if none."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', stack)
    own = [f"{Path(file).name}, line {line}" for file, line in frames if is_own(file)]
    return own[-1] if own else ""


def why(error: BaseException) -> str:
    """PyTorch's reason: that of the innermost cause, and the line of the user's code where it came up."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    reason = re.sub("\x1b\\[[0-9;]*m", "", str(chain[-1])) or type(chain[-1]).__name__
    if isinstance(chain[-1], SystemExit):
        reason = f"ended the program (SystemExit: {chain[-1]}), which only a script may do"
    if "data-dependent" in reason:
        reason = (
            "forward() depends on the values of a tensor, such as `if x.min() < 0` or `assert`, which no export keeps"
        )
    if "Constraints violated" in reason:
        reason = "forward() does something else for each batch size, such as a loop over the samples"
    own = _own_lines(chain)
    if "TorchScript interpreter" in reason:
        traced = [place for place in re.findall(r"^(\S.*)\((\d+)\): ", reason, re.MULTILINE) if is_own(place[0])]
        own = traced[:1] or re.findall(r'File "([^"]+)", line (\d+)', reason)  # a trace has its innermost line first
        reason = reason.strip().splitlines()[-1].partition(":")[2].strip() or "an operator fails"
        if traced:
            hint = "torch.jit.trace keeps sizes such as len(x): it may run with the batch of its example alone"
            reason = f"{one_line(reason, 80)}; {hint}"
    where = f"{Path(own[-1][0]).name}, line {own[-1][1]}: " if own else ""
    return f"{where}{one_line(reason)}"


def _own_lines(errors: Iterable[BaseException]) -> list[tuple[str, str]]:
    """The files and lines of the user's code in the tracebacks of exceptions."""
    frames = [frame for error in errors for frame in traceback.extract_tb(error.__traceback__)]
    return [(frame.filename, str(frame.lineno)) for frame in frames if is_own(frame.filename)]


@contextmanager
def users_network(name: str) -> Iterator[None]:
    """Blame on a network what its own code raises, wherever that runs: in a property, a hook of copying, a buffer.

    Args:
        name: the network's, in errors.

    Raises:
        InputError: its code raised an exception, or ended the program.
    """
    try:
        yield
    except BnnDeployError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) or _own_lines([error]):
            raise InputError(f"{name}: its code fails: {why(error)}") from error
        raise


@contextmanager
def without_output() -> Iterator[None]:
    """Keep PyTorch's progress messages, internal warnings and graphs off the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def users_code() -> Iterator[None]:
    """While it is active, networks are on the CPU, and what they print goes to stderr: results alone go to stdout."""
    with OnCpu(), redirect_stdout(sys.stderr):
        yield


@contextmanager
def as_script(file: Path) -> Iterator[None]:
    """`users_code` that sees the command line of `python FILE.py`, and not that of this package."""
    own = sys.argv
    sys.argv = [str(file)]
    try:
        with users_code():
            yield
    finally:
        sys.argv = own
