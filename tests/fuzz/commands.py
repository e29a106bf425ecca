"""Files through the commands: models, checkpoints, data, each good but for a change."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from click.testing import CliRunner
from numpy.random import Generator

from bnn_deploy.cli import main
from bnn_deploy.runtime.session import load_session
from fuzz.isolation import FoundError
from support.small_models import save_binary

for module in ("bnn_deploy.conversion", "bnn_deploy.inspection", "bnn_deploy.proof.verification"):
    importlib.import_module(module)  # once, before the cases fork

EXPORTS = Path(__file__).parents[1] / "exports"
ABSURD = (-1, 0, 1, 2, 3, 64, 10**8, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63))


def run(arguments: list[Any], folder: Path) -> None:
    """Run a command: it succeeds, or ends with one line and leaves nothing."""
    before = sorted(folder.rglob("*"))
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exit_code in (0, 1):
        return
    lines = result.stderr.splitlines()
    what = f"{arguments[0]}: exit {result.exit_code}: {result.stderr[-300:]!r}"
    if result.exit_code not in (2, 3) or result.exception is None:
        raise FoundError(f"not an error of ours: {what}")
    if not lines or not lines[-1].startswith("error: ") or "internal error" in result.stderr:
        raise FoundError(f"no clear line: {what}")
    if sum(line.startswith("error: ") for line in lines) != 1 or "Traceback" in result.stderr:
        raise FoundError(f"more than a line: {what}")
    if sorted(folder.rglob("*")) != before:
        raise FoundError(f"left {sorted(set(folder.rglob('*')) - set(before))}: {what}")


def change_bytes(rng: Generator, content: bytes) -> bytes:
    """Flip, cut, repeat or overwrite some bytes."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(0, max(len(data), 1)))
        length = int(rng.integers(1, 64))
        match int(rng.integers(0, 5)):
            case 0:
                data[at : at + 1] = bytes([int(rng.integers(0, 256))])
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                data[at : at + length] = rng.bytes(length)
            case _:
                del data[at:]
    return bytes(data)


def change_model(rng: Generator, model: onnx.ModelProto) -> None:
    """Make one or two things of a model wrong, in valid protobuf."""
    graph = model.graph
    for _ in range(int(rng.integers(1, 3))):
        node = graph.node[int(rng.integers(0, len(graph.node)))]
        absurd = int(rng.choice(np.array(ABSURD)))
        tensor = graph.initializer[int(rng.integers(0, len(graph.initializer)))] if graph.initializer else None
        match int(rng.integers(0, 12)):
            case 0 if tensor is not None and tensor.dims:
                tensor.dims[int(rng.integers(0, len(tensor.dims)))] = absurd
            case 1 if tensor is not None:
                tensor.data_type = int(rng.integers(0, 30))
            case 2 if tensor is not None:
                tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
            case 3 if node.attribute:
                attribute = node.attribute[int(rng.integers(0, len(node.attribute)))]
                if attribute.ints:
                    attribute.ints[int(rng.integers(0, len(attribute.ints)))] = absurd
                else:
                    attribute.i = absurd
            case 4 if node.attribute:
                del node.attribute[int(rng.integers(0, len(node.attribute)))]
            case 5:
                node.op_type = str(rng.choice(["Conv", "Sign", "Loop", "Reshape", "BinaryConv", "Nothing", ""]))
            case 6 if node.input:
                names = [name for other in graph.node for name in (*other.input, *other.output)]
                node.input[int(rng.integers(0, len(node.input)))] = str(rng.choice([*names, "", "nowhere"]))
            case 7:
                graph.node.remove(node)
            case 8:
                dims = graph.input[0].type.tensor_type.shape.dim
                if dims:
                    dims[int(rng.integers(0, len(dims)))].dim_value = absurd
            case 9:
                model.opset_import[0].version = int(rng.choice(np.array([0, 1, 7, 13, 22, 99, 2**62])))
            case 10 if tensor is not None:
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value=str(rng.choice(["/etc/passwd", "../x", "m.onnx", ""])))
            case 11 if node.output:
                node.output[0] = str(rng.choice([graph.input[0].name, "", "same", node.output[0]]))
        if not graph.node:
            return


