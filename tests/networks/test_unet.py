"""A U-Net with transposed convolutions: the whole way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnn_deploy import convert, verify
from bnn_deploy.inspection import inspect_model
from bnn_deploy.proof.golden.check import check_golden
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.golden.record import write_golden
from bnn_deploy.proof.results import Tolerances
from support.damage import Damage
from support.graphs import batch_norm, eighths, parse, weights

UNET = """
a = Conv <pads=[1, 1, 1, 1]> (x, w0)
s = Sign(a)
b = Conv <pads=[1, 1, 1, 1], strides=[2, 2]> (s, w1)
n = BatchNormalization(b, g, bb, m, v)
t = Sign(n)
c = ConvTranspose <strides=[2, 2]> (t, w2, o2)
p = BatchNormalization(c, g, bb, m, v)
q = Concat <axis=1> (p, a)
u = Sign(q)
d = Conv <pads=[1, 1, 1, 1]> (u, w3, o3)
k = Sign(d)
e = ConvTranspose <strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 0]> (k, w4, o4)
f = Relu(e)
h = Sub(f, quarter)
i = Sign(h)
l = MaxPool <kernel_shape=[2, 2], strides=[2, 1]> (i)
r = Conv (l, w5)
y = ReduceMean <keepdims=0> (r, axes)
"""
CHANNELS = 40


def unet() -> ir.Model:
    def scaled(*shape: int, seed: int, terms: int) -> np.ndarray:
        """Weights whose sums have a variance of about 1, so that no BatchNorm makes a constant."""
        return weights(*shape, seed=seed, alpha=2.0 ** np.round(np.log2(terms**-0.5)))

    return parse(
        UNET,
        ("N", 3, 6, 6),
        w0=np.random.default_rng(1).standard_normal((CHANNELS, 3, 3, 3)).astype(np.float32),
        w1=scaled(CHANNELS, CHANNELS, 3, 3, seed=1, terms=360),
        w2=scaled(CHANNELS, CHANNELS, 2, 2, seed=2, terms=40),
        w3=scaled(CHANNELS, 2 * CHANNELS, 3, 3, seed=3, terms=720),
        w4=scaled(CHANNELS, CHANNELS, 3, 3, seed=4, terms=90),
        w5=scaled(5, CHANNELS, 1, 1, seed=5, terms=40),
        o2=eighths(CHANNELS, seed=6),
        o3=eighths(CHANNELS, seed=8) + np.float32(0.01),  # no sum is 0
        o4=eighths(CHANNELS, seed=7),
        quarter=np.float32(0.3),
        axes=np.array([2, 3]),
        **{{"b": "bb"}.get(key, key): array for key, array in batch_norm(CHANNELS).items()},
    )


LAYERS = ("b", "c", "d", "e", "r")


def flip(layer: str) -> Callable[[Damage], None]:
    def damage(model: Damage) -> None:
        def edit(words: np.ndarray) -> None:
            words[(3, *[0] * (words.ndim - 1))] ^= 1 << 7

        model.change(model.node(layer).input[1], edit)

    return damage


def swap_phases(model: Damage) -> None:
    join = model.first("Concat")
    join.input[:] = reversed(join.input)


def shift(model: Damage) -> None:
    pads = model.attribute(model.node("e_phase_3"), "pads")
    pads[:] = [pads[2], pads[3], pads[0], pads[1]]


CORRUPTIONS = {"a bit of the last phase": flip("e_phase_3"), "its pads": shift, "the order of the phases": swap_phases}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("unet")
    model, source = folder / "m.onnx", folder / "f.onnx"
    conversion = convert(unet(), model, float_output=source, strict=True)
    assert conversion.binary_layers == LAYERS
    assert [layer.status for layer in conversion.layers] == ["float", *["binary"] * 5]
    found = {layer.name: layer for layer in conversion.layers}
    assert (found["c"].inputs, found["c"].outputs, found["c"].fused) == (CHANNELS, CHANNELS, ("bias", "BatchNorm"))
    assert (found["e"].becomes, found["e"].fused) == ("BinaryConvThreshold", ("bias", "ReLU", "Sub", "sign"))
    return model, source


PER_LAYER = Tolerances(min_agreement=0)
"""Its sums, and so the source's signs, are often exactly 0: each layer is right, but the outputs are others."""


def test_it_is_equivalent(converted: tuple[Path, Path]) -> None:
    result = verify(*converted, samples=8, reference_samples=1, tolerances=PER_LAYER)
    assert result.passed, result.failures
    assert [(layer.layer, layer.kind) for layer in result.layers if layer.kind == "bits" or layer.layer == "c"] == [
        *(("s", "bits"), ("b", "bits"), ("c", "floats"), ("u", "bits"), ("d", "bits"), ("e", "bits"), ("l", "bits"))
    ]
    assert {layer.differing for layer in result.layers} == {0}


def test_its_golden_results_are_checked(converted: tuple[Path, Path], tmp_path: Path) -> None:
    write_golden(make_golden(converted[0], samples=4), tmp_path / "golden.npz")
    assert check_golden(converted[0], tmp_path / "golden.npz").passed
    sums = [layer for layer in inspect_model(converted[0]).layers if "c" in (layer.name, layer.part_of)]
    assert sum(layer.binary_macs or 0 for layer in sums) == 9 * CHANNELS * CHANNELS * 4


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_it_is_not_if_corrupted(converted: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    model = Damage(onnx.load(converted[0]))
    CORRUPTIONS[name](model)
    onnx.save(model.model, tmp_path / "m.onnx")
    assert not verify(
        tmp_path / "m.onnx", converted[1], samples=8, reference_samples=0, isas=["scalar"], tolerances=PER_LAYER
    ).passed
