"""Models through the commands and `load_session`: protobuf that is valid, with wrong content, and changed bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.random import Generator

from bnn_deploy.operators.contract import DOMAIN, OPERATORS
from bnn_deploy.runtime.inputs import random_feed, read_inputs
from bnn_deploy.runtime.session import load_session
from fuzz import operators
from fuzz.doors import EXPORTS, absurd, call, change_bytes, change_json, pick, run
from fuzz.shared import CONVERTED
from support.agreement import model_of

TYPES = (0, 1, 2, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 20, 21, 99, -1)
OP_TYPES = ("Conv", "Sign", "Loop", "If", "Reshape", "Constant", "MaxPool", "Nothing", "", *OPERATORS)
LOCATIONS = ("/etc/passwd", "../x", "m.onnx", "", "\0")


def case(seed: int, folder: Path, shared: Path) -> None:
    """One model: of another framework, converted, or of one operator; changed; through one of the doors."""
    rng = np.random.default_rng(seed)
    path, source = folder / "m.onnx", folder / "source.onnx"
    kind = int(rng.integers(0, 4))
    name = pick(rng, CONVERTED) if kind == 2 else "small"
    if kind == 0:
        shutil.copy(pick(rng, sorted(EXPORTS.glob("*.onnx"))), path)
    elif kind == 1:
        onnx.save(of_one_operator(rng), path)
    else:
        shutil.copy(shared / f"{name}.onnx", path)
    shutil.copy(EXPORTS / f"{name}.onnx" if kind == 2 else path, source)
    if rng.random() < 0.3:
        path.write_bytes(change_bytes(rng, path.read_bytes()))
    else:
        model = onnx.load(path)
        for _ in range(int(rng.integers(1, 3))):
            if model.functions and rng.random() < 0.25:
                change_function(rng, pick(rng, model.functions))
            elif model.graph.node:
                change_model(rng, model)
        path.write_bytes(model.SerializeToString())
    match int(rng.integers(0, 7)):
        case 0:
            run(["convert", path, "-o", folder / "out.onnx", "--report", folder / "out.json"], folder)
        case 1:
            run(["inspect", path, *(["--json"] if rng.random() < 0.5 else [])], folder)
        case 2:
            run(["verify", path, "--against", source, "--samples", "1"], folder)
        case 3:
            run(["verify", source, "--against", path, "--samples", "1"], folder)
        case 4:
            run(["profile", path, "--runs", "1", *(["--compare", source] if rng.random() < 0.3 else [])], folder)
        case 5 if name == "small":
            run(["verify", path, "--golden", shared / "golden.npz"], folder)
        case _:
            session = call(load_session, path)
            if session is not None:
                run_once(session)


def run_once(session: Any) -> None:
    """A run may fail; the process must not."""
    try:
        feed = random_feed(read_inputs(session), 1)
    except Exception:  # sizes of which no input can be made
        return
    try:
        session.run(None, feed)
    except Exception as error:
        assert str(error)


def of_one_operator(rng: Generator) -> onnx.ModelProto:
    """A model of a node that is right, with its body."""
    kernels = [row.name for row in OPERATORS.values() if row.has_kernel]
    op = pick(rng, kernels)
    inputs, attributes, constants = operators.make(rng, op)
    if OPERATORS[op].operand is not None:
        inputs = [*inputs, np.zeros(0, np.float32)]
    model: onnx.ModelProto = model_of(op, inputs, attributes, constants)
    return model


def change_model(rng: Generator, model: onnx.ModelProto) -> None:
    """Make one thing of a model wrong."""
    graph = model.graph
    node = pick(rng, graph.node)
    tensor = pick(rng, graph.initializer) if graph.initializer else None
    match int(rng.integers(0, 18)):
        case 0 if tensor is not None and tensor.dims:
            tensor.dims[int(rng.integers(0, len(tensor.dims)))] = absurd(rng)
        case 1 if tensor is not None:
            tensor.data_type = pick(rng, TYPES)
        case 2 if tensor is not None:
            tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
        case 3 if tensor is not None:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=pick(rng, LOCATIONS))
            tensor.external_data.add(key=pick(rng, ("offset", "length", "x")), value=str(absurd(rng)))
        case 4:
            dims = graph.input[0].type.tensor_type.shape.dim
            if dims:
                dims[int(rng.integers(0, len(dims)))].dim_value = absurd(rng)
        case 5:
            info = pick(rng, [*graph.input, *graph.output, *graph.value_info])
            info.type.tensor_type.elem_type = pick(rng, TYPES)
        case 6:
            entry = pick(rng, model.opset_import)
            entry.version = pick(rng, (0, 1, 7, 13, 22, 99, 2**62))
            entry.domain = pick(rng, (entry.domain, "", DOMAIN, "nowhere"))
        case 7:
            model.ir_version = pick(rng, (0, 1, 3, 4, 8, 13, 99, 2**62))
        case 8 if model.functions:
            function = pick(rng, model.functions)
            model.functions.remove(function) if rng.random() < 0.5 else model.functions.append(function)
        case 9 if tensor is not None:
            tensor.name = pick(rng, ("", "same", node.input[0] if node.input else "x"))
        case 10:
            name = pick(rng, [name for other in graph.node for name in other.output])
            pick(rng, [*graph.output, *graph.input]).name = name
        case 11:
            properties = pick(rng, [model, *graph.node]).metadata_props
            if properties:
                entry = pick(rng, properties)
                entry.value = change_text(rng, entry.value)
        case _:
            change_node(rng, node, graph.node)


def change_text(rng: Generator, text: str) -> str:
    """Another value of a property, which is JSON in most."""
    try:
        return json.dumps(change_json(rng, json.loads(text)))
    except ValueError:
        return str(pick(rng, ("", "x", text * 2, text[: len(text) // 2], "[" * 3000)))


def change_function(rng: Generator, function: onnx.FunctionProto) -> None:
    """Make one thing of a body wrong."""
    match int(rng.integers(0, 6)):
        case 0:
            pick(rng, function.opset_import).version = pick(rng, (0, 1, 7, 13, 22, 99, 2**62))
        case 1:
            names = pick(rng, (function.input, function.output, function.attribute))
            names.append(pick(rng, ("more", "", *names)))
        case 2:
            names = pick(rng, (function.input, function.output, function.attribute))
            if names:
                del names[int(rng.integers(0, len(names)))]
        case 3:
            function.name = pick(rng, ("Binarize", "Other", ""))
        case _:
            change_node(rng, pick(rng, function.node), function.node)


def change_node(rng: Generator, node: onnx.NodeProto, nodes: Any) -> None:
    """Make one thing of a node wrong: its attributes, operator, inputs or outputs."""
    names = [name for other in nodes for name in (*other.input, *other.output)] or ["x"]
    match int(rng.integers(0, 11)):
        case 0 | 1 if node.attribute:
            attribute = pick(rng, node.attribute)
            if attribute.ints:
                attribute.ints[int(rng.integers(0, len(attribute.ints)))] = absurd(rng)
            else:
                attribute.i = absurd(rng)
        case 2 if node.attribute:
            attribute = pick(rng, node.attribute)
            attribute.type = pick(rng, range(15))
            attribute.s = b"\xff"
        case 3 if node.attribute:
            attribute = pick(rng, node.attribute)
            if attribute.ints:
                attribute.ints.append(1) if rng.random() < 0.5 else attribute.ints.pop()
            else:
                attribute.name = pick(rng, ("other", "", "axis"))
        case 4 if node.attribute:
            node.attribute.remove(pick(rng, node.attribute))
        case 5:
            node.op_type = pick(rng, OP_TYPES)
        case 6:
            node.domain = pick(rng, ("", DOMAIN, "com.microsoft", "nowhere"))
        case 7 if node.input:
            node.input[int(rng.integers(0, len(node.input)))] = pick(rng, [*names, "", "nowhere"])
        case 8 if node.input:
            node.input.pop() if rng.random() < 0.5 else node.input.append(pick(rng, names))
        case 9 if node.output:
            node.output[0] = pick(rng, [*names, "", "same"])
        case _:
            nodes.remove(node)
