"""Make larq_*.onnx and .npz here: Larq models as tf2onnx writes them.

Needs larq 0.14, tensorflow 2.15, tf2onnx 1.17 and onnx 1.17, which cannot be installed beside bnn-deploy; the files
are kept here, so that the tests do not need them. An .npz has some inputs [N, H, W, C] and what Keras made of them.

    python make_larq.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import larq as lq
import numpy as np
import tensorflow as tf
import tf2onnx
from tensorflow.keras import layers

HERE = Path(__file__).parent
SHAPE = (12, 12, 3)


def first() -> list[Any]:
    return [
        layers.Input(SHAPE),
        layers.Conv2D(24, 3, padding="same", use_bias=False),
        layers.BatchNormalization(scale=False),
    ]


def vgg(quantizer: Any, weights: Any = "ste_sign", pad_value: float = 0.0, **options: Any) -> Any:
    """Two convolutions with a pool between, the second strided, and a dense layer behind a flatten."""
    quantizers = {"input_quantizer": quantizer, "kernel_quantizer": weights, "use_bias": False}
    conv = {**quantizers, "padding": "same", "pad_values": pad_value}
    return tf.keras.Sequential(
        [
            *first(),
            lq.layers.QuantConv2D(24, 3, **conv),
            layers.MaxPool2D(2),
            layers.BatchNormalization(scale=False),
            lq.layers.QuantConv2D(40, 3, strides=2, **conv, **options),
            layers.BatchNormalization(),
            layers.Flatten(),
            lq.layers.QuantDense(16, **quantizers),
            layers.BatchNormalization(),
            layers.Dense(10),
        ]
    )


def quicknet() -> Any:
    """Residual blocks, a strided one whose shortcut is an average pool, and PReLU."""
    binary = {"kernel_quantizer": "ste_sign", "use_bias": False, "padding": "same", "pad_values": 1.0}
    _, conv, norm = first()
    image = layers.Input(SHAPE)
    x = norm(conv(image))
    for _ in range(2):
        y = lq.layers.QuantConv2D(24, 3, input_quantizer="ste_sign", activation="relu", **binary)(x)
        x = layers.Add()([layers.BatchNormalization()(y), x])
    y = layers.MaxPool2D(3, 1, padding="same")(x)
    y = lq.layers.QuantConv2D(32, 3, strides=2, input_quantizer="approx_sign", **binary)(y)
    shortcut = layers.Conv2D(32, 1)(layers.AveragePooling2D(2)(x))
    x = layers.Add()([layers.BatchNormalization()(y), layers.BatchNormalization()(shortcut)])
    y = lq.layers.QuantConv2D(32, 3, input_quantizer="ste_sign", **binary)(x)
    y = layers.PReLU(shared_axes=[1, 2], alpha_initializer=tf.keras.initializers.RandomUniform(0.05, 0.3))(y)
    x = lq.layers.QuantConv2D(32, 3, input_quantizer="ste_sign", **binary)(layers.BatchNormalization()(y))
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    return tf.keras.Model(image, layers.Dense(10)(x))


MODELS = {
    "one_padding": lambda: vgg("ste_sign", pad_value=1.0),
    "zero_padding": lambda: vgg("ste_sign", pad_value=0.0),
    "alpha": lambda: vgg("approx_sign", "magnitude_aware_sign", activation="relu"),
    "swish_sign": lambda: vgg(lq.quantizers.SwishSign()),
    "quicknet": quicknet,
    "heaviside": lambda: vgg("ste_heaviside"),
    "dorefa_2_bits": lambda: vgg(lq.quantizers.DoReFa(k_bit=2, mode="activations")),
    "dorefa_3_bits": lambda: vgg(lq.quantizers.DoReFa(k_bit=3, mode="activations")),
    "binary_weights": lambda: vgg(None, "magnitude_aware_sign", activation="relu"),
    "ternary_weights": lambda: vgg("ste_sign", lq.quantizers.SteTern()),
}


def calibrate(model: Any, inputs: Any, rng: np.random.Generator) -> None:
    """BatchNorm statistics of data, random gammas (some of them negative) and betas."""
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
            layer.beta.assign(rng.normal(0, 0.3, layer.beta.shape))
            if layer.gamma is not None:
                sign = np.where(rng.random(layer.gamma.shape) < 0.2, -1, 1)
                layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape) * sign)
    model(inputs, training=True)


def main() -> None:
    tf.keras.utils.set_random_seed(3)
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((32, *SHAPE)).astype(np.float32)
    for name, make in MODELS.items():
        model = make()
        calibrate(model, inputs, rng)
        signature = (tf.TensorSpec((None, *SHAPE), tf.float32, name="input"),)
        tf2onnx.convert.from_keras(model, signature, opset=15, output_path=str(HERE / f"larq_{name}.onnx"))
        np.savez_compressed(HERE / f"larq_{name}.npz", x=inputs[:4], output=model(inputs[:4]).numpy())


if __name__ == "__main__":
    main()
