"""Weights by class count, and the losses that have them from the start."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cdb_video.losses import (
    ClassBalancedLoss,
    FocalLoss,
    WeightedLoss,
    effective_number_weights,
    inverse_frequency_weights,
    square_root_weights,
)
from tests.losses.shelf import COUNTS, K, batch, close, double, gradients_agree

# --- weights ---------------------------------------------------------------------------------


def test_inverse_frequency_weights_by_hand() -> None:
    # 1, 1/2, 1/5 sum to 17/10.
    weights = inverse_frequency_weights(torch.tensor([1, 2, 5]))

    assert weights.dtype == torch.float32
    close(weights, double(30 / 17, 15 / 17, 6 / 17))


def test_square_root_weights_by_hand() -> None:
    # 1, 1/2, 1/4 sum to 7/4.
    close(square_root_weights(torch.tensor([1, 4, 16])), double(12 / 7, 6 / 7, 3 / 7))


def test_effective_number_weights_by_hand() -> None:
    # (1/2) / (1/2), (1/2) / (3/4), (1/2) / (7/8) = 1, 2/3, 4/7, which sum to 47/21.
    weights = effective_number_weights(torch.tensor([1, 2, 3]), beta=0.5)

    close(weights, double(63 / 47, 42 / 47, 36 / 47))


def test_a_class_without_clips_weighs_as_one_of_one_clip_and_is_not_in_the_mean() -> None:
    # 1 and 1/4 have mean 5/8.
    close(inverse_frequency_weights(torch.tensor([0, 1, 4])), double(1.6, 1.6, 0.4))


def test_beta_0_weighs_all_alike_and_beta_near_1_by_inverse_frequency() -> None:
    assert effective_number_weights(COUNTS, beta=0).tolist() == [1, 1, 1, 1]
    close(effective_number_weights(COUNTS, beta=1 - 1e-9), inverse_frequency_weights(COUNTS))


SCHEMES: dict[str, Callable[[Tensor], Tensor]] = {
    "inverse": inverse_frequency_weights,
    "sqrt": square_root_weights,
    "effective": lambda counts: effective_number_weights(counts, beta=0.999),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=9).filter(any))
def test_weights_have_mean_1_and_never_favour_the_frequent(scheme: str, counts: list[int]) -> None:
    given_counts = torch.tensor(counts)

    weights = SCHEMES[scheme](given_counts)

    assert weights.isfinite().all()
    assert (weights > 0).all()
    assert float(weights[given_counts > 0].mean()) == pytest.approx(1, rel=1e-5)
    assert (weights[given_counts.argsort()].diff() <= 1e-6 * weights.max()).all()
    close(SCHEMES[scheme](given_counts.flip(0)), weights.flip(0))


# --- weighted, class-balanced ----------------------------------------------------------------


def test_the_weighted_loss_of_three_samples_by_hand() -> None:
    # Equal logits: every -log p is log 3. The weights are those of counts 1, 2, 5 above.
    criterion = WeightedLoss(3, class_counts=torch.tensor([1, 2, 5]), reduction="none")

    loss = criterion(torch.zeros(3, 3), torch.tensor([0, 2, 2]))

    close(loss, double(30 / 17, 6 / 17, 6 / 17) * math.log(3))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weighted_samples_are_those_of_pytorchs_weight(scheme: Any) -> None:
    logits, target = batch()
    criterion = WeightedLoss(
        K, class_counts=COUNTS, scheme=scheme, beta=0.999, reduction="none", ignore_index=3
    )
    weight = SCHEMES[scheme](COUNTS)

    close(
        criterion(logits, target),
        F.cross_entropy(logits, target, weight=weight, ignore_index=3, reduction="none"),
        1e-5,
    )
    soft = logits.flip(1).softmax(1)
    soft_loss = F.cross_entropy(logits, soft, weight=weight, reduction="none")
    close(criterion(logits, soft), soft_loss, 1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_equal_counts_give_cross_entropy(scheme: Any) -> None:
    logits, target = batch()

    loss = WeightedLoss(K, class_counts=torch.full((K,), 7), scheme=scheme)(logits, target)

    close(loss, F.cross_entropy(logits, target))


def test_a_target_of_no_probability_adds_nothing() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    target = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    criterion = WeightedLoss(3, class_counts=torch.tensor([1, 1, 1]), reduction="none")

    loss = criterion(logits, target)
    loss.sum().backward()

    assert logits.grad is not None
    close(loss, double(0, math.log(3)))
    assert logits.grad[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("base", "gamma"), [("softmax", 2.0), ("focal", 0.0)])
def test_class_balanced_with_beta_0_is_cross_entropy(base: Any, gamma: float) -> None:
    logits, target = batch()
    criterion = ClassBalancedLoss(K, class_counts=COUNTS, base=base, gamma=gamma, beta=0)

    close(criterion(logits, target), F.cross_entropy(logits, target))


def test_class_balanced_focal_is_the_focal_loss_weighed() -> None:
    logits, target = batch()
    criterion = ClassBalancedLoss(
        K, class_counts=COUNTS, base="focal", gamma=1, beta=0.9, reduction="none"
    )
    weights = effective_number_weights(COUNTS, beta=0.9)

    expected = weights[target] * FocalLoss(K, gamma=1, reduction="none")(logits, target)

    close(criterion(logits, target), expected)


@pytest.mark.parametrize(
    "criterion",
    [
        WeightedLoss(K, class_counts=COUNTS, label_smoothing=0.1),
        ClassBalancedLoss(K, class_counts=COUNTS, base="focal"),
    ],
)
def test_weighted_gradients_are_those_of_finite_differences(criterion: nn.Module) -> None:
    gradients_agree(criterion)


def test_gradients_of_soft_targets_are_those_of_finite_differences() -> None:
    criterion = WeightedLoss(K, class_counts=COUNTS, label_smoothing=0.1)
    logits, _ = batch(4, dtype=torch.float64)
    soft = logits.flip(1).softmax(1)

    torch.autograd.gradcheck(lambda z: criterion(z, soft), logits.requires_grad_())


# --- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: WeightedLoss(K, class_counts=COUNTS, scheme="cubic"),  # type: ignore[arg-type]
            "scheme must be one of inverse, sqrt, effective, got 'cubic'",
        ),
        (
            lambda: WeightedLoss(K, class_counts=COUNTS, scheme="effective", beta=1),
            r"beta must be in \[0, 1\), got 1",
        ),
        (
            lambda: ClassBalancedLoss(K, class_counts=COUNTS, base="sigmoid"),  # type: ignore[arg-type]
            "base must be one of softmax, focal, got 'sigmoid'",
        ),
        (
            lambda: ClassBalancedLoss(K, class_counts=COUNTS, base="focal", label_smoothing=0.1),
            "label_smoothing=0.1: FocalLoss takes none",
        ),
    ],
)
def test_a_bad_value_is_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
