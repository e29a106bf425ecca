"""Networks as their authors wrote them: are all binary layers found, and is each converted network the same?

    python tests/dialect_table.py            # small ones
    python tests/dialect_table.py --full     # as published, and the trained NIN of examples/
    python tests/dialect_table.py --layers   # and a line for every layer

Every network is converted through its own front door and verified against its own source, layer by layer on identical
inputs, on all instruction sets of this machine; and once more with one filter of one binary layer complemented, which
must fail. It exits with 1 if a layer is missing, a check fails, or a corruption is not seen.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn

from bnn_deploy import convert, verify
from bnn_deploy.architectures import BinaryNetMLP, BinaryNetVGG, BiRealNet18, DoReFaVGG, ReActNet, XnorAlexNet
from bnn_deploy.operators.bits import pack_bits, unpack_bits
from bnn_deploy.operators.contract import is_binary_layer
from bnn_deploy.passes.graph import constant, group_of
from bnn_deploy.proof.results import Verification
from support import author_networks, darknet_networks, moving_networks, networks, recent_networks

EXAMPLES = Path(__file__).parents[1] / "examples"
EXPORTS = Path(__file__).parent / "exports"
Source = tuple[Any, tuple[int, ...], dict[str, Any]]
"""What `convert` takes, the shape of a sample, and options of `convert`."""


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        name: it, and who writes networks so.
        door: the front door that it enters by.
        binary: layers whose weights and inputs were both binary in training.
        make: see Source.
        full: whether it takes minutes.
        data: real inputs, an .npz file with the array `input` or `x`; None takes pictures of digits.
    """

    name: str
    door: str
    binary: int
    make: Callable[[], Source]
    full: bool = False
    data: Path | None = None


@dataclass(frozen=True)
class Row:
    """What came of one network.

    Attributes:
        found: binary layers of the converted model.
        layers: convolutions and linear layers in all.
        proof: of `verify`.
        caught: whether the proof of the corrupted model failed.
    """

    found: int
    layers: int
    proof: Verification
    caught: bool


def module(make: Callable[[], nn.Module], shape: tuple[int, ...], samples: int = 32) -> Source:
    """A torch module with calibrated BatchNorm; shifts and slopes that a network learns are drawn at random."""
    torch.manual_seed(0)
    net = make()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 4 and parameter.shape[0] == 1:  # of ReActNet
                parameter.normal_(0, 0.2)
            elif "prelu" in name:
                parameter.uniform_(0, 0.5)
            parameter[parameter == 0] += 1e-6  # one of 16 million random weights may be, and would have no sign
    networks.calibrate(net, [], networks.images(shape, samples), seed=0)
    return net, shape, {"input_shape": shape}


def trained_nin() -> Source:
    return EXAMPLES / "nin" / "nin.pth.tar", (3, 32, 32), {"arch": "nin"}


def random_nin() -> Source:
    return networks.random_network("nin", samples=16), (3, 32, 32), {}


def exported(name: str, binary: int, exporter: str) -> Case:
    """A file of tests/exports, with the inputs beside it."""
    path = EXPORTS / f"{name}.onnx"
    return Case(name, f"ONNX of {exporter}", binary, lambda: (path, (), {}), data=path.with_suffix(".npz"))


def recent(name: str, binary: int, make: Callable[[], nn.Module], **options: str) -> Case:
    """A network of support/recent_networks.py, and options of `convert`."""

    def source() -> Source:
        network, shape, own = module(make, make().input_shape)  # type: ignore[arg-type]
        return network, shape, own | options

    return Case(name, "module", binary, source)


def residual(name: str, binary: int, conv: type[nn.Conv2d], **options: object) -> Case:
    """Three binary convolutions of one kind."""
    return recent(name, binary, lambda: recent_networks.Residual(conv, **options))


def darknet(name: str, network: str) -> Case:
    """A network of support/darknet_networks.py, whose weights and inputs are in tests/exports."""
    cfg, weights, data = (EXPORTS / f"darknet_{network}.{kind}" for kind in ("cfg", "weights", "npz"))
    sections, _ = darknet_networks.NETWORKS[network]
    binary = sum(1 for _, keys in sections if keys.get("xnor"))
    return Case(name, "cfg and weights", binary, lambda: (cfg, (), {"darknet_weights": weights}), data=data)


