"""A loss that weighs a sample by the recall of its class in the epochs before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cdb_video.counts import ClassCounts
from cdb_video.losses.base import Reduction, ShelfLoss, check_number


class RecallLoss(ShelfLoss):
    """w_y (-log softmax(z)_y), w_c = (1 + missed_c) / (1 + seen_c): one minus the recall.

    Source: Tian, Mithun, Seymour, Chiu, Kira, "Striking the Right Balance: Recall Loss for Semantic
    Segmentation", ICRA 2022, arXiv 2106.14917. The ones are its released code's: a class starts at
    weight 1, and a learnt one ends at 1 / (1 + seen), which is inverse frequency. The weights are
    not rescaled.

    The paper counts a batch of 10^5 pixels and weighs it by these counts. Its batch is our epoch of
    clips: a training forward counts, in eval mode nothing does, and `start_epoch` sums over the
    ranks and weighs by that from there on. So the first epoch is cross entropy, a loop that never
    calls `start_epoch` stays with it, and no loss depends on how its step was split up.

    Args, beside those of `ShelfLoss`:
        class_counts: not used.
        ema: share of its counts that another epoch with clips of the class leaves, in [0, 1); 0
            weighs by the last epoch alone.
        label_smoothing: weighed by w_y like the rest of a sample's loss.

    """

    smooths_labels = True
    past: Tensor
    """(2, K) fp32: clips missed, clips seen, in the epochs before."""
    observed: Tensor
    """(5, K), as `ClassCounts` has it: this rank's clips of this epoch."""

    def __init__(
        self,
        num_classes: int,
        *,
        class_counts: Tensor | None = None,
        ema: float = 0.0,
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
        self.register_buffer("past", torch.zeros(2, num_classes))
        self.register_buffer("observed", torch.zeros(5, num_classes, dtype=torch.int64))

    @property
    def class_weights(self) -> Tensor:
        """(K,) fp32 in (0, 1]."""
        return (1 + self.past[0]) / (1 + self.past[1])

    @torch.no_grad()
    def start_epoch(self, epoch: int, num_epochs: int) -> None:
        """Weigh by what all ranks have seen from here on; every rank has to call it.

        Without a clip since the last call, as when a run resumes, nothing changes.
        """
        counts = ClassCounts.over(self.observed)
        counts.all_reduce()
        keep = torch.where(counts.total > 0, self.ema, 1.0)
        self.past.mul_(keep).add_(torch.stack([counts.total - counts.correct, counts.total]))
        counts.reset()

    def _per_labelled_sample(self, logits: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        if self.training:
            ClassCounts.over(self.observed).update(logits, target.where(labelled, -1))
        losses = F.cross_entropy(
            logits, target, reduction="none", label_smoothing=self.label_smoothing
        )
        return self.class_weights[target] * losses
