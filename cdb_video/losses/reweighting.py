"""Losses that weigh samples by class or by probability; so far, plain cross entropy."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

Reduction = Literal["mean", "sum", "none"]


def check_reduction(reduction: Reduction) -> None:
    """Refuse a reduction that is none of PyTorch's."""
    allowed = get_args(Reduction)
    if reduction not in allowed:
        raise ValueError(f"reduction must be one of {', '.join(allowed)}, got {reduction!r}")


def check_label_smoothing(label_smoothing: float) -> None:
    """Refuse a share outside [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")


def check_batch(logits: Tensor, target: Tensor, num_classes: int) -> None:
    """Refuse shapes other than logits (N, K) with labels (N,) or probabilities (N, K)."""
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise ValueError(f"logits must be (N, {num_classes}), got {tuple(logits.shape)}")
    expected = logits.shape if target.is_floating_point() else logits.shape[:1]
    if target.shape != expected:
        raise ValueError(
            f"target of type {target.dtype} must be {tuple(expected)}, got {tuple(target.shape)}"
        )


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
        check_reduction(reduction)
        check_label_smoothing(label_smoothing)
        self.num_classes = num_classes
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, fp32."""
        check_batch(logits, target, self.num_classes)
        return F.cross_entropy(
            logits.float(),
            target,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
        )
