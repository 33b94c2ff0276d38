"""One loss a head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdb_video.counts import ClassCounts
from cdb_video.losses import CDBLoss, CrossEntropyLoss, MultiHeadLoss, cdb_weights

HEADS = {"verb": 3, "noun": 4}


def made(**head_weights: float) -> MultiHeadLoss:
    losses: dict[str, nn.Module] = {"verb": CDBLoss(3), "noun": CrossEntropyLoss(4)}
    return MultiHeadLoss(losses, head_weights=head_weights)


def batch() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    logits = {head: torch.randn(8, k, generator=generator) for head, k in HEADS.items()}
    labels = {head: torch.randint(k, (8,), generator=generator) for head, k in HEADS.items()}
    return logits, labels


def counted() -> dict[str, ClassCounts]:
    logits, labels = batch()
    counts = {head: ClassCounts(k) for head, k in HEADS.items()}
    for head, of_head in counts.items():
        of_head.update(logits[head], labels[head])
    return counts


def test_each_head_has_its_own_loss() -> None:
    logits, labels = batch()

    losses = made()(logits, labels)

    assert list(losses) == ["verb", "noun"]
    for head, loss in losses.items():
        assert torch.equal(loss, F.cross_entropy(logits[head], labels[head]))


def test_the_total_weighs_the_heads_and_one_where_not_given() -> None:
    losses = {"verb": torch.tensor(2.0), "noun": torch.tensor(3.0)}

    assert float(made().total(losses)) == 5
    assert float(made(noun=0.5).total(losses)) == 3.5


def test_the_gradient_of_the_total_is_weighed_too() -> None:
    logits, labels = batch()
    for tensor in logits.values():
        tensor.requires_grad_()
    criterion = made(noun=0.0)

    criterion.total(criterion(logits, labels)).backward()

    assert logits["verb"].grad is not None
    assert logits["noun"].grad is not None
    assert (logits["verb"].grad != 0).all()
    assert (logits["noun"].grad == 0).all()


def test_counts_reach_the_loss_that_measures_and_no_other() -> None:
    criterion, counts = made(), counted()

    criterion.update(counts)

    accuracy = counts["verb"].class_accuracy
    torch.testing.assert_close(criterion.class_weights("verb"), cdb_weights(accuracy).float())
    assert list(criterion.difficulties) == ["verb"]
    assert torch.equal(criterion.difficulties["verb"].difficulty, 1 - accuracy)
    assert not torch.equal(criterion.class_weights("verb"), torch.ones(3))
    assert torch.equal(criterion.class_weights("noun"), torch.ones(4))


def test_an_epoch_without_counts_leaves_the_weights() -> None:
    criterion = made()
    criterion.update(counted())
    before = criterion.class_weights("verb").clone()

    criterion.update({})

    assert torch.equal(criterion.class_weights("verb"), before)


def test_a_head_without_a_labelled_clip_keeps_its_weights() -> None:
    criterion, counts = made(), counted()
    criterion.update(counts)
    before = {key: value.clone() for key, value in criterion.state_dict().items()}

    criterion.update({**counts, "verb": ClassCounts(3)})

    for key, value in criterion.state_dict().items():
        assert torch.equal(value.nan_to_num(-1), before[key].nan_to_num(-1)), key


def test_counts_of_an_unknown_head_are_refused() -> None:
    with pytest.raises(ValueError, match=r"counts names 'nuon'; .*\['verb', 'noun'\]"):
        made().update({"nuon": ClassCounts(4)})


def test_the_state_of_every_head_is_saved() -> None:
    first, resumed = made(), made()
    first.update(counted())

    resumed.load_state_dict(first.state_dict())

    assert torch.equal(resumed.class_weights("verb"), first.class_weights("verb"))


def test_a_weight_for_an_unknown_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"head_weights names 'nuon'; .*\['verb', 'noun'\]"):
        made(nuon=2.0)
