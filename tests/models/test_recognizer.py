"""Heads on a backbone."""

import pytest
import torch
from torch import nn

from cdb_video.errors import ConfigError
from cdb_video.models.base import Normalization
from cdb_video.models.recognizer import Recognizer


class FirstPixels(nn.Module):
    """A backbone one can count by hand: the first four values of a clip's first channel."""

    num_features = 4
    normalization = Normalization(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def forward(self, clips):
        return clips[:, 0].flatten(1)[:, :4]


def test_every_head_gives_its_own_logits():
    model = Recognizer(FirstPixels(), num_classes={"verb": 3, "noun": 5}, dropout=0.0)

    logits = model(torch.randn(2, 3, 2, 2, 2))

    assert {head: tuple(values.shape) for head, values in logits.items()} == {
        "verb": (2, 3),
        "noun": (2, 5),
    }
    assert list(model.heads) == ["verb", "noun"]


def test_logits_are_linear_in_the_features():
    model = Recognizer(FirstPixels(), num_classes={"verb": 3}).eval()
    clips = torch.randn(2, 3, 2, 2, 2)

    features, logits = model.features(clips), model(clips)["verb"]

    head = model.heads["verb"]
    torch.testing.assert_close(logits, features @ head.weight.T + head.bias)


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    model = Recognizer(FirstPixels(), num_classes={"verb": 3}, dropout=0.9)
    clips = torch.randn(4, 3, 2, 2, 2)

    assert not torch.equal(model(clips)["verb"], model(clips)["verb"])
    model.eval()
    assert torch.equal(model(clips)["verb"], model(clips)["verb"])


def test_first_logits_are_small():
    torch.manual_seed(0)
    model = Recognizer(FirstPixels(), num_classes={"verb": 1000})

    head = model.heads["verb"]

    assert head.weight.std().item() == pytest.approx(0.01, rel=0.1)  # 4,000 draws: s.e. 1.1 %
    assert not head.bias.any()


@pytest.mark.parametrize("name", ["label.verb", "type", ""])
def test_a_head_name_that_pytorch_cannot_hold_is_refused(name):
    with pytest.raises(ConfigError, match=r"model\.heads: "):
        Recognizer(FirstPixels(), num_classes={name: 3})


def test_a_model_without_heads_is_refused():
    with pytest.raises(ConfigError, match=r"model\.heads: none"):
        Recognizer(FirstPixels(), num_classes={})
