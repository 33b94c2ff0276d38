"""What every loss of the shelf shares, and the two that class weights are put on."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdb_video.counts import check_labels

Reduction = Literal["mean", "sum", "none"]


def check_reduction(reduction: Reduction) -> None:
    """Refuse a reduction that is none of PyTorch's."""
    allowed = get_args(Reduction)
    if reduction not in allowed:
        raise ValueError(f"reduction must be one of {', '.join(allowed)}, got {reduction!r}")


def check_number(name: str, value: float, *, to: float = math.inf, inclusive: bool = False) -> None:
    """Refuse what is outside [0, to), or outside [0, to] when inclusive."""
    if not (0 <= value < to or (inclusive and value == to)):
        closing = "]" if inclusive else ")"
        raise ValueError(f"{name} must be in [0, {to:g}{closing}, got {value}")


def check_label_smoothing(label_smoothing: float) -> None:
    """Refuse a share outside [0, 1)."""
    check_number("label_smoothing", label_smoothing, to=1)


def check_batch(logits: Tensor, target: Tensor, num_classes: int, *, ignore_index: int) -> None:
    """Refuse shapes other than logits (N, K) with labels (N,) or probabilities (N, K).

    On a CPU also labels outside [0, K) that are not `ignore_index`; see `check_labels`.
    """
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise ValueError(f"logits must be (N, {num_classes}), got {tuple(logits.shape)}")
    expected = logits.shape if target.is_floating_point() else logits.shape[:1]
    if target.shape != expected:
        raise ValueError(
            f"target of type {target.dtype} must be {tuple(expected)}, got {tuple(target.shape)}"
        )
    if not target.is_floating_point():
        check_labels(target, num_classes, ignore_index=ignore_index)


def check_class_counts(class_counts: Tensor | None, num_classes: int | None = None) -> Tensor:
    """The counts as float64 (K,); refuses any other size, what is no count, and all zero.

    Reads the device, so it is for constructors.
    """
    if class_counts is None:
        raise ValueError("class_counts is needed: the training clips of each class; got None")
    expected = class_counts.numel() if num_classes is None else num_classes
    if class_counts.shape != (expected,):
        raise ValueError(f"class_counts must be ({expected},), got {tuple(class_counts.shape)}")
    counts = class_counts.double()
    wrong = ~(counts.isfinite() & (counts >= 0) & (counts == counts.round()))
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise ValueError(
            f"class_counts[{index}] must be a whole number >= 0, got {float(counts[index]):g}"
        )
    if not counts.any():
        raise ValueError(f"class_counts is 0 for every one of {expected} classes")
    return counts


def widened(logits: Tensor) -> Tensor:
    """The logits in fp32, or in fp64 if they are so already."""
    return logits if logits.dtype == torch.float64 else logits.float()


