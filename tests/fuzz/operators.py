"""Operators of the domain: kernels of every instruction set against the body, also on what they refuse."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from bnn_deploy.operators.contract import OPERATORS
from fuzz.isolation import FoundError
from support.agreement import Array, equal_outputs, model_of, outcome
from support.bodies import stock_session

Parts = tuple[list[Array], dict[str, Any], dict[str, Array]]
"""The inputs of a run, the attributes and the constants."""

ODD = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3.4e38], np.float32)
ALWAYS, NEVER = np.iinfo(np.int32).min, np.iinfo(np.int32).max


def numbers(rng: Generator, *shape: int, odd: float = 0.1) -> Array:
    """Float32, some of them odd."""
    values = rng.standard_normal(shape).astype(np.float32)
    return np.where(rng.random(shape) < odd, rng.choice(ODD, shape), values).astype(np.float32)


def small_integers(rng: Generator, *shape: int) -> Array:
    """Float32 whose sums of products are exact in any order."""
    return rng.integers(-4, 5, shape).astype(np.float32)


def words(rng: Generator, *lead: int, channels: int, planes: int = 1, used: bool = False) -> Array:
    """Bits [*lead, planes * ceil(C/32)]; unused bits are 0 if `used`, and anything else."""
    count = -(-channels // 32)
    bits = rng.integers(0, 2**32, (*lead, planes, count), np.uint32)
    if used and channels % 32:
        bits[..., -1] &= np.uint32(2 ** (channels % 32) - 1)
    return bits.reshape(*lead, planes * count)


def window(rng: Generator, rank: int, size: list[int]) -> dict[str, Any]:
    """Attributes of a window, now and then larger than the image."""
    large = rng.random() < 0.1
    kernel = [int(rng.integers(1, 5 if large else min(3, extent) + 1)) for extent in (max(s, 1) for s in size)]
    return {
        "kernel_shape": kernel,
        "strides": rng.integers(1, 4, rank).tolist(),
        "pads": rng.integers(0, 3, 2 * rank).tolist(),
        "dilations": rng.integers(1, 3 if rng.random() < 0.3 else 2, rank).tolist(),
    }


def sizes(rng: Generator, rank: int) -> list[int]:
    """Of an image, one pixel or none of it now and then."""
    return [int(s) for s in (rng.integers(0, 3, rank) if rng.random() < 0.1 else rng.integers(2, 9, rank))]


def batch(rng: Generator) -> int:
    return int(rng.choice([0, 1, 2, 3], p=[0.05, 0.55, 0.2, 0.2]))


def make(rng: Generator, op: str) -> Parts:
    """A case of an operator that its contract allows, but for the size of its windows."""
    rank = int(rng.integers(1, 4))
    size, n = sizes(rng, rank), batch(rng)
    channels, outputs = int(rng.integers(1, 71)), int(rng.integers(1, 41))
    match int(rng.integers(0, 12)):  # beyond a tile or a vector, one at a time: bodies are slow
        case 0:
            channels = int(rng.integers(71, 700))
        case 1:
            outputs = int(rng.integers(41, 150))
        case 2:
            size = [int(rng.integers(9, 40)), *[int(s) for s in rng.integers(1, 20, rank - 1)]]
    if op in ("Binarize", "BinarizeAbsMean", "QuantizeLevels"):
        x = numbers(rng, n, channels, *size)
        if op == "QuantizeLevels":
            bits = int(rng.integers(1, 5))
            thresholds = np.sort(numbers(rng, 2**bits - 1, channels, odd=0), axis=0)
            return [x], {"bits": bits}, {"thresholds": thresholds}
        names = ["threshold", "scale", "shift"][: len(OPERATORS[op].inputs) - 1]
        return [x], {}, {name: numbers(rng, channels) for name in names}
    if op == "BinarizeChannelsLast":
        return [numbers(rng, n, *size, channels)], {}, {"threshold": numbers(rng, channels)}
    if op == "BinarizeQuantized":
        threshold = rng.choice(np.array([ALWAYS, NEVER, -1, 0, 1, 100, 255, 256], np.int32), channels)
        return [rng.integers(0, 256, (n, *size, channels), np.uint8)], {}, {"threshold": threshold}
    if op == "BinaryLinear":
        lead = [n, *size[: rank - 1]]
        w = words(rng, outputs, channels=channels, used=True)
        constants = {"W": w, "scale": numbers(rng, outputs), "bias": numbers(rng, outputs)}
        return [words(rng, *lead, channels=channels)], {"channels": channels}, constants
    if op == "BinaryMatMul":
        signs = int(rng.integers(0, 2))
        bits, lead = 1 if signs else int(rng.integers(1, 5)), [n, *size[: rank - 1]][:-1]
        a = words(rng, *lead, size[0], channels=channels, planes=bits)
        b = words(rng, *lead, size[-1] + 1, channels=channels)
        scale = {"scale": np.abs(numbers(rng, 1, odd=0)) + np.float32(2**-120)}
        return [a, b], {"channels": channels, "bits": bits, "signs": signs}, scale
    if op == "ReluLinear":
        constants = {"W": small_integers(rng, channels, outputs), "bias": small_integers(rng, outputs)}
        return [small_integers(rng, n, channels)], {}, constants
    if op == "AveragePoolThreshold":
        plane = [size[0], size[-1]]
        attributes = window(rng, 2, plane) | {"relu": int(rng.integers(0, 2))}
        return [numbers(rng, n, channels, *plane, odd=0.02)], attributes, {"threshold": numbers(rng, channels)}
    attributes = window(rng, rank, size)
    if op == "BinaryMaxPool":
        return [words(rng, n, *size, channels=channels)], attributes | {"ceil_mode": int(rng.integers(0, 2))}, {}
    if OPERATORS[op].sums is not None:
        return _direct(rng, op, n, outputs)
    group = int(rng.choice([d for d in range(1, channels + 1) if channels % d == 0])) if rng.random() < 0.4 else 1
    outputs = outputs // group * group or group
    attributes |= {"channels": channels, "group": group}
    planes = bases = 1
    if op == "BinaryConvLevels":
        planes = attributes["bits"] = int(rng.integers(1, 5))
    if op == "BinaryConvBases":
        planes, bases = (int(value) for value in rng.integers(1, 4, 2))
        attributes |= {"planes": planes, "bases": bases}
    w = words(rng, outputs, *attributes["kernel_shape"], channels=channels // group, planes=bases, used=True)
    constants = {"W": w, "scale": numbers(rng, outputs), "bias": numbers(rng, outputs)}
    if op == "BinaryConvLevels":  # its scale is 0 or at least 2^-125
        constants["scale"] = np.where(constants["scale"] == ODD[5], np.float32(0), constants["scale"])
    if op == "BinaryConvBases":
        constants["scale"] = numbers(rng, planes + 1, bases + 1, outputs, odd=0)
    if op == "BinaryConvThreshold":
        odd = rng.choice(np.array([ALWAYS, NEVER, 0], np.int32), outputs)
        threshold = np.where(rng.random(outputs) < 0.1, odd, rng.integers(-9, 10, outputs)).astype(np.int32)
        constants = {"W": w, "threshold": threshold}
    if "pad_value" in [given.name for given in OPERATORS[op].inputs]:
        pads = [np.zeros(1), np.ones(1), -np.ones(1), np.zeros(channels), rng.choice([-1, 1], channels)]
        constants["pad_value"] = pads[int(rng.integers(0, 5))].astype(np.float32)
    if op == "BinaryConvResidual":
        constants["threshold"] = numbers(rng, outputs)
    return [words(rng, n, *size, channels=channels, planes=planes)], attributes, constants


def _direct(rng: Generator, op: str, n: int, outputs: int) -> Parts:
    """A DirectConv or ImageConv, whose sums are exact."""
    rank, channels = int(rng.integers(1, 3)), int(rng.integers(1, 5))
    size = sizes(rng, rank)
    pool = rng.integers(1, 4, rank)
    attributes = window(rng, rank, size) | {
        "pool_shape": pool.tolist(),
        "pool_strides": rng.integers(1, 4, rank).tolist(),
        "pool_pads": rng.integers(0, np.tile(pool, 2)).tolist(),
    }
    w = small_integers(rng, outputs, channels, *attributes["kernel_shape"])
    constants = {"W": w, "bias": small_integers(rng, outputs)}
    if op.endswith("Threshold"):
        constants["threshold"] = small_integers(rng, outputs) + np.float32(0.5)
    if not op.startswith("Image"):
        return [small_integers(rng, n, channels, *size)], attributes, constants
    attributes["channels_last"] = int(rng.integers(0, 2))
    constants["levels"] = small_integers(rng, channels, 256)
    shape = (n, *size, channels) if attributes["channels_last"] else (n, channels, *size)
    return [rng.integers(0, 256, shape, np.uint8)], attributes, constants


def spoil(rng: Generator, parts: Parts, exact: bool) -> Parts:
    """Make one thing of a case wrong: a rank, a type, a size, an attribute, a constant."""
    inputs, attributes, constants = [*parts[0]], dict(parts[1]), dict(parts[2])
    kind = int(rng.integers(0, 8))
    absurd = int(rng.choice([-1, 0, 2**31 - 1, 2**31, 2**62, 2**63 - 1, 10**8]))
    which = int(rng.integers(0, len(inputs)))
    if kind == 0:
        inputs[which] = inputs[which][..., np.newaxis] if rng.random() < 0.5 else inputs[which].reshape(-1)
    elif kind == 1:
        inputs[which] = inputs[which].astype(rng.choice(["float32", "uint8", "int64", "uint32"]))
    elif kind == 2:
        inputs[which] = inputs[which][..., :-1] if rng.random() < 0.5 else inputs[which][:, :0]
    elif kind <= 5 and attributes:
        name = str(rng.choice(list(attributes)))
        value = attributes[name]
        match int(rng.integers(0, 4)):
            case 0:
                attributes[name] = [absurd if rng.random() < 0.5 else v for v in value] if _many(value) else absurd
            case 1:
                shorter = _many(value) and len(value) > 1 and rng.random() < 0.5
                attributes[name] = value[1:] if shorter else [*(value if _many(value) else []), 1]
            case 2:
                attributes[name] = [1.5, "text", [0.5]][int(rng.integers(0, 3))]
            case _:
                del attributes[name]
    elif constants:
        name = str(rng.choice(list(constants)))
        value = constants[name]
        match int(rng.integers(0, 5)):
            case 0:
                constants[name] = value[:-1]
            case 1:
                constants[name] = value[..., np.newaxis]
            case 2:
                constants[name] = value.astype(rng.choice(["float32", "float64", "int32", "uint32", "uint8"]))
            case 3:
                constants[name] = np.zeros_like(value, shape=(0, *value.shape[1:]))
            case _ if exact:  # in any order, which sums of these are not
                with np.errstate(invalid="ignore"):
                    constants[name] = numbers(rng, *value.shape, odd=0.5).astype(value.dtype)
    return inputs, attributes, constants


def _many(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def resized(rng: Generator, op: str, inputs: list[Array]) -> list[Array]:
    """The inputs with another batch and other sizes, as in the next run of the same session."""
    channels = 1 if OPERATORS[op].inputs[0].dtype == "float32" and not OPERATORS[op].channels_last else -1
    x = inputs[0]
    axes = [axis for axis in range(x.ndim) if axis != channels % max(x.ndim, 1)]
    if op == "BinaryMatMul":
        axes = axes[:-1]  # B has the same leading dimensions
    if op.startswith("Image") or op == "ReluLinear":
        axes = [0]  # where the channels are is an attribute, and C is constant
    shape = list(x.shape)
    for axis in axes:
        shape[axis] = max(shape[axis] + int(rng.integers(-2, 4)), 0)
    others = [x if i == 0 else np.resize(x, (*shape[:-2], *x.shape[-2:])) for i, x in enumerate(inputs)]
    return [np.resize(x, shape), *others[1:]]


def case(seed: int, folder: Path, shared: Path) -> None:
    """One operator: every instruction set, one to four threads, other sizes of X on the second run, then the first."""
    from support.kernels import ISAS, make_session

    rng = np.random.default_rng(seed)
    kernels = [row.name for row in OPERATORS.values() if row.has_kernel]
    op = kernels[seed % len(kernels)]
    row = OPERATORS[op]
    parts = make(rng, op)
    spoiled = rng.random() < 0.25
    inputs, attributes, constants = spoil(rng, parts, row.sums is None) if spoiled else parts
    runs = [inputs, resized(rng, op, inputs), inputs]
    if row.operand is not None:  # a factor or residual has the shape of Y
        runs = [[*feed, np.zeros(0, np.float32)] for feed in runs]
    model = model_of(op, runs[0], attributes, constants)
    threads = int(rng.integers(1, 5))
    exact = op != "BinarizeAbsMean"
    outcomes: dict[str, list[list[Array] | None]] = {}
    for isa in ISAS:
        try:
            session = make_session(model, isa, threads)
        except Exception as error:
            _one_line(error, spoiled)
            outcomes[isa] = [None] * len(runs)
            continue
        if row.operand is not None and not outcomes:
            for feed in runs[:2]:
                feed[-1] = _operand(session, feed, rng)
            runs[2] = runs[0]
        outcomes[isa] = [outcome(session, feed) for feed in runs]
    best = next(iter(outcomes))
    for isa, found in outcomes.items():
        for feed, got, wanted in zip(runs, found, outcomes[best], strict=True):
            if not equal_outputs(got, wanted, exact):
                raise FoundError(f"{op}: {isa} differs from {best}: X {[x.shape for x in feed]}, {attributes}")
    first, second, again = outcomes[best]
    if not equal_outputs(again, first, exact=True):
        raise FoundError(f"{op}: {best} gives something else after a run of other sizes: {attributes}")
    if op == "BinaryConvResidual" and first is not None:
        _without_an_output(rng, model, runs[0], first, make_session)
    if spoiled and first is None:
        return  # a body cannot refuse all that a kernel refuses
    body = stock_session(model.SerializeToString(), optimised=bool(rng.integers(0, 2)))
    for feed, wanted in zip(runs[:2], (first, second), strict=True):
        if not (spoiled and wanted is None) and not equal_outputs(outcome(body, feed), wanted, exact):
            raise FoundError(f"{op}: the body differs from the kernel: X {[x.shape for x in feed]}, {attributes}")


def _without_an_output(rng: Generator, model: Any, feed: list[Array], wanted: list[Array], session_of: Any) -> None:
    """Either one may be absent."""
    gone = int(rng.integers(0, 2))
    model = copy.deepcopy(model)
    model.graph.node[0].output[gone] = ""
    del model.graph.output[gone]
    got = outcome(session_of(model, None, 1), feed)
    if not equal_outputs(got, [wanted[1 - gone]], exact=True):
        raise FoundError(f"{model.graph.node[0].op_type}: without output {gone}, the other is another")


def _operand(session: Any, inputs: list[Array], rng: Generator) -> Array:
    """A factor or residual of the right shape, which the kernel's refusal of a wrong one names."""
    try:
        session.run(None, {given.name: x for given, x in zip(session.get_inputs(), inputs, strict=True)})
    except Exception as error:
        shape = re.search(r"(?:pixel of Y|shape of Y), \[([\d, ]*)\]", str(error))
        if shape is not None:
            return numbers(rng, *map(int, shape[1].split(",")))
    return inputs[-1]


def _one_line(error: Exception, expected: bool) -> None:
    if not expected:
        raise FoundError(f"a good node is refused: {str(error).splitlines()[0][:200]}")
