"""verify(): what passes, what it measures, and what it says about what it cannot compare. See also its neighbours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from torch import nn

from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.proof import verification, verifier
from bnn_deploy.proof.backends import Backends
from bnn_deploy.proof.pieces import load_model, operator_nodes, split
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import library_info
from bnn_deploy.source.checkpoint import load_module
from support import networks
from support.converted import Converted, check
from support.networks import Signed

ISAS = list(library_info().isas)
BEST = ISAS[:1]


# What passes.


def test_lenet5_against_the_checkpoint(lenet5: Converted) -> None:
    result = check(lenet5, lenet5.checkpoint, 32, reference_samples=2)
    assert result.passed, result.failures
    assert result.isas == ISAS
    assert [(layer.layer, layer.kind, layer.values) for layer in result.layers] == [
        ("conv1", "bits", 32 * 20 * 12 * 12),
        ("bin_conv2.conv", "bits", 32 * 50 * 4 * 4),
        ("bin_ip1.linear", "floats", 32 * 500),
        ("ip2", "floats", 32 * 10),
    ]
    assert [op.op_type for op in result.operators] == [
        "DirectConvThreshold",
        "BinaryConvThreshold",
        "BinaryMaxPool",
        "BinaryConv",
        "ReluLinear",
    ]
    backends = ["bodies, onnxruntime", *(f"kernels, {isa}" for isa in ISAS), "bodies, ReferenceEvaluator"]
    assert [output.backend for output in result.outputs] == backends
    assert [output.samples for output in result.outputs] == [32] * (1 + len(ISAS)) + [2]
    assert all(list(op.differing) == backends[1:] for op in result.operators)
    assert all(output.same_class == output.samples for output in result.outputs)
    assert result.reference.startswith("PyTorch ")


def test_lenet5_against_the_float_model_and_the_module(lenet5: Converted) -> None:
    for against in (lenet5.float_model, load_module(lenet5.checkpoint, "lenet5")):
        result = check(lenet5, against, 16, isas=BEST)
        assert result.passed, result.failures
        assert result.isas == BEST


def test_a_thousand_images_with_labels(lenet5: Converted) -> None:
    images, labels = (t.numpy() for t in networks.mnist())
    result = verify(lenet5.model, lenet5.float_model, data=images, labels=labels, isas=BEST, reference_samples=1)
    assert result.passed, result.failures
    kernels = result.outputs[1]
    assert (kernels.samples, kernels.same_class, kernels.correct) == (1000, 1000, kernels.reference_correct)
    assert kernels.correct is not None and kernels.correct > 990
    assert sum(layer.values for layer in result.layers) == 1000 * (20 * 144 + 50 * 16 + 500 + 10)


def test_nin_against_the_checkpoint(nin: Converted) -> None:
    result = check(nin, nin.checkpoint, 4)
    assert result.passed, result.failures
    names = [layer.layer for layer in result.layers]
    assert [name for name in names if "xnor" in name] == [
        *(f"xnor.{i}" + ".conv" * (i > 0) for i in (0, 3, 4, 6, 7, 8, 10, 11)),
        "xnor.13",
    ]
    assert len(names) == 10  # and the sign behind the average pool


def test_nin_against_the_float_model(nin: Converted) -> None:
    result = check(nin, nin.float_model, 4, isas=BEST)
    assert result.passed, result.failures


def test_alexnet(alexnet: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    for against in (alexnet.checkpoint, alexnet.float_model):
        if against == alexnet.float_model:  # the operators, which take longest, are the same again: one will do
            monkeypatch.setattr(verifier, "operator_nodes", lambda model: operator_nodes(model)[:1])
        result = check(alexnet, against, 1, isas=BEST, reference_samples=0)
        assert result.passed, result.failures
        names = {layer.layer for layer in result.layers}
        layers = [f"features.{i}" + ".conv" * (i > 0) for i in (0, 4, 6, 7, 8)]
        assert names >= {*layers, "classifier.0.linear", "classifier.1.linear", "classifier.4"}
        assert [o.backend for o in result.outputs] == ["bodies, onnxruntime", f"kernels, {BEST[0]}"]


def test_batches(lenet5: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts add up over batches, and the last, smaller one counts as well."""
    whole = check(lenet5, lenet5.float_model, 11, isas=BEST, reference_samples=5)
    monkeypatch.setattr(verifier, "BATCH", 4)
    parts = check(lenet5, lenet5.float_model, 11, isas=BEST, reference_samples=5)
    assert parts.passed
    assert [layer.values for layer in parts.layers] == [layer.values for layer in whole.layers]
    assert [o.samples for o in parts.outputs] == [11, 11, 5]


