"""Speed of single layers in every binary form, beside the same layer in onnxruntime's float32 and int8, one thread.

    python tests/benchmarks/layer_speed.py --json layers.json
    python tests/benchmarks/layer_speed.py --isa avx2 --only "Q K^T" transposed

A layer (layer_forms.py) takes and gives float32 tensors. Its binary forms are what `convert` makes of the float layer
behind signs or other quantised activations, and are timed with them, for each instruction set of the machine; float32
and int8 are the layer alone, int8 as onnxruntime quantises it, with its conversions from and to float32. All of one
layer are timed in turn, round by round. Printed are medians over the rounds: of the CPU time, and of the ratios
within a round, which other work on the machine changes least. onnxruntime has no int8 kernel for transposed
convolutions. 1 GMAC/s is 10^9 multiply-accumulates of the float layer per second.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from int8 import quantize
from layer_forms import LAYERS, Layer, becomes, binary_model, float_model
from turns import Runner, percentiles, take_turns

from bnn_deploy.runtime.machine import cpu_name
from bnn_deploy.runtime.session import library_info

FLOAT, INT8 = "float32", "int8"


def int8_model(layer: Layer) -> onnx.ModelProto:
    """The layer as onnxruntime quantises it, calibrated on the kind of numbers that it is measured on."""
    with TemporaryDirectory() as folder:
        flat = Path(folder) / "float.onnx"
        onnx.save(float_model(layer), flat)
        rng = np.random.default_rng(2)
        feeds = {
            name: rng.standard_normal(shape).astype(np.float32) for name, shape in zip("ab", layer.inputs, strict=False)
        }
        return onnx.load(quantize(flat, [feeds], flat.with_name("int8.onnx")))


def measure(layer: Layer, isas: list[str], rounds: int) -> list[dict[str, Any]]:
    """The rows of a layer: float32, int8, and each form with each instruction set."""
    models = {form.name: binary_model(layer, form) for form in layer.forms}
    runners = {(FLOAT, ""): Runner(float_model(layer)), (INT8, ""): Runner(int8_model(layer))}
    runners |= {(name, isa): Runner(model, isa) for isa in isas for name, model in models.items()}
    times = take_turns(runners, rounds)
    return [
        {
            "layer": layer.name,
            "form": name,
            "isa": isa,
            "becomes": becomes(models[name]) if name in models else "",
            "ms": percentiles(found),
            "gmacs_per_s": round(layer.macs / float(np.median(found)) / 1e6, 2),
            "ratios": {peer: percentiles(times[peer, ""] / found) for peer in (FLOAT, INT8)},
        }
        for (name, isa), found in times.items()
    ]


HEADING = f"{'':24} {'':7} {'':24} {'ms':>8} {'GMAC/s':>7}  {'float32 / this':>19}  {'int8 / this':>19}"


def line(row: dict[str, Any]) -> str:
    """A row of the table; ratios with their 10th and 90th percentile."""
    ratios = [f"{r['median']:6.2f} ({r['p10']:.2f} - {r['p90']:.2f})" for r in row["ratios"].values()]
    return (
        f"  {row['form']:22} {row['isa']:7} {row['becomes']:24} {row['ms']['median']:8.4f} {row['gmacs_per_s']:7.1f}"
        f"  {ratios[0]:>19}  {ratios[1]:>19}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    isas = library_info().isas
    parser.add_argument("--isa", nargs="+", choices=isas, default=list(isas), help="of the kernels; default: all")
    parser.add_argument(
        "--only", nargs="+", metavar="TEXT", default=[""], help="layers with one of these in their name"
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    arguments = parser.parse_args()
    layers = [layer for layer in LAYERS if any(text in layer.name for text in arguments.only)]
    if not layers:
        parser.error(f"--only: no such layer; there are {', '.join(layer.name for layer in LAYERS)}")

    print(f"{cpu_name()}, onnxruntime {ort.__version__}, 1 thread, {arguments.rounds} rounds\n{HEADING}")
    rows = []
    for layer in layers:
        print(layer.name)
        for row in measure(layer, arguments.isa, arguments.rounds):
            rows.append(row)
            print(line(row), flush=True)
    if arguments.json:
        record = {"cpu": cpu_name(), "onnxruntime": ort.__version__, "rounds": arguments.rounds, "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        print(f"{len(rows)} rows in {arguments.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
