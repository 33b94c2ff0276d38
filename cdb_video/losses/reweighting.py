"""Losses that weigh samples by class or by probability; so far, plain cross entropy."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Reduction = Literal["mean", "sum", "none"]


class CrossEntropyLoss(nn.Module):
    """Cross entropy, -log softmax(z)_y, in fp32 whatever the logits' type.

    The same as `torch.nn.CrossEntropyLoss`; it only takes the arguments of every loss on the shelf.

    Args:
        num_classes: K, which the logits must have.
        class_counts: not used.
        label_smoothing: share of the target that is spread over all classes.
        ignore_index: targets that add nothing.

    Shape: logits (N, K), target (N,) class indices or (N, K) probabilities -> ().

    """

    def __init__(
        self,
        num_classes: int,
        *,
        class_counts: Tensor | None = None,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.num_classes = num_classes
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, fp32."""
        return F.cross_entropy(
            logits.float(),
            target,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
        )
