"""Class weights on any per-sample loss: what CDB and the weights by count share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdb_video.losses.base import Reduction, ShelfLoss


class ClassWeightedLoss(ShelfLoss):
    """w_y base(z, y): a per-sample loss times the weight of the sample's class; at first 1.

    Probabilities t as targets give sum_k w_k t_k base(z, k), if the base takes them. A sample
    without a label reaches the base as the base's own `ignore_index`, if it has one, so that a base
    that counts leaves it out.

    Args, beside those of `ShelfLoss` (label smoothing is the base's):
        base: a loss with `reduction="none"`: (N, K), (N,) -> (N,).

    """

    class_weights: Tensor
    """(K,) fp32, the weights in use."""

    def __init__(
        self,
        num_classes: int,
        *,
        base: nn.Module,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(num_classes, reduction=reduction, ignore_index=ignore_index)
        if getattr(base, "reduction", "none") != "none":
            raise ValueError(f"base must have reduction='none', got {base.reduction!r}")
        self.base = base
        self.register_buffer("class_weights", torch.ones(num_classes))

    def start_epoch(self, epoch: int, num_epochs: int) -> None:
        """Tell the base which epoch begins, counted from 0, if it wants to know."""
        start_base = getattr(self.base, "start_epoch", None)
        if start_base is not None:
            start_base(epoch, num_epochs)

    def _per_labelled_sample(self, logits: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        ignored = getattr(self.base, "ignore_index", 0)
        losses = self._of_base(logits, target.where(labelled, ignored))
        return self.class_weights[target] * losses

    def _per_soft_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        # The base's label smoothing is a share of a target that sums to 1.
        weighted = self.class_weights * target
        mass = weighted.sum(1)
        shares = weighted / mass.clamp(min=torch.finfo(mass.dtype).tiny)[:, None]
        return mass * self._of_base(logits, shares)

    def _of_base(self, logits: Tensor, target: Tensor) -> Tensor:
        losses: Tensor = self.base(logits, target)
        if losses.shape != logits.shape[:1]:
            raise ValueError(
                f"base must give a loss a sample, {tuple(logits.shape[:1])}, "
                f"got {tuple(losses.shape)}"
            )
        return losses
