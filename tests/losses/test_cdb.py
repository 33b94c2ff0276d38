"""The CDB loss by hand, and against PyTorch's cross entropy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cdb_video.losses import LOSSES, CDBLoss
from tests.losses.shelf import close, double
from tests.losses.weighed import KINDS, Focal, batch, reweighed

SIZES = [(1, 1), (1, 2), (3, 5), (8, 106), (33, 400), (257, 19), (1000, 7)]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_before_a_measurement_it_is_cross_entropy_bit_for_bit(
    n: int, k: int, reduction: str
) -> None:
    for seed in range(5):
        logits, target = batch(n, k, seed=seed)
        criterion = LOSSES["cdb"](k, reduction=reduction)

        assert torch.equal(
            criterion(logits, target), F.cross_entropy(logits, target, reduction=reduction)
        )


@pytest.mark.parametrize("ignored", [-100, -1, 0])
def test_ignored_targets_leave_it_cross_entropy_bit_for_bit(ignored: int) -> None:
    for n, k in SIZES[3:]:
        logits, target = batch(n, k)
        target[::2] = ignored

        loss = CDBLoss(k, ignore_index=ignored)(logits, target)

        assert torch.equal(loss, F.cross_entropy(logits, target, ignore_index=ignored))


def test_soft_targets_before_a_measurement_are_cross_entropy_bit_for_bit() -> None:
    for n, k in SIZES:
        logits, _ = batch(n, k)
        target = batch(n, k, seed=1)[0].softmax(1)

        assert torch.equal(CDBLoss(k)(logits, target), F.cross_entropy(logits, target))


def test_the_gradient_before_a_measurement_is_that_of_cross_entropy() -> None:
    logits, target = batch(33, 19)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()

    CDBLoss(19)(ours, target).backward()
    F.cross_entropy(theirs, target).backward()

    close(ours.grad, theirs.grad, 1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_fp32(dtype: torch.dtype) -> None:
    logits, target = batch(64, 19)
    logits = logits.to(dtype)

    plain = CDBLoss(19)(logits, target)
    with_base = CDBLoss(19, base=nn.CrossEntropyLoss(reduction="none"))(logits, target)

    assert plain.dtype == with_base.dtype == torch.float32
    assert torch.equal(plain, F.cross_entropy(logits.float(), target))
    close(with_base, plain)


@pytest.mark.parametrize("base", [None, nn.CrossEntropyLoss(reduction="none")])
def test_under_autocast_the_loss_is_fp32(base: nn.Module | None) -> None:
    features, target = batch(16, 8)
    linear = nn.Linear(8, 3)
    target = target % 3

    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = linear(features)
        loss = reweighed(0.9, 0.5, 0.1, base=base)(logits, target)

    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    close(loss, reweighed(0.9, 0.5, 0.1)(logits.float(), target))


def test_the_loss_of_three_samples_by_hand() -> None:
    # Equal logits: every -log p is log 3. Weights 3/7, 6/7, 12/7 (above).
    criterion = reweighed(0.75, 0.5, 0.0)
    logits, target = torch.zeros(3, 3), torch.tensor([0, 2, 2])

    expected = double(3 / 7, 12 / 7, 12 / 7) * math.log(3)

    close(criterion(logits, target), expected.mean())
    criterion.reduction = "sum"
    close(criterion(logits, target), expected.sum())
    criterion.reduction = "none"
    close(criterion(logits, target), expected)


def test_double_logits_are_computed_in_fp64() -> None:
    logits, target = batch(33, 19)
    logits = logits.double() + 1e-10

    assert torch.equal(CDBLoss(19)(logits, target), F.cross_entropy(logits, target))
    with_base = CDBLoss(19, base=nn.CrossEntropyLoss(reduction="none"))(logits, target)
    torch.testing.assert_close(with_base, F.cross_entropy(logits, target), rtol=1e-14, atol=0)


class Operators(TorchDispatchMode):
    """Within it, the names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("soft", [False, True])
