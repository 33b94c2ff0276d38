"""A loss that weighs a sample by the running recall of its class in training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cdb_video.counts import own_class_rank
from cdb_video.losses.base import Reduction, ShelfLoss, check_number


class RecallLoss(ShelfLoss):
    """w_y (-log softmax(z)_y), w_c = (1 + missed_c) / (1 + seen_c): one minus the running recall.

    Source: Tian, Mithun, Seymour, Chiu, Kira, "Striking the Right Balance: Recall Loss for Semantic
    Segmentation", ICRA 2022, arXiv 2106.14917. The ones are its released code's: a class starts at
    weight 1, and a learnt one ends at 1 / (1 + seen), which is inverse frequency. The weights are
    not rescaled. Their batch has 10^5 pixels, ours few clips: hence counts that fade over batches,
    which is our addition; `ema=0` is the paper's loss.

    Each training forward counts before it weighs; in eval mode nothing is counted. Each rank counts
    its own clips, as batch norm does; `observed` adds up over ranks.

    Args, beside those of `ShelfLoss`:
        class_counts: not used.
        ema: share of the counts that a new batch leaves, in [0, 1).
        label_smoothing: weighed by w_y like the rest of a sample's loss.

    """

    smooths_labels = True
    observed: Tensor
    """(2, K) fp32: clips missed, clips seen."""

    def __init__(
        self,
        num_classes: int,
        *,
        class_counts: Tensor | None = None,
        ema: float = 0.9,
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
        check_number("ema", ema, to=1)
        self.ema = ema
        self.register_buffer("observed", torch.zeros(2, num_classes))

    @property
    def class_weights(self) -> Tensor:
        """(K,) fp32 in (0, 1]."""
        return (1 + self.observed[0]) / (1 + self.observed[1])

    def _per_labelled_sample(self, logits: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        if self.training:
            self._observe(logits, target, labelled)
        losses = F.cross_entropy(
            logits, target, reduction="none", label_smoothing=self.label_smoothing
        )
        return self.class_weights[target] * losses

    @torch.no_grad()
    def _observe(self, logits: Tensor, target: Tensor, labelled: Tensor) -> None:
        missed = labelled & (own_class_rank(logits, target) > 0)
        # Integers first: a GPU adds floats in any order.
        batch = torch.zeros_like(self.observed, dtype=torch.int64)
        batch.index_add_(1, target, torch.stack([missed, labelled]).long())
        self.observed.mul_(self.ema).add_(batch)
