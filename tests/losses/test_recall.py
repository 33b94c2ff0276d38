"""The recall loss by hand: what it counts, and when it weighs by it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cdb_video.losses import RecallLoss
from tests.losses.shelf import K, batch, close, double, gradients_agree

LOGITS = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
TARGET = torch.tensor([0, 0, 1, 1])
RIGHT, WRONG = math.log(1 + math.exp(-1)), math.log(1 + math.e)


def train(criterion: RecallLoss, *epochs: tuple[Tensor, Tensor]) -> None:
    """Epochs of one step, and the start of the one after."""
    for logits, target in epochs:
        criterion(logits, target)
        criterion.start_epoch(0, len(epochs))


def test_an_epoch_is_weighed_by_the_counts_of_the_one_before() -> None:
    criterion = RecallLoss(2, reduction="none")

    for _ in range(2):
        train(criterion, (LOGITS, TARGET))

        # Class 0: none of two missed, (1 + 0) / (1 + 2); class 1: one of two, (1 + 1) / (1 + 2).
        close(criterion.class_weights, double(1 / 3, 2 / 3))
        loss = criterion.eval()(LOGITS, TARGET)
        close(loss, double(RIGHT / 3, RIGHT / 3, 2 * WRONG / 3, 2 * RIGHT / 3))
        criterion.train()


def test_the_first_epoch_is_cross_entropy() -> None:
    logits, target = batch()
    criterion = RecallLoss(K)
    criterion.start_epoch(0, 2)

    for _ in range(3):
        close(criterion(logits, target), F.cross_entropy(logits, target))
    criterion.start_epoch(1, 2)

    assert float(criterion(logits, target)) < float(F.cross_entropy(logits, target))


def test_counts_fade_by_hand_class_by_class() -> None:
    criterion = RecallLoss(2, ema=0.5)

    train(criterion, (LOGITS, TARGET), (LOGITS[2:3], TARGET[2:3]))

    # Class 1, halved: missed 1/2 + 1, seen 1 + 1. Class 0 had no clip, and keeps its 0 of 2.
    close(criterion.past, torch.tensor([[0.0, 1.5], [2.0, 2.0]]))
    close(criterion.class_weights, double(1 / 3, 2.5 / 3))


def test_learnt_classes_end_at_inverse_frequency() -> None:
    criterion = RecallLoss(2)

    train(criterion, (torch.tensor([[9.0, 0.0]] * 3 + [[0.0, 9.0]]), torch.tensor([0, 0, 0, 1])))

    close(criterion.class_weights, double(1 / 4, 1 / 2))


@pytest.mark.parametrize("parts", [1, 2, 3, 12])
def test_a_step_may_be_split_up(parts: int) -> None:
    epochs = [batch(seed=seed) for seed in range(3)]
    whole, split = (RecallLoss(K, ema=0.3, reduction="none") for _ in range(2))

    for logits, target in epochs:
        expected = whole(logits, target)
        pairs = zip(logits.chunk(parts), target.chunk(parts), strict=True)
        losses = torch.cat([split(*pair) for pair in pairs])
        for criterion in (whole, split):
            criterion.start_epoch(0, 3)

        close(losses, expected)
        assert torch.equal(split.class_weights, whole.class_weights)
    assert not torch.equal(whole.class_weights, torch.ones(K))


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    first, resumed = (RecallLoss(K, ema=0.5, reduction="none") for _ in range(2))
    train(first, batch(seed=0), batch(seed=1))

    resumed.load_state_dict(first.state_dict())
    # A run that resumes says again which epoch begins.
    resumed.start_epoch(2, 4)

    for seed in (2, 3):
        logits, target = batch(seed=seed)
        assert torch.equal(resumed(logits, target), first(logits, target))
        for criterion in (first, resumed):
            criterion.start_epoch(seed + 1, 4)


def test_ignored_clips_are_not_counted() -> None:
    criterion = RecallLoss(2, ignore_index=-1)

    train(criterion, (LOGITS, torch.tensor([-1, 0, 1, -1])))

    assert criterion.past.tolist() == [[0, 1], [1, 1]]


def test_gradients_are_those_of_finite_differences() -> None:
    criterion = RecallLoss(K, label_smoothing=0.1)
    train(criterion, batch())

    gradients_agree(criterion)


def test_a_past_that_never_fades_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ema must be in \[0, 1\), got 1"):
        RecallLoss(K, ema=1)
