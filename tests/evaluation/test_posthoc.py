"""Corrected heads and scores, with numbers derived by hand."""

import pytest
import torch
from torch import nn

from cdb_video.errors import ConfigError
from cdb_video.evaluation import posthoc
from cdb_video.evaluation.posthoc import (
    adjust_predictions,
    balanced_batches,
    choose_tau,
    linear_heads,
    rescaled,
    retrained,
    tau_normalized,
)
from cdb_video.evaluation.predictions import HeadClasses, HeadPredictions, Predictions
from cdb_video.models.backbones import BACKBONES
from cdb_video.models.recognizer import Recognizer


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(posthoc, "NUM_STEPS", 200)


def make_head(weight, bias=None):
    weight = torch.tensor(weight)
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(torch.tensor(bias or [0.0] * len(weight)))
    return head


def class_accuracy(head, features, labels):
    right = head(features).argmax(1) == labels
    return [float(right[labels == c].double().mean()) for c in range(head.out_features)]


def test_logit_adjustment_divides_scores_by_the_prior():
    views = torch.tensor([[[0.7, 0.3], [0.7, 0.3]], [[1.0, 0.0], [0.8, 0.2]]])
    part = HeadPredictions(views.mean(1), views.half(), torch.tensor([1, -1]))
    classes = {"verb": HeadClasses(("a", "b"), torch.tensor([9, 1]))}

    [adjusted] = adjust_predictions(
        Predictions(("x", "y"), {"verb": part}), classes, tau=1.0
    ).heads.values()

    # Prior 0.9 and 0.1: 0.7/0.9 : 0.3/0.1 = 7 : 27, and 0.9/0.9 : 0.1/0.1 = 1 : 1.
    expected = torch.tensor([[7 / 34, 27 / 34], [0.5, 0.5]])
    torch.testing.assert_close(adjusted.scores, expected, rtol=0, atol=1e-6)
    # Views likewise: 0.8/0.9 : 0.2/0.1 = 4 : 9. fp16 has 11 bits.
    of_views = torch.tensor([[[7 / 34, 27 / 34]] * 2, [[1.0, 0.0], [4 / 13, 9 / 13]]])
    torch.testing.assert_close(adjusted.view_scores.float(), of_views, rtol=0, atol=1e-3)
    assert adjusted.view_scores.dtype == torch.float16
    assert torch.equal(adjusted.labels, part.labels)


def test_tau_zero_leaves_scores_as_they_are():
    scores = torch.tensor([[0.7, 0.3]])
    part = HeadPredictions(scores, scores[:, None].half(), torch.tensor([0]))
    classes = {"verb": HeadClasses(("a", "b"), torch.tensor([9, 1]))}

    adjusted = adjust_predictions(Predictions(("x",), {"verb": part}), classes, tau=0.0)

    torch.testing.assert_close(adjusted.heads["verb"].scores, scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tau", [-1.0, float("nan"), float("inf")])
def test_a_strength_that_makes_no_sense_is_refused(tau):
    message = f"tau must be a number of at least 0, got {tau:g}"

    with pytest.raises(ConfigError, match=message):
        adjust_predictions(Predictions((), {}), {}, tau=tau)
    with pytest.raises(ConfigError, match=message):
        tau_normalized(make_head([[1.0]]), tau=tau)


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        (0.0, [[3.0, 4.0], [0.0, 16.0], [0.0, 0.0]]),
        (0.5, [[3 / 5**0.5, 4 / 5**0.5], [0.0, 4.0], [0.0, 0.0]]),
        (1.0, [[0.6, 0.8], [0.0, 1.0], [0.0, 0.0]]),
    ],
)
def test_tau_normalisation_divides_by_the_norm_to_tau_and_drops_the_bias(tau, expected):
    head = make_head([[3.0, 4.0], [0.0, 16.0], [0.0, 0.0]], bias=[1.0, 2.0, 3.0])

    corrected = tau_normalized(head, tau=tau)

    # Norms are 5, 16 and 0: a class vector of zeros stays one.
    torch.testing.assert_close(corrected.weight.data, torch.tensor(expected))
    assert corrected.bias.tolist() == [0, 0, 0]
    assert head.bias.tolist() == [1, 2, 3]  # the head itself is left alone


