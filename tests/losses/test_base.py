"""Cross entropy and focal loss, by hand and against PyTorch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cdb_video.losses import (
    CrossEntropyLoss,
    FocalLoss,
)
from tests.losses.shelf import K, batch, close, double, gradients_agree

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


@pytest.mark.parametrize(
    ("gamma", "message"),
    [(-1, r"gamma must be in \[0, inf\), got -1"), (math.nan, "gamma .*got nan")],
)
def test_a_bad_gamma_is_refused(gamma: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FocalLoss(K, gamma=gamma)
