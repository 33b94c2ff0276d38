"""Cross entropy, focal loss, and weights by class count, from the start and deferred."""

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
    CrossEntropyLoss,
    DeferredReweighting,
    FocalLoss,
    LDAMLoss,
    RecallLoss,
    WeightedLoss,
    effective_number_weights,
    inverse_frequency_weights,
    square_root_weights,
)
from tests.losses.shelf import COUNTS, K, batch, close, double, gradients_agree

# --- cross entropy ---------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_is_pytorchs_bit_for_bit(reduction: str, label_smoothing: float) -> None:
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": label_smoothing}
    for n, k in [(1, 2), (20, 7), (33, 106), (257, 19)]:
        logits, target = batch(n, k)
        soft = logits.flip(1).softmax(1)

        criterion = CrossEntropyLoss(k, ignore_index=3, **options)

        assert torch.equal(criterion(logits, soft), F.cross_entropy(logits, soft, **options))
        expected = F.cross_entropy(logits, target, ignore_index=3, **options)
        assert torch.equal(criterion(logits, target), expected)


def test_double_logits_give_a_double_loss() -> None:
    logits, target = batch(dtype=torch.float64)

    loss = CrossEntropyLoss(K)(logits, target)

    assert loss.dtype == torch.float64
    assert torch.equal(loss, F.cross_entropy(logits, target))
    assert CrossEntropyLoss(K)(logits.float(), logits.softmax(1)).dtype == torch.float32


def test_a_batch_without_labels_has_no_mean_and_sums_to_0() -> None:
    logits, target = torch.zeros(2, 3), torch.tensor([-100, -100])

    assert CrossEntropyLoss(3)(logits, target).isnan()
    assert FocalLoss(3)(logits, target).isnan()
    assert FocalLoss(3, reduction="sum")(logits, target) == 0


# --- focal -----------------------------------------------------------------------------------


def test_the_focal_loss_by_hand() -> None:
    # p = softmax(log 3, 0) = (3/4, 1/4).
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])

    loss = FocalLoss(2, gamma=2, reduction="none")(logits, torch.tensor([0, 1]))

    close(loss, double(1 / 16 * math.log(4 / 3), 9 / 16 * math.log(4)))


def test_focal_with_gamma_0_is_cross_entropy() -> None:
    logits, target = batch(64)
    logits[0] = torch.tensor([1e4, 0, 0, 0])
    target[0] = 0

    loss = FocalLoss(K, gamma=0, reduction="none")(logits, target)

    assert torch.equal(loss, F.cross_entropy(logits, target, reduction="none"))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_clip_without_any_doubt_has_no_focal_gradient(gamma: float) -> None:
    logits = torch.tensor([[1e4, 0.0]], requires_grad=True)

    FocalLoss(2, gamma=gamma)(logits, torch.tensor([0])).backward()

    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradients_are_those_of_finite_differences(gamma: float) -> None:
    gradients_agree(FocalLoss(K, gamma=gamma))


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


# --- deferred --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defer", "num_epochs", "first"), [(0.0, 10, 0), (0.8, 10, 8), (0.55, 100, 55), (0.5, 3, 2)]
)
def test_the_weights_begin_with_the_first_epoch_at_that_share(
    defer: float, num_epochs: int, first: int
) -> None:
    criterion = WeightedLoss(K, class_counts=COUNTS, defer=defer)
    weighed = []

    for epoch in range(num_epochs):
        criterion.start_epoch(epoch, num_epochs)
        weighed.append(torch.equal(criterion.class_weights, inverse_frequency_weights(COUNTS)))

    assert weighed == [epoch >= first for epoch in range(num_epochs)]


def test_deferred_weights_are_1_before_and_all_of_them_after() -> None:
    logits, target = batch()
    criterion = WeightedLoss(K, class_counts=COUNTS, defer=0.5)

    untold = criterion(logits, target)
    criterion.start_epoch(4, 10)
    before = criterion(logits, target)
    criterion.start_epoch(5, 10)
    after = criterion(logits, target)

    assert torch.equal(untold, before)
    close(before, F.cross_entropy(logits, target))
    assert torch.equal(after, WeightedLoss(K, class_counts=COUNTS)(logits, target))


