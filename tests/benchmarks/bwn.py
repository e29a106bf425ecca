"""Binary weights with real inputs (BWN): file size, speed and memory next to the fp32 model, in turns, one thread.

    python tests/benchmarks/bwn.py
    python tests/benchmarks/bwn.py --runs 200 --batch 8 --threads 2

Two networks with seeded weights are converted: the shape of VGG on CIFAR-10 and that of NIN, every layer but the first
and the last with weights alpha * sign(W). Both models of a pair run in one process, on the same random input, in turns
(`bnn_deploy.profile`). Outputs are compared, too: the weights are equal in every bit, but BatchNorm is folded
into them in float64 here, in float32 by onnxruntime there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from bnn_deploy.conversion import convert
from bnn_deploy.inspection import inspect_model
from bnn_deploy.runtime.profiling import profile
from bnn_deploy.runtime.session import load_session


class BinaryWeightConv2d(nn.Conv2d):
    """Convolution with mean |W| * sign(W) per filter: the XNOR-Net paper, section 3.1."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] float32 -> [N, O, H', W'] float32."""
        alpha = self.weight.abs().mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, alpha * torch.sign(self.weight), self.bias)


def network(channels: list[int], kernels: list[int], pools: set[int]) -> nn.Module:
    """Conv -> BatchNorm -> ReLU, some with a MaxPool behind; the first and the last Conv have real weights."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs, kernel) in enumerate(zip([3, *channels], channels, kernels, strict=False)):
        edge = i in (0, len(kernels) - 1)
        conv = nn.Conv2d if edge else BinaryWeightConv2d
        layers += [conv(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm2d(outputs), nn.ReLU()]
        if i in pools:
            layers.append(nn.MaxPool2d(2))
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        model(torch.randn(16, 3, 32, 32))  # BatchNorm's statistics
    return model.eval()


def networks() -> dict[str, nn.Module]:
    """The two networks."""
    torch.manual_seed(0)
    return {
        "VGG": network([128, 128, 256, 256, 512, 512, 10], [3, 3, 3, 3, 3, 3, 1], {1, 3, 5}),
        "NIN": network([192, 160, 96, 192, 192, 192, 192, 192, 10], [5, 1, 1, 5, 1, 1, 3, 1, 1], {2, 5}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()

    rows = []
    with TemporaryDirectory() as folder:
        for name, model in networks().items():
            bits, flat = Path(folder) / f"{name}.onnx", Path(folder) / f"{name}_float.onnx"
            result = convert(model, bits, float_output=flat, input_shape=(3, 32, 32))
            report = profile(bits, flat, threads=arguments.threads, runs=arguments.runs, batch=arguments.batch)
            x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
            outputs = [load_session(path, 1).run(None, {"input": x})[0] for path in (bits, flat)]
            before, after = (
                sum(layer.constant_bytes for layer in inspect_model(path).layers if layer.name in result.binary_weights)
                for path in (flat, bits)
            )
            rows.append(
                (
                    name,
                    len(result.binary_weights),
                    report,
                    before,
                    after,
                    float(np.abs(np.subtract(*outputs)).max() / np.abs(outputs[1]).max()),
                )
            )
    machine = rows[0][2].machine
    print(f"{machine.cpu}, onnxruntime {machine.onnxruntime}, {arguments.threads} thread(s), batch {arguments.batch},")
    print(
        f"{arguments.runs} timed runs of each model in turns. Medians; speed is fp32's time divided by BWN's.\n"
        "Differ: outputs, by the largest difference, in units of the largest output."
    )
    print("                    ---- speed ----      fp32       BWN  ------- weights -------  memory added")
    print("model   layers   median   p10   p90        ms        ms      fp32      BWN  ratio   fp32    BWN    differ")
    for name, layers, report, before, after, error in rows:
        assert report.speedup is not None
        binary, flat = report.models
        memory = [run.memory.model_bytes / 1e6 for run in (flat, binary)]
        print(
            f"{name:<7} {layers:>6} {report.speedup.median:>8.2f} {report.speedup.p10:>5.2f} {report.speedup.p90:>5.2f}"
            f" {flat.timing.median_ms:>9.3f} {binary.timing.median_ms:>9.3f}"
            f" {before / 1e6:>6.2f} MB {after / 1e3:>5.0f} kB {before / after:>5.1f}x {memory[0]:>3.0f} MB"
            f" {memory[1]:>3.0f} MB  {error:.0e}"
        )


if __name__ == "__main__":
    main()
