"""Plain cross entropy on the shelf of losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cdb_video.losses import LOSSES, CrossEntropyLoss


def batch(n: int, k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, k, generator=generator), torch.randint(k, (n,), generator=generator)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_it_is_pytorchs_cross_entropy(reduction: str, label_smoothing: float) -> None:
    logits, target = batch(20, 7)
    target[3] = -1
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": label_smoothing}

    ours = CrossEntropyLoss(7, ignore_index=-1, **options)(logits, target)

    assert torch.equal(ours, F.cross_entropy(logits, target, ignore_index=-1, **options))


def test_soft_targets_are_taken() -> None:
    logits, target = batch(20, 7)
    soft = F.one_hot(target, 7).float()

    torch.testing.assert_close(CrossEntropyLoss(7)(logits, soft), F.cross_entropy(logits, target))


def test_half_precision_logits_are_computed_in_fp32() -> None:
    logits, target = batch(20, 7)
    logits = logits.bfloat16()

    loss = CrossEntropyLoss(7)(logits, target)

    assert loss.dtype == torch.float32
    assert torch.equal(loss, F.cross_entropy(logits.float(), target))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_the_shelf_takes_the_same_arguments(name: str) -> None:
    logits, target = batch(6, 3)
    counts = torch.tensor([100, 10, 1])

    mean, total, each = (
        LOSSES[name](3, class_counts=counts, reduction=reduction, ignore_index=-1)(logits, target)
        for reduction in ("mean", "sum", "none")
    )

    assert mean.shape == total.shape == ()
    assert each.shape == (6,)
    torch.testing.assert_close(each.sum(), total)
    torch.testing.assert_close(mean * 6, total)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CrossEntropyLoss(3, reduction="avg"), "reduction .*mean, sum, none, got 'avg'"),
        (lambda: CrossEntropyLoss(3, label_smoothing=1), r"label_smoothing .*\[0, 1\), got 1"),
        (
            lambda: CrossEntropyLoss(3)(torch.ones(2, 4), torch.zeros(2).long()),
            r"logits must be \(N, 3\), got \(2, 4\)",
        ),
        (
            lambda: CrossEntropyLoss(3)(torch.ones(2, 3), torch.zeros(3).long()),
            r"target .*must be \(2,\), got \(3,\)",
        ),
    ],
)
def test_a_bad_value_is_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
