"""Expected numbers are worked by hand, from a table of Student's t where one is needed."""

from dataclasses import replace

import pytest

from cdb_video.experiments.statistics import Contrast, contrast, signed_points, with_holm


def contrast_of(differences: list[float]) -> Contrast:
    """Seeds 0, 1, ...: the reference has 0.5 at each."""
    return contrast(
        {seed: 0.5 + difference for seed, difference in enumerate(differences)},
        dict.fromkeys(range(len(differences)), 0.5),
        arm="cdb",
        reference="balanced_softmax",
        head="verb",
        figure="mean_class_accuracy",
    )


def test_five_pairs_by_hand() -> None:
    one = contrast_of([0.03, 0.01, 0.05, 0.02, 0.04])

    # sd = sqrt((4 + 1 + 0 + 1 + 4) / 4) / 100 = 0.0158114; t(0.975, 4) = 2.776;
    # 2.776 * 0.0158114 / sqrt(5) = 0.01963.
    assert one.num_pairs == 5
    assert one.mean_difference == pytest.approx(0.03)
    assert one.smallest_detectable == pytest.approx(0.01963, abs=1e-5)
    assert one.interval == pytest.approx((0.01037, 0.04963), abs=1e-5)
    assert (one.wins, one.ties) == (5, 0)
    # Of the 2^5 signs only all plus and all minus are as extreme.
    assert one.p_value == pytest.approx(2 / 32)
    assert one.in_words() == "cdb v balanced_softmax: +3.0 ± 2.0: helps"


def test_pairs_are_of_equal_seeds_whatever_their_order() -> None:
    one = contrast(
        {3: 0.9, 1: 0.4, 2: 0.6, 7: 0.0},
        {1: 0.3, 2: 0.4, 3: 0.6, 8: 1.0},
        arm="a",
        reference="b",
        head="verb",
        figure="worst_fifth",
    )

    assert one.num_pairs == 3
    assert one.mean_difference == pytest.approx(0.2)  # of 0.1, 0.2 and 0.3
    assert one.interval == pytest.approx((0.2 - 0.2484, 0.2 + 0.2484), abs=1e-4)  # t = 4.303
    assert (one.arm, one.reference, one.head, one.figure) == ("a", "b", "verb", "worst_fifth")


def test_wilcoxon_ranks_the_differences() -> None:
    # The minus signs have ranks summing to 4. Seven subsets of {1, ..., 5} sum to 4 or less:
    # {}, {1}, {2}, {3}, {4}, {1, 2} and {1, 3}.
    one = contrast_of([0.01, 0.02, 0.03, -0.04, 0.05])

    assert one.p_value == pytest.approx(2 * 7 / 32)
    assert (one.wins, one.ties) == (4, 0)


def test_a_tie_is_a_pair_that_the_test_leaves_out() -> None:
    one = contrast_of([0.01, 0.02, 0.0, 0.03, 0.04])

    assert (one.num_pairs, one.wins, one.ties) == (5, 4, 1)
    assert one.p_value == pytest.approx(2 / 16)


def test_a_tie_survives_binary_fractions() -> None:
    assert 0.1 + 0.2 != 0.3

    one = contrast({0: 0.1 + 0.2}, {0: 0.3}, arm="a", reference="b", head="verb", figure="top1")

    assert (one.wins, one.ties) == (0, 1)


def test_equal_arms_have_an_interval_but_no_test() -> None:
    one = contrast_of([0.0, 0.0, 0.0])

    assert one.interval == (0, 0)
    assert one.p_value is None
    assert one.in_words() == "cdb v balanced_softmax: +0.0 ± 0.0: no worse"


def test_one_pair_decides_nothing() -> None:
    one = contrast_of([0.3])

    assert (one.num_pairs, one.wins) == (1, 1)
    assert (one.interval, one.p_value, one.smallest_detectable) == (None, None, None)
    assert one.in_words() == "cdb v balanced_softmax: +30.0 (one pair): undecided"


def test_arms_without_a_common_seed_are_refused() -> None:
    with pytest.raises(ValueError, match="'a' and 'b' have no seed in common"):
        contrast({0: 0.5}, {1: 0.5}, arm="a", reference="b", head="verb", figure="top1")


@pytest.mark.parametrize(
    ("mean", "low", "high", "verdict"),
    [
        (0.020, 0.001, 0.039, "helps"),
        (0.010, 0.001, 0.019, "helps"),  # a whole point is enough
        (0.009, 0.004, 0.014, "no worse"),  # surely above, but by too little
        (0.030, -0.002, 0.062, "no worse"),  # large, but not surely above
        (0.004, -0.005, 0.013, "no worse"),
        (-0.005, -0.009, -0.001, "no worse"),  # surely below, but by too little
        (0.000, -0.010, 0.010, "undecided"),  # the end itself is too low
        (0.004, -0.015, 0.023, "undecided"),
        (-0.009, -0.012, -0.006, "undecided"),
        (-0.015, -0.035, 0.005, "undecided"),
        (-0.010, -0.015, -0.005, "hurts"),
        (-0.020, -0.039, -0.001, "hurts"),
    ],
)
def test_verdicts(mean: float, low: float, high: float, verdict: str) -> None:
    one = replace(contrast_of([0.0, 0.0]), mean_difference=mean, interval=(low, high))

    assert one.verdict == verdict


def test_holm_by_hand() -> None:
    made = contrast_of([0.01, 0.02])
    contrasts = [
        replace(made, arm=arm, p_value=p_value)
        for arm, p_value in [("a", 0.04), ("b", None), ("c", 0.01), ("d", 0.03)]
    ]

    corrected = with_holm(contrasts)

    # Rising: 3 * 0.01, 2 * 0.03, and 1 * 0.04, which may not be below the 0.06 before it.
    assert [one.arm for one in corrected] == ["a", "b", "c", "d"]
    assert [one.p_holm for one in corrected] == pytest.approx([0.06, None, 0.03, 0.06])
    assert [one.p_value for one in corrected] == [0.04, None, 0.01, 0.03]


def test_a_corrected_p_is_at_most_one() -> None:
    made = contrast_of([0.01, 0.02])

    corrected = with_holm([replace(made, p_value=0.9), replace(made, p_value=0.6)])

    assert [one.p_holm for one in corrected] == [1, 1]
    assert with_holm([]) == []


def test_points_have_a_sign_and_zero_is_not_negative() -> None:
    assert [signed_points(x) for x in (0.0123, -0.05, -0.0001)] == ["+1.2", "-5.0", "+0.0"]
