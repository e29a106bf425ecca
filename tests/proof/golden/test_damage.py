"""Damage. The golden file is made from the right model and then says that it is the damaged one's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnn_deploy.proof.golden import check
from bnn_deploy.proof.golden.check import check_golden
from bnn_deploy.proof.golden.record import read_golden
from bnn_deploy.runtime.session import library_info
from support.converted import Converted
from support.damage import CASES, Damage, damaged, flip_weight_bit
from support.golden_files import BEST, ISAS, check_damaged, rewrite


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


@pytest.mark.parametrize("tensor", range(3))
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
