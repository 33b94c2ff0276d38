"""Weights that begin in a later epoch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cdb_video.losses import (
    ClassBalancedLoss,
    CrossEntropyLoss,
    DeferredReweighting,
    LDAMLoss,
    RecallLoss,
    WeightedLoss,
    effective_number_weights,
    inverse_frequency_weights,
)
from tests.losses.shelf import COUNTS, K, batch, close
from tests.losses.weighed import Reduced


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

    # Row 3 is the total of each class.
    assert int(base.observed[3].sum()) == 7


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


def drw(base: nn.Module, defer: float = 0.5) -> DeferredReweighting:
    return DeferredReweighting(K, class_counts=COUNTS, base=base, defer=defer)


@pytest.mark.parametrize(
    ("call", "message"),
    [
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
