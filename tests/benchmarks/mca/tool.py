"""llvm-mca, and the CPUs that it models."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Sequence

from bnn_deploy.errors import SetupError
from mca.listing import Instruction

MIN_LLVM = 19
ARM = {  # llvm-mca's options
    "cortex-a53": ("-mtriple=aarch64", "-mcpu=cortex-a53"),
    "cortex-a72": ("-mtriple=aarch64", "-mcpu=cortex-a72"),
    "cortex-a76": ("-mtriple=aarch64", "-mcpu=neoverse-n1", "-dispatch=4"),  # the same core
}
X86 = {
    name: ("-mtriple=x86_64", f"-mcpu={name}")
    for name in ("haswell", "skylake-avx512", "icelake-server", "alderlake", "znver2", "znver3", "znver4", "znver5")
}
MODELS = ARM | X86


@functools.cache
def llvm_mca() -> str:
    names = [f"llvm-mca-{version}" for version in range(MIN_LLVM, MIN_LLVM + 12)] + ["llvm-mca"]
    found = [path for name in names if (path := shutil.which(name))]
    if not found:
        raise SetupError(f"no llvm-mca: install llvm-{MIN_LLVM} (Debian) or later")
    text = subprocess.run([found[0], "--version"], capture_output=True, text=True).stdout
    check_version(found[0], text)
    return found[0]


def check_version(tool: str, text: str) -> None:
    """Raises SetupError if llvm-mca's models of these cores are older than the figures'."""
    version = re.search(r"LLVM version (\d+)", text)
    if version is None or int(version[1]) < MIN_LLVM:
        raise SetupError(f"{tool} is LLVM {version[1] if version else '?'}: install llvm-{MIN_LLVM} or later")


def parse_cycles(report: str) -> int:
    total = re.search(r"^Total Cycles:\s+(\d+)$", report, re.MULTILINE)
    if total is None:
        raise SetupError("llvm-mca printed no 'Total Cycles'")
    return int(total[1])


@functools.cache
def cycles(assembly: tuple[str, ...], model: str, iterations: int = 400) -> float:
    """Cycles per iteration of straight-line code that llvm-mca repeats ``iterations`` times."""
    command = [llvm_mca(), f"-iterations={iterations}", *MODELS[model]]
    done = subprocess.run(command, input="\n".join([*assembly, "1:"]), capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[0]}")
    return parse_cycles(done.stdout) / iterations


def cycles_of(code: Sequence[Instruction], model: str, iterations: int = 400) -> float:
    return cycles(tuple(instruction.assembly for instruction in code), model, iterations)
