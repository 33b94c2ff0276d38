"""From logits and labels to a loss. Needs torch alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from cdb_video.losses.cdb import CDBLoss, cdb_weights
from cdb_video.losses.difficulty import ClassDifficulty
from cdb_video.losses.multi_head import MultiHeadLoss
from cdb_video.losses.reweighting import CrossEntropyLoss

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "cross_entropy": CrossEntropyLoss,
    "cdb": CDBLoss,
}
"""Name -> loss, called as LOSSES[name](num_classes, class_counts=..., reduction=..., **options)."""

__all__ = [
    "LOSSES",
    "CDBLoss",
    "ClassDifficulty",
    "CrossEntropyLoss",
    "MultiHeadLoss",
    "cdb_weights",
]
