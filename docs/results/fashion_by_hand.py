"""CDB on Fashion-MNIST-LT in one file that uses nothing of this toolkit.

    python docs/results/fashion_by_hand.py FASHION-MNIST

writes fashion-by-hand.json beside itself, for docs/results.md. Data, network and schedule are those
of configs/images/fashion_mnist_lt_ce.yaml, the weights the paper's: w = (1 - A)^tau over their
mean, A the accuracy on 25 held-out images of each class, measured after every epoch. "calmed" adds
five images of the mean accuracy to each class, and keeps half of the past.
"""

import gzip
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

CLASSES, HELD_OUT, EPOCHS, BATCH, LR = 10, 25, 15, 128, 0.05
ARMS = {
    "cross entropy": (0, False),
    "cdb, tau 1": (1, False),
    "cdb, dynamic": ("dynamic", False),
    "cdb, tau 1, calmed": (1, True),
}


def read(root: Path, prefix: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, 28, 28) and labels (N,)."""
    raw = [
        np.frombuffer(gzip.decompress((root / f"{prefix}-{kind}-ubyte.gz").read_bytes()), np.uint8)
        for kind in ("images-idx3", "labels-idx1")
    ]
    images = torch.tensor(raw[0][16:]).view(-1, 1, 28, 28).float() / 255
    return (images - 0.286) / 0.353, torch.tensor(raw[1][8:]).long()


def divided(labels: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices to train on, int(5975 / 100^(c / 9)) of class c, and 25 of each that are held out."""
    train, held_out = [], []
    for c in range(CLASSES):
        own = (labels == c).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=generator)]
        held_out.append(own[-HELD_OUT:])
        train.append(own[: int((len(own) - HELD_OUT) * 0.01 ** (c / (CLASSES - 1)))])
    return torch.cat(train), torch.cat(held_out)


def lenet() -> nn.Module:
    """LeNet-5 with ReLU and maxima."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES)),
    )


def varied(images: torch.Tensor) -> torch.Tensor:
    """Each one moved by up to two pixels, black coming in, and half of them mirrored."""
    padded = F.pad(images, [2] * 4, value=float(images.min()))
    moves = torch.randint(5, (len(images), 2)).tolist()
    moved = torch.stack(
        [p[:, y : y + 28, x : x + 28] for p, (y, x) in zip(padded, moves, strict=True)]
    )
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, moved.flip(3), moved)


@torch.no_grad()
def class_accuracy(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(K,)."""
    right = (net(images).argmax(1) == labels).float()
    return torch.stack([right[labels == c].mean() for c in range(CLASSES)])


def weights_of(accuracy: torch.Tensor, tau: float | str) -> torch.Tensor:
    """The paper's; its equation 4 for the dynamic tau."""
    if tau == "dynamic":
        tau = float(2 * torch.sigmoid(accuracy.max() / (accuracy.min() + 0.01) - 1))
    weights = (1 - accuracy) ** tau
    return weights / weights.mean() if weights.sum() > 0 else torch.ones(CLASSES)


def trained(data: list, tau: float | str, calmed: bool, seed: int) -> dict[str, list]:
    """After each epoch: test and held-out accuracy of every class, and the weights from then on."""
    (images, labels), (test_images, test_labels) = data
    torch.manual_seed(seed)
    train, held_out = divided(labels, torch.Generator().manual_seed(seed))
    net, weights = lenet(), torch.ones(CLASSES)
    optimizer = torch.optim.SGD(net.parameters(), LR, 0.9, weight_decay=5e-4, nesterov=True)
    steps = len(train) // BATCH
    found: dict[str, list] = {"test": [], "held out": [], "weights": []}
    past = seen = 0.0
    for epoch in range(EPOCHS):
        for step, rows in enumerate(torch.randperm(len(train)).split(BATCH)[:steps]):
            done = epoch + step / steps
            factor = done if done < 1 else 0.5 + 0.5 * math.cos(math.pi * (done - 1) / (EPOCHS - 1))
            optimizer.param_groups[0]["lr"] = LR * max(factor, 0.01)
            chosen = train[rows]
            loss = F.cross_entropy(net(varied(images[chosen])), labels[chosen], reduction="none")
            optimizer.zero_grad()
            (loss * weights[labels[chosen]]).mean().backward()
            optimizer.step()
        accuracy = class_accuracy(net, images[held_out], labels[held_out])
        measured = accuracy
        if calmed:
            measured = (HELD_OUT * accuracy + 5 * accuracy.mean()) / (HELD_OUT + 5)
            past, seen = 0.5 * past + 0.5 * measured, 0.5 * seen + 0.5
            measured = past / seen
        weights = weights_of(measured, tau)
        found["held out"].append(accuracy.tolist())
        found["weights"].append(weights.tolist())
        found["test"].append(class_accuracy(net, test_images, test_labels).tolist())
    return found


def summary(runs: list[dict[str, list]]) -> dict[str, str]:
    """Percent of the test images, class by class; and how the weights go."""
    test, held_out, weights = (
        torch.tensor([run[name] for run in runs]) for name in ("test", "held out", "weights")
    )
    mean = 100 * test.mean(2)  # (seeds, epochs)
    best = mean.gather(1, held_out.mean(2).argmax(1, keepdim=True))[:, 0]
    change = (weights[:, 1:] - weights[:, :-1]).abs().mean()
    return {
        "last epoch": f"{mean[:, -1].mean():.1f} ± {mean[:, -1].std():.1f}",
        "best epoch on the held-out images": f"{best.mean():.1f} ± {best.std():.1f}",
        "seeds": ", ".join(f"{value:.1f}" for value in mean[:, -1]),
        "classes solved on the held-out images, %": f"{100 * (held_out == 1).float().mean():.1f}",
        "change of a weight from epoch to epoch": f"{change:.2f}",
    }


def main() -> None:
    """Five seeds an arm."""
    torch.set_num_threads(1)
    data = [read(Path(sys.argv[1]), prefix) for prefix in ("train", "t10k")]
    arms: dict[str, dict] = {}
    for name, (tau, calmed) in ARMS.items():
        runs = [trained(data, tau, calmed, seed) for seed in range(5)]
        arms[name] = {"summary": summary(runs), "runs": runs}
        print(name, arms[name]["summary"], flush=True)
    rounded = json.loads(json.dumps(arms), parse_float=lambda text: round(float(text), 4))
    out = Path(__file__).with_name("fashion-by-hand.json")
    text = json.dumps({"torch": torch.__version__, "arms": rounded}, ensure_ascii=False)
    out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
