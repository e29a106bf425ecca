"""tests/benchmarks/network_model.py: networks read from files, and priced at one cycle per instruction."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path

import network_model
import numpy as np
import onnx
import pytest
from mca import listing, mlas, neon, tool
from mca.layers import COPY, COPY_BYTES, Window
from mca.network import First, Network, Node, Tensor, first_layer, read_network, window
from network_model import Board, Code, Cost, Row
from onnx import TensorProto, helper
from test_neon_model import DIRECT, DIRECT_BYTES, carry_save_kernel, kernel

from bnn_deploy.errors import InputError

CPU = "cortex-a72"
# SGEMM's shape: sums of 4 rows x 16 columns, 4 products each; and a loop of one row.
ROWS = {rows: [f"v{16 + 4 * row + c}.4s" for row in range(rows) for c in range(4)] for rows in (4, 1)}


def sgemm_listing(rows: int, start: int) -> str:
    adds = [
        f"fmla {sums}, v{4 + i % 4}.4s, v{8 + i // 4}.s[{k}]" for k in range(4) for i, sums in enumerate(ROWS[rows])
    ]
    code = ["ldp q4, q5, [x1], #32", *adds, f"b.ne {start:x}", "ret"]
    return "\n".join(f" {start + 4 * i:x}: {line}" for i, line in enumerate(code))


def sgemm(text: str) -> mlas.Sgemm:
    return mlas.sgemm_loops([listing.parse_listing(text)], Path("ort.so"))


SGEMM = sgemm_listing(4, 0x1000) + "\n" + sgemm_listing(1, 0x2000)


def test_finds_the_loops_of_onnxruntime() -> None:
    found = sgemm(SGEMM)
    assert (len(found.tile), len(found.row)) == (66, 18)
    assert (found.tile[0].address, found.row[0].address) == (0x1000, 0x2000)


@pytest.mark.parametrize(
    ("old", "new"), [("fmla v31", "fmul v31"), ("fmla v31", "fmla v30"), ("v11.s", "v10.s"), ("b.ne 2000", "nop")]
)
def test_refuses_another_sgemm(old: str, new: str) -> None:
    assert old in SGEMM
    with pytest.raises(InputError, match=r"ort.so: no loops of SGEMM for 4 and for 1 x 16 sums"):
        sgemm(SGEMM.replace(old, new))


def test_finds_the_code_section(tmp_path: Path) -> None:
    """Of two executable sections the larger; not the data, which is larger still."""
    sections = [(4, 0x500, 0x40 + 3 * 64, 8), (4, 0x1000, 0x40 + 3 * 64 + 8, 18), (1, 0, 0, 400)]
    header = b"\x7fELF" + bytes(36) + struct.pack("<Q", 0x40) + bytes(10) + struct.pack("<HH", 64, len(sections))
    table = b"".join(struct.pack("<IIQQQQ", 0, 1, *section).ljust(64, b"\0") for section in sections)
    path = tmp_path / "library.so"
    path.write_bytes(header.ljust(0x40, b"\0") + table + b"smaller!" + b"the code and more!")
    assert mlas.text_section(path) == (0x1000, b"the code and mor")
    with pytest.raises(InputError, match="no code in this file"):
        path.write_bytes(path.read_bytes().replace(struct.pack("<IIQ", 0, 1, 4), struct.pack("<IIQ", 0, 1, 2)))
        mlas.text_section(path)


# --- networks -----------------------------------------------------------------------------------


def save(path: Path, direct: bool, shapes: bool = True) -> Path:
    """3 channels 8x8 -> 3x3, 40 channels -> signs -> pool -> binary 3x3, 8 channels -> bits."""
    first = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4, strides=[1, 1]),
        helper.make_node("Binarize", ["c", "t"], ["s"], domain="bnn_deploy"),
        helper.make_node(
            "BinaryMaxPool", ["s"], ["p"], domain="bnn_deploy", kernel_shape=[2, 2], strides=[2, 2], pads=[0] * 4
        ),
    ]
    taken_in = helper.make_node(
        "DirectConvThreshold",
        ["x", "w", "b", "t"],
        ["p"],
        domain="bnn_deploy",
        kernel_shape=[3, 3],
        strides=[1, 1],
        pads=[1] * 4,
        pool_shape=[2, 2],
    )
    conv = helper.make_node("BinaryConvThreshold", ["p", "v", "u"], ["y"], domain="bnn_deploy", channels=40, group=1)
    floats = {"x": ["batch", 3, 8, 8], "c": ["batch", 40, 8, 8]}
    bits = {"s": ["batch", 8, 8, 2], "p": ["batch", 4, 4, 2], "y": ["batch", 4, 4, 1]}
    constants = {"w": (40, 3, 3, 3), "b": (40,), "t": (40,), "u": (8,)}
    values = {
        name: helper.make_tensor_value_info(name, kind, shape)
        for kind, group in ((TensorProto.FLOAT, floats), (TensorProto.UINT32, bits))
        for name, shape in group.items()
    }
    graph = helper.make_graph(
        [*([taken_in] if direct else first), conv],
        "g",
        [values["x"]],
        [values["y"]],
        [
            *(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in constants.items()),
            onnx.numpy_helper.from_array(np.zeros((8, 3, 3, 2), np.uint32), "v"),
        ],
        value_info=[values[name] for name in (("p",) if direct else ("c", "s", "p") if shapes else ())],
    )
    onnx.save(helper.make_model(graph), path)
    return path


def test_reads_the_sizes(tmp_path: Path) -> None:
    network = read_network(save(tmp_path / "net.onnx", direct=False))
    assert network.tensors["s"] == Tensor((1, 8, 8, 2), bits=True, constant=False)
    assert window(network, network.nodes[-1]) == Window(40, 8, (3, 3), read=16, made=16)
    assert window(network, network.nodes[-1]).macs == 40 * 9 * 8 * 16
    assert network.constant_bytes == 4 * (40 * 27 + 40 + 40 + 8 + 8 * 9 * 2)


def test_a_direct_convolution_is_the_nodes_that_it_takes_in(tmp_path: Path) -> None:
    found = [first_layer(read_network(save(tmp_path / f"{direct}.onnx", direct))) for direct in (False, True)]
    for first in found:
        assert first.window == Window(3, 40, (3, 3), read=64, made=64)
        assert (first.taps, first.made.shape, first.made.bits) == (4, (1, 4, 4, 2), True)
    assert [[node.op for node in first.nodes] for first in found] == [
        ["Conv", "Binarize", "BinaryMaxPool"],
        ["DirectConvThreshold"],
    ]


def test_a_tensor_without_a_shape_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"net.onnx: node '': no shape of the tensor 'c' in the file"):
        read_network(save(tmp_path / "net.onnx", direct=False, shapes=False))


# --- prices -------------------------------------------------------------------------------------


@pytest.fixture
def cycle_per_instruction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A llvm-mca that counts."""
    fake = tmp_path / "llvm-mca-19"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "LLVM version 19.1" && exit\n'
        'echo "Total Cycles: $(($(grep -vc "^1:") * ${1#-iterations=}))"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    caches = (tool.llvm_mca, tool.cycles)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def loop(*names: str) -> list[listing.Instruction]:
    return [listing.Instruction(4 * i, name, "v0.4s, v0.4s") for i, name in enumerate(names)]


