"""Which classes an epoch draws, each kind by hand, and drawn for real."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from cdb_video.clips.loader import TrainingOrder
from cdb_video.counts import ClassCounts
from cdb_video.losses import CDBSampling, ClassDifficulty
from cdb_video.training.class_sampling import ClassSampling, ClassSamplingKind

COUNTS = torch.tensor([16, 4, 0, 1])


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def shares(
    kind: ClassSamplingKind, *, epoch: int = 0, num_epochs: int = 10, counts: Tensor = COUNTS
) -> Tensor:
    cdb = CDBSampling(counts) if kind == "cdb" else None
    sampling = ClassSampling(kind, head="verb", class_counts=counts, cdb=cdb)
    return sampling.probabilities(epoch, num_epochs)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_sqrt_draws_by_the_square_root_of_the_count() -> None:
    close(shares("sqrt"), double(4, 2, 0, 1) / 7)


@pytest.mark.parametrize("epoch", [0, 9])
def test_class_balanced_draws_every_class_with_a_clip_equally_often(epoch: int) -> None:
    close(shares("class_balanced", epoch=epoch), double(1, 1, 0, 1) / 3)


def test_progressive_goes_from_the_counts_to_evenly_in_equal_steps() -> None:
    by_count, evenly = double(16, 4, 0, 1) / 21, double(1, 1, 0, 1) / 3

    close(shares("progressive", epoch=0, num_epochs=5), by_count)
    close(shares("progressive", epoch=1, num_epochs=5), 0.75 * by_count + 0.25 * evenly)
    close(shares("progressive", epoch=2, num_epochs=5), (by_count + evenly) / 2)
    close(shares("progressive", epoch=4, num_epochs=5), evenly)


def test_progressive_of_a_single_epoch_draws_by_the_counts() -> None:
    close(shares("progressive", num_epochs=1), double(16, 4, 0, 1) / 21)


@pytest.mark.parametrize("kind", ["sqrt", "class_balanced", "progressive", "cdb"])
@pytest.mark.parametrize("epoch", range(3))
def test_shares_are_of_fp64_and_sum_to_1(kind: ClassSamplingKind, epoch: int) -> None:
    counts = torch.randint(0, 500, (106,), generator=torch.Generator().manual_seed(epoch))

    drawn = shares(kind, epoch=epoch, num_epochs=3, counts=counts)

    assert drawn.dtype == torch.float64
    assert float(drawn.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.equal(drawn > 0, counts > 0)


def cdb_sampling(
    num_classes: int, *, counts: Tensor | None = None, **options: Any
) -> ClassSampling:
    counts = torch.full((num_classes,), 10) if counts is None else counts
    cdb = CDBSampling(counts, tau=1, difficulty=ClassDifficulty(num_classes, **options))
    return ClassSampling("cdb", head="verb", class_counts=counts, cdb=cdb)


def counts_of(correct: list[int], *, of: int) -> ClassCounts:
    """`of` clips of each class, this many right; the others are taken for the next class."""
    counts = ClassCounts(len(correct))
    for label, right in enumerate(correct):
        taken = torch.tensor([label] * right + [(label + 1) % len(correct)] * (of - right))
        counts.update(torch.nn.functional.one_hot(taken, len(correct)), torch.full((of,), label))
    return counts


def test_cdb_draws_by_difficulty_whatever_the_epoch() -> None:
    sampling = cdb_sampling(3)

    close(sampling.probabilities(0, 5), double(1, 1, 1) / 3)
    sampling.update(counts_of([9, 6, 5], of=10))

    close(sampling.probabilities(1, 5), double(0.1, 0.4, 0.5))
    close(sampling.probabilities(4, 5), double(0.1, 0.4, 0.5))


def test_a_measurement_changes_nothing_but_cdb() -> None:
    sampling = ClassSampling("sqrt", head="verb", class_counts=COUNTS)

    sampling.update(counts_of([0, 1, 2, 3], of=4))

    close(sampling.probabilities(0, 1), double(4, 2, 0, 1) / 7)


def test_cdb_draws_clips_of_hard_classes_more_often() -> None:
    # 100 clips: 80, 15 and 5 of three classes; the most frequent is the hardest, then the rarest.
    labels = torch.tensor([0] * 80 + [1] * 15 + [2] * 5)
    sampling = cdb_sampling(3, counts=torch.bincount(labels))
    sampling.update(counts_of([4, 9, 7], of=10))
    order = TrainingOrder(100, global_batch_size=10, seed=0)

    order.draw_classes(labels, sampling.probabilities(1, 10))

    draws: Counter[int] = Counter()
    for epoch in range(20):
        order.set_position(epoch)
        draws.update(int(labels[key[1]]) for step in order for key in step)
    # Shares 0.6, 0.1 and 0.3 of 2,000 draws, standard errors 22, 13 and 20.
    assert draws[0] == pytest.approx(1200, abs=66)
    assert draws[1] == pytest.approx(200, abs=40)
    assert draws[2] == pytest.approx(600, abs=61)


def test_a_class_without_clips_is_never_drawn_measured_or_not() -> None:
    sampling = cdb_sampling(3, counts=torch.tensor([5, 0, 5]))
    before = sampling.probabilities(0, 2)
    unmeasured = ClassCounts(3)
    unmeasured.update(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 0, 2]))

    sampling.update(unmeasured)

    close(before, double(0.5, 0, 0.5))
    # Right in half of the clips of class 0 and in none of class 2; class 1 has none.
    close(sampling.probabilities(1, 2), double(1 / 3, 0, 2 / 3))


def test_a_loaded_state_draws_the_same() -> None:
    first, resumed = cdb_sampling(3, ema=0.5), cdb_sampling(3, ema=0.5)
    first.update(counts_of([9, 3, 7], of=10))

    resumed.load_state_dict(first.state_dict())

    assert torch.equal(resumed.probabilities(1, 3), first.probabilities(1, 3))
    for sampling in (first, resumed):
        sampling.update(counts_of([1, 2, 3], of=10))
    assert torch.equal(resumed.probabilities(2, 3), first.probabilities(2, 3))
    assert not math.isclose(float(first.probabilities(2, 3)[0]), 1 / 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ClassSampling("square", head="verb", class_counts=COUNTS),  # type: ignore[arg-type]
            "kind must be one of sqrt, class_balanced, progressive, cdb, got 'square'",
        ),
        (lambda: ClassSampling("cdb", head="verb", class_counts=COUNTS), "kind='cdb': cdb is"),
        (
            lambda: ClassSampling(
                "sqrt", head="verb", class_counts=COUNTS, cdb=CDBSampling(COUNTS)
            ),
            "kind='sqrt': cdb is given for 'cdb' alone",
        ),
    ],
)
def test_a_bad_value_is_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
