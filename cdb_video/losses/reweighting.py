"""Losses that weigh a sample by how many clips its class has, from the start or deferred."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cdb_video.losses.base import (
    CrossEntropyLoss,
    FocalLoss,
    Reduction,
    ShelfLoss,
    check_class_counts,
    check_number,
)
from cdb_video.losses.class_weighted import ClassWeightedLoss

Scheme = Literal["inverse", "sqrt", "effective"]
WeightedBase = Literal["softmax", "focal"]


def inverse_frequency_weights(class_counts: Tensor) -> Tensor:
    """(K,) fp32 weights, proportional to 1 / n_c, from counts n (K,).

    As of all weights here, the mean over the classes that have a clip is 1; a class without one
    has the weight of a class of one clip.

    Raises:
        ValueError: counts that are negative, not whole, or all 0.

    """
    counts = check_class_counts(class_counts)
    return _with_mean_one(1 / counts.clamp(min=1), counts)


def square_root_weights(class_counts: Tensor) -> Tensor:
    """(K,) fp32 weights, proportional to 1 / sqrt(n_c); see `inverse_frequency_weights`."""
    counts = check_class_counts(class_counts)
    return _with_mean_one(counts.clamp(min=1).rsqrt(), counts)


def effective_number_weights(class_counts: Tensor, *, beta: float) -> Tensor:
    """(K,) fp32 weights, proportional to (1 - beta) / (1 - beta^n_c).

    The inverse of the "effective number" of n_c clips; beta 0 weighs all classes alike, beta
    towards 1 by 1 / n_c. See `inverse_frequency_weights`.

    Source: Cui, Jia, Lin, Song, Belongie, "Class-Balanced Loss Based on Effective Number of
    Samples", CVPR 2019, arXiv 1901.05555.
    """
    check_number("beta", beta, to=1)
    counts = check_class_counts(class_counts)
    # expm1, because beta^n is so near 1 for few clips that 1 - beta^n would lose its digits.
    log_beta = math.log(beta) if beta else -math.inf
    return _with_mean_one(-1 / torch.expm1(counts.clamp(min=1) * log_beta), counts)


def _with_mean_one(weights: Tensor, counts: Tensor) -> Tensor:
    return (weights / weights[counts > 0].mean()).float()


class ReweightedLoss(ClassWeightedLoss):
    """w_y base(z, y): a per-sample loss times fixed class weights, from some epoch on.

    With `defer` above 0 all weights are 1 until `start_epoch` is told of an epoch in the part to be
    weighed, so a loop that never calls it never weighs.

    Args, beside those of `ClassWeightedLoss`:
        class_weights: (K,).
        defer: share of the epochs before the weights, in [0, 1]; 0 weighs from the start.

    """

    full_weights: Tensor
    """(K,) fp32, the weights after deferral."""

    def __init__(
        self,
        class_weights: Tensor,
        *,
        base: nn.Module,
        defer: float = 0.0,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        check_number("defer", defer, to=1, inclusive=True)
        super().__init__(
            len(class_weights), base=base, reduction=reduction, ignore_index=ignore_index
        )
        self.defer = defer
        full = class_weights.to(torch.float32, copy=True)
        self.register_buffer("full_weights", full)
        self.class_weights = torch.ones_like(full) if defer else full.clone()

    @torch.no_grad()
    def start_epoch(self, epoch: int, num_epochs: int) -> None:
        """Say which epoch begins, from 0; the weights are on from `defer * num_epochs`."""
        super().start_epoch(epoch, num_epochs)
        deferred = epoch / num_epochs < self.defer
        # In place: compiled graphs and checkpoints keep hold of the same buffer.
        self.class_weights.copy_(
            torch.ones_like(self.full_weights) if deferred else self.full_weights
        )


class WeightedLoss(ReweightedLoss):
    """Cross entropy weighed by class count, w_y (-log softmax(z)_y), w of mean 1.

    A class without training clips is taken as one of one clip, and is not part of that mean. Takes
    probabilities.

    Args, beside those of `ShelfLoss`:
        class_counts: (K,) training clips of each class.
        scheme: "inverse" (1 / n), "sqrt" (1 / sqrt n) or "effective" (Cui et al., see
            `effective_number_weights`).
        beta: of "effective" alone.
        defer: see `ReweightedLoss`. Inverse frequency from the first epoch on often hurts.
        label_smoothing: weighed by w_y like the rest of a sample's loss; PyTorch weighs the
            smoothed part by every class's weight.

    """

    def __init__(
        self,
        num_classes: int,
        *,
        class_counts: Tensor | None = None,
        scheme: Scheme = "inverse",
        beta: float = 0.9999,
        defer: float = 0.0,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        counts = check_class_counts(class_counts, num_classes)
        if scheme not in get_args(Scheme):
            raise ValueError(f"scheme must be one of {', '.join(get_args(Scheme))}, got {scheme!r}")
        if scheme == "effective":
            weights = effective_number_weights(counts, beta=beta)
        elif scheme == "sqrt":
            weights = square_root_weights(counts)
        else:
            weights = inverse_frequency_weights(counts)
        super().__init__(
            weights,
            base=CrossEntropyLoss(
                num_classes,
                reduction="none",
                label_smoothing=label_smoothing,
                ignore_index=ignore_index,
            ),
            defer=defer,
            reduction=reduction,
            ignore_index=ignore_index,
        )


class ClassBalancedLoss(ReweightedLoss):
    """The class-balanced loss: softmax cross entropy or focal loss, weighed by effective number.

    w_y base(z, y), w_c proportional to (1 - beta) / (1 - beta^n_c), with mean 1 over the classes
    that have training clips; one without is taken as of one clip. Of "softmax", takes
    probabilities and label smoothing.

    Source: Cui et al., see `effective_number_weights`. Their focal loss has a sigmoid a class, ours
    is `FocalLoss`, and their start bias of the last layer is left to the model.

    Args, beside those of `ShelfLoss`:
        class_counts: (K,) training clips of each class.
        base: "softmax" or "focal".
        beta: 0 does not weigh; the larger, the nearer to inverse frequency.
        gamma: of "focal" alone.
        defer: see `ReweightedLoss`.

    """

    def __init__(
        self,
        num_classes: int,
        *,
        class_counts: Tensor | None = None,
        base: WeightedBase = "softmax",
        beta: float = 0.999,
        gamma: float = 2.0,
        defer: float = 0.0,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        counts = check_class_counts(class_counts, num_classes)
        if base not in get_args(WeightedBase):
            raise ValueError(
                f"base must be one of {', '.join(get_args(WeightedBase))}, got {base!r}"
            )
        per_sample: Callable[..., ShelfLoss] = (
            CrossEntropyLoss if base == "softmax" else partial(FocalLoss, gamma=gamma)
        )
        super().__init__(
            effective_number_weights(counts, beta=beta),
            base=per_sample(
                num_classes,
                reduction="none",
                label_smoothing=label_smoothing,
                ignore_index=ignore_index,
            ),
            defer=defer,
            reduction=reduction,
            ignore_index=ignore_index,
        )


class DeferredReweighting(ReweightedLoss):
    """Deferred re-weighting (DRW): any per-sample loss, weighed by effective number late.

    LDAM-DRW is `DeferredReweighting(K, class_counts=n, base=LDAMLoss(..., reduction="none"),
    defer=0.8)`, with a learning rate that drops at the switch. Over cross entropy it is the control
    that CDB has to beat: CDB, too, weighs little while all classes are hard.

    Source: Cao, Wei, Gaidon, Arechiga, Ma, "Learning Imbalanced Datasets with
    Label-Distribution-Aware Margin Loss", NeurIPS 2019, arXiv 1906.07413, section 3.3.

    Args, beside those of `ShelfLoss` (label smoothing is the base's):
        class_counts: (K,) training clips of each class.
        base: a loss of the shelf with `reduction="none"`.
        defer: see `ReweightedLoss`.
        beta: see `effective_number_weights`.

    """

    def __init__(
        self,
        num_classes: int,
        *,
        class_counts: Tensor,
        base: nn.Module,
        defer: float,
        beta: float = 0.9999,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        counts = check_class_counts(class_counts, num_classes)
        super().__init__(
            effective_number_weights(counts, beta=beta),
            base=base,
            defer=defer,
            reduction=reduction,
            ignore_index=ignore_index,
        )
