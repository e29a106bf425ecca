"""Train the xnor network of shapes_xnor.cfg on pictures that pictures.py draws, on a CPU, in a few minutes.

The network is built from the .cfg file, and written as Darknet's own .weights file: `darknet detector test` would run
it. Its xnor layers are padded with -1 here, too, as in Darknet's inference, so that the two compute the same.

    python examples/darknet/train.py --out shapes_xnor.weights

Prints one line per epoch: the loss, and of the shapes in pictures that were not trained on, how many are found (a box
of the right class with an intersection over union of at least 0.5), and how many boxes are right. Needs Pillow.
"""

from __future__ import annotations

import argparse
import struct
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from boxes import CLASSES, overlap, pick
from pictures import draw
from torch import Tensor, nn

CFG = Path(__file__).parent / "shapes_xnor.cfg"

Section = tuple[str, dict[str, str]]


def read_cfg(path: Path) -> list[Section]:
    """The sections of a .cfg file, without what trains in Darknet."""
    sections: list[Section] = []
    for line in path.read_text().splitlines():
        if line.startswith("["):
            sections.append((line.strip("[]"), {}))
        elif "=" in line and not line.startswith("#"):
            key, value = line.split("=")
            sections[-1][1][key] = value
    return sections


class StraightThrough(torch.autograd.Function):
    """The sign, +1 where x > 0, else -1; its gradient is that of x where |x| <= 1."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        """[...] -> [...], -1 or +1."""
        ctx.save_for_backward(x)
        return torch.where(x > 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        """The gradient, where it goes through."""
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class Convolutional(nn.Module):
    """Darknet's convolutional layer: weights, BatchNorm or bias, leaky or linear."""

    def __init__(self, inputs: int, keys: dict[str, str]) -> None:
        super().__init__()
        self.size, filters = int(keys["size"]), int(keys["filters"])
        self.stride, self.pad = int(keys["stride"]), self.size // 2 if int(keys["pad"]) else 0
        self.xnor, self.leaky = keys.get("xnor") == "1", keys["activation"] == "leaky"
        self.weight = nn.Parameter(torch.randn(filters, inputs, self.size, self.size) * (2 / inputs) ** 0.5 / self.size)
        self.norm = nn.BatchNorm2d(filters) if "batch_normalize" in keys else None
        self.bias = None if self.norm else nn.Parameter(torch.zeros(filters))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, filters, H, W]."""
        weight = self.weight
        if self.xnor:
            x = F.pad(StraightThrough.apply(x), [self.pad] * 4, value=-1.0)
            alpha = weight.abs().mean((1, 2, 3), keepdim=True)
            binary = torch.where(weight > 0, alpha, -alpha)
            weight = weight + (binary - weight).detach()
        x = F.conv2d(x, weight, self.bias, self.stride, 0 if self.xnor else self.pad)
        x = x if self.norm is None else self.norm(x)
        return F.leaky_relu(x, 0.1) if self.leaky else x

    def parameters_in_order(self) -> list[Tensor]:
        """As a .weights file has them."""
        if self.norm is None:
            return [self.bias, self.weight]
        norm = self.norm
        return [norm.bias, norm.weight, norm.running_mean, norm.running_var, self.weight]


class Network(nn.Module):
    """The network of a .cfg file that has only the types of layers that ours has."""

    def __init__(self, sections: list[Section]) -> None:
        super().__init__()
        self.sections = sections[1:]
        self.layers = nn.ModuleList()
        channels = [int(sections[0][1]["channels"])]
        for index, (kind, keys) in enumerate(self.sections):
            layer: nn.Module = nn.Identity()
            own = channels[-1]
            if kind == "convolutional":
                layer, own = Convolutional(own, keys), int(keys["filters"])
            elif kind == "route":
                own = sum(channels[1:][source] for source in self.sources(index))
            self.layers.append(layer)
            channels.append(own)

    def sources(self, index: int) -> list[int]:
        """The layers that a route reads."""
        named = map(int, self.sections[index][1]["layers"].split(","))
        return [source if source >= 0 else index + source for source in named]

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> the inputs of the yolo layers."""
        outputs, heads = [], []
        for index, ((kind, keys), layer) in enumerate(zip(self.sections, self.layers, strict=True)):
            if kind == "convolutional":
                x = layer(x)
            elif kind == "maxpool":
                x = F.max_pool2d(x, int(keys["size"]), int(keys["stride"]))
            elif kind == "route":
                x = torch.cat([outputs[source] for source in self.sources(index)], 1)
            elif kind == "upsample":
                x = F.interpolate(x, scale_factor=int(keys["stride"]))
            elif kind == "yolo":
                heads.append(x)
            outputs.append(x)
        return heads

    def write(self, path: Path, seen: int) -> None:
        """Write Darknet's .weights file."""
        content = struct.pack("<3iQ", 0, 2, 5, seen)
        for layer in self.layers:
            if isinstance(layer, Convolutional):
                content += b"".join(
                    part.detach().numpy().astype("<f4").tobytes() for part in layer.parameters_in_order()
                )
        path.write_bytes(content)


