"""The user's code: the surroundings it runs in, and what PyTorch says of it, on one line with the line of that code."""

from __future__ import annotations

import io
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from bnn_deploy.errors import one_line
from bnn_deploy.source.on_cpu import OnCpu

_PACKAGES = Path(torch.__file__).parent.parent

_LIBRARIES = (
    *(str(_PACKAGES / name) for name in ("torch", "onnxscript", "onnx_ir")),
    str(Path(__file__).parent.parent),
)
"""The folders of torch, of its exporter and of this package: what is not in them is the user's code."""


def _is_own(file: str) -> bool:
    return not file.startswith((*_LIBRARIES, "<"))


def user_line(stack: str) -> str:
    """The innermost line of the user's code in a stack trace that PyTorch noted, as "net.py, line 12"; "" if none."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', stack)
    own = [f"{Path(file).name}, line {line}" for file, line in frames if _is_own(file)]
    return own[-1] if own else ""


def why(error: BaseException) -> str:
    """PyTorch's reason: that of the innermost cause, and the line of the user's code where it came up."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    reason = re.sub("\x1b\\[[0-9;]*m", "", str(chain[-1])) or type(chain[-1]).__name__
    if "data-dependent" in reason:
        reason = (
            "forward() depends on the values of a tensor, such as `if x.min() < 0` or `assert`, which no export keeps"
        )
    if "Constraints violated" in reason:
        reason = "forward() does something else for each batch size, such as a loop over the samples"
    frames = [frame for e in chain for frame in traceback.extract_tb(e.__traceback__)]
    own = [(frame.filename, str(frame.lineno)) for frame in frames if _is_own(frame.filename)]
    if "TorchScript interpreter" in reason:
        traced = [place for place in re.findall(r"^(\S.*)\((\d+)\): ", reason, re.MULTILINE) if _is_own(place[0])]
        own = traced[:1] or re.findall(r'File "([^"]+)", line (\d+)', reason)  # a trace has its innermost line first
        reason = reason.strip().splitlines()[-1].partition(":")[2].strip() or "an operator fails"
        if traced:
            hint = "torch.jit.trace keeps sizes such as len(x): it may run with the batch of its example alone"
            reason = f"{one_line(reason, 80)}; {hint}"
    where = f"{Path(own[-1][0]).name}, line {own[-1][1]}: " if own else ""
    return f"{where}{one_line(reason)}"


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