def test_tau_is_the_lowest_of_the_best_on_the_grid():
    # Scores are 4^(1 - tau) x_0 and x_1. The clip (1, 2) of class 1 is right from 4^(1 - tau) < 2,
    # above 0.5; the clip (1, 0.5) of class 0 is wrong from 4^(1 - tau) <= 0.5, above 1.5.
    head = make_head([[4.0, 0.0], [0.0, 1.0]])
    features = torch.tensor([[1.0, 2.0], [1.0, 0.5], [9.0, 9.5]])

    assert choose_tau(head, features, torch.tensor([1, 0, -1])) == 0.6


def test_no_tau_is_chosen_without_a_label():
    with pytest.raises(ValueError, match="labels: none is labelled"):
        choose_tau(make_head([[1.0], [2.0]]), torch.ones(3, 1), torch.tensor([-1, -1, -1]))


def test_balanced_batches_draw_classes_and_then_clips_evenly():
    labels = torch.tensor([0] * 90 + [-1] * 50 + [3] * 10)
    generator = torch.Generator().manual_seed(0)

    drawn = torch.cat(list(balanced_batches(labels, num_batches=40, generator=generator)))

    times = torch.bincount(drawn, minlength=150)
    assert len(drawn) == 40 * 512
    assert int(times[90:140].sum()) == 0
    # 20,480 draws in two halves: the standard deviation is 72.
    assert abs(int(times[:90].sum()) - 10_240) < 5 * 72
    # 114 and 1,024 draws a clip, with standard deviations of 11 and 32.
    assert (times[:90] - 113.8).abs().max() < 5 * 10.7
    assert (times[140:] - 1024).abs().max() < 5 * 31.2


@pytest.fixture
def imbalanced():
    """(features, labels): 400 clips of class 0 around (20, 0), 8 of class 1 around (20, 1)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 400 + [1] * 8)
    centers = torch.stack([torch.full_like(labels, 20), labels], dim=1)
    return centers + 0.1 * torch.randn(408, 2, generator=generator), labels


def test_crt_gives_the_rare_class_its_half(imbalanced):
    features, labels = imbalanced
    # Says class 0 up to a second feature of 1.5.
    head = make_head([[0.0, 0.0], [0.0, 1.0]], bias=[1.5, 0.0])
    assert class_accuracy(head, features, labels) == [1, 0]

    corrected = retrained(head, features, labels, seed=0)

    assert class_accuracy(corrected, features, labels) == [1, 1]
    # Between the centres, where a balanced classifier of two equal clouds stands: at 0.5.
    with torch.no_grad():
        weight, bias = corrected.weight.diff(dim=0)[0], corrected.bias.diff()
        border = -float((weight[0] * 20 + bias) / weight[1])
    assert border == pytest.approx(0.5, abs=0.1)


def test_lws_scales_logits_until_the_rare_class_is_found():
    # Logits are (2 x_0, 0.7 x_1): at (0.5, 1), a clip of class 1, 1.0 beats 0.7.
    head = make_head([[2.0, 0.0], [0.0, 0.7]])
    features = torch.tensor([[1.0, 0.0]] * 50 + [[0.5, 1.0]] * 2)
    labels = torch.tensor([0] * 50 + [1] * 2)
    assert class_accuracy(head, features, labels) == [1, 0]

    corrected = rescaled(head, features, labels, seed=0)

    assert class_accuracy(corrected, features, labels) == [1, 1]
    # One factor a class: zeros stay zeros.
    assert corrected.weight[0, 1] == corrected.weight[1, 0] == 0
    assert corrected.weight[1, 1] > 0.7


@pytest.mark.parametrize("train", [retrained, rescaled])
def test_heads_depend_on_the_seed_alone(imbalanced, train, monkeypatch):
    monkeypatch.setattr(posthoc, "NUM_STEPS", 20)
    features, labels = imbalanced
    head = make_head([[0.0, 0.0], [0.0, 1.0]], bias=[1.5, 0.0])

    first, again, other = (train(head, features, labels, seed=seed) for seed in (0, 0, 1))

    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)
    assert not torch.equal(first.weight, other.weight)


def test_heads_that_are_not_linear_are_refused():
    backbone = BACKBONES["r3d_10"](num_frames=4, crop_size=16)
    model = Recognizer(backbone, num_classes={"verb": 2}, head_type="cosine")

    with pytest.raises(ConfigError, match=r"model\.head_type: head 'verb' is a CosineHead"):
        linear_heads(model)
