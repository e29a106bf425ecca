"""Where the cycles of whole networks go on Raspberry Pis 3 to 5, by the model of llvm-mca, layer by layer.

    python tests/benchmarks/network_model.py --library build-arm64/libbnn_deploy_ops.so --onnxruntime ORT.whl
    python tests/benchmarks/network_model.py --library ... --onnxruntime ... nin model.onnx

Layers and shapes are read from converted models, by default LeNet-5, NIN, Bi-Real-18 and AlexNet with random weights,
and some of them with --input uint8.
The kernels are those of the library for aarch64, found in its machine code as neon_model.py does; onnxruntime's matrix
multiplication is found in its wheel for aarch64. MODEL figures, not measurements on a board, and favourable to
onnxruntime: see HEADER.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mca import mlas
from mca.layers import binarized, binary_conv, copied, direct_conv
from mca.listing import disassemble
from mca.mlas import Sgemm
from mca.neon import DirectKernel, Library, find_direct, find_kernels
from mca.network import FREE, First, Network, Node, Tensor, first_layer, read_network, window
from mca.tool import ARM

from bnn_deploy.errors import BnnDeployError, InputError
from bnn_deploy.system import library_name

PARTS = FIRST, BINARY, FLOAT = "first layer", "binary", "other float"
OF_BYTES = "-uint8"
NETWORKS = ("lenet5", "nin", "birealnet18", "alexnet", *(name + OF_BYTES for name in ("lenet5", "nin", "alexnet")))
"""Of those whose first layer makes bits, also converted with --input uint8."""

HEADER = """\
Modelled cycles of one image on one core: MODEL figures of llvm-mca, NOT measured on a board. "ort": the first layer
(convolution, pool, signs) by onnxruntime, of floats; "ours": by the direct convolution, of bytes where the model takes
bytes. All else is the same in both columns.

* Loops are of the built libraries; caches never miss and branches are always predicted. On Cortex-A53 that is the most
  optimistic: it works in order, and waits for every load that misses. There llvm-mca also lets no instruction finish
  before an earlier one: a load waits for the long multiply-add in front of it. That costs both columns, and loops with
  few products per iteration more than unrolled ones, so differences between them on this CPU mean little.
* onnxruntime's convolutions are im2col, a packed copy, and SGEMM without starts and ends of tiles; its pools and
  elementwise operators are bounds by loads, stores and arithmetic. All of that is favourable to it. What a node costs
  besides, a few microseconds of dispatch and allocation, is in no column.
* "m": bound by memory: weights are read anew for each image if all of a network's do not fit into the last cache, and
  so are tensors that do not fit; at the peak rate of the data sheet, of which one core reaches only a part:"""


@dataclasses.dataclass(frozen=True)
class Board:
    """Memory beside a CPU, from the data sheets: 32 bits wide on all of them."""

    name: str
    gigahertz: float
    gigatransfers: float
    cache: int  # the last one, bytes

    @property
    def bytes_per_cycle(self) -> float:
        return 4 * self.gigatransfers / self.gigahertz


BOARDS = {
    "cortex-a53": Board("Raspberry Pi 3B (LPDDR2-900)", 1.2, 0.9, 512 << 10),
    "cortex-a72": Board("Raspberry Pi 4B (LPDDR4-3200)", 1.8, 3.2, 1 << 20),
    "cortex-a76": Board("Raspberry Pi 5 (LPDDR4X-4267)", 2.4, 4.267, 2 << 20),
}


@dataclasses.dataclass(frozen=True)
class Cost:
    cycles: float
    memory: bool  # whether memory is the bound


@dataclasses.dataclass(frozen=True)
class Row:
    """The layer's costs in the variants `ort` and `ours`, by CPU; `part` is one of PARTS."""

    layer: str
    part: str
    ort: dict[str, Cost]
    ours: dict[str, Cost]