def code() -> Code:
    tile = {1: kernel()}
    adder = {1: carry_save_kernel()}
    signs, rows = loop("ldr", "fcmge", "str"), loop("ldr", "ldr", "fcmge", "addp", "str")
    library = neon.Library(tile, tile, loop("scvtf", "str"), adder, loop("cmlt"), loop("eor"), signs, rows)
    tiles = (
        neon.find_direct(listing.parse_listing(DIRECT)),
        neon.find_direct(listing.parse_listing(DIRECT_BYTES), "sdot"),
    )
    return Code(library, *tiles, sgemm(SGEMM))


@pytest.mark.usefixtures("cycle_per_instruction")
def test_prices_of_the_first_layer(tmp_path: Path) -> None:
    network = read_network(save(tmp_path / "net.onnx", direct=False))
    first = first_layer(network)
    outputs, depth = 64 * 40, 27
    copy = len(COPY) / COPY_BYTES
    pool = 4 * 4 * 4 * 2 * copy * 4  # bytes of bits, and 4 taps
    product = 10 * 4 * 66 * depth / 4  # tiles of 4 x 16
    packed, epilogue = 2 * 4 * depth * 64 * copy, outputs / 8 * 6
    assert code().first_ort(first, CPU) == pytest.approx(product + packed + epilogue + outputs * 3 / 4 + pool)
    tiles = outputs / 8 / 4 * (17 + (depth - 1) * 12)  # of 2 vectors x 4 pixels
    assert code().first_ours(first, CPU) == pytest.approx(tiles + 4 * 3 * 64 * copy + outputs * 5 / 4 + pool)
    of_bytes = dataclasses.replace(first, nodes=[Node("ImageConvThreshold", (), (), {})])
    assert code().first_ours(of_bytes, "cortex-a72") == code().first_ours(first, "cortex-a72")
    groups = 3 * 3  # columns, and fours of 9 rows of channels
    tiles = outputs / 4 / 4 * (17 + (groups - 1) * 12)  # of 1 vector, for its weights are two, x 4 pixels
    found = code().first_ours(of_bytes, "cortex-a76")
    assert found == pytest.approx(tiles + 4 * 3 * 64 * copy + 2 * outputs * 5 / 4 + pool)