def test_a_resumed_loss_is_as_deferred_as_the_saved_one() -> None:
    first, resumed = (ClassBalancedLoss(K, class_counts=COUNTS, defer=0.5) for _ in range(2))
    first.start_epoch(7, 10)
    storage = resumed.class_weights.data_ptr()

    resumed.load_state_dict(first.state_dict())

    assert torch.equal(resumed.class_weights, effective_number_weights(COUNTS, beta=0.999))
    assert resumed.class_weights.data_ptr() == storage


def test_ldam_drw_is_ldam_and_then_ldam_weighed() -> None:
    logits, target = batch()
    ldam = LDAMLoss(K, class_counts=COUNTS, reduction="none")
    criterion = DeferredReweighting(K, class_counts=COUNTS, base=ldam, defer=0.8, reduction="none")

    criterion.start_epoch(7, 10)
    before = criterion(logits, target)
    criterion.start_epoch(8, 10)
    after = criterion(logits, target)

    assert torch.equal(before, ldam(logits, target))
    weights = effective_number_weights(COUNTS, beta=0.9999)
    assert torch.equal(after, weights[target] * ldam(logits, target))


def test_the_epoch_reaches_the_base() -> None:
    base = WeightedLoss(K, class_counts=COUNTS, defer=0.2, reduction="none")
    criterion = DeferredReweighting(K, class_counts=COUNTS, base=base, defer=0.8)

    criterion.start_epoch(5, 10)

    assert torch.equal(base.class_weights, base.full_weights)
    assert criterion.class_weights.tolist() == [1, 1, 1, 1]


def test_any_module_can_be_the_base() -> None:
    logits, target = batch()
    base = nn.CrossEntropyLoss(reduction="none")

    ours = DeferredReweighting(K, class_counts=COUNTS, base=base, defer=0, ignore_index=0)

    expected = DeferredReweighting(
        K,
        class_counts=COUNTS,
        base=CrossEntropyLoss(K, reduction="none"),
        defer=0,
        ignore_index=0,
    )
    assert torch.equal(ours(logits, target), expected(logits, target))


def test_a_base_that_counts_does_not_count_ignored_clips() -> None:
    logits, target = batch()
    target[:5] = -1
    base = RecallLoss(K, reduction="none")

    DeferredReweighting(K, class_counts=COUNTS, base=base, defer=0, ignore_index=-1)(logits, target)

    assert float(base.observed[1].sum()) == 7


def test_a_compiled_loss_follows_the_epoch() -> None:
    logits, target = batch()
    criterion = WeightedLoss(K, class_counts=COUNTS, defer=0.5)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")

    before = compiled(logits, target)
    criterion.start_epoch(5, 10)
    after = compiled(logits, target)

    close(before, F.cross_entropy(logits, target))
    close(after, criterion(logits, target))


# --- mistakes --------------------------------------------------------------------------------


class Reduced(nn.Module):
    """A base that gives one number for the batch, and does not say so."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target)


def drw(base: nn.Module, defer: float = 0.5) -> DeferredReweighting:
    return DeferredReweighting(K, class_counts=COUNTS, base=base, defer=defer)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FocalLoss(K, gamma=-1), r"gamma must be in \[0, inf\), got -1"),
        (lambda: FocalLoss(K, gamma=math.nan), "gamma .*got nan"),
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
        (
            lambda: WeightedLoss(K, class_counts=COUNTS, defer=1.5),
            r"defer must be in \[0, 1\], got 1.5",
        ),
        (lambda: drw(CrossEntropyLoss(K), defer=-0.1), "defer .*got -0.1"),
        (lambda: drw(CrossEntropyLoss(K)), "base must have reduction='none', got 'mean'"),
        (lambda: drw(Reduced())(*batch()), r"base must give .*\(12,\), got \(\)"),
    ],
)
def test_a_bad_value_is_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
