"""Long tails: class counts as published, and which images are kept."""

from __future__ import annotations

import pytest

from cdb_video.datasets.long_tail import LongTail, divide, exponential_counts, two_class_counts
from cdb_video.errors import DataError


# Totals and smallest class of CIFAR-100-LT: counted with the rule of the released CDB code, which
# holds 25 of 500 out first, and with the one of Cui et al., of all 500.
@pytest.mark.parametrize(
    ("imbalance", "smallest", "of_475", "of_500"),
    [
        (200, 2, 9_022, 9_502),
        (100, 4, 10_302, 10_847),
        (50, 9, 11_975, 12_608),
        (20, 23, 15_111, 15_907),
        (10, 47, 18_591, 19_573),
        (1, 475, 47_500, 50_000),
    ],
)
def test_counts_of_cifar_100_lt_are_the_published_ones(
    imbalance: float, smallest: int, of_475: int, of_500: int
) -> None:
    cdb = exponential_counts(100, largest=475, imbalance=imbalance)
    common = exponential_counts(100, largest=500, imbalance=imbalance)

    assert (cdb[0], cdb[-1], sum(cdb)) == (475, smallest, of_475)
    assert (common[0], sum(common)) == (500, of_500)


def test_counts_of_cifar_10_lt_are_the_published_ones() -> None:
    # 12,406 images, 5,000 to 50 (Cao et al., NeurIPS 2019).
    counts = exponential_counts(10, largest=5000, imbalance=100)

    assert counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(counts) == 12_406
    # The recipe's: of the 4,975 that are left after 25 are held out.
    assert sum(exponential_counts(10, largest=4975, imbalance=100)) == 12_341


def test_a_tail_has_one_rule() -> None:
    for rules in ({}, {"imbalance": 10.0, "majority_share": 0.9}):
        with pytest.raises(ValueError, match="give one of the two"):
            LongTail(**rules)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.9, [4500, 500]),
        (0.95, [4750, 250]),
        (0.98, [4900, 100]),
        (0.99, [4950, 50]),
        (0.995, [4975, 25]),
    ],
)
def test_two_classes_share_5000_images(share: float, expected: list[int]) -> None:
    assert two_class_counts(5000, majority_share=share) == expected


def test_a_class_never_vanishes() -> None:
    # 10 / 100 ** (c / 2) is 10, 1 and 0.1.
    assert exponential_counts(3, largest=10, imbalance=100) == [10, 1, 1]


def test_in_the_files_order_the_last_are_held_out_and_the_first_are_kept() -> None:
    by_class = {"a": [0, 2, 4, 6, 8], "b": [1, 3, 5, 7, 9]}
    # 3 of each are left: 3 and int(3 / 3) = 1.
    found = divide(by_class, tail=LongTail(imbalance=3), val_per_class=2, seed=None)

    assert found == {"train": [0, 1, 2, 4], "val": [6, 7, 8, 9]}


def test_a_seed_draws_them_and_another_draws_others_with_the_same_counts() -> None:
    by_class = {"a": list(range(50)), "b": list(range(50, 100))}

    def drawn(seed: int) -> dict[str, list[int]]:
        return divide(by_class, tail=LongTail(imbalance=10), val_per_class=5, seed=seed)

    assert drawn(0) == drawn(0)
    assert drawn(0)["train"] != drawn(1)["train"]
    assert not set(drawn(0)["train"]) & set(drawn(0)["val"])
    for seed in (0, 1):
        kept = [sum(image < 50 for image in part) for part in drawn(seed).values()]
        assert kept == [45, 5]
        assert {name: len(part) for name, part in drawn(seed).items()} == {"train": 49, "val": 10}


def test_too_few_images_are_named() -> None:
    with pytest.raises(DataError, match="val_per_class=3: class 'b' has 3 training images"):
        divide({"a": range(9), "b": range(3)}, tail=None, val_per_class=3, seed=None)
    with pytest.raises(DataError, match="long_tail: class 'b' has no training image"):
        divide({"a": range(9), "b": []}, tail=LongTail(imbalance=2), val_per_class=0, seed=None)
    two = LongTail(majority_share=0.9, num_images=100)
    with pytest.raises(DataError, match="num_images=100: 90 images of the first class, of which"):
        two.counts([80, 80])
    with pytest.raises(DataError, match="is for two classes, and there are 3"):
        two.counts([90, 90, 90])
