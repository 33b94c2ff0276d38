"""Losses that take the class prior out of the logits by adding it in training."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cdb_video.losses.base import Reduction, ShelfLoss, check_class_counts, check_number


class LogitAdjustedLoss(ShelfLoss):
    """Logit-adjusted cross entropy: that of z + tau log pi, with pi_c = n_c / sum n.

    The loss alone adds the prior; scores are the softmax of z itself. At tau 1 the minimiser is
    consistent for mean class accuracy. A class without training clips has the log prior of one
    clip. Takes probabilities.

    Source: Menon, Jayasumana, Rawat, Jain, Veit, Kumar, "Long-Tail Learning via Logit Adjustment",
    ICLR 2021, arXiv 2007.07314, equation 10.

    Args, beside those of `ShelfLoss`:
        class_counts: (K,) training clips of each class.
        tau: share of the prior that is added; 0 is cross entropy. Not CDB's tau.

    """

    smooths_labels = True
    log_prior: Tensor
    """(K,) fp32."""

    def __init__(
        self,
        num_classes: int,
        *,
        class_counts: Tensor | None = None,
        tau: float = 1.0,
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
        check_number("tau", tau)
        counts = check_class_counts(class_counts, num_classes)
        self.tau = tau
        self.register_buffer("log_prior", (counts.clamp(min=1) / counts.sum()).log().float())

    def _per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            logits + self.tau * self.log_prior,
            target,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )

    def _per_soft_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        return self._per_sample(logits, target)


class BalancedSoftmaxLoss(LogitAdjustedLoss):
    """Balanced softmax, -log(n_y e^z_y / sum_k n_k e^z_k): logit adjustment at tau 1.

    Source: Ren, Yu, Sheng, Ma, Zhao, Yi, Li, "Balanced Meta-Softmax for Long-Tailed Visual
    Recognition", NeurIPS 2020, arXiv 2007.10740, without its meta sampler.

    Args: those of `LogitAdjustedLoss` but tau.

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
        super().__init__(
            num_classes,
            class_counts=class_counts,
            reduction=reduction,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
        )
