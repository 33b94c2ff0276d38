"""What the CDB loss remembers, where it computes, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdb_video.counts import ClassCounts
from cdb_video.losses import CDBLoss, ClassDifficulty, cdb_weights
from tests.host_sync import HostSyncError, NoHostSync
from tests.losses.shelf import close, double
from tests.losses.weighed import KINDS, Focal, Reduced, batch, reweighed

NAN = math.nan


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
        (
            lambda: CDBLoss(3, base=Reduced())(torch.ones(2, 3), torch.ones(2, 3)),
            r"base .*\(2,\), got \(\)",
        ),
        (
            lambda: CDBLoss(3).observe(torch.ones(2, 3), torch.tensor([-100, 3])),
            r"target\[1\] must be in \[0, 3\) or negative, got 3",
        ),
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
