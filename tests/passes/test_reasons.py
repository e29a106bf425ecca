"""Each reason for which a pass declines is given for some graph, has an example and an advice; the docs list it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from bnn_deploy.errors import on_command_line
from bnn_deploy.passes import fusion_reasons, reasons
from bnn_deploy.passes.fuse.fold_threshold import FoldThreshold
from bnn_deploy.passes.fuse.fuse_abs_mean import FuseAbsMean
from bnn_deploy.passes.fuse.fuse_conv_threshold import FuseConvThreshold
from bnn_deploy.passes.graph import is_binary_op, is_op
from bnn_deploy.passes.lower.layer import FloatLayer, fit_weight
from bnn_deploy.passes.lower.lower_binary_conv import LowerBinaryConv
from bnn_deploy.passes.outcome import Decline, Pass
from bnn_deploy.passes.pipeline import to_binary
from bnn_deploy.passes.reasons import LayerReason, Reason, table
from bnn_deploy.passes.recognise.binarize_weights import BinarizeWeights
from support.graphs import batch_norm, eighths, parse, weights
from support.reports import report_on

Array = NDArray[Any]
Shape = tuple[int | str, ...]
Case = Callable[[], list[Decline]]

RANDOM = np.random.default_rng(0)
W = weights(8, 4, 3, 3)
PADS = np.array([0, 0, 1, 1, 0, 0, 1, 1])
NUMBERS = {"zero": np.float32(0), "one": np.float32(1), "two": np.float32(2), "three": np.float32(3)}
NUMBERS |= {"fifteen": np.float32(15)}
LEVELS = "c = Clip(x, zero, one)\nm = Mul(c, three)\nr = Round(m)\na = Div(r, three)"


def case(nodes: str, x: Shape = ("N", 4, 6, 6), **constants: Any) -> Case:
    """What the passes decline of a graph."""

    def run() -> list[Decline]:
        own = {name: NUMBERS[name] for name in NUMBERS if re.search(rf"\b{name}\b", nodes)}
        named = {name: np.asarray(array) for name, array in constants.items()}
        last = nodes.splitlines()[-1].split(" = ")[0].split(", ")
        _, left, not_fused = to_binary(parse(nodes, x, outputs=tuple(last), **own, **named))
        return left + not_fused

    return run


def changed(index: tuple[int, ...], value: float) -> Array:
    """The weights with one of them changed."""
    array = W.copy()
    array[index] = value
    return array


def ternary() -> list[Decline]:
    model = parse("s = Sign(x)\ny = Conv(s, w)", w=changed((2, 1, 0, 0), 0))
    return BinarizeWeights("xnor")(model).declined


ZEROS = np.zeros((1, 64, 3, 3), np.float32)

STEP = np.array([1, -1, 1, -1], np.float32).reshape(4, 1, 1)
MAP: Shape = ("N", 4, 6, 6)
MEAN = "s = Sign(x)\nd = Conv<pads=[1,1,1,1]>(s, w)\na = Abs(x)\nh = ReduceMean<keepdims=1>(a, axes)\ny = Mul(d, h)"
BITS = "s = Sign(x)\nd = Conv(s, w)"
BEHIND = {"w": W, "u": weights(3, 8, 1, 1)}


def behind(nodes: str, x: Shape = MAP, **constants: Any) -> Case:
    """What is declined where `nodes` make p of d, between a binary layer and a sign."""
    return case(f"{BITS}\n{nodes}\nt = Sign(p)\ny = Conv(t, u)", x, **BEHIND | constants)


def old_clip(model: ir.Model) -> None:
    """Write the bounds of a Clip as opset 6 does."""
    for node in model.graph:
        if is_op(node, "Clip"):
            node.attributes["max"] = ir.AttrFloat32("max", 1.0)


def fitted(weight: tuple[int, ...], shape: list[int | None], linear: bool) -> Case:
    """What keeps a weight of this shape, of sizes that contradict its input's or are huge, from being binary."""
    layer = FloatLayer(np.broadcast_to(np.float32(1), weight), None, [1, 1], [0] * 4, [1, 1], 1, linear)

    def run() -> list[Decline]:
        why = fit_weight(layer, shape, None)
        assert isinstance(why, Reason)
        return [Decline("y", "MatMul" if linear else "Conv", why)]

    return run