@dataclasses.dataclass(frozen=True)
class Code:
    """The loops."""

    library: Library
    direct: DirectKernel
    bytes: DirectKernel
    sgemm: Sgemm

    def node(self, network: Network, node: Node, model: str) -> float:
        """Cycles of a node other than the first layer's."""
        x, y = network.tensors[node.inputs[0]], network.tensors[node.outputs[0]]
        prices: dict[str, Callable[[], float]] = {
            "BinaryConv": lambda: self._binary(network, node, model),
            "BinaryConvThreshold": lambda: self._binary(network, node, model),
            "BinaryConvResidual": lambda: self._binary(network, node, model) + self._residual(network, node, model),
            "BinaryMaxPool": lambda: copied(y.size * taps(node, x), model),
            "AveragePoolThreshold": lambda: self._averaged(node, x, y, model),
            "Binarize": lambda: binarized(self.library, x.number, len(x.shape) == 2, model),
            "BinarizeChannelsLast": lambda: binarized(self.library, x.number, True, model),
            "Conv": lambda: self.sgemm.conv(window(network, node), model),
            "Gemm": lambda: self.sgemm.product(1, y.number, x.number, model),
            "ReluLinear": lambda: self.sgemm.product(1, y.number, x.number, model) / 2,  # half of the inputs are 0
            "Relu": lambda: mlas.floats("elementwise", y.number, model),
            "Add": lambda: mlas.floats("add", y.number, model),
            "Transpose": lambda: mlas.transposed(y.number, model),
            **dict.fromkeys(
                ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"),
                lambda: mlas.pooled(taps(node, x), y.number, model),
            ),
        }
        if node.op not in prices:
            raise InputError(f"{network.name}: {node.op} '{node.outputs[0]}': no model of this operator")
        return prices[node.op]()

    def _binary(self, network: Network, node: Node, model: str) -> float:
        floats = not network.tensors[node.outputs[0]].bits
        return sum(binary_conv(self.library, window(network, node), floats, model).values())

    def _averaged(self, node: Node, x: Tensor, y: Tensor, model: str) -> float:
        """The sums of the rows of each window, then of these, then the bits."""
        height, width = node.ints("kernel_shape")
        _, channels, _, columns = x.shape
        rows, windows = y.shape[1] * columns * channels, y.shape[1] * y.shape[2] * channels
        sums = mlas.floats("add", height * rows, model) + mlas.floats("add", width * windows, model)
        return sums + binarized(self.library, windows, False, model)

    def _residual(self, network: Network, node: Node, model: str) -> float:
        """The sum with the shortcut, and its signs where they are an output."""
        number = network.tensors[node.outputs[0]].number
        signs = binarized(self.library, number, False, model) if len(node.outputs) > 1 else 0.0
        return mlas.floats("add", number, model) + signs

    def first_ort(self, first: First, model: str) -> float:
        """Cycles of Conv, MaxPool and Binarize, or Conv, Binarize and BinaryMaxPool."""
        floats = first.window.outputs * first.window.made
        rest = binarized(self.library, floats, False, model) if first.made.bits else 0.0
        return self.sgemm.conv(first.window, model) + rest + self._pool(first, model)

    def first_ours(self, first: First, model: str) -> float:
        """Cycles of DirectConvThreshold or DirectConv, or of ImageConvThreshold or ImageConv.

        An image's bits are those of integers where the CPU has dot products. What they leave undecided is not in it.
        """
        floats = first.window.outputs * first.window.made
        integers = first.nodes[0].op == "ImageConvThreshold" and model == "cortex-a76"
        kernel = self.bytes if integers else self.direct
        total = direct_conv(kernel, first.window, model) + self._pool(first, model)
        if first.made.bits:
            comparisons = 2 if integers else 1  # whether a sum reaches its threshold, and whether it may
            return total + comparisons * binarized(self.library, floats, True, model)
        return total + mlas.transposed(first.made.number, model)

    def _pool(self, first: First, model: str) -> float:
        if first.taps == 1:
            return 0.0
        if first.made.bits:
            return copied(first.made.size * first.taps, model)
        return mlas.pooled(first.taps, first.made.number, model)


def taps(node: Node, x: Tensor) -> int:
    """Numbers of the input per output of a pool or mean; those over everything have no kernel_shape."""
    size = 1
    for length in node.ints("kernel_shape") if "kernel_shape" in node.attributes else x.shape[2:]:
        size *= length
    return size


def traffic(network: Network, nodes: Sequence[Node], cache: int) -> int:
    """Bytes that the nodes read from memory and write to it."""
    made = {name for node in nodes for name in node.outputs}
    read = {name for node in nodes for name in node.inputs} - made
    left = {name for name in made if any(name in n.inputs for n in network.nodes if n not in nodes)}
    held = network.constant_bytes <= cache
    found = network.of(tuple(read | left))
    return sum(tensor.size for tensor in found if (not held if tensor.constant else tensor.size > cache))


def rows(network: Network, code: Code, models: Sequence[str] = tuple(ARM)) -> list[Row]:
    """The first layer, then each node that computes."""
    first = first_layer(network)

    def price(nodes: Sequence[Node], cycles: Callable[[str], float]) -> dict[str, Cost]:
        found = {}
        for model in models:
            board = BOARDS[model]
            least = traffic(network, nodes, board.cache) / board.bytes_per_cycle
            found[model] = Cost(max(computed := cycles(model), least), computed < least)
        return found

    made = [
        Row(
            f"{name(first.nodes[0], network)}, {FIRST}",
            FIRST,
            price(first.nodes, lambda model: code.first_ort(first, model)),
            price(first.nodes, lambda model: code.first_ours(first, model)),
        )
    ]
    for node in network.nodes:
        if node not in first.nodes and node.op not in FREE:
            costs = price([node], lambda model, node=node: code.node(network, node, model))  # type: ignore[misc]
            part = BINARY if node.op.startswith("Binar") else FLOAT
            made.append(Row(name(node, network), part, costs, costs))
    return made


