"""From logits and labels to a loss. Needs torch alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from cdb_video.losses.base import CrossEntropyLoss, FocalLoss, ShelfLoss
from cdb_video.losses.cdb import CDBLoss, CDBSampling, cdb_weights
from cdb_video.losses.class_weighted import ClassWeightedLoss
from cdb_video.losses.competition import EqualizationLoss, SeesawLoss
from cdb_video.losses.difficulty import ClassDifficulty
from cdb_video.losses.margins import LDAMLoss
from cdb_video.losses.multi_head import MultiHeadLoss
from cdb_video.losses.priors import BalancedSoftmaxLoss, LogitAdjustedLoss
from cdb_video.losses.recall import RecallLoss
from cdb_video.losses.reweighting import (
    ClassBalancedLoss,
    DeferredReweighting,
    ReweightedLoss,
    WeightedLoss,
    effective_number_weights,
    inverse_frequency_weights,
    square_root_weights,
)

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "cross_entropy": CrossEntropyLoss,
    "weighted": WeightedLoss,
    "focal": FocalLoss,
    "class_balanced": ClassBalancedLoss,
    "ldam": LDAMLoss,
    "balanced_softmax": BalancedSoftmaxLoss,
    "logit_adjusted": LogitAdjustedLoss,
    "equalization": EqualizationLoss,
    "seesaw": SeesawLoss,
    "recall": RecallLoss,
    "cdb": CDBLoss,
}
"""Name -> loss, called as LOSSES[name](num_classes, class_counts=..., reduction=..., **options)."""

PER_SAMPLE_BASES: tuple[str, ...] = tuple(name for name in LOSSES if name != "cdb")
"""The losses that CDB and `DeferredReweighting` can weigh, made with `reduction="none"`."""

__all__ = [
    "LOSSES",
    "PER_SAMPLE_BASES",
    "BalancedSoftmaxLoss",
    "CDBLoss",
    "CDBSampling",
    "ClassBalancedLoss",
    "ClassDifficulty",
    "ClassWeightedLoss",
    "CrossEntropyLoss",
    "DeferredReweighting",
    "EqualizationLoss",
    "FocalLoss",
    "LDAMLoss",
    "LogitAdjustedLoss",
    "MultiHeadLoss",
    "RecallLoss",
    "ReweightedLoss",
    "SeesawLoss",
    "ShelfLoss",
    "WeightedLoss",
    "cdb_weights",
    "effective_number_weights",
    "inverse_frequency_weights",
    "square_root_weights",
]
