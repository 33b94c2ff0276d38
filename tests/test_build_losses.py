"""The `loss` section becomes losses: every name, every base, deferral, and LDAM with its head."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdb_video.config import BaseLossName
from cdb_video.config_file import parse_config
from cdb_video.errors import ConfigError
from cdb_video.losses import (
    LOSSES,
    PER_SAMPLE_BASES,
    effective_number_weights,
    inverse_frequency_weights,
)
from cdb_video.models.heads import COSINE_SCALE, CosineHead
from tests.built_losses import CLASSES, COUNTS, batch, built, loss_of, measured

FORMS = [{"name": name} for name in LOSSES]
FORMS += [{"name": "cdb", "base": base} for base in PER_SAMPLE_BASES]
FORMS += [form | {"defer": 0.5} for form in FORMS]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_every_loss_is_a_finite_sum_over_clips_to_which_unlabelled_ones_add_nothing(
    form: dict[str, Any],
) -> None:
    criterion = built(**form)
    criterion.update(measured())
    criterion.start_epoch(1, 2)
    criterion.eval()  # some count, or draw, while training
    logits, labels = batch()

    whole = loss_of(criterion, logits, labels)
    clips = [loss_of(criterion, logits[i : i + 1], labels[i : i + 1]) for i in range(12)]

    assert whole.shape == ()
    assert whole.isfinite()
    assert float(whole) > 0
    torch.testing.assert_close(torch.stack(clips).sum(), whole, rtol=1e-5, atol=1e-5)
    assert [float(loss) for loss in clips[::3]] == [0, 0, 0, 0]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_every_loss_has_a_finite_gradient_while_training(form: dict[str, Any]) -> None:
    logits, labels = batch()
    criterion = built(**form)
    criterion.start_epoch(1, 2)

    loss_of(criterion, logits.requires_grad_(), labels).backward()

    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[1::3].any()
    assert not logits.grad[::3].any()


def test_the_names_of_the_configuration_are_those_of_the_shelf() -> None:
    assert get_args(BaseLossName) == PER_SAMPLE_BASES
    assert {*PER_SAMPLE_BASES, "cdb"} == set(LOSSES)


def test_every_head_has_its_own_loss_of_its_own_classes() -> None:
    criterion = built(CLASSES, name="balanced_softmax", head_weights={"noun": 0.5})

    assert list(criterion.losses) == ["verb", "noun"]
    assert [criterion.class_weights(head).shape for head in CLASSES] == [(4,), (2,)]
    assert criterion.head_weights == {"verb": 1.0, "noun": 0.5}


# --- deferral --------------------------------------------------------------------------------

DRW = effective_number_weights(COUNTS, beta=0.9999)


@pytest.mark.parametrize(
    ("form", "weights"),
    [
        ({"name": "cross_entropy"}, DRW),
        ({"name": "ldam"}, DRW),
        ({"name": "cdb", "base": "balanced_softmax"}, DRW),
        ({"name": "weighted"}, inverse_frequency_weights(COUNTS)),
    ],
    ids=["cross_entropy", "ldam", "cdb", "weighted"],
)
def test_deferred_weights_are_on_from_their_share_of_the_epochs_on(
    form: dict[str, Any], weights: Tensor
) -> None:
    # Weights of their own would be on from the start: `weighted` without them is cross entropy.
    plain = built(**form | ({"name": "cross_entropy"} if form["name"] == "weighted" else {}))
    deferred = built(**form, defer=0.5)
    logits, labels = batch()
    labelled = labels >= 0
    before = loss_of(plain, logits, labels)
    clips = [loss_of(plain, logits[i : i + 1], labels[i : i + 1]) for i in range(12)]
    after = (weights[labels[labelled]] * torch.stack(clips)[labelled]).sum()

    losses = []
    for epoch in range(4):
        deferred.start_epoch(epoch, 4)
        losses.append(loss_of(deferred, logits, labels))

    torch.testing.assert_close(torch.stack(losses), torch.stack([before, before, after, after]))
    assert not torch.allclose(before, after)


def test_cdb_over_a_deferred_base_weighs_by_both() -> None:
    logits, labels = torch.zeros(1, 4), torch.tensor([2])
    criterion = built(name="cdb", tau=1, defer=0.5)
    criterion.update(measured())

    criterion.start_epoch(1, 2)

    # Difficulties 1/4, 2/4, 3/4, 1 with mean 5/8: class 2 has weight 6/5. -log 1/4 of the loss.
    expected = 6 / 5 * float(DRW[2]) * math.log(4)
    assert float(loss_of(criterion, logits, labels)) == pytest.approx(expected)


def test_a_deferral_of_0_weighs_from_the_start() -> None:
    logits, labels = torch.zeros(1, 4), torch.tensor([3])

    loss = loss_of(built(name="cross_entropy", defer=0.0), logits, labels)

    assert float(loss) == pytest.approx(float(DRW[3]) * math.log(4))


# --- ldam and its head -----------------------------------------------------------------------


@pytest.mark.parametrize("loss", [{"name": "ldam"}, {"name": "cdb", "base": "ldam"}])
def test_ldam_is_refused_without_a_cosine_head(loss: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"model\.head_type=linear: the ldam loss needs cosine"):
        parse_config({"loss": loss}, source="file.yaml")

    parse_config({"loss": loss, "model": {"head_type": "cosine"}}, source="file.yaml")
    # A base that is not used asks for nothing.
    parse_config({"loss": {"name": "cross_entropy", "base": "ldam"}}, source="file.yaml")


def test_the_margins_of_ldam_are_cosines_of_the_head() -> None:
    head: nn.Module = CosineHead(2, 4)
    head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    features = torch.tensor([[3.0, 4.0]])

    loss = loss_of(built(name="ldam"), head(features), torch.tensor([1]))

    # Cosines 0.6, 0.8, -0.6, -0.8; the margin of class 1 is 0.5 * (1 / 300)^(1/4).
    cosines = torch.tensor([[0.6, 0.8 - 0.5 * (1 / 300) ** 0.25, -0.6, -0.8]])
    expected = F.cross_entropy(COSINE_SCALE * cosines, torch.tensor([1]))
    torch.testing.assert_close(loss, expected)
