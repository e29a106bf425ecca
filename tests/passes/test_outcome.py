"""The records of passes: what became part of which node, whatever passes make of it later."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnn_deploy.operators.contract import DOMAIN
from bnn_deploy.passes.fuse.fold_threshold import FoldThreshold
from bnn_deploy.passes.lower.lower_binary_conv import LowerBinaryConv
from bnn_deploy.passes.outcome import Rewrite, parts
from bnn_deploy.passes.pipeline import canonicalize, fold, to_binary
from support.graphs import batch_norm, eighths, parse, weights

NETWORK = """n = BatchNormalization(x, g, b, m, v)
a = GreaterOrEqual(n, zero)
s = Where(a, one, minus)
c = Conv<pads=[1,1,1,1]>(s, w)
r = Sub(c, k)
p = MaxPool<kernel_shape=[2,2]>(r)
t = Sign(p)
y = Conv(t, u)"""
NUMBERS = {"zero": np.float32(0), "one": np.float32(1), "minus": np.float32(-1)}


def network() -> ir.Model:
    constants = NUMBERS | batch_norm(4) | {"k": eighths(8, 1, 1)}
    return parse(NETWORK, w=weights(8, 4, 3, 3), u=weights(3, 8, 1, 1), **constants)


def made_of(model: ir.Model) -> dict[str, set[str]]:
    """The operators of the network's nodes that each binary node of a converted model was made of."""
    model_of = network()
    fold(model_of)
    operators = {node.name: node.op_type for node in model_of.graph}
    return {node.op_type: {operators[part] for part in parts(node)} for node in model.graph if node.domain == DOMAIN}


def test_a_node_says_of_which_nodes_it_was_made() -> None:
    assert made_of(to_binary(network())[0]) == {
        "Binarize": {"BatchNormalization", "GreaterOrEqual", "Where"},
        "BinaryConvThreshold": {"Conv", "Sub", "MaxPool", "Sign"},
        "BinaryMaxPool": set(),
        "BinaryConv": {"Conv"},
    }


def test_a_rewrite_names_the_nodes_that_were_absorbed() -> None:
    model = network()
    fold(model)
    canonicalize(model)
    lowered, folded = LowerBinaryConv()(model).rewrites, FoldThreshold()(model).rewrites
    assert lowered == [Rewrite("c", ("c",)), Rewrite("y", ("y",))]
    assert folded == [Rewrite("s_bits", ("n",))]  # of t, what is in front is a MaxPool


def test_a_node_that_no_pass_made_is_its_own_part() -> None:
    model = network()
    fold(model)
    assert [parts(node) for node in model.graph] == [(node.name,) for node in model.graph]
    ir.to_proto(model)  # the parts are not of the file
    assert b"bnn_deploy.parts" not in ir.to_proto(to_binary(network())[0]).SerializeToString()
