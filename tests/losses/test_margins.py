"""LDAM by hand and against cross entropy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cdb_video.losses import LDAMLoss
from tests.losses.shelf import COUNTS, K, batch, close, double, gradients_agree


def test_margins_by_hand() -> None:
    # (2/32)^(1/4) = 1/2; the class without clips has the margin of the rarest.
    criterion = LDAMLoss(3, class_counts=torch.tensor([32, 2, 0]), max_margin=0.5)

    close(criterion.margins, double(0.25, 0.5, 0.5))


def test_the_loss_of_two_samples_by_hand() -> None:
    criterion = LDAMLoss(
        2, class_counts=torch.tensor([16, 1]), max_margin=0.5, scale=2, reduction="none"
    )
    cosines = torch.tensor([[0.5, -0.5], [0.5, -0.5]])

    loss = criterion(2 * cosines, torch.tensor([0, 1]))

    # 2 * (0.5 - 0.25, -0.5) = (0.5, -1) and 2 * (0.5, -0.5 - 0.5) = (1, -2).
    close(loss, double(math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(3))))


def test_without_a_margin_it_is_cross_entropy() -> None:
    logits, target = batch()

    loss = LDAMLoss(K, class_counts=COUNTS, max_margin=0, scale=7, reduction="none")(logits, target)

    assert torch.equal(loss, F.cross_entropy(logits, target, reduction="none"))


def test_gradients_are_those_of_finite_differences() -> None:
    gradients_agree(LDAMLoss(K, class_counts=COUNTS, scale=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_margin": -0.5}, r"max_margin must be in \[0, inf\), got -0.5"),
        ({"scale": 0}, r"scale must be in \(0, inf\), got 0"),
        ({"scale": math.inf}, "scale .*got inf"),
    ],
)
def test_a_bad_option_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LDAMLoss(K, class_counts=COUNTS, **options)
