"""The first layer of a model that takes images of bytes, held against the same layer of floats, bit by bit.

MODEL was converted with --input uint8 and begins with an ImageConvThreshold; DATA holds images for it. Every image
goes through that operator, and normalised through DirectConvThreshold, on each instruction set: how many bits differ,
which must be none, how many the integer sums left undecided, so that they were summed as floats, and how much faster
the layer is on one image, both in turn.

    python tests/benchmarks/image_bits.py nin.onnx cifar10_uint8.npz
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from turns import Runner, take_turns

from bnn_deploy.image_input import ImageInput, read_image_input
from bnn_deploy.operators.contract import DOMAIN, OPSET
from bnn_deploy.provenance import properties
from bnn_deploy.runtime.inputs import load_data, read_inputs
from bnn_deploy.runtime.machine import cpu_name
from bnn_deploy.runtime.session import library_info, load_session

BATCH = 100


@dataclass(frozen=True)
class Result:
    """What one instruction set made.

    Attributes:
        bits: of all images.
        differing: those that are not the float layer's.
        undecided: those that integer sums left undecided; None where the instruction set has no integer form.
        speed: the time of the float layer, normalisation not included, by that of the layer of bytes, on one image.
    """

    isa: str
    bits: int
    differing: int
    undecided: int | None
    speed: float


def first_layers(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto, ImageInput]:
    """The layer of bytes, that of floats, and how bytes are normalised."""
    image = read_image_input(properties(model))
    nodes = [node for node in model.graph.node if node.op_type == "ImageConvThreshold"]
    if image is None or not nodes or nodes[0].input[0] != model.graph.input[0].name:
        raise SystemExit("the model does not begin with an ImageConvThreshold: convert it with --input uint8")
    bytes_layer = nodes[0]
    floats_layer = NodeProto()
    floats_layer.CopyFrom(bytes_layer)
    floats_layer.op_type = "DirectConvThreshold"
    del floats_layer.input[3]  # levels
    rest = [a for a in floats_layer.attribute if a.name != "channels_last"]
    del floats_layer.attribute[:]
    floats_layer.attribute.extend(rest)
    return _alone(model, bytes_layer, TensorProto.UINT8), _alone(model, floats_layer, TensorProto.FLOAT), image


def _alone(model: onnx.ModelProto, node: NodeProto, dtype: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        [node],
        "first",
        [helper.make_tensor_value_info(node.input[0], dtype, [None] * 4)],
        [helper.make_tensor_value_info(node.output[0], TensorProto.UINT32, [None] * 4)],
        [tensor for tensor in model.graph.initializer if tensor.name in node.input],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def compare(model: onnx.ModelProto, images: NDArray[np.uint8], isa: str, rounds: int) -> Result:
    """Both layers on all images."""
    of_bytes, of_floats, image = first_layers(model)
    sessions = [load_session(part.SerializeToString(), 1, isa=isa) for part in (of_bytes, of_floats)]
    before, differing, bits = library_info(isa), 0, 0
    outputs = next(
        len(t.dims) and t.dims[0] for t in model.graph.initializer if t.name == of_bytes.graph.node[0].input[1]
    )
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        feeds = ({model.graph.input[0].name: x} for x in (part, image.normalise(part)))
        got, wanted = (np.asarray(s.run(None, feed)[0]) for s, feed in zip(sessions, feeds, strict=True))
        differing += int(np.bitwise_count(got ^ wanted).sum())
        bits += got[..., 0].size * outputs
    after = library_info(isa)
    undecided = after.undecided_bits - before.undecided_bits if after.integer_bits > before.integer_bits else None
    one = images[:1]
    runners = {
        part: Runner(part_model, isa, {model.graph.input[0].name: x})
        for part, part_model, x in (("bytes", of_bytes, one), ("floats", of_floats, image.normalise(one)))
    }
    times = take_turns(runners, rounds)
    return Result(isa, bits, differing, undecided, float(np.median(times["floats"] / times["bytes"])))


def main(arguments: list[str] | None = None) -> int:
    """Print one line per instruction set; 1 if a bit differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args(arguments)
    inputs = load_data(args.data, None, None, read_inputs(load_session(args.model, kernels=False)))
    (images,) = inputs.arrays.values()
    model = onnx.load(args.model)
    results = [compare(model, images, isa, args.rounds) for isa in library_info().isas]
    print(f"{cpu_name()}; {args.model.name}, first layer, {len(images):,} images of {args.data.name}")
    for found in results:
        share = (
            "none by integers"
            if found.undecided is None
            else (f"{found.undecided:,} left undecided by integers ({100 * found.undecided / found.bits:.3f} %)")
        )
        print(
            f"{found.isa}: {found.differing} of {found.bits:,} bits differ from the float layer's; {share}; "
            f"{found.speed:.2f} times its speed"
        )
    if args.json:
        record = {"cpu": cpu_name(), "images": len(images), "results": [asdict(found) for found in results]}
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    return int(any(found.differing for found in results))


if __name__ == "__main__":
    sys.exit(main())
