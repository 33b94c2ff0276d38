"""Logit adjustment and balanced softmax by hand and against each other."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cdb_video.losses import BalancedSoftmaxLoss, LogitAdjustedLoss
from tests.losses.shelf import COUNTS, K, batch, close, double, gradients_agree


def test_balanced_softmax_by_hand() -> None:
    criterion = BalancedSoftmaxLoss(3, class_counts=torch.tensor([6, 3, 1]), reduction="none")

    loss = criterion(torch.zeros(3, 3), torch.tensor([0, 1, 2]))

    # Equal logits: the classes' shares of the clips.
    close(loss, -double(0.6, 0.3, 0.1).log())


def test_logit_adjustment_by_hand() -> None:
    criterion = LogitAdjustedLoss(3, class_counts=torch.tensor([6, 3, 1]), tau=2, reduction="none")
    logits = torch.tensor([[0.0, math.log(4), 0.0]])

    loss = criterion(logits, torch.tensor([1]))

    # Squared counts 36, 9, 1, the second times 4.
    close(loss, -double(36 / 73).log())


def test_a_class_without_clips_has_the_prior_of_one_clip() -> None:
    criterion = BalancedSoftmaxLoss(3, class_counts=torch.tensor([9, 0, 1]))

    close(criterion.log_prior, double(0.9, 0.1, 0.1).log())


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_balanced_softmax_is_logit_adjustment_at_tau_1(label_smoothing: float) -> None:
    logits, target = batch()

    balanced = BalancedSoftmaxLoss(K, class_counts=COUNTS, label_smoothing=label_smoothing)
    adjusted = LogitAdjustedLoss(K, class_counts=COUNTS, label_smoothing=label_smoothing, tau=1)

    assert torch.equal(balanced(logits, target), adjusted(logits, target))


def test_at_tau_0_it_is_cross_entropy() -> None:
    logits, target = batch()

    loss = LogitAdjustedLoss(K, class_counts=COUNTS, tau=0, reduction="none")(logits, target)

    assert torch.equal(loss, F.cross_entropy(logits, target, reduction="none"))


def test_equal_counts_give_cross_entropy() -> None:
    logits, target = batch()

    loss = BalancedSoftmaxLoss(K, class_counts=torch.full((K,), 7))(logits, target)

    close(loss, F.cross_entropy(logits, target))


def test_what_minimises_it_predicts_classes_alike() -> None:
    # Clips that say nothing: with the classes' shares as targets, equal logits are the optimum.
    shares = (COUNTS / COUNTS.sum()).double()
    logits = torch.zeros(1, K, dtype=torch.float64, requires_grad=True)

    BalancedSoftmaxLoss(K, class_counts=COUNTS)(logits, shares[None]).backward()

    assert logits.grad is not None
    close(logits.grad, torch.zeros(1, K))


def test_gradients_are_those_of_finite_differences() -> None:
    gradients_agree(LogitAdjustedLoss(K, class_counts=COUNTS, tau=1.5, label_smoothing=0.1))


def test_a_negative_tau_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tau must be in \[0, inf\), got -1"):
        LogitAdjustedLoss(K, class_counts=COUNTS, tau=-1)
