"""The recall loss by hand, and what it counts."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cdb_video.losses import RecallLoss
from tests.losses.shelf import K, batch, close, double, gradients_agree

LOGITS = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
TARGET = torch.tensor([0, 0, 1, 1])
RIGHT, WRONG = math.log(1 + math.exp(-1)), math.log(1 + math.e)


def test_without_a_past_it_is_the_papers_loss_of_the_batch() -> None:
    criterion = RecallLoss(2, ema=0, reduction="none")

    for _ in range(2):
        loss = criterion(LOGITS, TARGET)

        # Class 0: none of two missed, (1 + 0) / (1 + 2); class 1: one of two, (1 + 1) / (1 + 2).
        close(criterion.class_weights, double(1 / 3, 2 / 3))
        close(loss, double(RIGHT / 3, RIGHT / 3, 2 * WRONG / 3, 2 * RIGHT / 3))


def test_the_average_over_batches_by_hand() -> None:
    criterion = RecallLoss(2, ema=0.5)

    criterion(LOGITS, TARGET)
    criterion(LOGITS[2:3], TARGET[2:3])

    # Halved: missed 0 and 1/2 + 1, seen 1 and 1 + 1.
    close(criterion.observed, torch.tensor([[0.0, 1.5], [1.0, 2.0]]))
    close(criterion.class_weights, double(1 / 2, 2.5 / 3))


def test_before_it_has_seen_a_clip_it_is_cross_entropy() -> None:
    logits, target = batch()

    loss = RecallLoss(K).eval()(logits, target)

    close(loss, F.cross_entropy(logits, target))


def test_learnt_classes_end_at_inverse_frequency_in_the_batch() -> None:
    criterion = RecallLoss(2, ema=0)

    criterion(torch.tensor([[9.0, 0.0]] * 3 + [[0.0, 9.0]]), torch.tensor([0, 0, 0, 1]))

    close(criterion.class_weights, double(1 / 4, 1 / 2))


def test_ignored_clips_are_not_counted() -> None:
    criterion = RecallLoss(2, ema=0, ignore_index=-1)

    criterion(LOGITS, torch.tensor([-1, 0, 1, -1]))

    assert criterion.observed.tolist() == [[0, 1], [1, 1]]


def test_gradients_are_those_of_finite_differences() -> None:
    criterion = RecallLoss(K, label_smoothing=0.1)
    criterion(*batch())

    gradients_agree(criterion.eval())


def test_a_past_that_never_fades_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ema must be in \[0, 1\), got 1"):
        RecallLoss(K, ema=1)
