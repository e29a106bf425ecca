"""onnxruntime's own tools on converted models: what they write gives what the model gives; see docs/onnxruntime.md."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from bnn_deploy.runtime.session import library_info, library_path, load_session, register
from support.converted import Converted


def calls() -> int:
    """How often kernels were called so far."""
    return sum(library_info().calls.values())


def quiet() -> ort.SessionOptions:
    """Options with the library, without warnings."""
    options = register(ort.SessionOptions())
    options.log_severity_level = 3
    return options


def outputs(model: Path | str, x: NDArray[Any], options: ort.SessionOptions | None = None) -> NDArray[Any]:
    """What a session with the library makes of it."""
    session = ort.InferenceSession(str(model), options or quiet())
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(found)


def damaged(model: Path, path: Path) -> Path:
    """The model with the first bits of each word of its packed weights inverted, none of them unused."""
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.UINT32:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) ^ np.uint32(1023), tensor.name))
    onnx.save(proto, path)
    return path


def optimised(level: str) -> Callable[[Path, Path], None]:
    """Writes what onnxruntime makes of a model at a level of optimisation."""

    def write(model: Path, path: Path) -> None:
        options = quiet()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(str(model), options)

    return write


def ort_format(model: Path, path: Path) -> None:
    """Writes a model in onnxruntime's own format."""
    options = quiet()
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(str(model), options)


class Images(CalibrationDataReader):  # type: ignore[misc]
    """One batch of images."""

    def __init__(self, model: Path) -> None:
        (info,) = load_session(model).get_inputs()
        shape = [8, *info.shape[1:]]
        self._feeds = iter([{info.name: np.random.default_rng(1).standard_normal(shape).astype(np.float32)}])

    def get_next(self) -> Any:
        """The next batch."""
        return next(self._feeds, None)


def static(model: Path, path: Path) -> None:
    """Quantises the activations by their ranges."""
    quantize_static(model, path, Images(model))


def symbolic(model: Path, path: Path) -> None:
    """Adds shapes."""
    onnx.save(SymbolicShapeInference.infer_shapes(onnx.load(model), auto_merge=True), path)


def inferred(model: Path, path: Path) -> None:
    """Adds shapes by onnx."""
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(model), strict_mode=True), path)