RECENT = [
    recent("BiBERT block", 8, recent_networks.BiBert, sign_zero="exact"),  # maps of 0 and 1 times ±1 are often 0
    recent("BiT block", 8, recent_networks.BiT),
    recent("Mixer", 4, recent_networks.Mixer),
    recent("GRU, 4 steps", 8, recent_networks.SignGRU),
    recent("BiPointNet", 3, recent_networks.BiPointNet),
    recent("U-Net, transposed convolutions", 5, recent_networks.SignUNet),
    recent("Dense block, channel shuffle", 4, recent_networks.SignDense),
    recent("3-D", 2, recent_networks.Sign3d),
    recent("Detector, two heads", 3, recent_networks.Detector),
    residual("AdaBin", 3, recent_networks.AdaBinConv2d),
    residual("TTQ", 3, recent_networks.TernaryConv2d),
    residual("TWN", 3, recent_networks.TernaryConv2d, trained=False),
    residual("ABC-Net, 3 x 2 bases", 6, recent_networks.AbcConv2d),
    residual("LQ-Nets, 2 bits", 3, recent_networks.LqConv2d),
    residual("FracBNN", 6, recent_networks.FracConv2d),
    residual("XNOR-Net++", 3, recent_networks.XnorPlusConv2d),
    residual("Real-to-Binary", 3, recent_networks.GatedConv2d),
]
"""Later papers; layers are counted as the network runs them: products of two signs too, a shared layer once per use."""

CASES = [
    Case("XNOR-Net-PyTorch NIN", "module, latent weights", 7, random_nin),
    Case("BinaryNet VGG, narrow", "module", 8, lambda: module(lambda: BinaryNetVGG(16), (3, 32, 32))),
    Case("BinaryNet MLP, narrow", "module", 3, lambda: module(lambda: BinaryNetMLP(64), (1, 28, 28))),
    Case("Bi-Real Net 18, 3x32x32", "module", 16, lambda: module(BiRealNet18, (3, 32, 32))),
    Case("ReActNet, narrow", "module", 8, lambda: module(lambda: ReActNet(8, (1, 2)), (3, 32, 32))),
    Case("own BinConv2d", "module", 3, lambda: module(author_networks.OwnNet, (3, 16, 16))),
    Case("bitorch", "module", 3, lambda: module(author_networks.BitorchNet, (1, 28, 28))),
    Case("Larq, by tf2onnx (NHWC)", "ONNX", 4, lambda: (author_networks.larq(), (6, 6, 3), {})),
    Case("Brevitas, QONNX", "ONNX", 3, lambda: (author_networks.brevitas(), (3, 8, 8), {})),
    Case("DoReFa VGG, 2 bits", "module", 6, lambda: module(lambda: DoReFaVGG(), (3, 32, 32))),
    *(exported(f"larq_{name}", 3, "tf2onnx") for name in ("one_padding", "zero_padding", "alpha", "swish_sign")),
    *(exported(f"larq_{name}", 3, "tf2onnx") for name in ("heaviside", "dorefa_2_bits", "dorefa_3_bits")),
    exported("larq_quicknet", 5, "tf2onnx"),
    exported("brevitas_bipolar", 3, "QONNX"),
    exported("brevitas_2_bits", 3, "QONNX"),
    exported("bitorch_dynamo", 3, "PyTorch, dynamo"),
    exported("bitorch_torchscript", 3, "PyTorch, TorchScript"),
    darknet("Darknet tiny, two heads", "yolo"),
    *RECENT,
    Case("XNOR-Net-PyTorch NIN, trained", "checkpoint", 7, trained_nin, True, EXAMPLES / "nin" / "cifar10_100.npz"),
    Case("BinaryNet VGG", "module", 8, lambda: module(BinaryNetVGG, (3, 32, 32)), full=True),
    Case("BinaryNet MLP", "module", 3, lambda: module(BinaryNetMLP, (1, 28, 28)), full=True),
    Case("XNOR-Net AlexNet with K", "module", 6, lambda: module(XnorAlexNet, (3, 227, 227), 8), full=True),
    Case("Bi-Real Net 18", "module", 16, lambda: module(BiRealNet18, (3, 224, 224), 8), full=True),
    Case("dense blocks of signs", "module", 5, lambda: module(moving_networks.DenseNet, (3, 8, 8)), full=True),
    Case("shuffled signs", "module", 5, lambda: module(moving_networks.ShuffleNet, (3, 8, 8)), full=True),
    Case("U-Net of signs", "module", 4, lambda: module(moving_networks.UNet, (3, 8, 8)), full=True),
    Case("ReActNet-A", "module", 31, lambda: module(ReActNet, (3, 224, 224), 8), full=True),
]


