"""The pages docs/benchmarks*.md: the summary and the picture, how all of it is measured, and every table."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from comparison.measuring import BATCH_ROUNDS, COLD_STARTS, TIMED_MS, WARM_MS
from comparison.tables import report, summary
from comparison.workloads import CALIBRATION_SAMPLES, CHECKED_SAMPLES

PAGES = {
    "benchmarks.md": ("Benchmarks", "a CPU with AVX-512"),
    "benchmarks_avx2.md": ("Benchmarks on AVX2", "a CPU with AVX2 alone"),
}
"""The pages in docs/, one for each kind of machine: title, machine."""

PAGE = """\
# {title}

{beginning}The same of {others}.

No number of this page is written by hand: `python tests/benchmarks/compare.py` wrote it and the picture,
of commit {commit}, in {minutes:.0f} minutes. To measure again, with bnn-deploy installed as for its tests, and the
peers in a virtual environment of their own, since they need an older numpy:

<!-- not run: it takes long, and needs the peers -->
```sh
python -m venv peers
peers/bin/pip install openvino==2024.6.0 larq-compute-engine==0.16.0 larq==0.14.0 tensorflow-cpu==2.15.1
{command}
```

One layer of each binary form (few levels, products of activations, linear layers on tokens, transposed convolutions)
beside fp32 and int8, for each instruction set of the machine, in a few minutes and without peers:

<!-- not run: it takes minutes -->
```sh
python tests/benchmarks/layer_speed.py --json layers.json
```

## How it is measured

* The machine: {cpu}, {cpus} CPUs, {system}; load average before and after: {load_before:.2f}, {load_after:.2f}.
* Engines run in worker processes, all timed by the same loop from Python, and take turns: {warm:g} ms untimed, at least
  {timed:g} ms timed, then the next engine; {rounds} rounds ({batch_rounds} at most for batches above 1). Times are of
  single runs, and copy no input or output where the engine's Python interface allows it (onnxruntime: IO binding;
  OpenVINO: the request's own tensors; Larq's copies both).
* Before it is timed, each engine's values on {samples} inputs or more are held against the float model in onnxruntime:
  |y - reference| / |reference - its mean|. "right" means that all are within the tolerance, or of a binary network a
  quarter, or of an int8 network nine tenths. All else is "WRONG".
* A sample of a deep binary network that is not within the tolerance is not an engine's fault: where a pre-activation is
  within rounding of 0, another order of float sums flips a sign, and one flipped sign can move the output by 20 %.
  `verify` tells that from a fault: it feeds each layer with the float model's own activations, so that no flip reaches
  the next layer, and counts the bits that differ: the numbers under the summary, on {samples} inputs.
* Layers are 3x3 convolutions, "channels@height x width", padding 1, stride 1. LeNet-5 and NIN are trained; the other
  networks have random weights from a seed, and BatchNorm calibrated on images. AlexNet takes 227x227 without padding in
  its first layer.
* Several threads: each engine and each number of threads has a process of its own, and all sleep while one runs.
* Cold start: a fresh process imports the engine, then loads the file in the engine's own format (.onnx, .xml, .tflite)
  and runs one input once; the medians of {cold_starts} processes at most. Memory is what this adds to the peak of the
  process's resident memory (VmHWM, reset after the imports).

How each engine is set up:

* **bnn-deploy**: the converted model in onnxruntime with the kernels registered, first and last layer in float32.
* **bnn-deploy, int8 edges**: the same with `convert --edges int8`, calibrated on {calibration} inputs. Its reference is
  the same file without the kernels: onnxruntime then runs the function bodies that define the operators.
* **onnxruntime fp32**: the float ONNX model of the same network, signs included; for a layer the convolution alone.
* **onnxruntime int8**: the same architecture with each sign replaced by ReLU (a layer: the convolution alone), through
  `quant_pre_process` and `quantize_static`: QDQ, U8 activations, S8 weights of 7 bits per output channel,
  calibrated on {calibration} inputs. Its reference is that network in float.
* **OpenVINO binary**: the float ONNX model rebuilt with FakeQuantize (2 levels, outputs 0 and 1) before
  opset1::BinaryConvolution (xnor-popcount, pad value 0), BatchNorm before a sign folded into FakeQuantize's thresholds;
  the rest in float. Latency hint, one stream, f32 precision, the same number of threads. Where a layer's input channels
  are no multiple of 8, as in LeNet-5, its binary convolution gives wrong values.
* **Larq**: Larq Compute Engine's interpreter with `use_indirect_bgemm=True` and `use_xnnpack=True`, on the model that
  its converter makes of the same network in Keras with larq's layers. Tensors are NHWC. Padded convolutions with a
  stride have TensorFlow's padding, and a reference with the same padding.

## Results

{report}"""

BEGIN, END = "<!-- compare.py --readme: -->\n", "\n<!-- until here -->"
"""What stands around the summary in README.md."""


def with_summary(readme: str, record: dict[str, Any]) -> str:
    """The text of README.md with the record's summary, of the best instruction set, in the place of the one it has."""
    before, _, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"no place for the summary: it stands between {BEGIN.strip()} and {END.strip()}")
    best = record | {"isas": record["isas"][:1]}
    return f"{before}{BEGIN}{summary(best)}{END}{after}"


def page(record: dict[str, Any], name: str) -> str:
    """The text of a page, whose picture is beside it.

    Args:
        record: of a run, see compare.py; without networks there is neither summary nor picture.
        name: of PAGES.
    """
    found = summary(record)
    picture = str(PurePath(name).with_suffix(".svg"))
    readme = " --readme README.md" if name == "benchmarks.md" else ""
    image = f"![How many times faster than onnxruntime's fp32 each engine is, per network]({picture})"
    return PAGE.format(
        **{key: record[key] for key in ("commit", "date", "minutes", "load_before", "load_after", "rounds")},
        **record["machine"],
        title=PAGES[name][0],
        others=" and ".join(f"[{machine}]({other})" for other, (_, machine) in PAGES.items() if other != name),
        command=f"{record['command']} --write docs/{name}{readme}",
        beginning=f"{found}\n\n{image}\n\n" if found else "",
        warm=WARM_MS,
        timed=TIMED_MS,
        batch_rounds=BATCH_ROUNDS,
        cold_starts=COLD_STARTS,
        samples=CHECKED_SAMPLES,
        calibration=CALIBRATION_SAMPLES,
        report=report(record),
    )
