"""Golden results: what passes, which damage is caught, and what rounding excuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from conftest import Converted
from onnx import numpy_helper
from test_corruption import CASES, Damage, damaged, flip_weight_bit, move_threshold

from bnn_deploy.cli import main
from bnn_deploy.conversion import convert
from bnn_deploy.errors import InputError, SetupError
from bnn_deploy.operators.bits import unpack_bits
from bnn_deploy.proof.golden import check, make
from bnn_deploy.proof.golden.check import GoldenVerification, check_golden
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.golden.record import Golden, read_golden, write_golden
from bnn_deploy.runtime.session import library_info, load_session

ISAS = list(library_info().isas)
BEST = ISAS[:1]


@pytest.fixture(scope="module")
def birealnet18(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return conftest._converted("birealnet18", tmp_path_factory, 3, calibration=16)


@pytest.fixture(scope="module")
def nin_int8(nin: Converted, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """NIN with 8-bit first and last layers."""
    path = tmp_path_factory.mktemp("int8") / "nin_int8.onnx"
    conversion = convert(nin.checkpoint, path, arch="nin", calibration=nin.images)
    return Converted(nin.checkpoint, conversion, nin.images)


@pytest.fixture(scope="module")
def goldens(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Converted, int], Path]:
    """A function that makes the golden file of a model, once."""
    made: dict[Path, Path] = {}

    def write(converted: Converted, samples: int) -> Path:
        path = made.get(converted.model)
        if path is None:
            path = made[converted.model] = tmp_path_factory.mktemp("golden") / "golden.npz"
            write_golden(make_golden(converted.model, converted.images[:samples]), path)
        return path

    return write


def rewrite(path: Path, golden: Golden, model: Path | None = None, **changes: Any) -> Path:
    """Write a golden file with some of its fields changed; with `model`, as if it were made from that one."""
    if model is not None:
        changes["model_sha256"] = hashlib.sha256(model.read_bytes()).hexdigest()
    write_golden(dataclasses.replace(golden, **changes), path)
    return path


# What passes.


@pytest.mark.parametrize(
    ("arch", "samples", "bodies"), [("lenet5", 32, 3), ("nin", 5, 1), ("alexnet", 1, 0), ("birealnet18", 2, 1)]
)
def test_this_machine_gives_its_own_results_again(
    arch: str, samples: int, bodies: int, request: pytest.FixtureRequest, goldens: Callable[[Converted, int], Path]
) -> None:
    """By the kernels of every instruction set, and by the function bodies (AlexNet's are slow)."""
    converted: Converted = request.getfixturevalue(arch)
    result = check_golden(converted.model, goldens(converted, samples), body_samples=bodies)
    assert result.passed, result.failures
    assert result.isas == ISAS
    counts = {f"kernels, {isa}": samples for isa in ISAS} | ({"bodies, onnxruntime": bodies} if bodies else {})
    assert [(o.backend, o.samples, o.identical, o.flipped) for o in result.outputs] == [
        (backend, count, count, 0) for backend, count in counts.items()
    ]
    assert all(output.same_class == output.samples for output in result.outputs)
    assert all(layer.bits > 0 and layer.differing == 0 for layer in result.layers)
    assert all(floats.values > 0 and floats.differing == 0 for floats in result.float_layers)
    # Every binary layer is there, with bits or floats.
    graph = onnx.load(converted.model).graph
    layers = {node.name for node in graph.node if node.op_type.startswith("BinaryConv")}
    assert layers <= {layer.layer for layer in result.layers} | {floats.layer for floats in result.float_layers}
    # Every bit tensor of the model is there, and only those that are made from floats may have near bits.
    nodes = {output: node for node in graph.node for output in node.output}
    from_floats = {layer.tensor for layer in result.layers if layer.made_from == "floats"}
    assert from_floats == {layer.tensor for layer in result.layers if nodes[layer.tensor].op_type in make.FROM_FLOATS}
    assert all(layer.near == 0 for layer in result.layers if layer.tensor not in from_floats)
    assert all(layer.near < 1e-3 * layer.bits for layer in result.layers)


def test_what_is_recorded(nin: Converted, goldens: Callable[[Converted, int], Path]) -> None:
    result = check_golden(nin.model, goldens(nin, 5), isas=BEST, body_samples=0)
    assert [(layer.layer, layer.made_from, layer.bits // 5) for layer in result.layers] == [
        ("xnor.0", "floats", 192 * 32 * 32),
        ("xnor.3.conv", "integers", 160 * 32 * 32),
        ("xnor.4.conv", "integers", 96 * 32 * 32),
        ("max_pool2d_bits", "integers", 96 * 16 * 16),
        ("xnor.6.conv", "integers", 192 * 16 * 16),
        ("xnor.7.conv", "integers", 192 * 16 * 16),
        ("sign_5", "floats", 192 * 8 * 8),
        ("xnor.10.conv", "integers", 192 * 8 * 8),
    ]
    assert [(floats.layer, floats.values // 5) for floats in result.float_layers] == [
        ("xnor.8.conv", 192 * 16 * 16),
        ("xnor.11.conv", 192 * 8 * 8),
    ]
    assert [output.backend for output in result.outputs] == [f"kernels, {BEST[0]}"]


def test_the_golden_bits_are_those_of_the_model(lenet5: Converted, goldens: Callable[[Converted, int], Path]) -> None:
    """Seen by onnx's own means: a model that has them as outputs."""
    golden = read_golden(goldens(lenet5, 32))
    model = onnx.load(lenet5.model)
    for tensor in golden.tensors:
        model.graph.output.append(onnx.helper.make_tensor_value_info(tensor.tensor, onnx.TensorProto.UINT32, None))
    session = load_session(model.SerializeToString(), 1, kernels=False)
    output, *bits = session.run(None, {"input": lenet5.images})
    np.testing.assert_allclose(golden.output, output, atol=1e-4)
    for tensor, array in zip(golden.tensors, bits, strict=True):
        assert (tensor.bits == array).all()
        assert tensor.bits.any()


def test_int8_edges(nin_int8: Converted, goldens: Callable[[Converted, int], Path]) -> None:
    result = check_golden(nin_int8.model, goldens(nin_int8, 5))
    assert result.passed, result.failures
    assert [layer.layer for layer in result.layers if layer.quantized] == ["xnor.0"]
    assert result.float_relative == 0.05
    assert result.layers[0].near > 0.01 * result.layers[0].bits  # where one level decides


def test_the_same_bytes_again(lenet5: Converted, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_golden(make_golden(lenet5.model, lenet5.images[:3]), tmp_path / name)
        os.utime(lenet5.model)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    write_golden(make_golden(lenet5.model, lenet5.images[:4]), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() != (tmp_path / "b.npz").read_bytes()


def test_what_is_written_is_read(lenet5: Converted, tmp_path: Path) -> None:
    made = make_golden(lenet5.model, lenet5.images[:3])
    write_golden(made, tmp_path / "golden.npz")
    read = read_golden(tmp_path / "golden.npz")
    np.testing.assert_equal(dataclasses.asdict(read), dataclasses.asdict(made))


def test_random_inputs_when_none_are_given(lenet5: Converted) -> None:
    assert make_golden(lenet5.model, samples=3).input.shape == (3, 1, 28, 28)


def test_a_sign_of_the_input_itself(tmp_path: Path, seeded_torch: None) -> None:
    """No layer before it, and nothing behind the last bits but the output."""
    from test_verification import Signed
    from torch import nn

    model = convert(nn.Sequential(Signed(nn.Conv2d(4, 6, 3))), tmp_path / "m.onnx", input_shape=(4, 6, 6)).output
    x = np.random.default_rng(0).standard_normal((3, 4, 6, 6)).astype(np.float32)
    x[1, 2, 3, 4] = -1e-6
    write_golden(make_golden(model, x), tmp_path / "golden.npz")
    result = check_golden(model, tmp_path / "golden.npz")
    assert result.passed, result.failures
    assert [(layer.made_from, layer.near) for layer in result.layers] == [("floats", 1)]
    assert [output.same_class for output in result.outputs] == [None] * (len(ISAS) + 1)


# Damage. The golden file is made from the right model and then says that it is the damaged one's.


def check_damaged(
    converted: Converted, model: Path, golden: Path, folder: Path, isas: list[str] = BEST
) -> GoldenVerification:
    return check_golden(model, rewrite(folder / "golden.npz", read_golden(golden), model), isas=isas, body_samples=0)


def test_the_undamaged_model_passes_the_same_check(
    nin: Converted, goldens: Callable[[Converted, int], Path], tmp_path: Path
) -> None:
    assert check_damaged(nin, nin.model, goldens(nin, 5), tmp_path).passed


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}: {case[1]}")
def test_damage_is_found_and_named(
    case: tuple[str, str, Callable[[Damage, str], None], str],
    request: pytest.FixtureRequest,
    goldens: Callable[[Converted, int], Path],
    tmp_path: Path,
) -> None:
    arch, what, edit, layer = case
    converted: Converted = request.getfixturevalue(arch)
    golden = goldens(converted, {"lenet5": 32, "nin": 5}[arch])
    model = damaged(converted, edit, layer, tmp_path / "damaged.onnx")
    result = check_damaged(converted, model, golden, tmp_path)
    assert not result.passed
    failed = [found.layer for found in result.layers if not found.passed]
    failed += [found.layer for found in result.float_layers if not found.passed]
    free = [failure for failure in result.failures if "running free" in failure]
    if what == "another output shape":
        assert "its results do not have the golden ones' shapes: layer 'bin_conv2.conv'" in result.failures[0]
    elif what in ("pad", "pool's pad"):  # attributes: the probe, which feeds the layers, has its own copy of them
        named = "max_pool2d_bits" if what == "pool's pad" else layer
        assert len(free) == 1
        assert f"layer '{named}' is the first with other bits, and not by rounding; sample 0" in free[0]
    else:
        # Each layer is fed with golden bits; only the floats of xnor.8.conv go on to another that looks at them.
        after = ["sign_5"] if layer == "xnor.8.conv" else []
        assert failed == [*after, layer], "the damaged layer, and no other"
        if layer in {found.layer for found in result.layers}:
            assert f"layer '{layer}' is the first with other bits, and not by rounding" in free[0]


@pytest.mark.parametrize("layer", ["layer1.0.binary_conv", "layer3.1.binary_conv", "layer4.2.binary_conv"])
def test_a_flipped_weight_bit_in_a_residual_block(
    birealnet18: Converted, layer: str, goldens: Callable[[Converted, int], Path], tmp_path: Path
) -> None:
    """Their bits hang on floats from all blocks before; what the block adds to these is exact, and checked alone."""
    model = damaged(birealnet18, flip_weight_bit, layer, tmp_path / "damaged.onnx")
    result = check_damaged(birealnet18, model, goldens(birealnet18, 2), tmp_path)
    assert [found.layer for found in result.float_layers if not found.passed] == [layer]


@pytest.mark.parametrize("tensor", range(4))
def test_one_flipped_bit_in_the_golden_file(
    lenet5: Converted, tensor: int, goldens: Callable[[Converted, int], Path], tmp_path: Path
) -> None:
    golden = read_golden(goldens(lenet5, 32))
    tensors = list(golden.tensors)
    bits = tensors[tensor].bits.copy()
    place = (5, 1, 2, 0)
    near = tensors[tensor].near
    assert near is None or near[place] == 0
    bits[place] ^= np.uint32(1 << 7)
    tensors[tensor] = dataclasses.replace(tensors[tensor], bits=bits)
    path = rewrite(tmp_path / "golden.npz", golden, tensors=tuple(tensors))
    result = check_golden(lenet5.model, path, isas=BEST, body_samples=0)
    first = next(layer for layer in result.layers if not layer.passed)
    assert (first.layer, first.wrong) == (tensors[tensor].layer, 1)
    assert result.failures[0] == (
        f"layer '{first.layer}': 1 of {first.bits} bits made from {first.made_from} differ beyond rounding; "
        f"first: sample 5, channel 7, position [1, 2] (kernels, {BEST[0]})"
    )


def test_a_wrong_kernel_of_one_instruction_set(
    lenet5: Converted, goldens: Callable[[Converted, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit, in the layer before the last, by one of them, and only in the fed part of the model."""
    real = check.load_session

    def load(model: bytes, threads: int | None, *, isa: str | None, kernels: bool) -> Any:
        session = real(model, threads, isa=isa, kernels=kernels)
        if isa != ISAS[-1] or len(session.get_inputs()) == 1:
            return session

        class Wrong:
            get_inputs = staticmethod(session.get_inputs)

            @staticmethod
            def run(names: list[str], inputs: Any) -> list[Any]:
                values = session.run(names, inputs)
                index = names.index("fed/relu_1_bits")
                values[index] = values[index].copy()
                values[index].flat[3] ^= 1
                return values

        return Wrong()

    monkeypatch.setattr(check, "load_session", load)
    result = check_golden(lenet5.model, goldens(lenet5, 32))
    assert result.failures == [
        "layer 'bin_conv2.conv': 8 of 102400 bits made from integers differ beyond rounding; "
        f"first: sample 0, channel 32, position [0, 1] (kernels, {ISAS[-1]})"
    ]


def test_kernels_that_never_ran_are_a_failure(
    lenet5: Converted, goldens: Callable[[Converted, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = library_info()
    monkeypatch.setattr(check, "library_info", lambda *a: dataclasses.replace(real, calls=dict.fromkeys(ISAS, 0)))
    result = check_golden(lenet5.model, goldens(lenet5, 32), body_samples=0)
    assert result.failures == [f"the kernels of {', '.join(ISAS)} did not run, by the library's own count"]


# Rounding.


def noisy(converted: Converted, noise: float, path: Path) -> Path:
    """The model with the first layer's weights changed by relative noise: as if another machine summed otherwise."""
    model = onnx.load(converted.model)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    tensor = next(t for t in model.graph.initializer if t.name == conv.input[1])
    weights = numpy_helper.to_array(tensor)
    factors = 1 + noise * np.random.default_rng(1).standard_normal(weights.shape)
    tensor.CopyFrom(numpy_helper.from_array((weights * factors).astype(np.float32), tensor.name))
    onnx.save(model, path)
    return path


def test_rounding_in_the_first_layer_passes_and_is_counted(
    nin: Converted, goldens: Callable[[Converted, int], Path], tmp_path: Path
) -> None:
    model = noisy(nin, 1e-5, tmp_path / "noisy.onnx")
    result = check_damaged(nin, model, goldens(nin, 5), tmp_path)
    assert result.passed, result.failures
    first, *others = result.layers
    assert 0 < first.differing <= first.near / 4
    assert not any(layer.differing for layer in others)  # fed with golden bits, they see none of it
    (output,) = result.outputs
    assert 0 < output.flipped <= output.samples == 5
    assert output.identical == 5 - output.flipped


@pytest.mark.parametrize("noise", [0, 1e-7])
def test_less_rounding_flips_nothing_here(
    nin: Converted, noise: float, goldens: Callable[[Converted, int], Path], tmp_path: Path
) -> None:
    result = check_damaged(nin, noisy(nin, noise, tmp_path / "noisy.onnx"), goldens(nin, 5), tmp_path)
    assert result.passed, result.failures
    assert result.layers[0].differing <= 1


@pytest.mark.parametrize("noise", [1e-3, 1e-2])
def test_more_than_rounding_fails(
    nin: Converted, noise: float, goldens: Callable[[Converted, int], Path], tmp_path: Path
) -> None:
    model = noisy(nin, noise, tmp_path / "noisy.onnx")
    result = check_damaged(nin, model, goldens(nin, 5), tmp_path)
    assert [layer.layer for layer in result.layers if not layer.passed] == ["xnor.0"]
    assert result.layers[0].wrong > 0
    assert any("running free: layer 'xnor.0' is the first with other bits" in f for f in result.failures)
    assert (result.outputs[0].identical, result.outputs[0].flipped) == (0, 0)


def test_a_near_flip_does_not_excuse_a_later_layer(
    nin: Converted, goldens: Callable[[Converted, int], Path], tmp_path: Path
) -> None:
    """Every sample has a near flip in the first layer, and a threshold in the fourth is off by one."""
    model = noisy(nin, 2e-5, tmp_path / "noisy.onnx")
    proto = onnx.load(model)
    move_threshold(1)(Damage(proto), "xnor.6.conv")
    onnx.save(proto, model)
    result = check_damaged(nin, model, goldens(nin, 5), tmp_path)
    assert [layer.layer for layer in result.layers if not layer.passed] == ["xnor.6.conv"]
    assert result.outputs[0].flipped == 5
    assert not any("running free" in failure for failure in result.failures)


def test_too_many_near_flips_fail(
    nin_int8: Converted, goldens: Callable[[Converted, int], Path], tmp_path: Path
) -> None:
    """A `>` where the contract says `>=` changes bits at the threshold only, and each of them alone is excused."""

    def edit(damage: Damage, layer: str) -> None:
        def raise_by_one(levels: np.ndarray) -> None:
            levels += 1

        damage.change(damage.first("BinarizeQuantized").input[1], raise_by_one)

    model = damaged(nin_int8, edit, "", tmp_path / "damaged.onnx")
    result = check_damaged(nin_int8, model, goldens(nin_int8, 5), tmp_path)
    (failed,) = (layer for layer in result.layers if not layer.passed)
    assert (failed.layer, failed.wrong) == ("xnor.0", 0)
    assert result.failures[0].startswith(f"layer 'xnor.0': {failed.differing} of the {failed.near} bits near the ")
    assert "flipped; rounding flips at most 0.1% of them" in result.failures[0]


def test_near_bits() -> None:
    values = np.array([[1.0, 2], [1 + 1e-5, -2], [1 - 1e-5, 2], [-1, 2 + 1e-5], [3, 7]], np.float32)
    threshold = np.array([1, np.inf], np.float32)
    near = unpack_bits(make._near("Binarize", values, threshold, 1e-4), 2)
    assert near.tolist() == [[True, False], [True, False], [True, False], [False, False], [False, False]]
    assert not make._near("Binarize", values, threshold, 1e-6)[1:].any()
    last = make._near("BinarizeChannelsLast", values[:, None], threshold, 1e-4)
    assert last.shape == (5, 1, 1)
    assert unpack_bits(last, 2)[:, 0].tolist() == near.tolist()
    levels = np.array([[3, 0, 255], [4, 1, 0], [5, 7, 9], [2, 0, 255]], np.uint8)
    quantized = make._near("BinarizeQuantized", levels[:, None], np.array([4, 0, 256], np.int32), 1e-4)
    assert unpack_bits(quantized, 3)[:, 0, 0].tolist() == [True, True, False, False]
    assert not unpack_bits(quantized, 3)[:, 0, 1:].any()  # 0 is always reached, 256 never


def test_float_tolerance(lenet5: Converted, goldens: Callable[[Converted, int], Path], tmp_path: Path) -> None:
    golden = read_golden(goldens(lenet5, 32))
    output = golden.output.copy()
    output[7, 3] += np.float32(np.abs(output[:, 3]).max() * 5e-4)
    path = rewrite(tmp_path / "golden.npz", golden, output=output)
    result = check_golden(lenet5.model, path, isas=BEST, body_samples=0)
    assert [failure.split(":")[0] for failure in result.failures] == [
        f"kernels, {BEST[0]}, fed with golden bits",
        f"kernels, {BEST[0]}, running free",
    ]
    assert (
        "outputs differ by up to 0.0005 of the largest in their channel (allowed 0.0001); worst at sample 7"
        in (result.failures[0])
    )
    rewrite(path, golden, output=output, float_relative=1e-3)
    result = check_golden(lenet5.model, path, isas=BEST, body_samples=0)
    assert result.passed
    assert result.outputs[0].relative_error == pytest.approx(5e-4, rel=0.01)


# Files that cannot be used.


def test_the_golden_file_of_another_model(
    lenet5: Converted, nin: Converted, goldens: Callable[[Converted, int], Path]
) -> None:
    with pytest.raises(InputError, match=r"made from another model than .*nin\.onnx: SHA-256 [0-9a-f]{12}"):
        check_golden(nin.model, goldens(lenet5, 32))


def test_bad_golden_files(lenet5: Converted, goldens: Callable[[Converted, int], Path], tmp_path: Path) -> None:
    good = goldens(lenet5, 32).read_bytes()
    with np.load(goldens(lenet5, 32)) as arrays:
        content = dict(arrays)

    def npz(**changes: Any) -> bytes:
        np.savez(tmp_path / "changed.npz", **{k: v for k, v in (content | changes).items() if v is not None})
        return (tmp_path / "changed.npz").read_bytes()

    def meta(**changes: Any) -> bytes:
        values = json.loads(content["meta"].tobytes()) | changes
        return npz(meta=np.frombuffer(json.dumps(values).encode(), np.uint8))

    middle = len(good) // 2
    damaged_or_none = "not a golden file, or a damaged one"
    cases = [
        (b"", damaged_or_none),
        (b"hello", damaged_or_none),
        (good[:middle], damaged_or_none),
        (good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :], damaged_or_none),
        (npz(input=None), damaged_or_none),
        (npz(**{"bits/1": None}), damaged_or_none),
        (npz(**{"floats/0": None}), damaged_or_none),
        (npz(**{"floats/0": content["floats/0"][:-1]}), "the checksums of 'fed/linear_map' are [31]"),
        (npz(output=content["output"][:-1]), "32 inputs, but 31 outputs"),
        (npz(input=content["input"].astype(np.float64)), "no float32 inputs"),
        (npz(**{"bits/1": content["bits/1"][:-1]}), "the bits of 'sign_bits' are [31, "),
        (npz(**{"bits/1": content["bits/1"].astype(np.int64)}), "the bits of 'sign_bits' are int64"),
        (npz(**{"near/0": content["near/0"][:, 1:]}), "the bits of 'relu_bits' are uint32 [32, 23, "),
        (meta(format=2), "golden results of format 2; this bnn-deploy knows format 1"),
        (meta(tensors=3), damaged_or_none),
        (meta(made_with={}), damaged_or_none),
        (npz(meta=np.array([None])), damaged_or_none),
    ]
    path = tmp_path / "golden.npz"
    for data, message in cases:
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            check_golden(lenet5.model, path)
        assert message in str(caught.value)
        assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(InputError, match="no such file"):
        read_golden(tmp_path / "none.npz")
    with pytest.raises(InputError, match="no such file"):
        check_golden(tmp_path / "none.onnx", goldens(lenet5, 32))


def test_a_probe_that_onnxruntime_refuses(
    lenet5: Converted, goldens: Callable[[Converted, int], Path], tmp_path: Path
) -> None:
    path = rewrite(tmp_path / "golden.npz", read_golden(goldens(lenet5, 32)), probe=b"\xff\xff")
    with pytest.raises(InputError, match="onnxruntime cannot load it"):
        check_golden(lenet5.model, path)


def test_unknown_isa(lenet5: Converted, goldens: Callable[[Converted, int], Path]) -> None:
    with pytest.raises(SetupError, match="BNN_DEPLOY_ISA = 'sse9'"):
        check_golden(lenet5.model, goldens(lenet5, 32), isas=["sse9"])


def test_no_golden_results_of_a_float_model(lenet5: Converted) -> None:
    with pytest.raises(InputError, match="not one that bnn-deploy converted"):
        make_golden(lenet5.float_model)


# The command line.


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command(lenet5: Converted, goldens: Callable[[Converted, int], Path]) -> None:
    result = invoke("verify", lenet5.model, "--golden", goldens(lenet5, 32))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[-1] == "PASSED"
    (row,) = (line.split() for line in lines if line.startswith("bin_conv2.conv"))
    assert row == ["bin_conv2.conv", "bits", "of", "integers", "102,400", "-", "0", "ok"]
    (row,) = (line.split() for line in lines if line.startswith(f"kernels, {ISAS[-1]}"))
    assert row[2:5] == ["32", "32", "0"]
    result = invoke("verify", lenet5.model, "--golden", goldens(lenet5, 32), "--isa", ISAS[-1], "--json")
    report = json.loads(result.stdout)
    assert (report["passed"], report["isas"], report["samples"]) == (True, ISAS[-1:], 32)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_fails_with_exit_code_1(
    lenet5: Converted, goldens: Callable[[Converted, int], Path], tmp_path: Path, as_json: bool
) -> None:
    model = damaged(lenet5, flip_weight_bit, "bin_conv2.conv", tmp_path / "damaged.onnx")
    path = rewrite(tmp_path / "golden.npz", read_golden(goldens(lenet5, 32)), model)
    result = invoke("verify", model, "--golden", path, *(["--json"] if as_json else []))
    assert (result.exit_code, result.stderr) == (1, "")
    if as_json:
        report = json.loads(result.stdout)
        assert report["passed"] is False
        assert report["failures"][0].startswith("layer 'bin_conv2.conv'")
    else:
        lines = result.stdout.splitlines()
        assert lines[-1] == "FAILED"
        assert any(line.startswith("FAILED: layer 'bin_conv2.conv'") for line in lines)


def test_against_and_golden_exclude_each_other() -> None:
    for arguments, message in (
        ([], "give --against FILE or --golden FILE"),
        (["--golden", "g.npz", "--against", "m.pth"], "--against and --golden exclude each other"),
        (["--golden", "g.npz", "--data", "x.npz"], "--data and --golden exclude each other"),
        (["--golden", "g.npz", "--reference-samples", "8"], "--reference-samples and --golden exclude each other"),
    ):
        result = invoke("verify", "model.onnx", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_board_has_neither_onnx_nor_torch(lenet5: Converted, goldens: Callable[[Converted, int], Path]) -> None:
    """In a process where importing them fails, the check gives the same result."""
    code = (
        "import sys\n"
        "blocked = ('onnx', 'onnx_ir', 'onnxscript', 'torch', 'google.protobuf')\n"
        "sys.modules.update({name: None for name in blocked})\n"
        "from bnn_deploy.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "verify", lenet5.model, "--golden", goldens(lenet5, 32), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    here = check_golden(lenet5.model, goldens(lenet5, 32))
    assert json.loads(done.stdout) == json.loads(json.dumps(here.to_json()))
