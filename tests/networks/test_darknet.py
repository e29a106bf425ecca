"""Darknet networks, converted: what Darknet itself computed of them, from binary layers alone (see tests/exports)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import numpy_helper

from bnn_deploy.cli import main
from bnn_deploy.conversion import Conversion, convert
from bnn_deploy.errors import InputError
from bnn_deploy.proof.results import Verification
from bnn_deploy.proof.verification import verify
from bnn_deploy.runtime.session import library_info, load_session
from support.darknet_networks import NETWORKS, Section

EXPORTS = Path(__file__).parents[1] / "exports"


def converted(name: str, folder: Path) -> Conversion:
    cfg, weights = (EXPORTS / f"darknet_{name}.{kind}" for kind in ("cfg", "weights"))
    return convert(
        cfg, folder / "binary.onnx", darknet_weights=weights, float_output=folder / "float.onnx", strict=True
    )


def is_xnor(section: Section) -> bool:
    return bool(section[1].get("xnor"))


def deviation(model: Path, name: str) -> float:
    """The largest difference from what Darknet computed, relative to the largest number of the output."""
    session = load_session(model)
    names = [value.name for value in session.get_outputs()]
    with np.load(EXPORTS / f"darknet_{name}.npz") as data:
        expected: list[NDArray[np.float32]] = [data[head] for head in names]
        got = session.run(names, {"input": data["x"]})
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, expected, strict=True))


def flip_a_bit(model: Path, layer: str) -> None:
    """Flip one weight bit of a binary layer, in place."""
    proto = onnx.load(model)
    node = next(node for node in proto.graph.node if node.name == layer)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == node.input[1])
    words = numpy_helper.to_array(tensor).copy()
    words[(3, *[0] * (words.ndim - 1))] ^= 1 << 7
    tensor.CopyFrom(numpy_helper.from_array(words, tensor.name))
    onnx.save(proto, model)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_xnor_layer_is_binary_and_computes_what_darknet_computed(name: str, tmp_path: Path) -> None:
    conversion = converted(name, tmp_path)
    sections, _ = NETWORKS[name]
    assert list(conversion.binary_layers) == [f"conv{i}" for i, section in enumerate(sections) if is_xnor(section)]
    assert all(
        layer.sign_of_zero == layer.converted_sign_of_zero == -1 for layer in conversion.layers if layer.activation
    )
    assert deviation(conversion.output, name) < 2e-5
    flip_a_bit(conversion.output, conversion.binary_layers[-1])
    assert deviation(conversion.output, name) > 1e-3


def test_verify_passes_and_sees_a_flipped_bit(tmp_path: Path) -> None:
    conversion = converted("yolo", tmp_path)
    with np.load(EXPORTS / "darknet_yolo.npz") as data:
        x = data["x"][:1]

    def verified() -> Verification:
        isas = library_info().isas[:1]
        return verify(conversion.output, tmp_path / "float.onnx", data=x, reference_samples=0, isas=isas)

    result = verified()
    assert result.passed, result.failures
    flip_a_bit(conversion.output, conversion.binary_layers[-1])
    assert not verified().passed
    with pytest.raises(
        InputError, match=r"darknet_yolo.cfg: a Darknet network is verified against its float model: conv"
    ):
        verify(conversion.output, EXPORTS / "darknet_yolo.cfg", data=x)


def test_the_command_says_which_padding_it_took(tmp_path: Path) -> None:
    cfg, weights = (str(EXPORTS / f"darknet_region.{kind}") for kind in ("cfg", "weights"))
    sizes = {}
    for padding, said in ((None, "-1, as Darknet's inference"), ("-1", "-1, as"), ("0", "0, as Darknet's training")):
        arguments = ["convert", cfg, "--darknet-weights", weights, "-o", str(tmp_path / "net.onnx"), "--json"]
        result = CliRunner().invoke(main, arguments + ([] if padding is None else ["--xnor-padding", padding]))
        assert result.exit_code == 0, result.output
        (note,) = json.loads(result.stdout)["notes"]
        assert note.startswith(f"xnor layers are padded with {said}")
        sizes[padding] = deviation(tmp_path / "net.onnx", "region")
    assert sizes[None] == sizes["-1"] < 2e-5 < 1e-2 < sizes["0"]
    text = CliRunner().invoke(main, [*arguments[:-1], "--decode"])
    assert "note: xnor layers are padded with -1" in text.stdout
    outputs = [value.name for value in load_session(tmp_path / "net.onnx").get_outputs()]
    assert outputs == ["region6", "boxes", "scores"]


def test_what_does_not_go_together(tmp_path: Path) -> None:
    cfg, weights = (EXPORTS / f"darknet_region.{kind}" for kind in ("cfg", "weights"))
    out = tmp_path / "net.onnx"
    with pytest.raises(InputError, match=r"darknet_region.cfg: a Darknet network needs its weights: give darknet_weig"):
        convert(cfg, out)
    for other in (
        {"darknet_weights": weights},
        {"xnor_padding": 0},
        {"decode": True},
    ):
        with pytest.raises(InputError, match="and decode belong to a Darknet network: give"):
            convert(EXPORTS / "larq_alpha.onnx", out, **other)
    with pytest.raises(InputError, match="xnor_padding=1: xnor layers are padded with -1 or 0"):
        convert(cfg, out, darknet_weights=weights, xnor_padding=1)  # type: ignore[arg-type]
    for more in ({"arch": "nin"}, {"input_shape": (3, 24, 32)}):
        with pytest.raises(
            InputError, match=r"region.cfg: a .cfg file says its layers .*: leave out arch and input_sh"
        ):
            convert(cfg, out, darknet_weights=weights, **more)
    copy = tmp_path / "net.weights"
    copy.write_bytes(weights.read_bytes())
    with pytest.raises(InputError, match=r"net.weights is the file of its weights itself: choose another name"):
        convert(cfg, copy, darknet_weights=copy)
    assert copy.read_bytes() == weights.read_bytes() and not out.exists()
