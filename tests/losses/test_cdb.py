"""The CDB loss by hand, and against PyTorch's cross entropy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdb_video.counts import ClassCounts
from cdb_video.losses import LOSSES, CDBLoss, ClassDifficulty, cdb_weights
from cdb_video.losses.cdb import Tau
from tests.host_sync import HostSyncError, NoHostSync

NAN = math.nan


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance, check_dtype=False)


# --- loss ------------------------------------------------------------------------------------

SIZES = [(1, 1), (1, 2), (3, 5), (8, 106), (33, 400), (257, 19), (1000, 7)]


def batch(n: int, k: int, *, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, k, generator=generator)
    return logits, torch.randint(k, (n,), generator=generator)


def reweighed(*accuracy: float, tau: Tau = 1, **options: Any) -> CDBLoss:
    """A loss that has measured these accuracies; by default tau 1, which is easy by hand."""
    criterion = CDBLoss(len(accuracy), tau=tau, **options)
    criterion.update(double(*accuracy))
    return criterion


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


class Focal(nn.Module):
    """(1 - p_y)^2 (-log p_y), per sample."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        log_p = logits.log_softmax(1).gather(1, target[:, None])[:, 0]
        return -((1 - log_p.exp()) ** 2) * log_p


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


KINDS: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({}, True),
    ({"base": Focal()}, False),
    ({"label_smoothing": 0.1}, False),
    ({"label_smoothing": 0.1}, True),
]
"""Options of the loss, and whether its targets are probabilities."""


@pytest.mark.parametrize(("options", "soft"), KINDS)
def test_gradients_are_those_of_finite_differences(options: dict[str, Any], soft: bool) -> None:
    criterion = reweighed(0.75, 0.5, 0.0, **options)
    logits, target = batch(4, 3, scale=1.0)
    target = F.one_hot(target, 3) * 0.8 + 0.1 if soft else target

    # The loss is computed in fp32: steps of 0.01 give differences with four good digits.
    torch.autograd.gradcheck(
        lambda z: criterion(z, target),
        logits.double().requires_grad_(),
        eps=1e-2,
        atol=1e-3,
        rtol=1e-3,
    )


# --- state -----------------------------------------------------------------------------------


def test_an_update_writes_into_the_same_buffer() -> None:
    criterion = CDBLoss(3)
    weights, storage = criterion.class_weights, criterion.class_weights.data_ptr()

    criterion.update(torch.tensor([0.75, 0.5, 0.0]))

    assert criterion.class_weights is weights
    assert criterion.class_weights.data_ptr() == storage
    close(weights, cdb_weights(double(0.75, 0.5, 0.0)))


def test_counts_and_their_accuracies_give_the_same_weights() -> None:
    counts = ClassCounts(3)
    logits, target = batch(50, 3)
    counts.update(logits, target)
    by_counts, by_accuracy = CDBLoss(3), CDBLoss(3)

    by_counts.update(counts)
    by_accuracy.update(counts.class_accuracy)

    assert torch.equal(by_counts.class_weights, by_accuracy.class_weights)
    assert torch.equal(by_counts.difficulty, 1 - counts.class_accuracy)


def test_a_loaded_state_continues_with_the_same_weights() -> None:
    def made() -> CDBLoss:
        return CDBLoss(4, difficulty=ClassDifficulty(4, ema=0.9, floor=0.05))

    first = made()
    first.update(double(0.9, 0.6, NAN, 0.1))
    first.update(double(0.5, 0.7, NAN, NAN))
    logits, target = batch(20, 4)
    first.observe(logits, target)
    resumed = made()

    resumed.load_state_dict(first.state_dict())

    assert torch.equal(resumed.class_weights, first.class_weights)
    for criterion in (first, resumed):
        criterion.step()
    assert torch.equal(resumed.class_weights, first.class_weights)
    assert not torch.equal(first.class_weights, torch.ones(4))


def test_everything_it_remembers_moves_with_the_module() -> None:
    criterion = CDBLoss(3).to("meta")

    assert not list(criterion.parameters())
    assert {buffer.device.type for buffer in criterion.buffers()} == {"meta"}
    tensors = [value for module in criterion.modules() for value in vars(module).values()]
    assert not any(isinstance(value, Tensor) for value in tensors)


def test_observe_and_step_equal_update_with_the_same_counts() -> None:
    observed, updated = CDBLoss(5, ignore_index=3), CDBLoss(5, ignore_index=3)
    counts = ClassCounts(5)
    for seed in range(4):
        logits, target = batch(16, 5, seed=seed)
        target[0] = -1
        observed.observe(logits, target)
        counts.update(logits, target.where(target != 3, -1))

    observed.step()
    updated.update(counts)

    assert torch.equal(observed.difficulty.nan_to_num(-1), updated.difficulty.nan_to_num(-1))
    assert observed.difficulty.isnan().tolist() == [False, False, False, True, False]
    assert torch.equal(observed.class_weights, updated.class_weights)


