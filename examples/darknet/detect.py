"""Find shapes in a picture with the converted network, and draw their boxes.

The model is what `bnn-deploy convert shapes_xnor.cfg --darknet-weights shapes_xnor.weights --decode` writes. Needs
Pillow.

    python examples/darknet/detect.py shapes.onnx examples/darknet/picture.jpg --out detected.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from boxes import CLASSES, Box, pick

from bnn_deploy import load_session

try:
    from PIL import Image, ImageDraw
except ImportError:
    raise SystemExit("reading and drawing pictures needs Pillow: pip install pillow") from None

COLOURS = ("red", "blue", "black")


def detect(model: Path, image: Image.Image) -> list[tuple[int, float, Box]]:
    """Find objects in a picture of any size: it is stretched to the network's, as `darknet detector test` does."""
    session = load_session(model)
    (wanted,) = session.get_inputs()
    _, _, height, width = wanted.shape
    small = np.asarray(image.convert("RGB").resize((width, height)), np.float32)
    x = np.ascontiguousarray(small.transpose(2, 0, 1)[None] / np.float32(255))
    boxes, scores = session.run(["boxes", "scores"], {wanted.name: x})
    return pick(boxes[0], scores[0])


def main() -> None:
    """Detect, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the converted network, with --decode")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--out", type=Path, default=Path("detected.jpg"), help="the picture with its boxes")
    args = parser.parse_args()
    image = Image.open(args.picture).convert("RGB")
    canvas = ImageDraw.Draw(image)
    size = np.array(image.size)
    for kind, sure, box in detect(args.model, image):
        corners = np.concatenate([(box[:2] - box[2:] / 2) * size, (box[:2] + box[2:] / 2) * size])
        canvas.rectangle(corners.tolist(), outline=COLOURS[kind], width=3)
        label = f"{CLASSES[kind]} {100 * sure:.0f} %"
        left, top, right, bottom = canvas.textbbox(corners[:2].tolist(), label)
        canvas.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=COLOURS[kind])
        canvas.text(corners[:2].tolist(), label, fill="white")
        print(f"{CLASSES[kind]:10} {100 * sure:5.1f} %  at {corners.round().astype(int).tolist()}")
    image.save(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
