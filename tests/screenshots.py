"""Make the pages of three networks as a user does, and take their pictures for the docs.

    python tests/screenshots.py            # writes docs/pictures/report-*.png, and the pages into build/pages/
    python tests/screenshots.py --again    # of the records that the last run left in build/pages/

LeNet-5 comes with the package, NIN with the examples; Bi-Real-18 has random weights and calibrated BatchNorms, and so
no accuracy to speak of.
"""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from support import networks
from support.browser import DESKTOP, PHONE, browser
from support.pages import run

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "pages"
PICTURES = ROOT / "docs" / "pictures"

SCALE = 0.5
"""Of a picture in the docs, against the screen."""


@dataclass(frozen=True)
class Shot:
    """A picture: of which page, on what screen, and how many of its pixels from the top."""

    network: str
    screen: str
    width: int
    dark: bool
    height: int


SHOTS = (
    Shot("lenet5", "light", DESKTOP, False, 2500),
    Shot("nin", "dark", DESKTOP, True, 2500),
    Shot("birealnet18", "light", DESKTOP, False, 2500),
    Shot("nin", "phone", PHONE, False, 1800),
)

CIFAR10 = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"

SAMPLES = {"lenet5": 200, "nin": 20, "birealnet18": 1}
"""Architecture -> samples to verify on."""


def make_record(arch: str, folder: Path) -> Path:
    """Convert, verify and profile a network with the commands."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # the page shows the command lines, and short ones are easier to read
    model, floats, data = Path(f"{arch}.onnx"), Path(f"{arch}_float.onnx"), Path(f"{arch}.npz")
    checkpoint, conversion, found = Path(f"{arch}.pth.tar"), Path(f"{arch}.convert.json"), Path(f"{arch}.json")
    checkpoint.write_bytes(networks.checkpoint(arch, folder).read_bytes())
    classes = ["--classes", CIFAR10] if arch == "nin" else []
    conversion.write_text(
        run("convert", checkpoint, "--arch", arch, "-o", model, "--float", floats, *classes, "--json")
    )
    labels = known_labels(arch)
    images = networks.inputs(arch, SAMPLES[arch]).numpy()
    np.savez(data, input=images, **({} if labels is None else {"labels": labels[: len(images)]}))
    proof = ["--against", checkpoint, "--data", data]
    found.write_text(run("report", model, conversion, *proof, "--compare", floats, "--json"))
    return folder / found


def make_page(record: Path) -> Path:
    """Make the page of a record."""
    page = record.with_suffix(".html")
    run("report", record, "-o", page)
    return page


def known_labels(arch: str) -> np.ndarray | None:
    """The labels of `networks.inputs`; None of random images."""
    known = {"lenet5": ROOT / "bnn_deploy" / "demo_data" / "mnist_1000.npz", "nin": networks.NIN / "cifar10_100.npz"}
    if arch not in known:
        return None
    with np.load(known[arch]) as stored:
        return np.asarray(stored["labels"])


def main() -> None:
    """Make the pages and the pictures."""
    PICTURES.mkdir(exist_ok=True)
    records = {arch: PAGES / f"{arch}.json" for arch in SAMPLES}
    if "--again" not in sys.argv:
        records = {arch: make_record(arch, PAGES) for arch in SAMPLES}
    pages = {arch: make_page(record) for arch, record in records.items()}
    with browser() as window:
        for shot in SHOTS:
            window.open(pages[shot.network], shot.width, shot.dark)
            picture = Image.open(io.BytesIO(window.screenshot(shot.height)))
            if shot.width == DESKTOP:
                size = round(picture.width * SCALE), round(picture.height * SCALE)
                picture = picture.resize(size, Image.Resampling.LANCZOS)
            path = PICTURES / f"report-{shot.network}-{shot.screen}.png"
            # An octree keeps the few colours that tell bits from floats; a median cut would grey them.
            small = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            small.save(path, optimize=True)
            print(f"{path.relative_to(ROOT)}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