class ShelfLoss(nn.Module):
    """A loss of logits (N, K) and labels (N,); a subclass writes `_per_sample`.

    The same for every loss of the shelf:
    - "mean" is the sum over samples by the number of labelled samples (NaN where none is, as in
      PyTorch), never by the sum of their weights: that would cancel the weight of a batch of one
      class.
    - It is computed in fp32 (fp64 for fp64 logits), and gives that, whatever autocast does.
    - Nothing waits for the device, so a label outside [0, K) is found by PyTorch's own check.
    - Whatever it remembers is in buffers.

    Args:
        num_classes: K, which the logits must have.
        reduction: "mean", "sum", or "none" (N,).
        label_smoothing: share of the target that is spread over all classes; refused where the
            loss is not defined by a target's probabilities.
        ignore_index: labels that add nothing.

    """

    smooths_labels: bool = False
    """Whether `label_smoothing` may be above 0."""

    def __init__(
        self,
        num_classes: int,
        *,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        check_reduction(reduction)
        check_label_smoothing(label_smoothing)
        if label_smoothing and not self.smooths_labels:
            raise ValueError(f"label_smoothing={label_smoothing}: {type(self).__name__} takes none")
        self.num_classes = num_classes
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, () or (N,).

        Args:
            logits: (N, K).
            target: (N,) int64 class indices, or (N, K) probabilities (mixup) for a loss that takes
                them.

        """
        check_batch(logits, target, self.num_classes, ignore_index=self.ignore_index)
        logits = widened(logits)
        soft = target.is_floating_point()
        return self._of_batch(logits, target.to(logits.dtype) if soft else target)

    def _of_batch(self, logits: Tensor, target: Tensor) -> Tensor:
        """`forward` of logits in fp32 or fp64, and of probabilities of the same type."""
        if target.is_floating_point():
            return self._reduce(self._per_soft_sample(logits, target), target)
        labelled = target != self.ignore_index
        losses = self._per_labelled_sample(logits, target.where(labelled, 0), labelled)
        return self._reduce(losses.where(labelled, 0.0), target)

    def _per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N,) losses of logits (N, K) and class indices (N,), all in [0, K)."""
        raise NotImplementedError

    def _per_soft_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N,) losses of logits (N, K) and probabilities (N, K)."""
        raise ValueError(
            f"target must be class indices for {type(self).__name__}, got {target.dtype} "
            "probabilities; of mixed labels, mix the losses"
        )

    def _per_labelled_sample(self, logits: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        """`_per_sample` for a loss that must know which samples are labelled (N,).

        Target and loss of the others are of no account.
        """
        return self._per_sample(logits, target)

    def _reduce(self, losses: Tensor, target: Tensor) -> Tensor:
        if self.reduction == "none":
            return losses
        total = losses.sum()
        return total if self.reduction == "sum" else total / self._num_labelled(target)

    def _num_labelled(self, target: Tensor) -> Tensor | int:
        """What "mean" divides by: the labelled samples; all of them where targets are soft."""
        if target.is_floating_point():
            return len(target)
        return (target != self.ignore_index).sum()

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"{self.num_classes}, reduction={self.reduction!r}"


class CrossEntropyLoss(ShelfLoss):
    """Cross entropy, -log softmax(z)_y: `torch.nn.CrossEntropyLoss` bit for bit, but in fp32.

    Takes probabilities. `class_counts` is not used; it is here because every loss of the shelf
    takes it.
    """

    smooths_labels = True

    def __init__(
        self,
        num_classes: int,
        *,
        class_counts: Tensor | None = None,
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

    def _of_batch(self, logits: Tensor, target: Tensor) -> Tensor:
        # PyTorch's own reduction: a sum over its samples' losses differs in the last bits.
        cross_entropy = partial(
            F.cross_entropy, reduction=self.reduction, label_smoothing=self.label_smoothing
        )
        if target.is_floating_point():
            return cross_entropy(logits, target)
        return cross_entropy(logits, target, ignore_index=self.ignore_index)


class FocalLoss(ShelfLoss):
    """Focal loss in its softmax form, (1 - p_y)^gamma (-log p_y), with p = softmax(z).

    Source: Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017,
    arXiv 1708.02002, whose own form has a sigmoid a class: a different baseline. It takes no label
    smoothing, which would make p_y no longer say how easy a sample is.

    Args, beside those of `ShelfLoss`:
        class_counts: not used.
        gamma: how strongly easy samples are put down; 0 is cross entropy.

    """

    def __init__(
        self,
        num_classes: int,
        *,
        class_counts: Tensor | None = None,
        gamma: float = 2.0,
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
        check_number("gamma", gamma)
        self.gamma = gamma

    def _per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        nll = F.cross_entropy(logits, target, reduction="none")
        # At 1 - p = 0 the gradient of a power below 1 would be infinite times 0.
        missing = -torch.expm1(-nll).clamp(max=-torch.finfo(nll.dtype).tiny)
        return missing.pow(self.gamma) * nll