class Heads:
    """The yolo layers of a network: which numbers stand for which box.

    Attributes:
        anchors: [anchors, 2], width and height in pixels.
        masks: the anchors of each head.
    """

    def __init__(self, sections: list[Section]) -> None:
        yolos = [keys for kind, keys in sections if kind == "yolo"]
        self.size = int(sections[0][1]["width"])
        self.anchors = torch.tensor([float(part) for part in yolos[0]["anchors"].split(",")]).reshape(-1, 2)
        self.masks = [[int(part) for part in keys["mask"].split(",")] for keys in yolos]

    def split(self, heads: list[Tensor]) -> list[Tensor]:
        """[N, anchors, H, W, 5 + classes] of each head."""
        return [
            head.unflatten(1, (len(mask), -1)).permute(0, 1, 3, 4, 2)
            for head, mask in zip(heads, self.masks, strict=True)
        ]

    def boxes(self, heads: list[Tensor]) -> tuple[Tensor, Tensor]:
        """All boxes [N, B, 4], centre and size, and their scores [N, B, classes], as `--decode` gives them."""
        places, scores = [], []
        for head, mask in zip(self.split(heads), self.masks, strict=True):
            _, _, rows, columns, _ = head.shape
            cell = torch.stack(torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy"), -1)
            centre = (head[..., :2].sigmoid() + cell) / torch.tensor([columns, rows])
            size = head[..., 2:4].exp() * self.anchors[mask][:, None, None] / self.size
            places.append(torch.cat([centre, size], -1).flatten(1, 3))
            scores.append((head[..., 4:5].sigmoid() * head[..., 5:].sigmoid()).flatten(1, 3))
        return torch.cat(places, 1), torch.cat(scores, 1)

    def loss(self, heads: list[Tensor], truth: list[Tensor]) -> Tensor:
        """The loss of YOLOv3: each shape is the matter of one anchor, the one that is most like it, in one cell.

        Args:
            heads: the inputs of the yolo layers.
            truth: per picture, [shapes, 5]: class, centre, width and height.
        """
        parts = self.split(heads)
        wanted = [torch.zeros_like(part[..., 4]) for part in parts]
        weight = [torch.ones_like(part[..., 4]) for part in parts]
        loss = torch.zeros(())
        picture = torch.cat([torch.full((len(shapes),), index) for index, shapes in enumerate(truth)])
        shapes = torch.cat(truth)
        pixels = shapes[:, 3:] * self.size
        shared = torch.minimum(pixels[:, None], self.anchors).prod(-1)
        overlap = shared / (pixels.prod(-1)[:, None] + self.anchors.prod(-1) - shared)
        best = overlap.argmax(1)
        for part, mask, objects, weights in zip(parts, self.masks, wanted, weight, strict=True):
            _, _, rows, columns, _ = part.shape
            grid = torch.tensor([columns, rows])
            cell = (shapes[:, 1:3] * grid).long()
            for place, anchor in enumerate(mask):
                # An anchor that is nearly as good is not told that there is nothing.
                near = overlap[:, anchor] > 0.5
                weights[picture[near], place, cell[near, 1], cell[near, 0]] = 0
            for place, anchor in enumerate(mask):
                mine = best == anchor
                index = picture[mine], place, cell[mine, 1], cell[mine, 0]
                objects[index] = weights[index] = 1
                found, own = part[index], shapes[mine]
                inside = own[:, 1:3] * grid - cell[mine]
                loss = loss + F.binary_cross_entropy_with_logits(found[:, :2], inside, reduction="sum")
                loss = loss + ((found[:, 2:4] - (pixels[mine] / self.anchors[anchor]).log()) ** 2).sum()
                classes = F.one_hot(own[:, 0].long(), len(CLASSES)).float()
                loss = loss + F.binary_cross_entropy_with_logits(found[:, 5:], classes, reduction="sum")
        for part, objects, weights in zip(parts, wanted, weight, strict=True):
            loss = loss + F.binary_cross_entropy_with_logits(part[..., 4], objects, weights, reduction="sum")
        return loss / len(truth)


def pictures(count: int, size: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Draw pictures: [N, 3, size, size] uint8, and the shapes of each."""
    rng = np.random.default_rng(seed)
    drawn = [draw(rng, size) for _ in range(count)]
    pixels = np.stack([picture for picture, _ in drawn]).transpose(0, 3, 1, 2)
    return torch.from_numpy(pixels), [torch.from_numpy(shapes) for _, shapes in drawn]


def scaled(images: Tensor) -> Tensor:
    """Pictures as the network takes them, in [0, 1]."""
    return images.float() / 255


@torch.no_grad()
def score(network: Network, heads: Heads, images: Tensor, truth: list[Tensor]) -> tuple[float, float]:
    """Percent of the shapes that are found, and percent of the boxes that are right.

    Two boxes of one shape count twice, but non-maximum suppression leaves hardly any.
    """
    network.eval()
    found = boxes = shapes = 0
    for image, own in zip(images.split(50), [truth[i : i + 50] for i in range(0, len(truth), 50)], strict=True):
        places, scores = heads.boxes(network(scaled(image)))
        for place, value, wanted in zip(places.numpy(), scores.numpy(), own, strict=True):
            detected = pick(place, value)
            boxes, shapes = boxes + len(detected), shapes + len(wanted)
            for kind, _, box in detected:
                right = wanted[wanted[:, 0] == kind, 1:].numpy()
                found += bool((overlap(box, right) >= 0.5).any())
    return 100 * found / shapes, 100 * found / max(boxes, 1)


def main() -> None:
    """Train, and write the weights after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("shapes_xnor.weights"))
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--lr", type=float, default=0.004)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--threads", type=int, default=1, help="on a machine that is busy with other things, 1 is fastest"
    )
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    sections = read_cfg(CFG)
    network, heads = Network(sections), Heads(sections)
    images, truth = pictures(args.pictures, heads.size, args.seed)
    test_images, test_truth = pictures(300, heads.size, args.seed + 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr)
    steps = args.epochs * -(-args.pictures // args.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(1, args.epochs + 1):
        start, total = time.perf_counter(), 0.0
        network.train()
        for index in torch.randperm(len(images)).split(args.batch_size):
            # Mirrored, and with other colours, every picture is a new one.
            batch, own = scaled(images[index][:, torch.randperm(3)]), [truth[i].clone() for i in index]
            if torch.rand(()) < 0.5:
                batch = batch.flip(3)
                for shapes in own:
                    shapes[:, 1] = 1 - shapes[:, 1]
            loss = heads.loss(network(batch), own)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(index)
        found, right = score(network, heads, test_images, test_truth)
        print(
            f"epoch {epoch:3d}  loss {total / len(images):6.3f}  found {found:.1f} % of the shapes, "
            f"{right:.1f} % of the boxes right  {time.perf_counter() - start:.1f} s",
            flush=True,
        )
        network.write(args.out, epoch * args.pictures)


if __name__ == "__main__":
    main()
