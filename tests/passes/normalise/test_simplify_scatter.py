"""SimplifyScatter: assignments by mask, as PyTorch's exporter writes `o[o == 0] = 1`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnn_deploy.passes.graph import constant
from bnn_deploy.passes.normalise.simplify_scatter import SimplifyScatter
from bnn_deploy.passes.pipeline import to_binary
from support.graphs import Array, assert_same, copy, equal, op_types, parse, run_float, samples, weights


def assignment(data: str, mask: str, number: str, result: str) -> str:
    """data[mask] = number, the number repeated as often as the mask is true."""
    return f"""
        {result}_n = NonZero({mask})
        {result}_i = Transpose<perm=[1,0]>({result}_n)
        {result}_r = Reshape({mask}, last)
        {result}_c = Cast<to=7>({result}_r)
        {result}_k = ReduceSum({result}_c)
        {result}_e = Expand({number}, {result}_k)
        {result}_u = Reshape({result}_e, last)
        {result} = ScatterND({data}, {result}_i, {result}_u)
    """


ZEROS = f"s = Sign(x)\nm = Equal(s, zero)\n{assignment('s', 'm', 'one', 'o')}"
BOTH = f"""
    m = GreaterOrEqual(x, zero)
    {assignment("x", "m", "one", "p")}
    l = Less(x, zero)
    {assignment("p", "l", "minus", "o")}
"""


def model_of(text: str, outputs: tuple[str, ...] = ("y",)) -> ir.Model:
    numbers = {"zero": 0, "one": 1, "minus": -1}
    values: dict[str, Array] = {name: np.array(number, np.float32) for name, number in numbers.items()}
    values |= {"last": np.array([-1]), "row": np.ones((1, 4, 6, 6), bool), "w": weights(5, 4, 3, 3)}
    read = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return parse(text, outputs=outputs, **{key: value for key, value in values.items() if key in read})


def simplified(model: ir.Model) -> tuple[ir.Model, int]:
    after = copy(model)
    count = SimplifyScatter()(after).count
    x = with_zeros(model)
    assert equal(run_float(after, x), run_float(model, x))
    return after, count


def with_zeros(model: ir.Model) -> Array:
    x = samples(model)
    x.flat[::3] = 0
    x.flat[1::9] = -0.0
    return x


@pytest.mark.parametrize(("text", "count"), [(ZEROS, 1), (BOTH, 2)])
def test_fires(text: str, count: int) -> None:
    model = model_of(f"{text}\ny = Conv(o, w)")
    after, modified = simplified(model)
    assert (modified, op_types(after).count("Where")) == (count, count)
    assert not {"ScatterND", "NonZero", "ReduceSum", "Expand"} & {*op_types(after)}
    number = after.graph.initializers["o_assigned"]
    number.const_value = ir.tensor(-np.asarray(constant(number)), name="o_assigned")
    x = with_zeros(model)
    assert not equal(run_float(after, x), run_float(model, x)), "another number is not seen"


def test_it_becomes_a_binary_layer() -> None:
    model = model_of(f"{BOTH}\ny = Conv(o, w)")
    binary, left, _ = to_binary(model)
    assert (left, op_types(binary)) == ([], ["Binarize", "BinaryConv"])
    x = with_zeros(model)
    assert_same(model, binary, x)
    (threshold,) = (value for value in binary.graph.initializers.values() if "threshold" in (value.name or ""))
    moved = np.nextafter(np.asarray(constant(threshold)), np.float32(1))
    threshold.const_value = ir.tensor(moved, name=threshold.name)
    with pytest.raises(AssertionError):
        assert_same(model, binary, x)


LAST = "ScatterND(s, o_i, o_u)"


@pytest.mark.parametrize(
    "text",
    [
        ZEROS.replace("ScatterND", 'ScatterND<reduction="add">'),
        ZEROS.replace(LAST, f"v = GatherND(x, o_i)\no = {LAST.replace('o_u', 'v')}").replace("o = v", "v"),
        ZEROS.replace(LAST, f"v = Neg(o_i)\no = {LAST.replace('o_i', 'v')}").replace("o = v", "v"),  # from the end
        ZEROS.replace("o_n = NonZero(m)", "f = Cast<to=1>(m)\no_n = NonZero(f)"),
        "s = Sign(x)\nm = Identity(row)\n" + assignment("s", "m", "one", "o"),  # reaches the first sample alone
    ],
)
def test_does_not_fire(text: str) -> None:
    model = model_of(f"{text}\ny = Conv(o, w)")
    after, modified = simplified(model)
    assert (modified, op_types(after)) == (0, op_types(model))


def test_a_mask_and_a_number_shared_by_two() -> None:
    text = f"m = Less(x, zero)\n{assignment('x', 'm', 'one', 'o')}\nq = ScatterND(o_x, o_i, o_u)\ny = Add(o, q)"
    model = model_of(text.replace("q =", "o_x = Neg(x)\nq ="), outputs=("y", "o"))
    after, modified = simplified(model)
    assert modified == 2 and "NonZero" not in op_types(after)
    assert [value.name for value in after.graph.outputs] == ["y", "o"]
