"""CDB-S: the share of draws of each class, by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdb_video.counts import ClassCounts
from cdb_video.losses import CDBSampling, ClassDifficulty, cdb_weights
from tests.losses.measured import NAN, close, double


def measured(*accuracy: float, counts: list[int] | None = None, **options: Any) -> CDBSampling:
    """By default tau 1, which is easy by hand, and ten clips of every class."""
    options = {"tau": 1, **options}
    sampling = CDBSampling(torch.tensor(counts or [10] * len(accuracy)), **options)
    sampling.update(double(*accuracy))
    return sampling


def test_before_a_measurement_every_class_with_a_clip_is_drawn_equally_often() -> None:
    sampling = CDBSampling(torch.tensor([100, 1, 0, 7, 3]))

    close(sampling.probabilities, double(0.25, 0.25, 0, 0.25, 0.25))


def test_classes_are_drawn_by_difficulty_whatever_their_counts() -> None:
    # Difficulties 0.1, 0.4, 0.5.
    close(measured(0.9, 0.6, 0.5, counts=[900, 90, 9]).probabilities, double(0.1, 0.4, 0.5))


def test_tau_is_the_power_of_the_difficulty() -> None:
    # 0.2^2, 0.4^2, 0.6^2 = 4, 16, 36 of 56.
    close(measured(0.8, 0.6, 0.4, tau=2).probabilities, double(4, 16, 36) / 56)
    close(measured(0.8, 0.6, 0.4, tau=0).probabilities, double(1, 1, 1) / 3)


@pytest.mark.parametrize("tau", ["dynamic", "dynamic_release"])
def test_with_clips_of_every_class_the_shares_are_the_weights_of_the_loss(tau: Any) -> None:
    accuracy = double(0.9, 0.3, 0.55, 0.0)

    shares = measured(*accuracy.tolist(), tau=tau).probabilities

    close(shares, cdb_weights(accuracy, tau=tau) / 4)


@pytest.mark.parametrize("accuracy", [0.0, 0.5, NAN])
def test_a_class_without_clips_is_never_drawn_measured_or_not(accuracy: float) -> None:
    sampling = measured(0.8, accuracy, 0.4, counts=[5, 0, 5])

    close(sampling.probabilities, double(0.25, 0, 0.75))


def test_a_class_that_was_never_measured_is_drawn_as_the_average_one() -> None:
    # Weights 2 * 0.1 / 0.4 = 0.5 and 1.5, mean 1 over the measured; 1 for the third.
    close(measured(0.9, 0.7, NAN).probabilities, double(0.5, 1.5, 1) / 3)


def test_a_solved_class_is_not_drawn_unless_there_is_a_floor() -> None:
    floor = ClassDifficulty(2, floor=0.1)

    close(measured(1.0, 0.5).probabilities, double(0, 1))
    close(measured(1.0, 0.5, difficulty=floor).probabilities, double(1, 5) / 6)


def test_when_every_class_with_a_clip_is_solved_they_are_drawn_evenly() -> None:
    close(measured(1.0, 1.0, 1.0).probabilities, double(1, 1, 1) / 3)
    # The only class with a difficulty has no clip.
    close(measured(1.0, 1.0, 0.2, counts=[9, 1, 0]).probabilities, double(0.5, 0.5, 0))


def test_it_measures_as_its_difficulty_says() -> None:
    sampling = measured(0.8, 0.2, difficulty=ClassDifficulty(2, ema=0.5))
    sampling.update(double(0.2, 0.8))

    # Weights 1/3 and 2/3: accuracies 0.4 and 0.6.
    close(sampling.probabilities, double(0.6, 0.4))


def test_counts_are_a_measurement() -> None:
    sampling = CDBSampling(torch.tensor([5, 5]), tau=1)
    counts = ClassCounts(2)
    # Class 0 is right in 3 of 4 clips, class 1 in 1 of 4.
    scores = torch.eye(2)[torch.tensor([0, 0, 0, 1, 1, 0, 0, 0])]
    counts.update(scores, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))

    sampling.update(counts)

    close(sampling.probabilities, double(0.25, 0.75))


def test_a_loaded_state_draws_the_same() -> None:
    first = measured(0.9, 0.3, 0.7, difficulty=ClassDifficulty(3, ema=0.5))
    resumed = CDBSampling(torch.tensor([10, 10, 10]), tau=1, difficulty=ClassDifficulty(3, ema=0.5))

    resumed.load_state_dict(first.state_dict())

    assert torch.equal(resumed.probabilities, first.probabilities)
    for sampling in (first, resumed):
        sampling.update(double(0.1, 0.2, 0.3))
    assert torch.equal(resumed.probabilities, first.probabilities)


def test_a_loaded_state_leaves_the_counts_it_was_made_of() -> None:
    counts = torch.tensor([4, 2])
    resumed = CDBSampling(counts)

    resumed.load_state_dict(CDBSampling(torch.tensor([9, 0])).state_dict())

    assert resumed.probabilities.tolist() == [1, 0]
    assert counts.tolist() == [4, 2]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.one_of(st.floats(0, 1), st.just(NAN))),
        min_size=1,
        max_size=12,
    ).filter(lambda classes: any(n for n, _ in classes) and any(a == a for _, a in classes)),
    st.sampled_from(["dynamic", "dynamic_release", 0.0, 1.0, 5.0]),
)
@settings(deadline=None, database=None)
def test_shares_sum_to_1_and_follow_difficulty(classes: list[tuple[int, float]], tau: Any) -> None:
    counts, accuracy = zip(*classes, strict=True)

    shares = measured(*accuracy, counts=list(counts), tau=tau).probabilities

    assert float(shares.sum()) == pytest.approx(1, abs=1e-12)
    assert ((shares > 0) <= (torch.tensor(counts) > 0)).all()
    known = [
        (a, share)
        for n, a, share in zip(counts, accuracy, shares.tolist(), strict=True)
        if n > 0 and not math.isnan(a)
    ]
    falling = [share for _, share in sorted(known)]
    assert all(easier <= harder for harder, easier in pairwise(falling))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CDBSampling(torch.zeros(3)), "class_counts is 0 for every one of 3 classes"),
        (
            lambda: CDBSampling(torch.tensor([5.0, -1.0])),
            r"class_counts\[1\] must be a whole number >= 0, got -1",
        ),
        (lambda: CDBSampling(torch.ones(2, 3)), r"class_counts must be \(6,\), got \(2, 3\)"),
        (lambda: measured(0.5, 0.5, tau=-1), "tau must be a number >= 0 .*got -1"),
        (lambda: measured(0.5, 0.5, tau="max"), "tau must be .*got 'max'"),
        (lambda: measured(0.5, 2.0), r"measured\[1\] must be in \[0, 1\] or NaN, got 2.0"),
        (lambda: measured(0.5, counts=[1, 1]), "measured has 1 classes, expected 2"),
        (
            lambda: measured(0.5, 0.5, difficulty=ClassDifficulty(3)),
            "difficulty has 3 classes, expected 2",
        ),
    ],
)
def test_a_bad_value_is_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
