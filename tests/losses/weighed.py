"""What the tests of `CDBLoss` share: batches, bases, and losses that have measured."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdb_video.losses import CDBLoss
from cdb_video.losses.cdb import Tau
from tests.losses.shelf import double


def batch(n: int, k: int, *, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, k, generator=generator)
    return logits, torch.randint(k, (n,), generator=generator)


def reweighed(*accuracy: float, tau: Tau = 1, **options: Any) -> CDBLoss:
    """A loss that has measured these accuracies; by default tau 1, which is easy by hand."""
    criterion = CDBLoss(len(accuracy), tau=tau, **options)
    criterion.update(double(*accuracy))
    return criterion


class Focal(nn.Module):
    """(1 - p_y)^2 (-log p_y), per sample."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        log_p = logits.log_softmax(1).gather(1, target[:, None])[:, 0]
        return -((1 - log_p.exp()) ** 2) * log_p


class Reduced(nn.Module):
    """A base that gives one number for the batch, and does not say so."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target)


KINDS: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({}, True),
    ({"base": Focal()}, False),
    ({"label_smoothing": 0.1}, False),
    ({"label_smoothing": 0.1}, True),
]
"""Options of the loss, and whether its targets are probabilities."""
