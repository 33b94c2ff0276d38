"""The shelf under CDB and deferred weights, with soft targets and label smoothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdb_video.losses import LOSSES, PER_SAMPLE_BASES, CDBLoss, DeferredReweighting
from tests.losses.shelf import COUNTS, FORMS, K, batch, close, made, seeded

# --- under CDB and deferred weights ----------------------------------------------------------


@pytest.mark.parametrize("name", PER_SAMPLE_BASES)
def test_cdb_weighs_it(name: str) -> None:
    logits, target = batch()
    criterion = CDBLoss(K, tau=1, base=made(name, reduction="none"), reduction="none")
    criterion.update(torch.tensor([0.75, 0.5, 0.5, 0.25]))

    loss = seeded(criterion, logits, target)

    # Difficulties 1/4, 1/2, 1/2, 3/4 have mean 1/2.
    weights = torch.tensor([0.5, 1.0, 1.0, 1.5])
    close(loss, weights[target] * seeded(made(name, reduction="none"), logits, target))


@pytest.mark.parametrize("name", PER_SAMPLE_BASES)
def test_deferred_weights_are_put_on_it(name: str) -> None:
    logits, target = batch()
    target[0] = -1
    options: dict[str, Any] = {"reduction": "none", "ignore_index": -1}
    criterion = DeferredReweighting(
        K, class_counts=COUNTS, base=made(name, **options), defer=0.0, beta=0.5, **options
    )

    loss = seeded(criterion, logits, target)

    expected = criterion.class_weights[target] * seeded(made(name, **options), logits, target)
    close(loss, expected)
    for key, value in made_and_run(name, logits, target, **options).state_dict().items():
        assert torch.equal(criterion.state_dict()[f"base.{key}"], value), key


def made_and_run(name: str, logits: Tensor, target: Tensor, **options: Any) -> nn.Module:
    criterion = made(name, **options)
    criterion(logits, target)
    return criterion


@pytest.mark.parametrize("own", [-1, 3, -100])
@pytest.mark.parametrize("name", PER_SAMPLE_BASES)
def test_ignored_clips_are_so_for_a_base_with_an_ignore_index_of_its_own(
    name: str, own: int
) -> None:
    logits, target = batch(40)
    target[target == 3] = 2
    target[::4] = -1
    labelled = target != -1
    base = made(name, reduction="none", ignore_index=own)
    criterion = CDBLoss(K, base=base, reduction="none", ignore_index=-1)

    loss = seeded(criterion, logits, target)

    expected = seeded(made(name, reduction="none", ignore_index=-1), logits, target)
    assert torch.equal(loss, expected)
    if name == "recall":
        # Row 3 is the total of each class.
        assert torch.equal(base.observed[3], target[labelled].bincount(minlength=K))


# --- soft targets ----------------------------------------------------------------------------

SOFT_BASES = ["cross_entropy", "weighted", "class_balanced", "balanced_softmax", "logit_adjusted"]
SOFT = {*SOFT_BASES, "cdb"}
SMOOTHED = SOFT | {"recall"}


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", sorted(SOFT))
def test_probabilities_give_the_mean_of_their_labels_losses(
    name: str, label_smoothing: float
) -> None:
    logits, target = batch()
    other = (target + 1) % K
    criterion = made(name, label_smoothing=label_smoothing)

    mixed = criterion(logits, 0.25 * F.one_hot(target, K) + 0.75 * F.one_hot(other, K))

    close(mixed, 0.25 * criterion(logits, target) + 0.75 * criterion(logits, other))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*SOFT_BASES, "deferred"])
def test_cdb_over_it_takes_probabilities_too(
    name: str, dtype: torch.dtype, label_smoothing: float
) -> None:
    logits, target = batch(dtype=dtype)
    other = (target + 1) % K
    base = made(name, reduction="none", label_smoothing=label_smoothing)
    criterion = CDBLoss(K, tau=1, base=base, reduction="none")
    criterion.update(torch.tensor([0.75, 0.5, 0.5, 0.25]))

    mixed = criterion(logits, 0.25 * F.one_hot(target, K) + 0.75 * F.one_hot(other, K))

    # Difficulties 1/4, 1/2, 1/2, 3/4 have mean 1/2.
    weights = torch.tensor([0.5, 1.0, 1.0, 1.5])
    expected = 0.25 * weights[target] * base(logits, target)
    expected += 0.75 * weights[other] * base(logits, other)
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize("name", sorted(set(PER_SAMPLE_BASES) - SOFT))
def test_cdb_over_a_loss_that_needs_a_label_refuses_probabilities(name: str) -> None:
    logits, _ = batch()
    criterion = CDBLoss(K, base=made(name, reduction="none"))

    with pytest.raises(ValueError, match=r"target must be class indices for .*torch\.float32"):
        criterion(logits, logits.softmax(1))


@pytest.mark.parametrize("name", sorted(set(LOSSES) - SOFT))
def test_probabilities_are_refused_where_a_label_is_needed(name: str) -> None:
    logits, _ = batch()

    with pytest.raises(ValueError, match=r"target must be class indices for .*torch\.float32"):
        made(name)(logits, logits.softmax(1))


@pytest.mark.parametrize("name", sorted(SMOOTHED))
def test_label_smoothing_mixes_in_the_loss_of_every_class(name: str) -> None:
    logits, target = batch()
    plain, smoothed = made(name).eval(), made(name, label_smoothing=0.1).eval()
    weights = getattr(plain, "class_weights", torch.ones(K))
    # The smoothed part has the weight of the label, not of the class it falls on.
    unweighed = [
        weights[target] / weights[k] * made(name, reduction="none").eval()(logits, target * 0 + k)
        for k in range(K)
    ]

    expected = 0.9 * plain(logits, target) + 0.1 * torch.stack(unweighed).mean()

    close(smoothed(logits, target), expected)


@pytest.mark.parametrize("name", sorted(set(FORMS) - SMOOTHED - {"weighted effective", "deferred"}))
def test_label_smoothing_is_refused_where_it_has_no_meaning(name: str) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1: \w+Loss takes none"):
        made(name, label_smoothing=0.1)
