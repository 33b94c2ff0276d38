"""Losses that spare rare classes the gradient of other classes' clips."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cdb_video.losses.base import Reduction, ShelfLoss, check_class_counts, check_number

LEAST_SCORE = 0.01
"""Seesaw divides by no smaller score of a clip's own class, as its authors' code has it."""


class EqualizationLoss(ShelfLoss):
    """Softmax equalization loss (EQL): -log(e^z_y / sum_k v_k e^z_k), without some rare classes.

    v_k = 1 - b T_k (1 - y_k): a rare class k (T_k = 1: its share of the training clips is below
    `threshold`) is left out of the softmax of another class's clip, by a coin b of probability
    gamma a clip and class, from torch's global generator. In eval mode the coin's mean stands in
    for it, v_k = 1 - gamma T_k, so that a validation loss is not random.

    Source: Tan, Wang, Li, Li, Ouyang, Yin, Yan, "Equalization Loss for Long-Tailed Object
    Recognition", CVPR 2020, arXiv 2003.05176, its softmax form for classification.

    With no class below the threshold it is cross entropy. At its default that is so wherever the
    rarest class has 0.5 % of the clips or more, as it often has in small data: see `num_rare`.

    Args, beside those of `ShelfLoss` (label smoothing is refused):
        class_counts: (K,) training clips of each class.
        gamma: probability of leaving out, in [0, 1]; 0 is cross entropy.
        threshold: the paper's lambda, in [0, 1].

    """

    rare: Tensor
    """(K,) bool: T."""

    def __init__(
        self,
        num_classes: int,
        *,
        class_counts: Tensor | None = None,
        gamma: float = 0.9,
        threshold: float = 0.005,
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
        check_number("gamma", gamma, to=1, inclusive=True)
        check_number("threshold", threshold, to=1, inclusive=True)
        counts = check_class_counts(class_counts, num_classes)
        self.gamma = gamma
        self.register_buffer("rare", counts / counts.sum() < threshold)

    @property
    def num_rare(self) -> int:
        """How many classes are spared: those below the threshold. Reads the device."""
        return int(self.rare.sum())

    def _per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        other = target[:, None] != torch.arange(self.num_classes, device=target.device)
        spared = other & self.rare
        if self.training:
            adjusted = logits.masked_fill(
                spared & (torch.rand_like(logits) < self.gamma), -math.inf
            )
        else:
            log_kept = math.log1p(-self.gamma) if self.gamma < 1 else -math.inf
            adjusted = torch.where(spared, logits + log_kept, logits)
        return F.cross_entropy(adjusted, target, reduction="none")


class SeesawLoss(ShelfLoss):
    """Seesaw loss, for classification: -log(e^z_y / sum_j S_yj e^z_j).

    S_yj = min(1, (n_j / n_y)^p) * max(1, (s_j / s_y)^q) for j other than y, and 1 at y, with
    s = softmax(z) taken as constant: a clip of a frequent class pushes rarer classes less
    (mitigation), but the more the model mistakes it for one, the more again (compensation).

    Source: Wang, Zhang, Zang, Cao, Pang, Gong, Chen, Liu, Loy, Lin, "Seesaw Loss for Long-Tailed
    Instance Segmentation", CVPR 2021, arXiv 2008.10032, without its objectness branch and its
    normalised head.

    Args, beside those of `ShelfLoss` (label smoothing is refused):
        class_counts: (K,) training clips of each class. The paper counts them while it trains,
            which after an epoch is the same.
        p: strength of mitigation.
        q: strength of compensation; with both 0 it is cross entropy.

    """

    class_counts: Tensor
    """(K,) int64."""

    def __init__(
        self,
        num_classes: int,
        *,
        class_counts: Tensor | None = None,
        p: float = 0.8,
        q: float = 2.0,
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
        check_number("p", p)
        check_number("q", q)
        self.p = p
        self.q = q
        counts = check_class_counts(class_counts, num_classes)
        self.register_buffer("class_counts", counts.long())

    def _per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        adjusted = logits + self._log_factors(logits.detach(), target)
        return F.cross_entropy(adjusted, target, reduction="none")

    def _log_factors(self, logits: Tensor, target: Tensor) -> Tensor:
        """log S_yj of every sample and class, (N, K); 0 at y by itself."""
        log_counts = self.class_counts.clamp(min=1).to(logits.dtype).log()
        rarer = (log_counts - log_counts[target][:, None]).clamp(max=0)
        log_scores = logits.log_softmax(1)
        own = log_scores.gather(1, target[:, None]).clamp(min=math.log(LEAST_SCORE))
        return self.p * rarer + self.q * (log_scores - own).clamp(min=0)
