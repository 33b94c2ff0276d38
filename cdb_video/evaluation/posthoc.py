"""Corrections of a trained model for the long tail, none of which touches its backbone.

Logit adjustment: Menon et al., "Long-tail learning via logit adjustment", arXiv 2007.07314. The
others: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR
2020, arXiv 1910.09217. There heads are trained again on augmented clips; here on the features of
plain centre views, which are computed once: minutes on a CPU instead of hours on a GPU, and a
little more overfitting.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdb_video.counts import ClassCounts
from cdb_video.errors import ConfigError
from cdb_video.evaluation.metrics import logit_adjusted
from cdb_video.evaluation.predictions import HeadClasses, Predictions
from cdb_video.models.recognizer import Recognizer

TAUS = tuple(i / 10 for i in range(21))
"""The grid of tau normalisation: 0, 0.1, ..., 2."""
NUM_STEPS = 1000
BATCH_SIZE = 512
"""Of cRT and LWS, whatever the number of videos."""


def check_strength(tau: float) -> None:
    """Refuse a tau of logit adjustment or tau normalisation that makes no sense.

    Raises:
        ConfigError: below 0, infinite or NaN.

    """
    if not 0 <= tau < math.inf:
        raise ConfigError(f"tau must be a number of at least 0, got {tau:g}")


def adjust_predictions(
    predictions: Predictions, classes: Mapping[str, HeadClasses], *, tau: float
) -> Predictions:
    """The softmax of log scores - tau log(prior), of each video and of each of its views.

    A video's new score comes from its old one, so it is not the mean of its views' new ones.

    Raises:
        ConfigError: see `check_strength`.

    """
    check_strength(tau)
    heads = {
        head: dataclasses.replace(
            part,
            scores=logit_adjusted(part.scores, classes[head].train_counts, tau=tau).softmax(-1),
            view_scores=logit_adjusted(
                part.view_scores.float(), classes[head].train_counts, tau=tau
            )
            .softmax(-1)
            .half(),
        )
        for head, part in predictions.heads.items()
    }
    return dataclasses.replace(predictions, heads=heads, source="")


def linear_heads(model: Recognizer) -> dict[str, nn.Linear]:
    """The heads of a model.

    Raises:
        ConfigError: they are not linear.

    """
    heads = {name: head for name, head in model.heads.items() if isinstance(head, nn.Linear)}
    for name, head in model.heads.items():
        if name not in heads:
            raise ConfigError(
                f"model.head_type: head {name!r} is a {type(head).__name__}; tau-norm, crt and lws "
                "correct linear heads, logit-adjust any"
            )
    return heads


@torch.no_grad()
def tau_normalized(head: nn.Linear, *, tau: float) -> nn.Linear:
    """Class vectors w_c / ||w_c||^tau without bias: 0 drops the bias alone, 1 makes norms equal.

    Raises:
        ConfigError: see `check_strength`.

    """
    check_strength(tau)
    corrected = copy.deepcopy(head)
    norms = head.weight.norm(dim=1, keepdim=True).clamp(min=torch.finfo(head.weight.dtype).tiny)
    corrected.weight.copy_(head.weight / norms**tau)
    corrected.bias.zero_()
    return corrected


@torch.no_grad()
def choose_tau(head: nn.Linear, features: Tensor, labels: Tensor) -> float:
    """The tau of the grid with the best mean class accuracy, the lowest of equals.

    Args:
        head: as trained.
        features: (M, D) of validation videos.
        labels: (M,), -1 where unlabelled; one at least is labelled.

    """
    if not bool((labels >= 0).any()):
        raise ValueError("labels: none is labelled, so no tau is better than another")

    def mean_class_accuracy(tau: float) -> float:
        counts = ClassCounts(head.out_features)
        counts.update(tau_normalized(head, tau=tau)(features), labels)
        return counts.mean_class_accuracy

    return max(TAUS, key=mean_class_accuracy)


def retrained(head: nn.Linear, features: Tensor, labels: Tensor, *, seed: int) -> nn.Linear:
    """cRT: a new head, trained on class-balanced batches by SGD with momentum, as the paper's.

    Args:
        head: gives the shape alone.
        features: (M, D) of training videos.
        labels: (M,), -1 where unlabelled.
        seed: of the first weights and the batches.

    """
    # Centred and of mean length 1, so that one rate fits every backbone: the curvature of the loss
    # is then at most a half, and a rate of 1 far from where SGD starts to swing.
    center = features[labels >= 0].mean(0)
    length = (features[labels >= 0] - center).square().sum(1).mean().sqrt().clamp(min=1e-12)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(head.weight.shape, generator=generator).mul_(0.01).requires_grad_()
    bias = torch.zeros(head.out_features, requires_grad=True)
    _train(
        lambda inputs: F.linear(inputs, weight, bias),
        torch.optim.SGD([weight, bias], lr=1.0, momentum=0.9, weight_decay=5e-4),
        (features - center) / length,
        labels,
        generator=generator,
    )
    corrected = copy.deepcopy(head)
    with torch.no_grad():
        corrected.weight.copy_(weight / length)
        corrected.bias.copy_(bias - corrected.weight @ center)
    return corrected


def rescaled(head: nn.Linear, features: Tensor, labels: Tensor, *, seed: int) -> nn.Linear:
    """LWS: the head as trained times one learned scale a class, on class-balanced batches.

    The scale multiplies the whole logit, bias included. By Adam, where the paper has SGD: what SGD
    does to the scales depends on how large the logits happen to be. Arguments: see `retrained`.
    """
    scales = torch.ones(head.out_features, requires_grad=True)
    with torch.no_grad():
        logits = head(features)
    _train(
        lambda inputs: inputs * scales,
        torch.optim.Adam([scales], lr=0.01),
        logits,
        labels,
        generator=torch.Generator().manual_seed(seed),
    )
    corrected = copy.deepcopy(head)
    with torch.no_grad():
        corrected.weight.mul_(scales[:, None])
        corrected.bias.mul_(scales)
    return corrected


def _train(
    logits_of: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    *,
    generator: torch.Generator,
) -> None:
    """Cross entropy over class-balanced batches; the rate falls by a cosine."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)
    for batch in balanced_batches(labels, num_batches=NUM_STEPS, generator=generator):
        optimizer.zero_grad()
        F.cross_entropy(logits_of(inputs[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()


def balanced_batches(
    labels: Tensor, *, num_batches: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Indices (512,) of labelled videos: a class at random, then one of its videos at random."""
    order = labels.argsort(stable=True)
    order = order[labels[order] >= 0]
    counts = torch.bincount(labels[order])
    starts = counts.cumsum(0) - counts
    [present] = counts.nonzero(as_tuple=True)
    for _ in range(num_batches):
        classes = present[torch.randint(len(present), (BATCH_SIZE,), generator=generator)]
        # In double, so that the product stays below the count.
        part = torch.rand(BATCH_SIZE, generator=generator, dtype=torch.float64)
        yield order[starts[classes] + (part * counts[classes]).long()]
