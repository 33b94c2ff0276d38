"""Losses that ask rare classes for a margin."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cdb_video.losses.base import Reduction, ShelfLoss, check_class_counts, check_number


class LDAMLoss(ShelfLoss):
    """Label-distribution-aware margin: cross entropy of scale * (cosine - m_y at y).

    The margin is m_c = max_margin * (n_min / n_c)^(1/4), so the rarest class has all of
    `max_margin`; a class without training clips has it too. The logits z have to be scale * cosine,
    of a head of normalised features and weights without bias: `models.recognizer.CosineHead`, whose
    scale is 30. At test time they are used as they are. For LDAM-DRW see `DeferredReweighting`.

    Source: Cao, Wei, Gaidon, Arechiga, Ma, "Learning Imbalanced Datasets with
    Label-Distribution-Aware Margin Loss", NeurIPS 2019, arXiv 1906.07413.

    Args, beside those of `ShelfLoss` (label smoothing is refused):
        class_counts: (K,) training clips of each class.
        max_margin: the largest margin, in cosines.
        scale: what the head multiplies its cosines by, so that softmax can become sharp.

    """

    margins: Tensor
    """(K,) fp32."""

    def __init__(
        self,
        num_classes: int,
        *,
        class_counts: Tensor | None = None,
        max_margin: float = 0.5,
        scale: float = 30.0,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(
            num_classes,
            reduction=reduction,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
        )
        check_number("max_margin", max_margin)
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be in (0, inf), got {scale}")
        counts = check_class_counts(class_counts, num_classes)
        rarest = counts[counts > 0].min()
        margins = max_margin * (rarest / counts.clamp(min=rarest)) ** 0.25
        self.scale = scale
        self.register_buffer("margins", margins.float())

    def _per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        own = target[:, None] == torch.arange(self.num_classes, device=target.device)
        margins = self.scale * self.margins * own
        return F.cross_entropy(logits - margins, target, reduction="none")