# --- on the device ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: 1 if x.any() else 0,
    ],
)
def test_the_probe_sees_a_host_sync(wait: Any) -> None:
    with pytest.raises(HostSyncError), NoHostSync():
        wait(torch.ones(3))


@pytest.mark.parametrize(
    "options",
    [{}, {"base": Focal()}, {"label_smoothing": 0.1}, {"reduction": "sum", "ignore_index": -1}],
)
def test_a_training_step_never_waits_for_the_device(options: dict[str, Any]) -> None:
    criterion = reweighed(0.75, 0.5, 0.0, tau="dynamic", **options)
    logits, target = batch(8, 3)
    target[0] = criterion.ignore_index
    logits.requires_grad_()

    with NoHostSync():
        loss = criterion(logits, target).sum()
        loss.backward()
        criterion.observe(logits.detach(), target)
        criterion.step()

    assert int(criterion.class_difficulty.observed.sum()) == 0
    assert float(criterion.class_weights.mean()) == pytest.approx(1)


@pytest.mark.parametrize(("options", "soft"), KINDS)
def test_a_compiled_loss_is_one_graph_and_follows_updates(
    options: dict[str, Any], soft: bool
) -> None:
    criterion = CDBLoss(3, ignore_index=-1, **options)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    logits, target = batch(8, 3)
    target[0] = -1
    target = logits.softmax(1) if soft else target

    before = compiled(logits, target)
    torch.testing.assert_close(before, criterion(logits, target))
    criterion.update(double(0.75, 0.5, 0.0))
    after = compiled(logits, target)

    torch.testing.assert_close(after, criterion(logits, target))
    assert not torch.equal(before, after)


# --- mistakes --------------------------------------------------------------------------------


class Reduced(nn.Module):
    """A base that gives one number for the batch, and does not say so."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CDBLoss(0), "num_classes must be at least 1, got 0"),
        (lambda: CDBLoss(3, tau=-1), "tau must be a number >= 0 or one of dynamic, .*, got -1"),
        (lambda: CDBLoss(3, tau="dynamics"), "tau .*got 'dynamics'"),
        (
            lambda: CDBLoss(3, reduction="avg"),
            "reduction must be one of mean, sum, none, got 'avg'",
        ),
        (lambda: CDBLoss(3, label_smoothing=1.5), r"label_smoothing must be in \[0, 1\), got 1.5"),
        (lambda: CDBLoss(3, label_smoothing=0.1, base=Focal()), "label_smoothing=0.1 belongs"),
        (lambda: CDBLoss(3, base=nn.CrossEntropyLoss()), "base .*reduction='none', got 'mean'"),
        (
            lambda: CDBLoss(3, difficulty=ClassDifficulty(4)),
            "difficulty has 4 classes, expected 3",
        ),
        (lambda: CDBLoss(3).update(double(0.5, 0.5)), "measured has 2 classes, expected 3"),
        (lambda: CDBLoss(3).update(double(0.5, 0.5, 7)), r"measured\[2\] .*got 7"),
        (lambda: CDBLoss(3)(torch.ones(2, 4), torch.zeros(2).long()), r"logits .*got \(2, 4\)"),
        (lambda: CDBLoss(3)(torch.ones(3), torch.zeros(3).long()), r"logits .*got \(3,\)"),
        (lambda: CDBLoss(3)(torch.ones(2, 3), torch.zeros(2, 1).long()), r"target .*got \(2, 1\)"),
        (lambda: CDBLoss(3)(torch.ones(2, 3), torch.ones(2, 4)), r"target .*got \(2, 4\)"),
        (lambda: CDBLoss(3, base=Focal())(torch.ones(2, 3), torch.ones(2, 3)), "soft targets"),
        (
            lambda: CDBLoss(3, base=Reduced())(torch.ones(2, 3), torch.zeros(2).long()),
            r"base .*\(2,\), got \(\)",
        ),
    ],
)
def test_a_bad_value_is_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_refused_measurement_changes_nothing() -> None:
    criterion = reweighed(0.75, 0.5, 0.0)
    before = {name: value.clone() for name, value in criterion.state_dict().items()}

    with pytest.raises(ValueError, match="measured"):
        criterion.update(double(0.5, 0.5, 1.5))

    for name, value in criterion.state_dict().items():
        assert torch.equal(value, before[name]), name