# A wrong kernel.


def test_a_wrong_kernel_is_caught(lenet5: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit wrong, in one node, by one instruction set."""
    real = Backends.make

    def make(self: Any, model: Any, backend: str) -> Any:
        run = real(self, model, backend)
        if backend != f"kernels, {ISAS[-1]}" or [n.op_type for n in model.graph.node] != ["BinaryConvThreshold"]:
            return run

        def wrong(inputs: Any) -> Any:
            (result,) = (output.copy() for output in run(inputs))
            result.flat[3] ^= 1
            return [result]

        return wrong

    monkeypatch.setattr(Backends, "make", make)
    result = check(lenet5, lenet5.float_model, 4)
    assert result.failures == [
        f"BinaryConvThreshold 'bin_conv2.conv': kernels, {ISAS[-1]} differs from the function body in onnxruntime "
        "in 1 of 512 values"
    ]


def test_a_kernel_that_is_wrong_only_in_the_whole_model_is_caught(
    lenet5: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Backends.make
    whole = onnx.load(lenet5.model)

    def make(self: Any, model: Any, backend: str) -> Any:
        run = real(self, model, backend)
        is_whole = [o.name for o in model.graph.output] == [o.name for o in whole.graph.output]
        if backend == f"kernels, {ISAS[0]}" and is_whole and len(model.graph.node) == len(whole.graph.node):
            return lambda inputs: [np.roll(output, 1, axis=1) for output in run(inputs)]
        return run

    monkeypatch.setattr(Backends, "make", make)
    result = check(lenet5, lenet5.float_model, 4)
    assert [
        f.startswith("4 predictions differ for no reason within the tolerances; first: sample 0")
        for f in result.failures
    ] == [True, False]
    assert "only 0 of 4 samples agree" in result.failures[1]
    assert [(d.layer, d.explained) for d in result.disagreements] == [("", False)] * 4


def test_kernels_that_never_ran_are_a_failure(lenet5: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own count decides, not what was asked for."""
    real = verification.library_info
    monkeypatch.setattr(
        verification, "library_info", lambda *a: type(real())(**{**vars(real()), "calls": dict.fromkeys(ISAS, 0)})
    )
    result = check(lenet5, lenet5.float_model, 1)
    assert result.failures == [f"the kernels of {', '.join(ISAS)} did not run, by the library's own count"]


def test_a_sign_of_the_input_itself(tmp_path: Path, seeded_torch: None) -> None:
    """No layer before it: the pre-activation is the model's input."""
    module = nn.Sequential(nn.Identity(), Signed(nn.Conv2d(4, 6, 3)))
    result = convert(
        module, tmp_path / "m.onnx", input_shape=(4, 6, 6), float_output=tmp_path / "f.onnx", weights="xnor-centred"
    )
    x = np.random.default_rng(0).standard_normal((3, 4, 6, 6)).astype(np.float32)
    for against in (module, tmp_path / "f.onnx"):
        checked = verify(result.output, against, data=x)
        assert checked.passed, checked.failures
        assert [layer.kind for layer in checked.layers] == ["bits", "floats"]


def test_every_node_is_in_a_segment(lenet5: Converted, nin: Converted) -> None:
    for converted in (lenet5, nin):
        model = load_model(converted.model)
        assert {n for piece in split(model) for n in piece.nodes} == {n.name for n in model.graph.node}


# Results.


def test_json(lenet5: Converted) -> None:
    result = check(lenet5, lenet5.float_model, 2, isas=BEST)
    report = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert (report["passed"], report["failures"], report["isas"]) == (True, [], BEST)
    assert report["layers"][1]["layer"] == "bin_conv2.conv"
    assert report["tolerances"] == {
        "flip_margin": 1e-4,
        "float_relative": 1e-4,
        "quantized_flip_margin": 0.25,
        "quantized_float_relative": 0.05,
        "min_agreement": 0.75,
    }


def test_outputs_that_are_not_numbers_fail(lenet5: Converted, tmp_path: Path) -> None:
    model = onnx.load(lenet5.model)
    tensor = next(t for t in model.graph.initializer if t.name == "ip2.bias")
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[3] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, tmp_path / "nan.onnx")
    result = verify(tmp_path / "nan.onnx", lenet5.float_model, data=lenet5.images[:2], isas=BEST, reference_samples=1)
    assert "layer 'ip2': floats differ by up to inf" in result.failures[0]
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["layers"][3]["max_error"] is None


