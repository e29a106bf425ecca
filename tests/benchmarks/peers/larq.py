"""Larq Compute Engine: the plan as a Keras model, converted by its converter, run by its interpreter.

The interpreter is the one of its Python package, with use_indirect_bgemm=True, the faster of its
two x86 kernels by far, and TFLite's XNNPACK delegate for the float layers. Input and output are NHWC, as TFLite has
them: its time includes no transposition, except one where a network flattens.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import larq
import larq_compute_engine
import tensorflow as tf

from peers.plan import Plan, Step, load_plan, same_pads

LOWEST = -1e30
"""The padding value of a max pool whose input may be negative."""


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("larq-compute-engine", "larq")} | {"tensorflow": tf.__version__}


def export(plan: Path, batch: int, output: Path) -> None:
    """Write a plan as Larq's .tflite file, for a fixed batch."""
    output.write_bytes(larq_compute_engine.convert_keras_model(build(load_plan(plan), batch)))


def load(model: Path, *, batch: int, threads: int) -> Interpreter:
    """Read what `export` wrote for this batch."""
    return Interpreter(model.read_bytes(), threads)


class Interpreter:
    """Larq's interpreter. Its `predict` copies the input in and the output out, on top of the work."""

    def __init__(self, flatbuffer: bytes, threads: int) -> None:
        interpreter = larq_compute_engine.tflite.python.interpreter.Interpreter(
            flatbuffer, num_threads=threads, use_indirect_bgemm=True, use_xnnpack=True
        )
        # The Python class splits a batch into samples; the interpreter that it wraps runs the whole batch.
        self.interpreter = interpreter.interpreter
        self.inputs: list[NDArray[np.float32]] = []

    def output(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        self.inputs = [np.ascontiguousarray(x.transpose(0, 2, 3, 1))]
        y = self.interpreter.predict(self.inputs)[0]
        return np.ascontiguousarray(y.transpose(0, 3, 1, 2) if y.ndim == 4 else y)

    def run(self) -> None:
        self.interpreter.predict(self.inputs)


def build(plan: Plan, batch: int) -> Any:
    """The plan as a Keras model with larq's quantised layers."""
    channels, height, width = plan.shape
    source = tf.keras.Input((height, width, channels), batch_size=batch)
    tensors: dict[str, Any] = {"input": source}
    for step in plan.steps:
        if step.op == "sign":  # larq's layers binarise their input themselves
            tensors[step.output] = tensors[step.inputs[0]]
        else:
            tensors[step.output] = _layer(plan, step, [tensors[name] for name in step.inputs])
    return tf.keras.Model(source, tensors[plan.steps[-1].output])


def _layer(plan: Plan, step: Step, inputs: list[Any]) -> Any:
    x, a, arrays = inputs[0], step.attributes, step.arrays
    if step.op in ("conv", "binary_conv"):
        return _conv(step, x)
    if step.op == "dense":
        flat = tf.keras.layers.Reshape((x.shape[-1],))(x)
        y = tf.keras.layers.Dense(len(arrays["bias"]))
        result = y(flat)
        y.set_weights([arrays["weight"].T, arrays["bias"]])
        return tf.keras.layers.Reshape((1, 1, len(arrays["bias"])))(result)
    if step.op == "affine":
        # As BatchNormalization with mean 0 and variance 1, which the converter recognises.
        layer = tf.keras.layers.BatchNormalization(epsilon=0.0)
        y = layer(x)
        layer.set_weights(
            [arrays["scale"], arrays["shift"], np.zeros_like(arrays["scale"]), np.ones_like(arrays["scale"])]
        )
        return y
    if step.op == "relu":
        return tf.keras.layers.ReLU()(x)
    if step.op == "prelu":
        prelu = tf.keras.layers.PReLU(shared_axes=[1, 2])
        y = prelu(x)
        prelu.set_weights([arrays["slope"].reshape(1, 1, -1)])
        return y
    if step.op == "max_pool":
        before = plan.producer(step.inputs[0])
        not_negative = before is not None and before.op == "relu"
        x = _pad(x, a["pads"], 0.0 if not_negative else LOWEST)
        return tf.keras.layers.MaxPooling2D(a["kernel"], a["strides"])(x)
    if step.op == "average_pool":
        return tf.keras.layers.AveragePooling2D(a["kernel"], a["strides"])(_pad(x, a["pads"], 0.0))
    if step.op == "flatten":
        return tf.keras.layers.Reshape((1, 1, step.shape[0]))(tf.keras.layers.Permute((3, 1, 2))(x))
    if step.op == "add":
        return tf.keras.layers.Add()(inputs)
    raise ValueError(f"{step.op} {step.output}: no Larq form for this step")


def _pad(x: Any, pads: list[int], value: float) -> Any:
    if not any(pads):
        return x
    return tf.pad(x, [[0, 0], [pads[0], pads[2]], [pads[1], pads[3]], [0, 0]], constant_values=value)


def _conv(step: Step, x: Any) -> Any:
    a, arrays = step.attributes, step.arrays
    weight = arrays["weight"]
    outputs, kernel = len(weight), list(weight.shape[2:])
    if a["group"] != 1:
        raise ValueError(f"{step.op} {step.output}: group {a['group']} is not covered")
    padding = "same" if any(a["pads"]) else "valid"
    if padding == "same" and same_pads(x.shape[1:3], kernel, a["strides"]) != a["pads"]:
        raise ValueError(f"{step.op} {step.output}: padding {a['pads']} is not TensorFlow's 'same'")
    if step.op == "binary_conv":
        # The filters are +-alpha already: larq's kernel_quantizer would make them +-1.
        layer = larq.layers.QuantConv2D(
            outputs, kernel, a["strides"], padding, pad_values=0.0, input_quantizer="ste_sign", kernel_quantizer=None
        )
        weight = weight * arrays["alpha"].reshape(-1, 1, 1, 1)
    else:
        layer = tf.keras.layers.Conv2D(outputs, kernel, a["strides"], padding)
    y = layer(x)
    layer.set_weights([weight.transpose(2, 3, 1, 0), arrays["bias"]])
    return y