def test_over_cross_entropy_it_is_one_call_and_counts_nothing(reduction: Any, soft: bool) -> None:
    criterion = reweighed(0.75, 0.5, 0.0, reduction=reduction)
    logits, target = batch(8, 3)
    target = logits.softmax(1) if soft else target

    with Operators() as ours:
        loss = criterion(logits, target)
    with Operators() as theirs:
        expected = F.cross_entropy(
            logits, target, weight=criterion.class_weights, reduction=reduction
        )

    assert ours.names == theirs.names
    assert torch.equal(loss, expected)


def test_a_batch_of_one_class_keeps_the_weight_of_the_class() -> None:
    logits, _ = batch(4, 3)
    target = torch.full((4,), 2)

    loss = reweighed(0.75, 0.5, 0.0)(logits, target)

    # `F.cross_entropy(weight=...)` divides by the weights, and so cancels this factor.
    close(loss, 12 / 7 * F.cross_entropy(logits, target))


def test_soft_targets_follow_the_formula() -> None:
    criterion = reweighed(0.75, 0.5, 0.0)
    logits, _ = batch(5, 3)
    target = batch(5, 3, seed=1)[0].softmax(1)

    expected = 0.0
    for z, t in zip(logits.double().tolist(), target.double().tolist(), strict=True):
        total = math.log(sum(map(math.exp, z)))
        for k, weight in enumerate([3 / 7, 6 / 7, 12 / 7]):
            expected += weight * t[k] * (total - z[k])

    assert float(criterion(logits, target)) == pytest.approx(expected / 5, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_are_the_mean_of_their_labels_losses(smoothing: float) -> None:
    # Mixup: lambda w_a l(z, a) + (1 - lambda) w_b l(z, b).
    criterion = reweighed(0.75, 0.5, 0.0, label_smoothing=smoothing)
    logits, a = batch(6, 3)
    b = (a + 1) % 3

    mixed = criterion(logits, 0.3 * F.one_hot(a, 3) + 0.7 * F.one_hot(b, 3))

    close(mixed, 0.3 * criterion(logits, a) + 0.7 * criterion(logits, b))


def test_label_smoothing_is_weighed_by_the_labels_weight() -> None:
    criterion = reweighed(0.75, 0.5, 0.0, label_smoothing=0.1, ignore_index=-1)
    logits, _ = batch(4, 3)
    target = torch.tensor([0, 1, 2, -1])

    each = F.cross_entropy(logits[:3], target[:3], reduction="none", label_smoothing=0.1)

    close(criterion(logits, target), (double(3 / 7, 6 / 7, 12 / 7) * each).mean())
    unweighed = CDBLoss(3, label_smoothing=0.1)(logits[:3], target[:3])
    close(unweighed, F.cross_entropy(logits[:3], target[:3], label_smoothing=0.1))


@pytest.mark.parametrize(
    "base",
    [nn.CrossEntropyLoss(reduction="none"), Focal(), LOSSES["cross_entropy"](3, reduction="none")],
)
def test_any_per_sample_loss_is_weighed_and_ignored_targets_add_nothing(base: nn.Module) -> None:
    logits, target = batch(9, 3)
    labelled = torch.arange(9) % 3 > 0
    expected = double(3 / 7, 6 / 7, 12 / 7)[target] * base(logits, target).double()

    weighed = reweighed(0.75, 0.5, 0.0, base=base)(logits, target)
    target[~labelled] = -1
    partly = reweighed(0.75, 0.5, 0.0, base=base, ignore_index=-1)
    logits = logits.requires_grad_()
    loss = partly(logits, target)
    loss.backward()

    close(weighed, expected.mean())
    close(loss, expected[labelled].mean())
    assert logits.grad is not None
    assert (logits.grad[~labelled] == 0).all()
    assert (logits.grad[labelled] != 0).any(1).all()
    partly.reduction = "none"
    close(partly(logits, target), expected.where(labelled, 0.0))


@pytest.mark.parametrize(("options", "soft"), KINDS)
def test_gradients_are_those_of_finite_differences(options: dict[str, Any], soft: bool) -> None:
    criterion = reweighed(0.75, 0.5, 0.0, **options)
    logits, target = batch(4, 3, scale=1.0)
    target = F.one_hot(target, 3) * 0.8 + 0.1 if soft else target

    torch.autograd.gradcheck(lambda z: criterion(z, target), logits.double().requires_grad_())