def name(node: Node, network: Network) -> str:
    """Operator, and channels or size."""
    if "Conv" in node.op:
        sizes = network.tensors[node.inputs[1]].shape
        kernel = sizes[1:-1] if network.tensors[node.inputs[1]].bits else sizes[2:]
        return f"{node.op} {'x'.join(map(str, kernel))}, {sizes[0]} channels"
    return f"{node.op} {'x'.join(map(str, network.tensors[node.outputs[0]].shape[1:]))}"


def table(title: str, found: Sequence[Row]) -> str:
    """One network. Cycles are in thousands."""
    models = list(found[0].ort)
    total = Row("sum", "", total_of(found, "ort"), total_of(found, "ours"))
    names = [model.removeprefix("cortex-").upper() for model in models]
    lines = [
        f"{title}, thousands of cycles",
        "",
        "| layer | " + " | ".join(f"{each} ort | ours" for each in names) + " |",
        "|---" * (2 * len(models) + 1) + "|",
    ]
    for row in (*found, total):
        pairs = [(row.ort[model], row.ours[model]) for model in models]
        cells = [f"{cost.cycles / 1000:.1f}{' m' * cost.memory}" for pair in pairs for cost in pair]
        lines.append(f"| {row.layer} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def total_of(found: Sequence[Row], variant: str, *parts: str) -> dict[str, Cost]:
    """Of the rows of these parts, by default of all."""
    costs = [getattr(row, variant) for row in found if not parts or row.part in parts]
    return {model: Cost(sum(cost[model].cycles for cost in costs), False) for model in found[0].ort}


def summary(networks: dict[str, list[Row]]) -> str:
    """Where the cycles go, in thousands, and what the direct convolution gains."""
    lines = [
        "| network | CPU | first layer, ort | ours | binary layers | other float | sum, ort | ours | ort / ours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for title, found in networks.items():
        for model in found[0].ort:
            before, after = (total_of(found, variant)[model].cycles for variant in ("ort", "ours"))
            parts = [
                total_of(found, variant, part)[model].cycles
                for variant, part in (("ort", FIRST), ("ours", FIRST), ("ort", BINARY), ("ort", FLOAT))
            ]
            cells = [f"{cycles / 1000:,.0f}" for cycles in (*parts, before, after)]
            lines.append(
                f"| {title} | {model.removeprefix('cortex-').upper()} | {' | '.join(cells)} | {before / after:.2f} |"
            )
    return "\n".join(lines)


def converted(given: str, folder: Path) -> Path:
    """A file as it is; an architecture converted into a folder: trained where it is, else with random weights."""
    from bnn_deploy.architectures import ARCHITECTURES
    from bnn_deploy.conversion import convert
    from bnn_deploy.image_input import ImageInput
    from support.networks import network

    architecture = given.removesuffix(OF_BYTES)
    if architecture not in ARCHITECTURES:
        return Path(given)
    path = folder / f"{given}.onnx"
    image = ImageInput((0.5,), (0.25,), "nchw") if architecture != given else None
    convert(network(architecture, samples=2), path, image_input=image)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "models", nargs="*", default=NETWORKS, help="converted models, or architectures; default: " + " ".join(NETWORKS)
    )
    parser.add_argument("--library", type=Path, required=True, help=f"{library_name('linux')} for aarch64")
    parser.add_argument("--onnxruntime", type=Path, required=True, help="onnxruntime's wheel for aarch64")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    try:
        listing = disassemble(options.library)
        code = Code(
            find_kernels(listing),
            find_direct(listing),
            find_direct(listing, "sdot"),
            mlas.find_sgemm(options.onnxruntime),
        )
        with TemporaryDirectory() as folder:
            networks = [read_network(converted(model, Path(folder))) for model in options.models]
        found = {network.name: rows(network, code) for network in networks}
    except BnnDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps({name: [dataclasses.asdict(row) for row in each] for name, each in found.items()}, indent=2))
        return 0
    print(HEADER)
    for model, board in BOARDS.items():
        print(f"    {model}: {board.bytes_per_cycle:.1f} bytes per cycle, {board.name} at {board.gigahertz} GHz")
    for title, each in found.items():
        print("\n" + table(title, each), end="")
    print("\n" + summary(found))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for support
    sys.exit(main())
