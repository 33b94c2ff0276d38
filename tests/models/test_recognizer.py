"""Heads on a backbone."""

import pytest
import torch
from torch import nn

from cdb_video.build import build_model
from cdb_video.config import ModelConfig
from cdb_video.errors import ConfigError
from cdb_video.models.base import Normalization
from cdb_video.models.heads import CosineHead
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


def test_cosine_logits_do_not_depend_on_lengths():
    torch.manual_seed(0)
    head = CosineHead(8, 5)
    features = torch.randn(6, 8)
    before = head(features)

    lengths = torch.rand(6, 1) * 100 + 0.01
    with torch.no_grad():
        head.weight.mul_(torch.rand(5, 1) * 100 + 0.01)

    torch.testing.assert_close(head(lengths * features), before, rtol=0, atol=1e-4)


def test_cosine_logits_are_30_along_a_class_and_minus_30_against_it():
    head = CosineHead(3, 2)
    head.weight.data = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 4.0]])
    features = torch.tensor([[5.0, 0.0, 0.0], [0.0, -3.0, -4.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])

    # (0, 1, 0) and (0, 0.6, 0.8): a cosine of 0.6. Without a length there is no direction.
    expected = torch.tensor([[30.0, 0.0], [0.0, -30.0], [0.0, 18.0], [0.0, 0.0]])
    torch.testing.assert_close(head(features), expected, rtol=0, atol=1e-5)


def test_a_cosine_head_trains_on_features_of_nothing():
    head = CosineHead(3, 2)
    features = torch.zeros(1, 3, requires_grad=True)

    head(features).square().sum().backward()

    assert features.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


def test_the_configuration_chooses_the_type_of_every_head():
    def heads(head_type):
        config = ModelConfig(backbone="r3d_10", head_type=head_type)
        model = build_model(
            config, num_classes={"verb": 3, "noun": 5}, num_frames=4, crop_size=16
        ).eval()
        return model, model(torch.randn(2, 3, 4, 16, 16))

    cosine, logits = heads("cosine")
    linear, _ = heads("linear")

    assert [type(head) for head in cosine.heads.values()] == [CosineHead] * 2
    assert [type(head) for head in linear.heads.values()] == [nn.Linear] * 2
    assert {head: tuple(values.shape) for head, values in logits.items()} == {
        "verb": (2, 3),
        "noun": (2, 5),
    }
    # Not the 0.01 of linear heads: cosines of random vectors times 30.
    assert all(1 < values.detach().abs().max() <= 30 for values in logits.values())
