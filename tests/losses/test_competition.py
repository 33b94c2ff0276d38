"""Equalization and seesaw loss by hand, their coins and counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cdb_video.losses import EqualizationLoss, SeesawLoss
from tests.losses.shelf import COUNTS, K, batch, close, double, gradients_agree

# --- equalization ----------------------------------------------------------------------------

TWO_RARE = torch.tensor([8, 1, 1])


def equalization(gamma: float, **options: Any) -> EqualizationLoss:
    """Classes 1 and 2, with a tenth of the clips each, are rare."""
    return EqualizationLoss(3, class_counts=TWO_RARE, gamma=gamma, threshold=0.2, **options)


def test_equalization_leaves_rare_classes_out_by_hand() -> None:
    loss = equalization(1.0, reduction="none")(torch.zeros(3, 3), torch.tensor([0, 1, 2]))

    # Class 0 stands alone; the rare ones stand against class 0, and not against each other.
    close(loss, double(0, math.log(2), math.log(2)))


def test_in_eval_mode_the_coins_mean_stands_in_for_it() -> None:
    criterion = equalization(0.5, reduction="none").eval()

    loss = criterion(torch.zeros(2, 3), torch.tensor([0, 1]))

    # 1 + 1/2 + 1/2, and 1 + 1 + 1/2.
    close(loss, double(math.log(2), math.log(2.5)))


def test_rare_means_a_share_below_the_threshold() -> None:
    at_a_tenth = EqualizationLoss(3, class_counts=TWO_RARE, threshold=0.1)

    assert at_a_tenth.rare.tolist() == [False, False, False]
    assert equalization(0.9).rare.tolist() == [False, True, True]


def test_a_coin_is_tossed_for_every_clip_and_class() -> None:
    torch.manual_seed(0)
    criterion = equalization(0.9, reduction="none")

    loss = criterion(torch.zeros(4000, 3), torch.zeros(4000, dtype=torch.int64))

    # Against none, one or both of the rare classes: .81, .18 and .01 of the clips; the standard
    # deviation of the largest share is .0062.
    shares = [((loss.exp() - k).abs() < 1e-5).double().mean().item() for k in (1, 2, 3)]
    assert shares == pytest.approx([0.81, 0.18, 0.01], abs=0.02)


def test_the_coins_come_from_torchs_generator() -> None:
    criterion = equalization(0.5, reduction="none")
    logits, target = torch.zeros(64, 3), torch.zeros(64, dtype=torch.int64)

    torch.manual_seed(3)
    first, second = criterion(logits, target), criterion(logits, target)
    torch.manual_seed(3)

    assert torch.equal(criterion(logits, target), first)
    assert not torch.equal(second, first)


def test_it_says_how_many_classes_are_rare() -> None:
    balanced = torch.tensor([40, 30, 20, 10])

    assert equalization(0.9).num_rare == 2
    # Shares 0.9, 0.095, 0.004 and 0.001, and of the other ten per cent at least.
    assert EqualizationLoss(K, class_counts=COUNTS).num_rare == 2
    assert EqualizationLoss(K, class_counts=balanced).num_rare == 0


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"threshold": 0.0}])
@pytest.mark.parametrize("training", [True, False])
def test_equalization_without_coins_or_rare_classes_is_cross_entropy(
    options: dict[str, Any], training: bool
) -> None:
    logits, target = batch()
    criterion = EqualizationLoss(K, class_counts=COUNTS, reduction="none", **options)

    loss = criterion.train(training)(logits, target)

    assert torch.equal(loss, F.cross_entropy(logits, target, reduction="none"))


def test_a_rare_class_that_is_left_out_has_no_gradient_but_from_its_own_clips() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)

    equalization(1.0, reduction="sum")(logits, torch.tensor([0, 1])).backward()

    assert logits.grad is not None
    close(logits.grad, torch.tensor([[0.0, 0.0, 0.0], [0.5, -0.5, 0.0]]))


@pytest.mark.parametrize(("gamma", "training"), [(0.9, False), (1.0, True)])
def test_equalization_gradients_are_those_of_finite_differences(
    gamma: float, training: bool
) -> None:
    gradients_agree(EqualizationLoss(K, class_counts=COUNTS, gamma=gamma).train(training))


# --- seesaw ----------------------------------------------------------------------------------


def seesaw(counts: list[int], *, p: float, q: float) -> SeesawLoss:
    return SeesawLoss(len(counts), class_counts=torch.tensor(counts), p=p, q=q, reduction="none")


def test_mitigation_by_hand() -> None:
    # Equal logits, so no compensation. Class 1 has a quarter of the clips of class 0.
    loss = seesaw([8, 2], p=1, q=1)(torch.zeros(2, 2), torch.tensor([0, 1]))
    root = seesaw([8, 2], p=0.5, q=1)(torch.zeros(2, 2), torch.tensor([0, 1]))

    close(loss, double(math.log(1 + 1 / 4), math.log(1 + 1)))
    close(root, double(math.log(1 + 1 / 2), math.log(1 + 1)))


def test_compensation_by_hand() -> None:
    # s = (1/4, 3/4): mistaken for class 1, by (3)^2; class 1 itself is not mistaken.
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])

    loss = seesaw([5, 5], p=1, q=2)(logits, torch.tensor([0, 1]))

    close(loss, double(math.log(1 + 9 * 3), math.log(1 + 1 / 3)))


def test_both_together_by_hand() -> None:
    # s as above: e^z = 3 for class 1, times 1/4 for its count and 9 for the mistake.
    loss = seesaw([8, 2], p=1, q=2)(torch.tensor([[0.0, math.log(3)]]), torch.tensor([0]))

    close(loss, double(math.log(1 + 3 * 9 / 4)))


def test_the_own_score_that_is_divided_by_is_at_least_a_hundredth() -> None:
    # s = (0.001, 0.999).
    loss = seesaw([5, 5], p=1, q=1)(torch.tensor([[0.0, math.log(999)]]), torch.tensor([0]))

    close(loss, double(math.log(1 + 999 * 99.9)), 1e-4)


def test_a_class_without_clips_counts_as_one_of_one_clip() -> None:
    loss = seesaw([4, 0], p=1, q=0)(torch.zeros(2, 2), torch.tensor([0, 1]))

    close(loss, double(math.log(1 + 1 / 4), math.log(2)))


def test_seesaw_with_p_and_q_0_is_cross_entropy() -> None:
    logits, target = batch()

    loss = SeesawLoss(K, class_counts=COUNTS, p=0, q=0, reduction="none")(logits, target)

    assert torch.equal(loss, F.cross_entropy(logits, target, reduction="none"))


def test_equal_counts_and_no_compensation_give_cross_entropy() -> None:
    logits, target = batch()

    loss = SeesawLoss(K, class_counts=torch.full((K,), 7), q=0)(logits, target)

    close(loss, F.cross_entropy(logits, target))


def test_mitigation_gradients_are_those_of_finite_differences() -> None:
    gradients_agree(SeesawLoss(K, class_counts=COUNTS, q=0))


def test_the_scores_in_the_factor_are_constants() -> None:
    criterion = SeesawLoss(2, class_counts=torch.tensor([8, 2]), p=1, q=2)
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64, requires_grad=True)

    criterion(logits, torch.tensor([0])).backward()

    # The softmax of (0, log 3 + log 9/4) is (4/31, 27/31).
    assert logits.grad is not None
    close(logits.grad, double(-27 / 31, 27 / 31)[None])


def test_training_does_not_change_its_counts() -> None:
    criterion = SeesawLoss(3, class_counts=torch.tensor([5, 4, 3]))

    criterion(torch.zeros(3, 3), torch.tensor([0, 0, 1]))

    assert criterion.class_counts.tolist() == [5, 4, 3]


# --- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: equalization(1.5), r"gamma must be in \[0, 1\], got 1.5"),
        (
            lambda: EqualizationLoss(K, class_counts=COUNTS, threshold=-0.1),
            r"threshold must be in \[0, 1\], got -0.1",
        ),
        (lambda: SeesawLoss(K, class_counts=COUNTS, p=-1), r"p must be in \[0, inf\), got -1"),
        (
            lambda: SeesawLoss(K, class_counts=COUNTS, q=math.nan),
            r"q must be in \[0, inf\), got nan",
        ),
    ],
)
def test_a_bad_value_is_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