def lowered(nodes: str, change: Callable[[ir.Model], None], step: Pass, x: Shape, **constants: Array) -> Case:
    """What one pass declines of a binary graph that is changed to what no source is lowered to."""

    def run() -> list[Decline]:
        model = parse(nodes, x, **constants)
        LowerBinaryConv()(model)
        change(model)
        return step(model).declined

    return run


def expose_bits(model: ir.Model) -> None:
    (binarize,) = (node for node in model.graph if is_binary_op(node, "Binarize"))
    model.graph.outputs.append(binarize.outputs[0])


def misread_bits(model: ir.Model) -> None:
    for node in model.graph:
        if is_op(node, "Unsqueeze"):
            node.op_type = "Squeeze"


def forget_channels(model: ir.Model) -> None:
    model.graph.inputs[0].shape = ir.Shape(["N", "C", 6, 6])


def cancelled() -> list[Decline]:
    """The layer that the report calls removed."""
    text = "s = Sign(x)\nc = Conv<pads=[1,1,1,1]>(x, u)\na = Sub(s, c)\nb = Add(a, c)\ny = Conv(b, w)"
    removed, _ = report_on(parse(text, u=eighths(4, 4, 3, 3), w=W))
    why = reasons.CancelsOut()
    return [Decline(removed.name, removed.operator, why)] if removed.reason == why.text else []


