"""Class difficulty: the running measurement, each of its options by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cdb_video.counts import ClassCounts
from cdb_video.losses import ClassDifficulty
from cdb_video.losses.difficulty import Statistic
from tests.host_sync import NoHostSync
from tests.losses.measured import NAN, close, counted, double


def test_nothing_is_measured_at_first() -> None:
    assert ClassDifficulty(3).difficulty.isnan().all()


def test_difficulty_is_one_minus_accuracy() -> None:
    difficulty = ClassDifficulty(3)

    difficulty.update(counted(correct=[3, 1, 0], total=[4, 2, 0]))

    close(difficulty.difficulty, double(0.25, 0.5, NAN))


def test_a_new_measurement_replaces_the_last_and_a_missed_class_keeps_its_past() -> None:
    difficulty = ClassDifficulty(3)

    difficulty.update(double(0.75, 0.5, NAN))
    difficulty.update(double(0.25, NAN, NAN))

    close(difficulty.difficulty, double(0.75, 0.5, NAN))


def test_with_ema_the_first_measurement_counts_whole() -> None:
    difficulty = ClassDifficulty(2, ema=0.9)

    difficulty.update(double(0.75, 0.0))

    close(difficulty.difficulty, double(0.25, 1.0))


def test_ema_by_hand_class_by_class() -> None:
    difficulty = ClassDifficulty(3, ema=0.5)

    difficulty.update(double(0.8, 0.8, NAN))
    difficulty.update(double(0.2, NAN, 0.6))
    difficulty.update(double(0.4, 0.2, NAN))

    # Weights of the past 1/8, 1/4, 1/2 of 7/8: (0.1 + 0.05 + 0.2) * 8/7 = 0.4. The second class
    # was measured twice: (0.8 / 4 + 0.2 / 2) * 4/3 = 0.4. The third once, whole: 0.6.
    close(difficulty.difficulty, 1 - double(0.4, 0.4, 0.6))


def test_prior_strength_shrinks_small_classes_by_hand() -> None:
    difficulty = ClassDifficulty(3, prior_strength=4)

    difficulty.update(counted(correct=[1, 9, 0], total=[1, 18, 0]))

    # The mean of accuracies 1 and 1/2 is 3/4: 4 prior clips bring 3 right ones.
    # (1 + 3) / (1 + 4) = 0.8 and (9 + 3) / (18 + 4) = 6/11; a class without clips stays unmeasured.
    close(difficulty.difficulty, 1 - double(0.8, 6 / 11, NAN))


def test_floor_is_the_least_difficulty() -> None:
    difficulty = ClassDifficulty(3, floor=0.125)

    difficulty.update(double(1.0, 0.5, NAN))

    close(difficulty.difficulty, double(0.125, 0.5, NAN))


@pytest.mark.parametrize("statistic", ["recall", "f1", "loss"])
@pytest.mark.parametrize("prior_strength", [0.0, 5.0])
def test_observing_batches_equals_one_update_with_all_their_counts(
    prior_strength: float, statistic: Statistic
) -> None:
    observed = ClassDifficulty(4, ema=0.3, prior_strength=prior_strength, statistic=statistic)
    updated = ClassDifficulty(4, ema=0.3, prior_strength=prior_strength, statistic=statistic)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        counts = ClassCounts(4)
        for _ in range(4):
            # Rounded, for ties.
            logits = torch.randn(8, 4, generator=generator).round()
            target = torch.randint(-1, 3, (8,), generator=generator)
            observed.observe(logits, target)
            counts.update(logits, target)
        observed.step()
        updated.update(counts)

    assert torch.equal(observed.difficulty.nan_to_num(-1), updated.difficulty.nan_to_num(-1))
    assert observed.difficulty.isnan().tolist() == [False, False, False, True]


def test_a_step_forgets_what_was_observed() -> None:
    difficulty = ClassDifficulty(2)
    difficulty.observe(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    difficulty.step()

    difficulty.step()

    close(difficulty.difficulty, double(0.0, 1.0))
    assert int(difficulty.observed.sum()) == 0


def test_a_step_that_observed_nothing_changes_nothing() -> None:
    difficulty = ClassDifficulty(2, ema=0.5, prior_strength=2)
    difficulty.observe(torch.zeros(2, 2), torch.tensor([-1, -1]))

    difficulty.step()

    assert difficulty.difficulty.isnan().all()


def test_logits_of_nan_are_never_right() -> None:
    difficulty = ClassDifficulty(2)

    difficulty.observe(torch.full((2, 2), NAN), torch.tensor([0, 1]))
    difficulty.step()

    close(difficulty.difficulty, double(1.0, 1.0))


def test_a_loaded_state_continues_where_it_was() -> None:
    first, resumed = ClassDifficulty(2, ema=0.5), ClassDifficulty(2, ema=0.5)
    first.update(double(0.8, NAN))
    first.observe(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))

    resumed.load_state_dict(first.state_dict())
    for difficulty in (first, resumed):
        difficulty.step()
        difficulty.update(double(0.2, 0.6))

    assert torch.equal(resumed.difficulty, first.difficulty)


def test_observing_and_stepping_never_wait_for_the_device() -> None:
    difficulty = ClassDifficulty(3, ema=0.5, prior_strength=2, floor=0.1)

    with NoHostSync():
        difficulty.observe(torch.eye(3), torch.tensor([0, 2, -1]))
        difficulty.step()

    # Right in the first of two classes: prior 2 * 1/2 brings accuracies (1 + 1) / 3 and 1/3.
    close(difficulty.difficulty, double(1 / 3, NAN, 2 / 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ClassDifficulty(0), "num_classes must be at least 1, got 0"),
        (
            lambda: ClassDifficulty(2, statistic="precision"),  # type: ignore[arg-type]
            "statistic must be one of recall, f1, loss, got 'precision'",
        ),
        (lambda: ClassDifficulty(2, warmup_epochs=-1), "warmup_epochs must be .*got -1"),
        (lambda: ClassDifficulty(2, update_every=0), "update_every must be .*got 0"),
        (lambda: ClassDifficulty(2, ema=1.0), r"ema must be in \[0, 1\), got 1.0"),
        (lambda: ClassDifficulty(2, ema=NAN), r"ema must be in \[0, 1\), got nan"),
        (lambda: ClassDifficulty(2, floor=-0.1), r"floor must be in \[0, 1\), got -0.1"),
        (lambda: ClassDifficulty(2, prior_strength=-1), "prior_strength .*got -1"),
        (lambda: ClassDifficulty(2, prior_strength=math.inf), "prior_strength .*got inf"),
        (lambda: ClassDifficulty(2).update(double(0.5)), "measured has 1 classes, expected 2"),
        (lambda: ClassDifficulty(2).update(double(0.5, 2.0)), r"measured\[1\] .*got 2.0"),
        (lambda: ClassDifficulty(2).update(torch.tensor([0, 1])), "measured .*got torch.int64"),
        (lambda: ClassDifficulty(2).update(double(NAN, NAN)), "measured is NaN for every one of 2"),
        (lambda: ClassDifficulty(2).update(ClassCounts(2)), "measured has no clip of any class"),
        (lambda: ClassDifficulty(2).update(ClassCounts(3)), "measured has 3 classes, expected 2"),
        (
            lambda: ClassDifficulty(2, prior_strength=3).update(double(0.5, 0.5)),
            "prior_strength=3 needs ClassCounts",
        ),
        (
            lambda: ClassDifficulty(2).observe(torch.ones(1, 3), torch.tensor([0])),
            r"scores must be \(N, 2\), got \(1, 3\)",
        ),
        (
            lambda: ClassDifficulty(2).observe(torch.ones(1, 2), torch.ones(1, 2)),
            r"target must be \(1,\), got \(1, 2\)",
        ),
        (
            lambda: ClassDifficulty(2).observe(torch.ones(3, 2), torch.tensor([0, -1, 2])),
            r"target\[2\] must be in \[0, 2\) or negative, got 2",
        ),
    ],
)
def test_a_bad_value_is_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