def transformers(model: Path, path: Path) -> None:
    """Runs the fusions of transformers."""
    before = [*sys.path]
    from onnxruntime.transformers import optimizer  # which adds its own folder to the path

    sys.path[:] = before
    optimizer.optimize_model(str(model), opt_level=0).save_model_to_file(str(path))


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "basic.onnx": optimised("BASIC"),
    "extended.onnx": optimised("EXTENDED"),
    "all.onnx": optimised("ALL"),
    "format.ort": ort_format,
    "dynamic.onnx": lambda model, path: quantize_dynamic(model, path),
    "static.onnx": static,
    "symbolic.onnx": symbolic,
    "inferred.onnx": inferred,
    "transformers.onnx": transformers,
}


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_keep_what_the_model_computes(tool: str, lenet5: Converted, tmp_path: Path) -> None:
    """With the kernels, to the last bit; and what they make of a damaged model is told apart."""
    expected = outputs(lenet5.model, lenet5.images)
    TOOLS[tool](lenet5.model, tmp_path / tool)
    before = calls()
    np.testing.assert_array_equal(outputs(tmp_path / tool, lenet5.images), expected)
    assert calls() > before
    onnx.checker.check_model(lenet5.model, full_check=True)
    wrong = tmp_path / f"wrong_{tool}"
    TOOLS[tool](damaged(lenet5.model, tmp_path / "damaged.onnx"), wrong)
    assert not np.allclose(outputs(wrong, lenet5.images), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("tool", ["all.onnx", "format.ort"])
def test_standard_operators_between_ours(tool: str, nin: Converted, tmp_path: Path) -> None:
    """Of which onnxruntime may change the layout for this CPU."""
    expected = outputs(nin.model, nin.images)
    TOOLS[tool](nin.model, tmp_path / tool)
    before = calls()
    np.testing.assert_allclose(outputs(tmp_path / tool, nin.images), expected, rtol=1e-4, atol=1e-4)
    assert calls() > before


def test_optimised_files_need_the_library(lenet5: Converted, tmp_path: Path) -> None:
    """They have no function bodies, unlike the model itself."""
    stock = ort.InferenceSession(str(lenet5.model))
    assert stock.run(None, {stock.get_inputs()[0].name: lenet5.images[:1]})
    for tool in ("basic.onnx", "format.ort"):
        TOOLS[tool](lenet5.model, tmp_path / tool)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        with pytest.raises(Exception, match=r"bnn_deploy:\w+\(-?1\) is not a registered function/op"):
            ort.InferenceSession(str(tmp_path / tool), options)


def test_the_converter_to_ort_format(lenet5: Converted, tmp_path: Path) -> None:
    """With the library it keeps the operators; without it their bodies take their place, and no kernel runs."""
    (tmp_path / "model.onnx").write_bytes(lenet5.model.read_bytes())
    expected = outputs(lenet5.model, lenet5.images)
    found = {}
    for name, options in {"with": ["--custom_op_library", str(library_path())], "without": []}.items():
        command = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", "model.onnx"]
        command += ["--optimization_style", "Fixed", "--output_dir", name, *options]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        before = calls()
        found[name] = outputs(tmp_path / name / "model.ort", lenet5.images), calls() - before
    np.testing.assert_array_equal(found["with"][0], expected)
    assert found["with"][1] > 0
    np.testing.assert_allclose(found["without"][0], expected, rtol=1e-4, atol=1e-4)
    assert found["without"][1] == 0


def test_preparing_for_quantisation_loses_the_operators(lenet5: Converted, tmp_path: Path) -> None:
    """It optimises without the library; what is quantised then computes something else."""
    expected = outputs(lenet5.model, lenet5.images)
    quant_pre_process(lenet5.model, tmp_path / "prepared.onnx")
    assert not any(node.domain == "bnn_deploy" for node in onnx.load(tmp_path / "prepared.onnx").graph.node)
    quantize_dynamic(tmp_path / "prepared.onnx", tmp_path / "quantised.onnx")
    assert not np.allclose(outputs(tmp_path / "quantised.onnx", lenet5.images), expected, rtol=0.1, atol=0.1)
    quant_pre_process(lenet5.model, tmp_path / "kept.onnx", skip_optimization=True)
    quantize_dynamic(tmp_path / "kept.onnx", tmp_path / "quantised.onnx")
    np.testing.assert_array_equal(outputs(tmp_path / "quantised.onnx", lenet5.images), expected)


def parallel() -> ort.SessionOptions:
    """Options with threads within and between operators."""
    options = quiet()
    options.intra_op_num_threads, options.inter_op_num_threads = 3, 2
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    return options


def without_arena() -> ort.SessionOptions:
    """Options without an arena, and without a plan of the memory."""
    options = quiet()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    return options


def unoptimised() -> ort.SessionOptions:
    """Options without changes to the graph."""
    options = quiet()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def shared_allocator() -> ort.SessionOptions:
    """Options for sessions that share the process's allocator."""
    kind, memory = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, ort.OrtMemType.DEFAULT
    ort.create_and_register_allocator(ort.OrtMemoryInfo("Cpu", kind, 0, memory), None)
    options = quiet()
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


@pytest.mark.parametrize("make", [parallel, without_arena, unoptimised, shared_allocator])
def test_session_options(make: Callable[[], ort.SessionOptions], lenet5: Converted, tmp_path: Path) -> None:
    """Threads, memory and optimisation change no bit."""
    expected = outputs(lenet5.model, lenet5.images)
    np.testing.assert_array_equal(outputs(lenet5.model, lenet5.images, make()), expected)
    wrong = outputs(damaged(lenet5.model, tmp_path / "damaged.onnx"), lenet5.images, make())
    assert not np.allclose(wrong, expected, rtol=0.1, atol=0.1)


def test_bound_memory_and_a_shrinking_arena(lenet5: Converted) -> None:
    """Outputs in the caller's memory, inputs that change in place, and an arena given back after each run."""
    session = load_session(lenet5.model)
    name, result = session.get_inputs()[0].name, session.get_outputs()[0].name
    x = lenet5.images[:4].copy()
    out = np.full((4, 10), np.nan, np.float32)
    value = ort.OrtValue.ortvalue_from_numpy(x)
    binding = session.io_binding()
    binding.bind_ortvalue_input(name, value)
    binding.bind_output(result, "cpu", 0, np.float32, out.shape, out.ctypes.data)
    shrink = ort.RunOptions()
    shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    seen = []
    for images in (x, lenet5.images[4:8].copy()):
        value.update_inplace(images)
        session.run_with_iobinding(binding, shrink)
        (expected,) = session.run(None, {name: images}, shrink)
        np.testing.assert_array_equal(out, expected)
        seen.append(out.copy())
    assert (seen[0] != seen[1]).any()
