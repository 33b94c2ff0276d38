"""Class counts against a loop of plain Python."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cdb_video.counts import ClassCounts, ShotGroup, all_reduce_counts
from tests.host_sync import NoHostSync

NAN = math.nan


def by_loop(scores: Tensor, target: Tensor) -> list[list[int]]:
    """Rows correct, top-5 correct, predicted and total, (4, K)."""
    classes = scores.shape[1]
    correct, top5, predicted, total = table = [[0] * classes for _ in range(4)]
    for row, label in zip(scores.tolist(), target.tolist(), strict=True):
        if label < 0:
            continue
        # `sorted` is stable: of equal scores the lower index comes first.
        ranking = sorted(range(classes), key=lambda c: -row[c])
        correct[label] += ranking[0] == label
        top5[label] += label in ranking[:5]
        predicted[ranking[0]] += 1
        total[label] += 1
    return table


def table(counts: ClassCounts) -> list[list[int]]:
    rows = (counts.correct, counts.top5_correct, counts.predicted, counts.total)
    return [row.tolist() for row in rows]


def counted(scores: list[list[float]], target: list[int]) -> ClassCounts:
    counts = ClassCounts(len(scores[0]))
    counts.update(torch.tensor(scores), torch.tensor(target))
    return counts


@pytest.mark.parametrize("classes", [1, 2, 5, 6, 30])
def test_counts_equal_a_loop_with_ties_unlabelled_clips_and_absent_classes(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    for _ in range(20):
        # Few levels, so that most rows tie, also around the fifth place.
        scores = torch.randint(3, (25, classes), generator=generator).float()
        target = torch.randint(-1, max(1, classes - 2), (25,), generator=generator)
        counts = ClassCounts(classes)

        counts.update(scores, target)

        assert table(counts) == by_loop(scores, target)


rows = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=7, max_size=7), st.integers(-1, 6)),
    min_size=1,
    max_size=20,
)


@given(rows=rows, cut=st.integers(0, 20))
@settings(deadline=None, database=None)
def test_adding_in_parts_equals_all_at_once(rows: list[tuple[list[int], int]], cut: int) -> None:
    scores = torch.tensor([row for row, _ in rows]).float()
    target = torch.tensor([label for _, label in rows])
    whole, parts = ClassCounts(7), ClassCounts(7)

    whole.update(scores, target)
    parts.update(scores[:cut], target[:cut])
    parts.update(scores[cut:], target[cut:])

    assert table(whole) == table(parts) == by_loop(scores, target)


def test_top5_with_ties_takes_the_lowest_indices() -> None:
    counts = counted([[1.0] * 7] * 3, [4, 5, 0])

    # All equal: the prediction is class 0, the first five are classes 0 to 4.
    assert counts.predicted.tolist() == [3, 0, 0, 0, 0, 0, 0]
    assert counts.correct.tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert counts.top5_correct.tolist() == [1, 0, 0, 0, 1, 0, 0]
    assert counts.top1 == pytest.approx(1 / 3)
    assert counts.top5 == pytest.approx(2 / 3)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_scores_of_nan_are_never_right(label: int) -> None:
    assert counted([[NAN] * 3], [label]).correct.tolist() == [0, 0, 0]
    assert counted([[0.0, 9.0, NAN]], [1]).correct.tolist() == [0, 0, 0]


def test_class_accuracy_by_hand() -> None:
    counts = counted([[2, 1, 0, 0], [2, 1, 0, 0], [0, 1, 0, 0], [9, 0, 0, 0.0]], [0, 1, 1, -1])

    assert counts.class_accuracy.tolist()[:2] == [1.0, 0.5]
    assert counts.class_accuracy[2:].isnan().all()
    assert counts.class_accuracy.dtype == torch.float64
    assert counts.num_classes_present == 2
    assert counts.mean_class_accuracy == 0.75
    assert counts.top1 == pytest.approx(2 / 3)


def test_class_f1_by_hand() -> None:
    # Classes 0, 1, 1, 2 taken for 0, 1, 0, 1; class 3 is taken for nothing and has no clip.
    counts = counted(
        [[9, 0, 0, 0], [0, 9, 0, 0], [9, 0, 0, 0], [0, 9, 0, 0], [9, 0, 0, 0.0]], [0, 1, 1, 2, -1]
    )

    # Right 1, 1, 0; clips 1, 2, 1; predicted 2, 2, 0: 2/3, 2/4, 0/1.
    assert counts.class_f1.tolist()[:3] == pytest.approx([2 / 3, 1 / 2, 0])
    assert math.isnan(counts.class_f1[3])


def test_class_loss_by_hand() -> None:
    # Probabilities 1/2 and 1/8 of class 0, 3/4 of class 1, in logarithms, moved by a constant.
    logits = torch.tensor([[1 / 2, 1 / 2], [1 / 8, 7 / 8], [1 / 4, 3 / 4], [0.1, 0.9]]).log() + 5
    counts = ClassCounts(3)
    counts.update(
        torch.nn.functional.pad(logits, (0, 1), value=-math.inf), torch.tensor([0, 0, 1, -1])
    )

    # (log 2 + log 8) / 2; units of 2^-20, of which rounding takes half a one.
    assert counts.class_loss.tolist()[:2] == pytest.approx(
        [2 * math.log(2), math.log(4 / 3)], abs=1e-6
    )
    assert math.isnan(counts.class_loss[2])
    assert counts.loss.tolist() == [
        pytest.approx(2**20 * math.log(16), abs=2),
        pytest.approx(2**20 * math.log(4 / 3), abs=2),
        0,
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_losses_of_any_type_of_scores_are_those_of_their_values(dtype: torch.dtype) -> None:
    scores, target = torch.tensor([[3, 0, -1], [0, 2, 1]]), torch.tensor([1, 2])
    expected, counts = ClassCounts(3), ClassCounts(3)

    expected.update(scores.float(), target)
    counts.update(scores.to(dtype), target)

    assert int((counts.loss - expected.loss).abs().max()) <= 1


def test_a_loss_that_is_infinite_or_nan_counts_100() -> None:
    counts = counted([[NAN, 0.0], [-math.inf, 0.0], [-1e9, 0.0], [0.0, NAN]], [0, 0, 0, 1])

    assert counts.class_loss.tolist() == [100, 100]


def test_counts_over_a_table_live_in_it() -> None:
    table = torch.zeros(5, 2, dtype=torch.int64)

    ClassCounts.over(table).update(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    ClassCounts.over(table).update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))

    assert table[:4].tolist() == [[2, 0], [2, 1], [3, 0], [2, 1]]
    # log(1 + 1/e) twice, and log(1 + e), in units of 2^-20.
    assert table[4].tolist() == pytest.approx([2**20 * 0.6265233750, 2**20 * 1.3132616875], abs=2)


@given(
    seed=st.integers(0, 10_000),
    classes=st.sampled_from([1, 2, 7, 19, 106]),
    scale=st.sampled_from([0.1, 3.0, 50.0]),
    ranks=st.lists(st.integers(0, 3), min_size=1, max_size=24),
)
@settings(deadline=None, database=None)
def test_over_any_ranks_the_losses_sum_to_the_same_bits(
    seed: int, classes: int, scale: float, ranks: list[int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(len(ranks), classes, generator=generator)
    target = torch.randint(-1, classes, (len(ranks),), generator=generator)
    whole = ClassCounts(classes)
    whole.update(logits, target)

    summed = torch.zeros(5, classes, dtype=torch.int64)
    for rank in range(4):
        mine = torch.tensor(ranks) == rank
        part = ClassCounts(classes)
        part.update(logits[mine], target[mine])
        summed += part.to_dict()["table"]

    assert torch.equal(summed, whole.to_dict()["table"])


def test_accuracy_of_nothing_is_nan() -> None:
    counts = ClassCounts(3)

    assert math.isnan(counts.top1)
    assert math.isnan(counts.top5)
    assert math.isnan(counts.mean_class_accuracy)
    assert counts.num_classes_present == 0
    assert repr(counts) == "ClassCounts(3 classes, 0 clips, top-1 nan)"


def test_more_than_100_is_many_20_to_100_medium_fewer_than_20_few() -> None:
    # Class c is right in c of 5 clips.
    scores = torch.zeros(30, 6)
    target = torch.arange(6).repeat_interleave(5)
    for c in range(6):
        wrong = (c + 1) % 6
        scores[5 * c : 5 * c + c, c] = 1
        scores[5 * c + c : 5 * c + 5, wrong] = 1
    counts = ClassCounts(6)
    counts.update(scores, target)

    groups = counts.by_shot(torch.tensor([101, 100, 20, 19, 0, 5000]))

    assert groups == {
        "many": ShotGroup(pytest.approx((0 + 1) / 2), 2),
        "medium": ShotGroup(pytest.approx((0.2 + 0.4) / 2), 2),
        "few": ShotGroup(pytest.approx((0.6 + 0.8) / 2), 2),
    }


def test_a_shot_group_without_a_class_of_the_split_is_none() -> None:
    counts = counted([[1.0, 0.0, 0.0]], [0])

    groups = counts.by_shot(torch.tensor([500, 50, 500]))

    # Class 1 is medium-shot and has no clip here; no class is few-shot.
    assert groups == {"many": (1.0, 1), "medium": (None, 0), "few": (None, 0)}


def test_the_dict_gives_the_counts_again() -> None:
    counts = counted([[1.0, 0.0], [1.0, 0.0]], [0, 1])

    again = ClassCounts.from_dict(counts.to_dict())

    assert table(again) == table(counts)
    again.update(torch.ones(1, 2), torch.tensor([0]))
    assert int(counts.total.sum()) == 2
    assert int(again.total.sum()) == 3


def test_a_copy_on_the_cpu_is_a_copy() -> None:
    counts = counted([[1.0, 0.0]], [0])

    copy = counts.cpu()
    counts.reset()

    assert table(counts) == [[0, 0]] * 4
    # Correct, top-5 correct, predicted, total.
    assert table(copy) == [[1, 0]] * 4


def test_all_reduce_of_one_process_changes_nothing() -> None:
    counts = counted([[1.0, 0.0]], [1])
    before = table(counts)

    counts.all_reduce()

    assert table(counts) == before


def test_counting_never_waits_for_the_device() -> None:
    counts = ClassCounts(3)

    with NoHostSync():
        counts.update(torch.eye(3), torch.tensor([0, 1, -1]))

    assert counts.correct.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("scores", "target", "message"),
    [
        (torch.ones(2, 4), torch.zeros(2).long(), r"scores must be \(N, 3\), got \(2, 4\)"),
        (torch.ones(3), torch.zeros(3).long(), r"scores must be \(N, 3\), got \(3,\)"),
        (torch.ones(2, 3), torch.zeros(3).long(), r"target must be \(2,\), got \(3,\)"),
        (
            torch.ones(3, 3),
            torch.tensor([2, -1, 3]),
            r"target\[2\] must be in \[0, 3\) or negative, got 3",
        ),
    ],
)
def test_a_bad_batch_is_not_counted(scores: Tensor, target: Tensor, message: str) -> None:
    counts = ClassCounts(3)

    with pytest.raises(ValueError, match=message):
        counts.update(scores, target)

    assert not counts.to_dict()["table"].any()


def test_other_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        ClassCounts(0)
    with pytest.raises(ValueError, match=r"train_counts must be \(3,\), got \(2,\)"):
        ClassCounts(3).by_shot(torch.ones(2))


def test_the_counts_of_all_heads_are_summed_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [ClassCounts(2), ClassCounts(3)]
    for counts in heads:
        counts.update(torch.eye(counts.num_classes), torch.arange(counts.num_classes))
    sent: list[tuple[int, ...]] = []
    real = dist.all_reduce

    def send(table: torch.Tensor) -> None:
        sent.append(tuple(table.shape))
        real(table)
        table *= 2  # as another rank with the same counts would

    monkeypatch.setattr(dist, "all_reduce", send)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        all_reduce_counts(heads)
    finally:
        dist.destroy_process_group()

    assert sent == [(5, 5)]
    assert [counts.correct.tolist() for counts in heads] == [[2, 2], [2, 2, 2]]
