"""Speed of converted models against their float ONNX in onnxruntime, in turns, one thread.

Each pair runs in one process, on the same random input, in turns (`bnn_deploy.profile`); the table has the
medians and their ratio, with the 10th and 90th percentile of the ratio over neighbouring runs.

    python tests/benchmarks/model_speed.py
    python tests/benchmarks/model_speed.py --model binary.onnx float.onnx --threads 2 --json speed.json

Without --model it converts the trained LeNet-5 and NIN (with --alexnet also an AlexNet from a seeded initialisation).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

from bnn_deploy.runtime.profile_results import ProfileReport
from bnn_deploy.runtime.profiling import profile


def build(arch: str, folder: Path) -> tuple[Path, Path]:
    """Convert a network. Returns the binary and the float model."""
    from bnn_deploy.conversion import convert
    from support import networks

    binary, flat = folder / f"{arch}.onnx", folder / f"{arch}_float.onnx"
    convert(networks.network(arch, samples=8), binary, float_output=flat)
    return binary, flat


def line(report: ProfileReport) -> str:
    assert report.speedup is not None
    (model, compare), speedup = report.models, report.speedup
    return (
        f"{Path(model.path).name:<20} {model.timing.median_ms:>10.3f} {compare.timing.median_ms:>10.3f}"
        f" {speedup.median:>8.2f} {speedup.p10:>7.2f} {speedup.p90:>7.2f}"
        f" {model.file_bytes / 1e6:>10.3f} {compare.file_bytes / 1e6:>9.3f}  {report.isa}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs=2, action="append", type=Path, metavar=("BINARY", "FLOAT"), default=[])
    parser.add_argument("--alexnet", action="store_true", help="also build AlexNet (needs 2 GB of memory)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--isa", help="force an instruction set")
    parser.add_argument("--json", type=Path, help="also write all that was measured here")
    arguments = parser.parse_args()

    with TemporaryDirectory() as folder:
        names = ["lenet5", "nin", *(["alexnet"] if arguments.alexnet else [])]
        pairs = arguments.model or [build(name, Path(folder)) for name in names]
        reports = [
            profile(
                binary,
                flat,
                threads=arguments.threads,
                runs=arguments.runs,
                batch=arguments.batch,
                isa=arguments.isa,
            )
            for binary, flat in pairs
        ]
    machine = reports[0].machine
    print(f"{machine.cpu}, onnxruntime {machine.onnxruntime}, {arguments.threads} thread(s), batch {arguments.batch},")
    print(f"{arguments.runs} timed runs of each model in turns. Times are medians in ms, sizes in MB.")
    print("model                 binary ms   float ms    ratio     p10     p90  binary MB  float MB  ISA")
    for report in reports:
        print(line(report))
    if arguments.json:
        arguments.json.write_text(json.dumps([report.to_json() for report in reports], indent=2))


if __name__ == "__main__":
    main()
