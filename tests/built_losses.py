"""What the tests of `build_losses` share: classes, a batch, and losses from configurations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cdb_video.build_losses import build_criterion
from cdb_video.config import LossConfig
from cdb_video.counts import ClassCounts
from cdb_video.evaluation.predictions import HeadClasses
from cdb_video.losses import MultiHeadLoss

COUNTS = torch.tensor([5000, 300, 12, 1])
CLASSES = {
    "verb": HeadClasses(("open", "close", "cut", "pour"), COUNTS),
    "noun": HeadClasses(("cup", "pot"), torch.tensor([40, 60])),
}
VERBS = {"verb": CLASSES["verb"]}


def built(classes: dict[str, HeadClasses] = VERBS, **options: Any) -> MultiHeadLoss:
    return build_criterion(LossConfig(**options), classes)


def batch(n: int = 12) -> tuple[Tensor, Tensor]:
    """Logits (N, 4), and labels of which every third is missing."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(n, 4, generator=generator)
    labels = torch.randint(4, (n,), generator=generator)
    labels[::3] = -1
    return logits, labels


def loss_of(criterion: MultiHeadLoss, logits: Tensor, labels: Tensor) -> Tensor:
    return criterion({"verb": logits}, {"verb": labels})["verb"]


def measured() -> dict[str, ClassCounts]:
    counts = ClassCounts(4)
    # Right: 3, 2, 1 and 0 of 4 clips.
    taken = torch.tensor([0, 0, 0, 1, 1, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0])
    counts.update(F.one_hot(taken, 4), torch.arange(4).repeat_interleave(4))
    return {"verb": counts}
