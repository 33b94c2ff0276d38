"""What stands for accuracy in a difficulty, when a measurement counts, and the report of it."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from cdb_video.counts import ClassCounts
from cdb_video.losses import CDBLoss, ClassDifficulty
from cdb_video.losses.difficulty import Statistic
from tests.host_sync import NoHostSync
from tests.losses.measured import NAN, close, counted, double


def test_f1_counts_what_was_taken_for_a_class_too() -> None:
    difficulty = ClassDifficulty(3, statistic="f1")

    difficulty.update(counted(correct=[3, 1, 0], total=[4, 2, 0]))

    # What is wrong is taken for the next class: predicted 3, 2 and 1 times. 2 * 3 / (4 + 3) and
    # 2 * 1 / (2 + 2); the third class, never right, has no clip.
    close(difficulty.difficulty, 1 - double(6 / 7, 1 / 2, NAN))


def test_prior_strength_shrinks_f1_by_hand() -> None:
    difficulty = ClassDifficulty(3, statistic="f1", prior_strength=2)

    difficulty.update(counted(correct=[3, 1, 0], total=[4, 2, 0]))

    # The mean F1 of 6/7 and 1/2 is 19/28: two prior clips bring 19/14 right ones, to 3 right of
    # (4 + 3) / 2 and 1 of (2 + 2) / 2.
    close(difficulty.difficulty, 1 - double((3 + 19 / 14) / 5.5, (1 + 19 / 14) / 4, NAN))


def sure(*probabilities: float) -> Tensor:
    """(N, 2) logits that give class 0 these probabilities."""
    own = torch.tensor(probabilities)
    return torch.stack([own, 1 - own], dim=1).log()


LOSS_TOLERANCE = 1e-6
"""Losses are counted in units of 2^-20, rounded: half a unit, 5e-7, off at most."""


def near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=LOSS_TOLERANCE, equal_nan=True)


def test_loss_is_the_mean_probability_of_a_class_in_logarithms() -> None:
    difficulty = ClassDifficulty(3, statistic="loss")
    counts = ClassCounts(3)
    logits = torch.nn.functional.pad(sure(1 / 2, 1 / 8, 3 / 4), (0, 1), value=-math.inf)

    counts.update(logits, torch.tensor([0, 0, 1]))
    difficulty.update(counts)

    # (log 2 + log 8) / 2 = log 4; log 4; no clip.
    near(difficulty.difficulty, 1 - double(1 / 4, 1 / 4, NAN))


def test_prior_strength_shrinks_the_loss_by_hand() -> None:
    difficulty = ClassDifficulty(2, statistic="loss", prior_strength=2)
    counts = ClassCounts(2)

    counts.update(sure(1 / 2, 1 / 8, 1 / 2), torch.tensor([0, 0, 1]))
    difficulty.update(counts)

    # Mean losses of 2 and 1 bits, 1.5 over classes: two prior clips bring 3 bits.
    # (1 + 3 + 3) / (2 + 2) = 7/4 and (1 + 3) / (1 + 2) = 4/3 bits.
    near(difficulty.difficulty, 1 - double(2 ** -(7 / 4), 2 ** -(4 / 3)))


def test_loss_still_tells_apart_classes_whose_clips_are_all_right() -> None:
    counts = ClassCounts(2)
    counts.update(sure(0.9, 0.4), torch.tensor([0, 1]))
    recall, loss = ClassDifficulty(2), ClassDifficulty(2, statistic="loss")

    for difficulty in (recall, loss):
        difficulty.update(counts)

    close(recall.difficulty, double(0, 0))
    near(loss.difficulty, double(0.1, 0.4))


def course(*, measurements: int = 6, **options: Any) -> list[float]:
    """The difficulty after measured accuracies 0.9, 0.8, ... of the only class."""
    difficulty, seen = ClassDifficulty(1, **options), []
    for i in range(measurements):
        difficulty.update(double(0.9 - i / 10))
        seen.append(round(float(difficulty.difficulty), 9))
    return seen


def test_in_the_warmup_nothing_counts_and_the_measurement_at_its_end_is_the_first() -> None:
    expected = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]

    assert course() == course(warmup_epochs=1) == expected
    assert str(course(warmup_epochs=3)) == str([NAN, NAN, *expected[2:]])


def test_only_every_nth_measurement_counts_from_the_first_on() -> None:
    assert course(update_every=2) == [0.1, 0.1, 0.3, 0.3, 0.5, 0.5]
    assert str(course(update_every=3, warmup_epochs=2)) == str([NAN, 0.2, 0.2, 0.2, 0.5, 0.5])


def test_a_measurement_that_does_not_count_is_not_in_the_average_either() -> None:
    # Of 0.1, 0.3, 0.5 with the past at half: (0.1 / 4 + 0.3 / 2) * 4/3 and
    # (0.1 / 8 + 0.3 / 4 + 0.5 / 2) * 8/7 ... each over its own mass.
    third, fifth = (0.1 / 4 + 0.3 / 2) * 4 / 3, (0.1 / 8 + 0.3 / 4 + 0.5 / 2) * 8 / 7

    assert course(update_every=2, ema=0.5) == pytest.approx([0.1, 0.1, third, third, fifth, fifth])


def test_a_loaded_state_goes_on_counting_its_epochs() -> None:
    first, resumed = (ClassDifficulty(1, warmup_epochs=2, update_every=2) for _ in range(2))
    first.update(double(0.9))

    resumed.load_state_dict(first.state_dict())
    for accuracy in (0.8, 0.7):
        resumed.update(double(accuracy))

    close(resumed.difficulty, double(0.2))


def test_weights_stay_1_in_the_warmup() -> None:
    criterion = CDBLoss(2, tau=1, difficulty=ClassDifficulty(2, warmup_epochs=2))

    criterion.update(double(0.9, 0.5))
    assert criterion.class_weights.tolist() == [1, 1]
    criterion.update(double(0.9, 0.7))

    torch.testing.assert_close(criterion.class_weights, torch.tensor([0.5, 1.5]))


def test_observed_batches_of_the_warmup_are_forgotten() -> None:
    difficulty = ClassDifficulty(2, warmup_epochs=2)
    for target in ([1, 0], [0, 1]):
        difficulty.observe(torch.eye(2), torch.tensor(target))
        difficulty.step()

    # All wrong, then all right.
    close(difficulty.difficulty, double(0, 0))


def test_the_report_names_the_unmeasured_the_hardest_and_the_easiest() -> None:
    difficulty = ClassDifficulty(5)
    difficulty.update(double(0.75, 0.5, NAN, 1.0, 0.0))

    assert difficulty.report(["open", "close", "cut", "wash", "pour"]) == (
        "4 of 5 classes measured; never: cut; hardest: pour 1.00, close 0.50, open 0.25; "
        "easiest: wash 0.00, open 0.25, close 0.50"
    )
    assert difficulty.report().startswith("4 of 5 classes measured; never: 2; hardest: 4 1.00, ")


def test_the_report_of_many_unmeasured_classes_names_five() -> None:
    assert ClassDifficulty(8).report() == (
        "0 of 8 classes measured; never: 0, 1, 2, 3, 4 and 3 more"
    )


def test_without_a_prior_f1_is_that_of_the_counts() -> None:
    counts = counted(correct=[3, 1, 0, 6], total=[4, 3, 0, 7])
    difficulty = ClassDifficulty(4, statistic="f1")

    difficulty.update(counts)

    assert torch.equal((1 - difficulty.difficulty)[[0, 1, 3]], counts.class_f1[[0, 1, 3]])


@pytest.mark.parametrize("prior_strength", [0.0, 2.0])
@pytest.mark.parametrize("statistic", get_args(Statistic))
def test_counts_may_be_on_another_device_than_the_module(
    statistic: Statistic, prior_strength: float
) -> None:
    difficulty = ClassDifficulty(3, statistic=statistic, prior_strength=prior_strength).to("meta")

    difficulty.update(counted(correct=[3, 1, 0], total=[4, 2, 0]))

    assert difficulty.difficulty.device.type == "meta"
    assert difficulty.difficulty.shape == (3,)


@pytest.mark.parametrize("statistic", ["f1", "loss"])
def test_no_statistic_waits_for_the_device(statistic: Statistic) -> None:
    difficulty = ClassDifficulty(3, statistic=statistic, warmup_epochs=1, update_every=2)

    with NoHostSync():
        difficulty.observe(torch.eye(3), torch.tensor([0, 2, -1]))
        difficulty.step()

    assert difficulty.difficulty.isnan().tolist() == [False, True, False]
