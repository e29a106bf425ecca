"""Sessions: what goes wrong and what it says, which instruction set runs, and that the environment stays as it was."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bnn_deploy.errors import BnnDeployError, InputError, SetupError
from bnn_deploy.operators import bodies
from bnn_deploy.operators.contract import DOMAIN, OPSET, VERSION
from bnn_deploy.runtime import session
from bnn_deploy.runtime.session import (
    ISA_VARIABLE,
    SPINNING,
    check_onnxruntime,
    library_info,
    library_path,
    load_session,
    register,
)
from bnn_deploy.system import library_name

ISAS = library_info().isas


@pytest.fixture(autouse=True)
def environment_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts without BNN_DEPLOY_ISA and must leave the environment as it found it."""
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    before = dict(os.environ)
    yield
    assert {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"} == {
        k: v for k, v in before.items() if k != "PYTEST_CURRENT_TEST"
    }


def binary_model() -> bytes:
    """y = 0.5 * (x . w) + 1 for bits of two channels, w = (+1, -1)."""
    attributes = {"channels": 2, "kernel_shape": [1, 1], "strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1]}
    node = helper.make_node("BinaryConv", ["X", *"wsbp"], ["Y"], domain="bnn_deploy", group=1, **attributes)
    constants = {
        "w": np.array([[[[0b01]]]], np.uint32),
        "s": np.array([0.5], np.float32),
        "b": np.array([1], np.float32),
        "p": np.zeros(1, np.float32),
    }
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("X", TensorProto.UINT32, ["N", 1, 1, 1])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", 1, 1, 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    functions = [ir.to_proto(function) for function in bodies.functions([node.op_type])]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10).SerializeToString()


MODEL = binary_model()
BITS = np.arange(4, dtype=np.uint32).reshape(4, 1, 1, 1)  # (- -), (+ -), (- +), (+ +)
EXPECTED = [1.0, 2.0, 0.0, 1.0]  # 0.5 * (0, 2, -2, 0) + 1


def run(s: ort.InferenceSession, bits: NDArray[np.uint32] = BITS) -> list[float]:
    return s.run(None, {"X": bits})[0].flatten().tolist()


def which_ran(s: ort.InferenceSession) -> dict[str, int]:
    """Micro-kernel calls that one run makes, per instruction set that made any."""
    before = library_info().calls
    assert run(s) == EXPECTED
    after = library_info().calls
    return {isa: after[isa] - before[isa] for isa in after if after[isa] != before[isa]}


# --- what the library says and which kernel runs ----------------------------------------------------------------


def listed_isas() -> list[str]:
    """The instruction sets of the library's sources, those of other architectures included, in their order."""
    isas = Path(__file__).parents[2] / "custom_ops/kernels/isas.inc"
    return re.findall(r"^BNN_DEPLOY_ISA\((\w+),", isas.read_text(), re.MULTILINE)


def test_library_info() -> None:
    info = library_info()
    assert info.isas[-1] == "scalar"
    assert [name for name in listed_isas() if name in info.isas] == list(info.isas)
    assert info.selected == info.isas[0]
    assert set(info.calls) == set(info.isas)
    assert info.version
    assert library_path().name == library_name(sys.platform)


@pytest.mark.parametrize("isa", ISAS)
def test_the_forced_instruction_set_is_the_one_that_runs(isa: str) -> None:
    assert library_info(isa).selected == isa
    s = load_session(MODEL, 1, isa=isa)
    assert ISA_VARIABLE not in os.environ
    assert list(which_ran(s)) == [isa]


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_variable_forces_too(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, isa)
    assert library_info().selected == isa
    assert list(which_ran(load_session(MODEL, 1))) == [isa]
    monkeypatch.undo()


def test_the_argument_goes_before_the_environment_variable_and_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(ISA_VARIABLE, ISAS[0])
        assert list(which_ran(load_session(MODEL, 1, isa="scalar"))) == ["scalar"]
        assert os.environ[ISA_VARIABLE] == ISAS[0]


def test_without_kernels_no_micro_kernel_runs() -> None:
    assert which_ran(load_session(MODEL, 1, kernels=False)) == {}
    assert which_ran(load_session(MODEL, 1)) != {}


def test_two_threads_with_different_instruction_sets_do_not_mix() -> None:
    wanted = [ISAS[i % len(ISAS)] for i in range(24)]
    made: list[ort.InferenceSession | None] = [None] * len(wanted)
    start = threading.Barrier(2)

    def make(first: int) -> None:
        start.wait()
        for i in range(first, len(wanted), 2):
            made[i] = load_session(MODEL, 1, isa=wanted[i])

    threads = [threading.Thread(target=make, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for isa, s in zip(wanted, made, strict=True):
        assert s is not None
        assert list(which_ran(s)) == [isa]


@pytest.mark.parametrize("name", ["avx1024", "AVX2", " scalar", "neon" if "neon" not in ISAS else "avx2"])
def test_unknown_instruction_set_is_an_error_that_lists_the_possible_ones(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pattern = rf"BNN_DEPLOY_ISA = '{name}': this machine can run {', '.join(ISAS)}"
    with pytest.raises(SetupError, match=pattern):
        load_session(MODEL, isa=name)
    assert ISA_VARIABLE not in os.environ
    with pytest.raises(SetupError, match=pattern):
        library_info(name)
    assert ISA_VARIABLE not in os.environ
    with monkeypatch.context() as patch:
        patch.setenv(ISA_VARIABLE, name)
        with pytest.raises(SetupError, match=pattern):
            load_session(MODEL)
        with pytest.raises(SetupError, match=pattern):
            library_info()
        assert os.environ[ISA_VARIABLE] == name
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""  # one line, in the exception: no log of onnxruntime's beside it


# --- options ----------------------------------------------------------------------------------------------------


def test_a_path_and_bytes_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL)
    assert run(load_session(path)) == run(load_session(str(path))) == run(load_session(MODEL)) == EXPECTED
    assert run(load_session(MODEL), BITS[::-1].copy()) != EXPECTED


def test_threads_are_set_or_left_alone() -> None:
    assert load_session(MODEL, 3).get_session_options().intra_op_num_threads == 3
    assert load_session(MODEL).get_session_options().intra_op_num_threads == 0


@pytest.mark.parametrize(("threads", "spins"), [(1, True), (2, True), (3, False)])
def test_more_threads_than_cpus_do_not_spin(threads: int, spins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "usable_cpus", lambda: 2)
    options = load_session(MODEL, threads).get_session_options()
    assert options.intra_op_num_threads == threads
    if spins:
        with pytest.raises(RuntimeError, match="allow_spinning"):  # no such entry
            options.get_session_config_entry(SPINNING)
    else:
        assert options.get_session_config_entry(SPINNING) == "0"


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one_are_an_error(threads: int) -> None:
    with pytest.raises(InputError, match=rf"threads is {threads}: it must be at least 1"):
        load_session(MODEL, threads)


def test_register_gives_the_options_back_and_works_without_load_session() -> None:
    options = ort.SessionOptions()
    assert register(options) is options
    s = ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    assert list(which_ran(s)) == [ISAS[0]]


def test_options_may_be_registered_and_used_more_than_once() -> None:
    options = register(register(ort.SessionOptions()))
    for _ in range(2):
        assert which_ran(load_session(MODEL, options=options)) != {}


def test_the_users_log_level_is_kept() -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 2
    assert load_session(MODEL, options=options).get_session_options().log_severity_level == 2


# --- files that are no models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", [True, False])
def test_missing_file(kernels: bool, tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(InputError, match=rf"{path}: no such file"):
            load_session(path, kernels=kernels)


@pytest.mark.parametrize(
    "content",
    [
        MODEL[: len(MODEL) // 2],
        MODEL[:-1],
        MODEL[:20],
        b"",
        b"not a model\n" * 40,
        b"PK\x03\x04" + bytes(200),
        b"\x80\x02}q\x00.",
    ],
    ids=["half", "one byte short", "its start", "empty", "text", "zip", "pickle"],
)
@pytest.mark.parametrize("kernels", [True, False])
def test_file_that_is_no_model(
    content: bytes, kernels: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    for model, name in ((path, str(path)), (content, "the model")):
        with pytest.raises(InputError, match=rf"^{name}: onnxruntime cannot load it: \w") as caught:
            load_session(model, kernels=kernels)
        assert "\n" not in str(caught.value)
        assert "ONNXRuntimeError" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_exit_codes() -> None:
    assert (InputError.exit_code, SetupError.exit_code, BnnDeployError.exit_code) == (2, 3, 1)
    assert issubclass(InputError, BnnDeployError) and issubclass(SetupError, BnnDeployError)


# --- a machine that is not set up -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.18.1", "1.9.0", "0.99", "1.18.0rc1"])
def test_old_onnxruntime(version: str) -> None:
    with pytest.raises(
        SetupError, match=rf"onnxruntime {version} is too old: run 'pip install \"onnxruntime>=1\.19\"'"
    ):
        check_onnxruntime(version)


@pytest.mark.parametrize("version", ["1.19.0", "1.19.0+cpu", "1.31.1", "1.100.0.dev20260101", "2.0"])
def test_recent_onnxruntime(version: str) -> None:
    check_onnxruntime(version)
    check_onnxruntime()


def test_old_onnxruntime_stops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "__version__", "1.18.1")
    for use in (
        lambda: load_session(MODEL),
        lambda: load_session(MODEL, kernels=False),
        lambda: register(ort.SessionOptions()),
        library_info,
    ):
        with pytest.raises(SetupError, match=r"onnxruntime 1\.18\.1 is too old"):
            use()


@pytest.fixture
def other_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An installation's folder of our own; returns where its library belongs."""
    library = tmp_path / "_lib" / library_name(sys.platform)
    library.parent.mkdir()
    (library.parent / "library_info.onnx").write_bytes((library_path().parent / "library_info.onnx").read_bytes())
    monkeypatch.setattr(session.resources, "files", lambda _: tmp_path)
    return library


def test_missing_library(other_package: Path) -> None:
    path = re.escape(str(other_package))
    for use in (library_path, lambda: load_session(MODEL), lambda: register(ort.SessionOptions()), library_info):
        with pytest.raises(SetupError, match=rf"library {path} is missing: reinstall .*pip install"):
            use()
    assert run(load_session(MODEL, kernels=False)) == EXPECTED  # the function bodies need no library


def test_broken_library(other_package: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other_package.write_bytes(b"not a shared library")
    path = re.escape(str(other_package))
    with pytest.raises(SetupError, match=rf"onnxruntime {ort.__version__} could not load {path}: ") as caught:
        load_session(MODEL)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_failed_registration_is_not_taken_for_one(other_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_package.write_bytes(b"not a shared library")
    options = ort.SessionOptions()
    with pytest.raises(SetupError):
        register(options)
    monkeypatch.undo()
    assert which_ran(load_session(MODEL, options=options)) != {}