CASES: dict[type[Reason], Case] = {
    reasons.ModelInput: case("y = Conv(x, w)", w=eighths(8, 4, 3, 3)),
    reasons.RealInput: case("a = Relu(x)\ny = Conv(a, w)", w=eighths(8, 4, 3, 3)),
    reasons.MeanMagnitude: case(
        "s = Sign(x)\nd = Conv<pads=[1,1,1,1]>(s, w)\na = Abs(x)\nm = ReduceMean<keepdims=1>(a, axes)\n"
        "k = Conv<pads=[1,1,1,1]>(m, box)\ny = Mul(d, k)",
        w=W,
        axes=np.array([1]),
        box=np.full((1, 1, 3, 3), 1 / 9, np.float32),
    ),
    reasons.RealWeights: case("s = Sign(x)\ny = Conv(s, w)", w=RANDOM.standard_normal((8, 4, 3, 3), np.float32)),
    reasons.ManyWeightValues: case(
        "s = Sign(x)\ny = Conv(s, w)", w=RANDOM.choice(RANDOM.standard_normal(9, np.float32), (8, 4, 3, 3))
    ),
    reasons.ManyPasses: case(LEVELS.replace("three", "fifteen") + "\ny = Conv(a, w)", w=changed((2, 1, 0, 0), 0)),
    reasons.FewProducts: case("s = Sign(x)\ny = Conv(s, w)", w=changed((2, 1, 0, 0), 0)),
    reasons.ExactZeros: case(
        "s = Sign(x)\ny = MatMul(s, w)", ("N", 3, 4), w=np.float32([[1, 1], [1, 0], [-1, 1], [1, -1]])
    ),
    reasons.EinsumForm: case(
        's = Sign(x)\ny = Einsum<equation="bthd,hdo->bto">(s, w)', ("N", 3, 2, 4), w=weights(2, 4, 5)
    ),
    reasons.NotFinite: case("s = Sign(x)\ny = Conv(s, w)", w=changed((2, 1, 0, 0), np.nan)),
    reasons.WeightsNotConstant: case("s = Sign(x)\nr = Relu(x)\ny = Conv(s, r)", (4, 4, 3, 3)),
    reasons.RealOperand: case("s = Sign(x)\nr = Relu(x)\ny = MatMul(s, r)", (4, 4)),
    reasons.OperandLevels: case(
        "s = Sign(x)\ng = Greater(x, zero)\nr = Cast <to=1> (g)\ny = MatMul(s, r)", ("N", 4, 4)
    ),
    reasons.OperandShapes: case(
        "s = Sign(x)\nm = ReduceMean(x, axes)\nr = Sign(m)\ny = MatMul(r, s)", ("N", 4, 5, 5), axes=np.array([1])
    ),
    reasons.BiasNotConstant: case(
        "s = Sign(x)\nm = ReduceMean<keepdims=0>(x, axes)\ny = Conv(s, w, m)",
        (1, 8, 6, 6),
        w=weights(8, 8, 3, 3),
        axes=np.array([0, 2, 3]),
    ),
    reasons.WeightDimensions: case("s = Sign(x)\ny = MatMul(s, w)", ("N", 2, 4), w=weights(1, 4, 5)),
    reasons.GemmFactors: case("s = Sign(x)\ny = Gemm<alpha=2.0>(s, w)", ("N", 4), w=weights(4, 5)),
    reasons.BiasShape: case("s = Sign(x)\ny = Gemm(s, w, c)", ("N", 4), w=weights(4, 5), c=eighths(1, 5)),
    reasons.AutoPad: case('s = Sign(x)\ny = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(s, w)', ("N", 4, "H", "V"), w=W),
    reasons.SpatialDimensions: case("s = Sign(x)\ny = Conv(s, w)", ("N", 4, 3, 3, 3, 3), w=weights(8, 4, 1, 1, 1, 1)),
    reasons.InputShape: case("s = Sign(x)\ny = Conv(s, w)", ("N", "C", 6, 6), w=W),
    reasons.PoolForm: case(
        's = Sign(x)\np = MaxPool<kernel_shape=[2,2],strides=[2,2],auto_pad="SAME_UPPER">(s)\ny = Conv(p, w)',
        ("N", 4, "H", "V"),
        w=W,
    ),
    reasons.InputDimensions: case(
        "s = Sign(x)\np = MaxPool <kernel_shape=[2]> (s)\ny = MatMul(p, w)", ("N", 3, 5), w=weights(4, 5)
    ),
    reasons.FlattenedDimensions: case(
        "s = Sign(x)\nf = Flatten(s)\ny = MatMul(f, w)", ("N", 4, 2, 2, 2, 2), w=weights(64, 5)
    ),
    reasons.PadValue: case("s = Sign(x)\np = Pad(s, pads, two)\ny = Conv(p, w)", w=W, pads=PADS),
    reasons.MixedPads: case("s = Sign(x)\np = Pad(s, pads, one)\ny = Conv<pads=[1,1,1,1]>(p, w)", w=W, pads=PADS),
    reasons.PadMode: case("s = Sign(x)\np = Pad(s, pads)\ny = Conv(p, w)", w=W, pads=-PADS),
    reasons.PadPlace: case(
        "s = Sign(x)\np = Pad(s, pads)\nm = MaxPool<kernel_shape=[2,2]>(p)\ny = Conv(m, w)", w=W, pads=PADS
    ),
    reasons.PadSigns: case(
        "p = Pad(x, pads)\na = Add(p, c)\ns = Sign(a)\ny = Conv(s, w)",
        w=W,
        pads=PADS,
        c=np.array([0, 1, 1, 1], np.float32).reshape(4, 1, 1),
    ),
    reasons.OutputShape: case("s = Sign(x)\ny = ConvTranspose<output_shape=[8, 8]>(s, w)", w=weights(4, 8, 3, 3)),
    reasons.LevelsPad: case(f"{LEVELS}\np = Pad(a, pads, one)\ny = Conv(p, w)", w=W, pads=PADS),
    reasons.StepSign: case("r = Round(x)\ns = Sign(r)\ny = Conv(s, w)", w=W),
    reasons.FallingLevels: case(f"{LEVELS}\nb = Sub(one, a)\ny = Conv(b, w)", w=W),
    reasons.UnevenLevels: case(
        "c = Clip(x, zero, three)\nr = Round(c)\np = Greater(x, three)\nk = Cast<to=1>(p)\nq = Greater(x, fifteen)\n"
        "l = Cast<to=1>(q)\nd = Add(k, l)\ne = Mul(d, half)\na = Add(r, e)\ny = Conv(a, w)",
        w=W,
        half=np.float32(0.4),
    ),
    reasons.Stranger: case("s = Sign(x)\na = Mul(s, k)\nb = Pad(a, pads)\ny = Conv(b, w)", w=W, k=STEP, pads=PADS),
    reasons.MixedParts: case(
        "s = Sign(x)\na = Mul(s, two)\nb = Concat<axis=1>(a, s)\ny = Conv(b, w)", w=weights(8, 8, 3, 3)
    ),
    reasons.FewValues: case("s = Sign(x)\na = Sin(s)\ny = Conv(a, w)", w=W),
    reasons.ChannelFactors: case("s = Sign(x)\na = Mul(s, k)\ny = Conv(a, w)", w=W, k=STEP),
    reasons.OneMagnitude: ternary,
    reasons.SmallFilters: case("y = Conv<group=512>(x, w)", ("N", 512, 4, 4), w=weights(512, 1, 2, 2)),
    reasons.ZeroFilter: case("y = Conv(x, w)", ("N", 64, 6, 6), w=np.append(weights(63, 64, 3, 3), ZEROS, axis=0)),
    reasons.WeightsReadElsewhere: case(
        "c = Conv(x, w)\nm = Mul(x, w)\ny = Add(c, m)", (1, 64, 1, 1), w=weights(64, 64, 1, 1)
    ),
    fusion_reasons.UsedElsewhere: case(
        f"{BITS}\nt = Sign(d)\ne = Conv(t, u)\nr = ReduceMean(d)\ny = Add(e, r)", **BEHIND
    ),
    fusion_reasons.ClipAttributes: lowered(
        "c = Clip(x, zero)\ns = Sign(c)\ny = Conv(s, w)", old_clip, FoldThreshold(), MAP, w=W, zero=np.float32(0)
    ),
    fusion_reasons.ClipBounds: behind("h = ReduceMax<keepdims=0>(x)\np = Clip(d, , h)"),
    fusion_reasons.NegativeSlope: behind("p = PRelu(d, k)", k=-np.ones((8, 1, 1), np.float32)),
    fusion_reasons.NormParameters: behind(
        "h = ReduceMean<keepdims=0>(d, axes)\np = BatchNormalization(d, h, b, m, v)",
        axes=np.array([0, 2, 3]),
        **{key: value for key, value in batch_norm(8).items() if key != "g"},
    ),
    fusion_reasons.NormTrains: behind("p, e, f = BatchNormalization<training_mode=1>(d, g, b, m, v)", **batch_norm(8)),
    fusion_reasons.DividesByData: behind("p = Div(k, d)", k=np.ones((8, 1, 1), np.float32)),
    fusion_reasons.DividedByZero: behind("p = Div(d, k)", k=np.arange(8, dtype=np.float32).reshape(8, 1, 1)),
    fusion_reasons.OperandUnknown: behind(
        "h = ReduceMean<keepdims=1>(d, axes)\np = PRelu(d, h)", axes=np.array([0, 2, 3])
    ),
    fusion_reasons.OperandDimensions: behind(
        "p = Add(d, k)", (1, 4, 6), w=weights(8, 4, 3), u=weights(3, 1, 1, 1), k=eighths(1, 1, 8, 1)
    ),
    fusion_reasons.DataBroadcast: behind("p = Add(d, k)", w=weights(1, 4, 3, 3), k=eighths(8, 1, 1)),
    fusion_reasons.OperandShape: behind("p = Add(d, k)", k=eighths(1, 8, 4, 4)),
    reasons.IntegerLayer: case(
        "s = Sign(x)\nq, z, o = DynamicQuantizeLinear(s)\ni = ConvInteger(q, w, o)\ny = Cast<to=1>(i)",
        w=np.ones((8, 4, 3, 3), np.int8),
    ),
    reasons.NotFloat32: case(
        "d = Cast<to=11>(x)\ns = Sign(d)\nc = Conv(s, w)\ny = Cast<to=1>(c)", w=W.astype(np.float64)
    ),
    reasons.Features: fitted((5, 100), [None, 144], True),
    reasons.Channels: fitted((8, 3, 3, 3), [None, 4, 6, 6], False),
    reasons.LargeWindow: case("s = Sign(x)\ny = Conv<pads=[5000, 5000, 5000, 5000]>(s, w)", w=W),
    reasons.ManyProducts: fitted((1, 2**24), [None, 2**24], True),
    reasons.LargeSums: case(f"{LEVELS}\ny = MatMul(a, w)", ("N", 5592406), w=np.ones((5592406, 1), np.float32)),
    reasons.CancelsOut: cancelled,
    fusion_reasons.BitsFeed: case("n = Neg(x)\ns = Sign(n)\np = MaxPool<kernel_shape=[2,2]>(s)\ny = Conv(p, w)", w=W),
    fusion_reasons.BitsAreOutput: lowered(
        "n = Neg(x)\ns = Sign(n)\ny = Conv(s, w)", expose_bits, FoldThreshold(), MAP, w=W
    ),
    fusion_reasons.LinearBits: lowered(
        "s = Sign(x)\nd = MatMul(s, w)\nt = Sign(d)\ny = MatMul(t, u)",
        misread_bits,
        FuseConvThreshold(),
        ("N", 4),
        w=weights(4, 5),
        u=weights(5, 3),
    ),
    fusion_reasons.UnknownChannels: lowered(MEAN, forget_channels, FuseAbsMean(), MAP, w=W, axes=np.array([1])),
    fusion_reasons.FoldedAlready: case(
        "n = BatchNormalization(x, g, b, m, v)\nq = BatchNormalization(n, g, b, m, v)\n" + MEAN.replace("(x)", "(q)"),
        w=W,
        axes=np.array([1]),
        **{key: np.ones(4, np.float32) for key in ("g", "v")},
        **{key: np.zeros(4, np.float32) for key in ("b", "m")},
    ),
    fusion_reasons.NoSignReads: case(
        "s = Sign(x)\nd = Conv<pads=[1,1,1,1]>(s, w)\ny = Add(d, x)", w=weights(4, 4, 3, 3)
    ),
    fusion_reasons.ResidualShape: case(
        "s = Sign(x)\nd = Conv<pads=[1,1,1,1]>(s, w)\ng = GlobalAveragePool(x)\na = Add(d, g)\nt = Sign(a)\n"
        "y = Conv(t, w)",
        w=weights(4, 4, 3, 3),
    ),
    fusion_reasons.FactorShape: case(
        "s = Sign(x)\nd = Conv<pads=[1,1,1,1]>(s, w)\ng = GlobalAveragePool(x)\ny = Mul(d, g)", w=weights(4, 4, 3, 3)
    ),
    fusion_reasons.FactorLayer: case("s = Sign(x)\nd = MatMul(s, w)\ny = Mul(d, x)", ("N", 3, 4), w=weights(4, 4)),
    fusion_reasons.PoolStays: case(
        f'{BITS}\np = MaxPool<kernel_shape=[2,2],strides=[2,2],auto_pad="SAME_UPPER">(d)\nt = Sign(p)\ny = Conv(t, u)',
        ("N", 4, "H", "V"),
        **BEHIND,
    ),
    fusion_reasons.Falls: case(
        "n = BatchNormalization(x, g, b, m, v)\ns = Sign(n)\np = MaxPool<kernel_shape=[2,2]>(s)\ny = Conv(p, w)",
        w=W,
        **batch_norm(4, gamma=[1, -1, 1, -1]),
    ),
    fusion_reasons.SumNotDivided: case(
        "s = Sign(x)\nd = Conv<pads=[1,1,1,1]>(s, w)\na = Abs(x)\nm = ReduceSum<keepdims=1>(a, axes)\ny = Mul(d, m)",
        w=W,
        axes=np.array([1]),
    ),
    fusion_reasons.ChannelsDropped: case(
        "s = Sign(x)\nd = Conv<pads=[1,1,1,1]>(s, w)\na = Abs(x)\nm = ReduceMean<keepdims=0>(a, axes)\n"
        "q = ReduceMean<keepdims=1>(m, axes)\ny = Add(d, q)",
        w=W,
        axes=np.array([1]),
    ),
    fusion_reasons.ThresholdPerPosition: case(
        f"{BITS}\nf = Flatten(d)\nn = BatchNormalization(f, g, b, m, v)\nt = Sign(n)\ny = MatMul(t, u)",
        w=W,
        u=weights(128, 5),
        **batch_norm(128),
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_reason_is_given(kind: type[Reason]) -> None:
    declined = CASES[kind]()
    found = [
        why for decline in declined for why in (decline.why, decline.unpacked, getattr(decline.why, "consumer", None))
    ]
    assert kind in {type(why) for why in found}, [decline.reason for decline in declined]


def test_every_reason_has_a_case_and_an_example() -> None:
    kinds = {*LayerReason.__subclasses__(), *Reason.__subclasses__()} - {LayerReason}
    assert kinds == CASES.keys()
    assert kinds != CASES.keys() - {fusion_reasons.BitsFeed}, "a class without a case is seen"
    assert all(kind.example and kind.template for kind in kinds)
    assert [kind for kind in kinds if kind.reads_sign and not kind.advice] == []


def test_the_docs_have_the_table() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "converting.md").read_text()
    with on_command_line():
        shown = table()
    assert shown in docs
    assert shown.replace("exactly 0", "nearly 0") not in docs
