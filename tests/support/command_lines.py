"""A command line for every command that takes long, on a small network, and the files that these read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bnn_deploy.conversion import convert
from bnn_deploy.proof.golden.make import make_golden
from bnn_deploy.proof.golden.record import write_golden
from support.bundles import WHEEL, fake_wheel, invoke, unpack

EXPORT = Path(__file__).parents[1] / "exports" / "larq_alpha.onnx"


@dataclass(frozen=True)
class Files:
    """The folder of what the commands read, and that which they write into."""

    given: Path
    out: Path

    @property
    def commands(self) -> dict[str, list[str | Path]]:
        """Case -> a command line; `deploy` has its own tests, in tests/board/deployment."""
        model, out = self.given / "m.onnx", self.out
        return {
            "convert": ["convert", EXPORT, "-o", out / "m.onnx", "--float", out / "f.onnx", "--report", out / "r.json"],
            "verify": ["verify", model, "--against", EXPORT, "--samples", "2"],
            "verify --golden": ["verify", model, "--golden", self.given / "golden.npz"],
            "profile": ["profile", model, "--compare", self.given / "f.onnx", "--runs", "2"],
            "demo": ["demo", EXPORT, "-o", out, "--runs", "2"],
            "report": ["report", model, "--compare", self.given / "f.onnx", "--runs", "2", "-o", out / "r.html"],
            "bundle": ["bundle", model, *self.bundle, "-o", out / "b.tar.gz"],
            "run-bundle": ["run-bundle", self.given / "bnn-deploy-bundle", "--report", out / "r.json", "--runs", "2"],
        }

    @property
    def bundle(self) -> list[str | Path]:
        return ["--target", "x86_64", "--samples", "2", "--wheels", self.given / "dist"]


def make_files(folder: Path) -> Path:
    """Write what the commands read."""
    model = folder / "m.onnx"
    convert(EXPORT, model, float_output=folder / "f.onnx")
    write_golden(make_golden(model, None, 2), folder / "golden.npz")
    fake_wheel(folder / "dist" / WHEEL, 62)
    files = Files(folder, folder)
    assert invoke(*files.commands["bundle"]).exit_code == 0
    unpack(folder / "b.tar.gz", folder)
    (folder / "run").mkdir()
    (folder / "run" / "bnn-deploy.toml").write_text(
        f'source = "{EXPORT}"\nmodel = "m.onnx"\nfloat = "f.onnx"\nsamples = 2\nruns = 2\n'
    )
    return folder