def test_an_image_has_its_channels_last(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", direct=True)
    model = onnx.load(path)
    model.graph.node[0].op_type = "ImageConvThreshold"
    model.graph.node[0].attribute.append(helper.make_attribute("channels_last", 1))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", 8, 8, 3]))
    onnx.save(model, path)
    network = read_network(path)
    assert network.tensors["x"].size == 8 * 8 * 3
    assert first_layer(network).window == Window(3, 40, (3, 3), read=64, made=64)


@pytest.mark.usefixtures("cycle_per_instruction")
def test_prices_of_nodes(tmp_path: Path) -> None:
    tensors = {
        "x": Tensor((1, 8, 4, 4), False, False),
        "m": Tensor((1, 8, 1, 1), False, False),
        "f": Tensor((1, 32), False, False),
        "b": Tensor((1, 2, 2, 1), True, False),
    }
    network = Network("net", [], tensors)

    def price(op: str, inputs: tuple[str, ...], output: str, **attributes: object) -> float:
        return code().node(network, Node(op, inputs, (output,), attributes), CPU)

    assert price("Relu", ("x",), "x") == 16 * 6
    assert price("Add", ("x", "x"), "x") == 16 * 7
    assert price("Transpose", ("x",), "x") == 8 * 18
    assert price("ReduceMean", ("x",), "m") == 16 * 5 + 2
    assert price("AveragePool", ("x",), "m", kernel_shape=[2, 2]) == 4 * 5 + 2
    rows, windows = 3 * 2 * 4 * 8, 2 * 2 * 2 * 8
    assert price("AveragePoolThreshold", ("x",), "b", kernel_shape=[3, 2]) == (rows + windows) / 8 * 7 + 32 * 3 / 4
    assert price("Gemm", ("x",), "f") == 2 * 128 / 4 * 18
    assert price("Binarize", ("x",), "m") == 128 * 3 / 4
    assert price("Binarize", ("f",), "m") == 32 * 5 / 4  # rows
    with pytest.raises(InputError, match="net: Softmax 'x': no model of this operator"):
        price("Softmax", ("x",), "x")


@pytest.mark.usefixtures("cycle_per_instruction")
def test_memory_is_the_bound_where_tensors_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = read_network(save(tmp_path / "net.onnx", direct=False))
    first = first_layer(network)
    weights, image = network.constant_bytes, 4 * 3 * 64
    conv = 4 * (40 * 27 + 40 + 40)
    assert network_model.traffic(network, first.nodes, weights) == 0
    assert network_model.traffic(network, first.nodes, weights - 1) == conv
    assert network_model.traffic(network, first.nodes, image - 1) == conv + image
    board = Board("slow", gigahertz=4.0, gigatransfers=0.001, cache=100)
    monkeypatch.setitem(network_model.BOARDS, CPU, board)
    found = network_model.rows(network, code(), (CPU,))
    assert [(row.layer, row.part) for row in found] == [
        ("Conv 3x3, 40 channels, first layer", "first layer"),
        ("BinaryConvThreshold 3x3, 8 channels", "binary"),
    ]
    bits = 4 * 16 * 2
    assert found[0].ours[CPU] == Cost((conv + image + bits) / 0.001, memory=True)
    monkeypatch.setitem(network_model.BOARDS, CPU, Board("fast", 1.0, 1e6, cache=100))
    assert not network_model.rows(network, code(), (CPU,))[0].ours[CPU].memory


ROWS_OF_NET = [
    Row("first", "first layer", {CPU: Cost(3000.0, False)}, {CPU: Cost(1000.0, False)}),
    Row("BinaryConv", "binary", *({CPU: Cost(2000.0, False)},) * 2),
    Row("Gemm 10", "other float", *({CPU: Cost(500.0, True)},) * 2),
]


def test_the_table_has_a_sum() -> None:
    assert network_model.table("net", ROWS_OF_NET).splitlines() == [
        "net, thousands of cycles",
        "",
        "| layer | A72 ort | ours |",
        "|---|---|---|",
        "| first | 3.0 | 1.0 |",
        "| BinaryConv | 2.0 | 2.0 |",
        "| Gemm 10 | 0.5 m | 0.5 m |",
        "| sum | 5.5 | 3.5 |",
    ]


def test_the_summary_has_the_parts_and_the_gain() -> None:
    rows = [*ROWS_OF_NET, *ROWS_OF_NET[1:]]
    assert network_model.summary({"net": rows}).splitlines()[2:] == ["| net | A72 | 3 | 1 | 4 | 1 | 8 | 6 | 1.33 |"]


def test_a_pool_of_floats_is_left_to_floats() -> None:
    """The direct convolution of a residual network: conv, max pool; signs and shortcut both read the floats."""
    shapes = {"x": (1, 3, 8, 8), "w": (16, 3, 3, 3), "c": (1, 16, 8, 8), "p": (1, 16, 4, 4), "s": (1, 4, 4, 1)}
    tensors = {name: Tensor(shape, name == "s", name == "w") for name, shape in shapes.items()}
    nodes = [
        Node("Conv", ("x", "w"), ("c",), {}),
        Node("MaxPool", ("c",), ("p",), {"kernel_shape": [2, 2]}),
        Node("Binarize", ("p",), ("s",), {}),
    ]
    first = first_layer(Network("net", nodes, tensors))
    assert first == First(nodes[:2], Window(3, 16, (3, 3), 64, 64), 4, tensors["p"])


def test_a_missing_library_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = str(tmp_path / "absent.so")
    assert network_model.main(["--library", absent, "--onnxruntime", absent]) == 2
    assert "absent.so: no such file" in capsys.readouterr().err
