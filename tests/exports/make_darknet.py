"""Make darknet_*.cfg, .weights and .npz here: networks of tests/support/darknet_networks.py, run by Darknet itself.

Needs a C compiler and a folder in which Darknet (github.com/AlexeyAB/darknet) was built as a library for CPUs with AVX:
`make GPU=0 AVX=1 LIBSO=1`. The files are kept here, so that the tests do not need it. Their weights are random. An .npz
has some inputs x [N, 3, H, W], and what Darknet's inference made of them: under the name of each head's output, or of
the last layer's.

    PYTHONPATH=.. python make_darknet.py DARKNET
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from support.darknet import DarknetNetwork
from support.darknet_networks import NETWORKS

HERE = Path(__file__).parent


def main(darknet: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        program, image = Path(folder) / "run", Path(folder) / "image"
        library = [f"-I{darknet}/include", f"-L{darknet}", "-ldarknet", f"-Wl,-rpath,{darknet.resolve()}", "-lm"]
        subprocess.run(["gcc", HERE / "run_darknet.c", "-o", program, *library], check=True)
        for name, (sections, (height, width)) in NETWORKS.items():
            x = np.random.default_rng(1).random((4, 3, height, width), np.float32)
            network = DarknetNetwork({"width": width, "height": height, "channels": 3}, sections, x)
            files = network.write(HERE, f"darknet_{name}")
            heads = [i for i, (kind, _) in enumerate(sections) if kind in ("yolo", "region", "softmax")]
            shapes = [network.run(x[:1])[head].shape[1:] for head in heads]
            rows = []
            for one in x[:2]:
                image.write_bytes(one.tobytes())
                ran = subprocess.run([program, *files, image, *map(str, heads)], check=True, capture_output=True)
                rows.append(np.frombuffer(ran.stdout, np.float32))
            ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
            parts = np.split(np.array(rows), ends, axis=1)
            outputs = {
                f"{sections[head][0]}{head}": part.reshape(2, *shape)
                for head, shape, part in zip(heads, shapes, parts, strict=True)
            }
            np.savez_compressed(HERE / f"darknet_{name}.npz", x=x[:2], **outputs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