def models(seed: int, folder: Path) -> None:
    """A model, its protobuf or its bytes changed, through load_session, convert, verify, inspect or profile."""
    rng = np.random.default_rng(seed)
    path = folder / "m.onnx"
    sources = sorted(EXPORTS.glob("*.onnx"))
    if rng.random() < 0.4:
        save_binary(path)
    else:
        shutil.copy(sources[int(rng.integers(0, len(sources)))], path)
    if rng.random() < 0.4:
        path.write_bytes(change_bytes(rng, path.read_bytes()))
    else:
        model = onnx.load(path)
        change_model(rng, model)
        path.write_bytes(model.SerializeToString())
    match int(rng.integers(0, 5)):
        case 0:
            run(["convert", path, "-o", folder / "out.onnx"], folder)
        case 1:
            run(["inspect", path], folder)
        case 2:
            run(["verify", path, "--against", path, "--samples", "1"], folder)
        case 3:
            run(["profile", path, "--runs", "1"], folder)
        case _:
            try:
                load_session(path)
            except Exception as error:
                if "\n" in str(error).strip():
                    raise FoundError(f"load_session: more than a line: {error!r:.300}") from error


def changed_copy(rng: Generator, source: Path, to: Path) -> Path:
    to.write_bytes(change_bytes(rng, source.read_bytes()))
    return to


def checkpoints(seed: int, folder: Path) -> None:
    """A checkpoint of torch, or a network of Darknet, of which some bytes or entries are others."""
    rng = np.random.default_rng(seed)
    if rng.random() < 0.5:
        name = str(rng.choice(["classifier", "region", "yolo"]))
        files = [EXPORTS / f"darknet_{name}.cfg", EXPORTS / f"darknet_{name}.weights"]
        changed = int(rng.integers(0, 2))
        files[changed] = changed_copy(rng, files[changed], folder / files[changed].name)
        run(["convert", files[0], "--darknet-weights", files[1], "-o", folder / "out.onnx"], folder)
        return
    network = folder / "network.py"
    network.write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))\n"
    )
    state: Any = {"1.weight": torch.ones(2, 4), "1.bias": torch.zeros(2)}
    odd = [1, None, "text", [], {}, torch.ones(0), torch.ones(2, 4).to_sparse(), torch.ones(2, dtype=torch.int8)]
    if rng.random() < 0.5:
        state[str(rng.choice(["1.weight", "1.bias", "more"]))] = odd[int(rng.integers(0, len(odd)))]
    path = folder / "state.pth"
    torch.save({"state_dict": state} if rng.random() < 0.5 else state, path, _use_new_zipfile_serialization=seed % 2)
    if rng.random() < 0.7:
        path.write_bytes(change_bytes(rng, path.read_bytes()))
    run(["convert", path, "--arch", f"{network}:make", "-o", folder / "out.onnx", "--input-shape", "1,4"], folder)


def data(seed: int, folder: Path) -> None:
    """Inputs, golden results and bundles, of which some bytes are others."""
    rng = np.random.default_rng(seed)
    model = save_binary(folder / "m.onnx")
    path = folder / str(rng.choice(["x.npz", "x.npy"]))
    dtype = str(rng.choice(["float32", "float64", "int8", "U3", "complex64", "object"]))
    array = np.ones((2, 1, 28, 28)).astype(dtype)
    if path.suffix == ".npz":
        (np.savez if rng.random() < 0.5 else np.savez_compressed)(path, images=array, labels=np.zeros(2, np.int64))
    else:
        np.save(path, array)
    if rng.random() < 0.9:
        path.write_bytes(change_bytes(rng, path.read_bytes()))
    match int(rng.integers(0, 3)):
        case 0:
            run(["profile", model, "--data", path, "--runs", "1"], folder)
        case 1:
            run(["verify", model, "--golden", path], folder)
        case _:
            run(["verify", model, "--against", model, "--data", path], folder)


KINDS: dict[str, Callable[[int, Path], None]] = {"models": models, "checkpoints": checkpoints, "data": data}
