"""What `convert` asks of a model's values before its file gets its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import ModelProto

from bnn_deploy import conversion
from bnn_deploy.cli import main
from bnn_deploy.conversion import convert
from bnn_deploy.errors import BnnDeployError, InputError
from bnn_deploy.proof import values
from support.graphs import batch_norm, parse, weights

NODES = """n = BatchNormalization (x, g, b, m, v)
s = Sign (n)
c = Conv <pads=[1,1,1,1]> (s, w)
t = Sign (c)
d = Conv <pads=[1,1,1,1]> (t, last)
y = GlobalAveragePool (d)"""


def network(nodes: str = NODES, **more: NDArray[Any]) -> ModelProto:
    """Sums of 36 and of 72 signs: the second sign is often of exactly 0."""
    constants = {"w": weights(8, 4, 3, 3), "last": weights(5, 8, 3, 3, seed=1)} | batch_norm(4) | more
    return ir.to_proto(parse(nodes, ("N", 4, 6, 6), **constants))


def first(model: ir.Model, operator: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == operator)


def change(value: ir.Value | None, edit: Callable[[NDArray[Any]], None]) -> None:
    assert value is not None and value.const_value is not None
    array = value.const_value.numpy().copy()
    edit(array)
    value.const_value = ir.tensor(array)


def flip_weight(model: ir.Model) -> None:
    def flip(bits: NDArray[Any]) -> None:
        bits.flat[0] ^= 1

    change(first(model, "BinaryConv").inputs[1], flip)


def flip_hidden_weight(model: ir.Model) -> None:
    def flip(bits: NDArray[Any]) -> None:
        bits.flat[0] ^= 1

    change(first(model, "BinaryConvThreshold").inputs[1], flip)


def shift_threshold(model: ir.Model) -> None:
    def shift(thresholds: NDArray[Any]) -> None:
        thresholds[3] += 4  # by 2, only sums of 0 get another sign, which may be either

    change(first(model, "BinaryConvThreshold").inputs[2], shift)


def pad_with_ones(model: ir.Model) -> None:
    def one(pad: NDArray[Any]) -> None:
        pad[:] = 1

    change(first(model, "BinaryConv").inputs[4], one)


def pad_elsewhere(model: ir.Model) -> None:
    first(model, "BinaryConv").attributes["pads"] = ir.AttrInt64s("pads", [2, 1, 0, 1])


def stand_for_another_tensor(model: ir.Model) -> None:
    node = first(model, "BinaryConvThreshold")
    key = next(key for key, text in node.metadata_props.items() if text == "t")
    node.metadata_props[key] = "u"


CORRUPTIONS = [flip_weight, flip_hidden_weight, shift_threshold, pad_with_ones, pad_elsewhere, stand_for_another_tensor]


def corrupt(monkeypatch: pytest.MonkeyPatch, corruption: Callable[[ir.Model], None]) -> None:
    """Let the passes make something else."""
    own = conversion.to_binary

    def wrong(*arguments: Any, **options: Any) -> Any:
        made = own(*arguments, **options)
        corruption(made[0])
        return made

    monkeypatch.setattr(conversion, "to_binary", wrong)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_wrong_value_is_a_fault_and_nothing_is_written(
    corruption: Callable[[ir.Model], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt(monkeypatch, corruption)
    with pytest.raises(BnnDeployError, match=r"a fault of bnn-deploy, please report it: layer '.*written$") as caught:
        convert(network(), tmp_path / "m.onnx", float_output=tmp_path / "f.onnx", report=tmp_path / "r.json")
    assert not isinstance(caught.value, InputError) and not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "require_values", lambda *given: ())
        convert(network(), tmp_path / "m.onnx")  # nothing else sees it


def test_the_command_says_so_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "net.onnx"
    source.write_bytes(network().SerializeToString())
    corrupt(monkeypatch, flip_weight)
    done = CliRunner().invoke(main, ["convert", str(source), "-o", str(tmp_path / "m.onnx")])
    assert done.exit_code == 1 and "fault of bnn-deploy" in done.stderr, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_what_shows_on_real_inputs_alone_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel that is -1 for inputs from a normal distribution, and its threshold."""

    def shift(model: ir.Model) -> None:
        def never(thresholds: NDArray[Any]) -> None:
            thresholds[0] = 1e6

        change(first(model, "Binarize").inputs[1], never)

    norm = batch_norm(4)
    norm["m"][0] = 1000
    corrupt(monkeypatch, shift)
    convert(network(**norm), tmp_path / "m.onnx")
    real = np.full((3, 4, 6, 6), 2000, np.float32)
    with pytest.raises(BnnDeployError, match=r"a fault of bnn-deploy.* gives other bits .*on given array: worst at"):
        convert(network(**norm), tmp_path / "n.onnx", data=real)
    assert not (tmp_path / "n.onnx").exists()


def test_segments_that_run_together_are_those_that_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for together in (1, 2, 200):
        monkeypatch.setattr(values, "TOGETHER", together)
        convert(network(), tmp_path / "m.onnx")
        with monkeypatch.context() as patch:
            corrupt(patch, shift_threshold)
            with pytest.raises(BnnDeployError, match=r"layer 'c' of the converted model gives other bits"):
                convert(network(), tmp_path / "n.onnx")


def test_what_is_no_number_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = NODES.replace("y = GlobalAveragePool (d)", "r = Sqrt (d)\ny = GlobalAveragePool (r)")
    result = convert(network(nodes), tmp_path / "m.onnx")
    (note,) = result.report.notes
    assert "were not compared with the float model's: there are infinities or NaN among them" in note
    corrupt(monkeypatch, flip_hidden_weight)  # the rest is
    with pytest.raises(BnnDeployError, match="layer 'c' of the converted model gives other bits"):
        convert(network(nodes), tmp_path / "n.onnx")


def test_8_bit_layers_are_left_to_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = NODES.replace("y = GlobalAveragePool (d)", "e = Conv (d, end)\ny = GlobalAveragePool (e)")
    real = np.random.default_rng(0).standard_normal((8, 4, 6, 6)).astype(np.float32)
    end = np.random.default_rng(1).standard_normal((6, 5, 1, 1)).astype(np.float32)
    result = convert(network(nodes, end=end), tmp_path / "m.onnx", calibration=real)
    assert any("1 layer in 8 bits were not compared" in note for note in result.report.notes), result.report.notes
    corrupt(monkeypatch, flip_hidden_weight)
    with pytest.raises(BnnDeployError, match="layer 'c' of the converted model gives other bits"):
        convert(network(nodes, end=end), tmp_path / "n.onnx", calibration=real)


def test_an_input_without_a_batch_is_one(tmp_path: Path) -> None:
    """`Inputs` of a table that all samples share."""
    nodes = NODES.replace("n = Batch", "k = Add (x, table)\nn = Batch").replace("(x, g", "(k, g")
    model = ir.to_proto(
        parse(
            nodes,
            ("N", 4, 6, 6),
            inputs="float[4,6,6] table",
            w=weights(8, 4, 3, 3),
            last=weights(5, 8, 3, 3, seed=1),
            **batch_norm(4),
        )
    )
    assert convert(model, tmp_path / "m.onnx").report.notes == ()