def test_progress_is_told(lenet5: Converted) -> None:
    steps: list[str] = []
    check(lenet5, lenet5.float_model, 2, isas=BEST, progress=steps.append)
    assert len(steps) == 2 + 5 + 4, "reading, then operators and layers"
    assert steps[-1] == "verifying: layer ip2, samples 0 to 1 (9 of 9)"


# What cannot be compared.


def test_random_inputs_when_none_are_given(lenet5: Converted) -> None:
    result = verify(lenet5.model, lenet5.float_model, samples=3, isas=BEST, reference_samples=1)
    assert (result.passed, result.samples) == (True, 3)
    assert result.data == "random normal inputs (give data for real ones)"


def test_unknown_isa(lenet5: Converted) -> None:
    with pytest.raises(SetupError, match="BNN_DEPLOY_ISA = 'sse9'"):
        check(lenet5, lenet5.float_model, 1, isas=["sse9"])


def test_against_another_architecture(lenet5: Converted, nin: Converted) -> None:
    with pytest.raises(InputError, match=r"its input is \['N', 3, 32, 32\], the converted model's \['N', 1, 28, 28\]"):
        check(lenet5, nin.float_model, 1)
    with pytest.raises(InputError, match="its keys do not fit LeNet5"):
        check(lenet5, nin.checkpoint, 1)


def test_against_the_converted_model_itself(lenet5: Converted) -> None:
    with pytest.raises(InputError, match="has operators of the domain bnn_deploy: it is converted already"):
        check(lenet5, lenet5.model, 1)


def test_against_other_weights(lenet5: Converted) -> None:
    """Another network of the same architecture: every layer that differs is named."""
    result = check(lenet5, networks.random_network("lenet5", seed=3), 4, isas=BEST)
    assert [f.split(":")[0] for f in result.failures[:4]] == [
        f"layer '{n}'" for n in ("conv1", "bin_conv2.conv", "bin_ip1.linear", "ip2")
    ]


def test_against_a_network_of_other_widths(lenet5: Converted) -> None:
    """The tensors have the same names and other shapes."""
    other = networks.random_network("lenet5", seed=3)
    other.conv1, other.bn_conv1 = nn.Conv2d(1, 40, 5), nn.BatchNorm2d(40)
    other.bin_conv2.bn, other.bin_conv2.conv = nn.BatchNorm2d(40), nn.Conv2d(40, 50, 5)
    result = check(lenet5, other.eval(), 2, isas=BEST)
    misfits = [failure for failure in result.failures if "it does not fit the reference" in failure]
    assert [failure.split(":")[0] for failure in misfits] == ["layer 'conv1'", "layer 'bin_conv2.conv'"]


# Without onnx: a board.


def test_outputs_alone_where_onnx_is_not_installed(
    lenet5: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = verification.importlib.util.find_spec
    monkeypatch.setattr(verification.importlib.util, "find_spec", lambda name: None if name == "onnx" else real(name))
    result = check(lenet5, lenet5.float_model, 8)
    assert result.passed
    assert (result.operators, result.layers) == ([], [])
    assert [o.backend for o in result.outputs] == ["bodies, onnxruntime", *(f"kernels, {isa}" for isa in ISAS)]
    assert "onnx is not installed" in result.notes[0]
    with pytest.raises(SetupError, match="to verify against a checkpoint, install torch and onnx"):
        check(lenet5, lenet5.checkpoint, 1)
    # A last layer whose outputs are in another order is caught by the classes.
    model = onnx.load(lenet5.model)
    tensor = next(t for t in model.graph.initializer if t.name == model.graph.node[-1].input[1])
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.roll(onnx.numpy_helper.to_array(tensor), 1, axis=1), tensor.name))
    onnx.save(model, tmp_path / "rolled.onnx")
    assert not verify(tmp_path / "rolled.onnx", lenet5.float_model, data=lenet5.images[:8]).passed


def test_stock_onnxruntime_was_used_for_the_bodies(lenet5: Converted) -> None:
    """Counted by the library: a session for the bodies makes no kernel call."""
    before = library_info().calls
    sessions = Backends(ISAS, 1)
    sessions.make(onnx.load(lenet5.model), sessions.BODIES)({"input": lenet5.images[:1]})
    assert library_info().calls == before
    sessions.make(onnx.load(lenet5.model), f"kernels, {ISAS[0]}")({"input": lenet5.images[:1]})
    assert library_info().calls[ISAS[0]] > before.get(ISAS[0], 0)
    assert ort.__version__
