"""What every loss of the shelf refuses, and by which name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cdb_video.losses import LOSSES
from tests.losses.shelf import FORMS, batch, made

every_form = pytest.mark.parametrize("name", FORMS)


COUNTED = [
    "weighted",
    "class_balanced",
    "ldam",
    "balanced_softmax",
    "logit_adjusted",
    "equalization",
    "seesaw",
    "deferred",
]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (None, "class_counts is needed: .* got None"),
        (torch.tensor([5, 1]), r"class_counts must be \(3,\), got \(2,\)"),
        (torch.tensor([[5, 1, 1]]), r"class_counts must be \(3,\), got \(1, 3\)"),
        (torch.tensor([5, -1, 1]), r"class_counts\[1\] must be a whole number >= 0, got -1"),
        (torch.tensor([5.0, 1.0, torch.nan]), r"class_counts\[2\] .* got nan"),
        (torch.tensor([5.0, torch.inf, 1.0]), r"class_counts\[1\] .* got inf"),
        (torch.tensor([0.5, 1.0, 1.0]), r"class_counts\[0\] .* got 0\.5"),
        (torch.zeros(3, dtype=torch.int64), "class_counts is 0 for every one of 3 classes"),
    ],
)
@pytest.mark.parametrize("name", COUNTED)
def test_bad_counts_are_refused(name: str, counts: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FORMS[name](3, class_counts=counts)


@every_form
def test_a_class_without_clips_is_taken(name: str) -> None:
    criterion = made(name, class_counts=torch.tensor([90, 0, 9, 1]))
    logits, target = batch()

    loss = criterion(logits, target)

    assert loss.isfinite()


@every_form
def test_a_reduction_that_pytorch_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none, got 'avg'"):
        made(name, reduction="avg")


@pytest.mark.parametrize("name", LOSSES)
def test_smoothing_everything_away_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), got 1.0"):
        made(name, label_smoothing=1.0)


@every_form
def test_a_batch_of_another_shape_is_refused(name: str) -> None:
    logits, target = batch()

    with pytest.raises(ValueError, match=r"logits must be \(N, 4\), got \(12, 3\)"):
        made(name)(logits[:, :3], target)
    with pytest.raises(ValueError, match=r"target of .* must be \(12,\), got \(11,\)"):
        made(name)(logits, target[1:])


def test_no_classes_are_refused() -> None:
    for name in ("cross_entropy", "focal", "recall", "seesaw"):
        with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
            LOSSES[name](0)