def inputs(case: Case, shape: tuple[int, ...], count: int) -> NDArray[np.float32]:
    """Pictures of a network's input shape, channels first or last."""
    if case.data is not None:
        with np.load(case.data) as data:
            real: NDArray[np.float32] = data["x" if "x" in data else "input"][:count]
        return real
    if len(shape) == 3 and shape[2] in (1, 3):
        images = networks.images((shape[2], *shape[:2]), count, first=500).numpy()
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    return networks.images(shape, count, first=500).numpy()


def corrupt(path: Path, wrong: Path) -> None:
    """Complement the first two filters of the last binary layer with weights, in all of its bases."""
    model = ir.load(path)
    weighted = [node for node in model.graph if is_binary_layer(node) and constant(node.inputs[1]) is not None]
    node = weighted[-1]
    value = node.inputs[1]
    assert value is not None
    array = np.array(constant(value))
    per_group = node.attributes["channels"].as_int() // group_of(node)
    bases = node.attributes.get_int("bases", 1)
    bits = array[:2].reshape(*array[:2].shape[:-1], bases, -1)
    array[:2] = pack_bits(~unpack_bits(bits, per_group)).reshape(array[:2].shape)
    value.const_value = ir.tensor(array, name=value.name)
    ir.save(model, wrong)


def run(case: Case, folder: Path, samples: int) -> Row:
    """Convert and verify one network, and a corrupted copy."""
    source, shape, options = case.make()
    if "darknet_weights" in options:  # no Python runs it: its reference is the float model
        options |= {"float_output": folder / "float.onnx"}
    result = convert(source, folder / "model.onnx", **options)
    reference = result.float_output or source
    x = inputs(case, shape, samples)
    proof = verify(result.output, reference, data=x, reference_samples=1)
    corrupt(result.output, folder / "wrong.onnx")
    broken = verify(folder / "wrong.onnx", reference, data=x, reference_samples=0, isas=["scalar"])
    return Row(len(result.binary_layers), len(result.layers), proof, not broken.passed)


def passed(case: Case, row: Row) -> bool:
    return row.found == case.binary and row.proof.passed and row.proof.complete and row.caught


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="networks as published, too")
    parser.add_argument("--only", help="networks whose name holds this")
    parser.add_argument("--layers", action="store_true", help="the error, flips and margin of every layer, too")
    parser.add_argument("--samples", type=int, default=16)
    arguments = parser.parse_args()
    numbers = ("binary layers", "of all", "float error", "signs", "flips", "margin", "zeros")
    table = Table("network", "front door", *numbers, "")
    failed = []
    for case in CASES:
        if (case.full and not arguments.full) or (arguments.only or "") not in case.name:
            continue
        print(f"{case.name} ...", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            row = run(case, Path(folder), arguments.samples)
        layers = row.proof.layers
        signs = [layer for layer in layers if layer.kind != "floats"]
        for layer in layers if arguments.layers else ():
            found = f"error {layer.max_error:.2g}, {layer.relative_error:.2g} of the largest in its channel"
            if layer.kind != "floats":
                found = f"{layer.differing} of {layer.values:,} {layer.kind} differ, margin {layer.margin:.2g}"
            print(f"{case.name}: {layer.layer}: {found}")
        table.add_row(
            case.name,
            case.door,
            f"{row.found} of {case.binary}",
            str(row.layers),
            f"{max(layer.max_error for layer in layers):.2g}",
            str(sum(layer.values for layer in signs)),
            str(sum(layer.differing for layer in signs)),
            f"{max((layer.margin for layer in signs), default=0):.2g}",
            str(sum(layer.zeros for layer in layers)),
            "ok" if passed(case, row) else "FAILED",
        )
        if not passed(case, row):
            reasons = row.proof.failures or ["layers missing, or a corruption that was not seen"]
            failed += [f"{case.name}: {reason}" for reason in reasons]
    Console(width=150).print(table)
    for line in failed:
        print(line)
    print("FAILED" if failed else "PASSED: every binary layer found, every network the same, every corruption caught")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
