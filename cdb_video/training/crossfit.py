"""Difficulty without a validation split: training clips, counted by classifiers that missed them.

The classifier is a linear one on the model's features. The backbone has still seen every clip, so
the accuracies are higher than on new recordings; which classes are harder is what they tell.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdb_video.counts import ClassCounts
from cdb_video.errors import DataError, RunError

# Arrays of scikit-learn, which has no types.
Array = np.ndarray[Any, Any]


def crossfit_counts(
    features: Tensor,
    target: Tensor,
    *,
    num_classes: int,
    groups: Sequence[str] | None,
    folds: int = 5,
    seed: int,
    max_clips_per_class: int | None = None,
    natural_counts: Tensor | None = None,
) -> ClassCounts:
    """Every labelled clip counted once, by a classifier that was fitted on the other folds.

    The classifier is a logistic regression with the natural prior: balanced classes would take the
    disadvantage of rare ones out of their difficulty, and weights made of what remains do not help.
    It reaches far more than ridge regression on indicators, which hardly ever predicts a rare
    class, in about the same time (4,000 clips, 2,048 features, 100 classes: 2 seconds a fold on one
    core). A class with a single clip is never right. The same arguments give the same counts: it
    computes on one thread.

    Args:
        features: (M, D).
        target: (M,) class indices; negative ones are unlabelled and left out.
        num_classes: K.
        groups: (M,) recordings, which are never split over folds: clips of one share room, light
            and person. None: every clip is its own.
        folds: fewer where there are fewer groups, or fewer clips in every class.
        seed: of the folds, and of the clips that are taken.
        max_clips_per_class: take this many of a class at most; the prior stays the natural one.
        natural_counts: (K,) clips of each class, where these are a choice of them; None: these.

    Raises:
        DataError: less than two folds are possible; a ValueError, as all user errors are.
        RunError: features that are not finite.

    """
    # It has no types.
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    taken = take_clips(target, max_clips_per_class, seed=seed)
    inputs, labels = features[taken].float().cpu().numpy(), target[taken].cpu().numpy()
    if not np.isfinite(inputs).all():
        raise RunError("loss.difficulty.source=crossfit: the model's features are not finite")
    recordings = np.array(groups)[taken.numpy()] if groups is not None else np.arange(len(labels))
    scores = torch.full((len(labels), num_classes), -torch.inf, dtype=torch.float64)
    # Threads would sum in another order, and compete with the loader's workers.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Rare classes that miss some folds, and fits that stop before they converge: both are fine.
        warnings.simplefilter("ignore")
        for seen, unseen in _split(labels, recordings, folds=folds, seed=seed):
            classes, fitted = _fit(inputs[seen], labels[seen], inputs[unseen])
            scores[np.ix_(unseen, classes)] = torch.from_numpy(fitted)
    counts = ClassCounts(num_classes)
    of_taken = torch.bincount(target[taken].cpu(), minlength=num_classes)
    if natural_counts is None:
        natural_counts = torch.bincount(target[target >= 0].cpu(), minlength=num_classes)
    # The prior of the taken clips -> the natural one.
    shift = (natural_counts.cpu().clamp(min=1).double() / of_taken.clamp(min=1)).log()
    counts.update(scores + shift, target[taken].cpu())
    return counts


def check_folds(target: Tensor, groups: Sequence[str], *, folds: int = 5) -> int:
    """The number of folds that are possible, `folds` at most.

    Raises:
        DataError: less than two.

    """
    labelled = (target >= 0).tolist()
    recordings = np.array([group for group, has in zip(groups, labelled, strict=True) if has])
    return _num_folds(target[target >= 0].numpy(), recordings, folds)


def take_clips(target: Tensor, max_clips_per_class: int | None, *, seed: int) -> Tensor:
    """Rising indices of labelled clips: all, or a random few of each class."""
    generator = torch.Generator().manual_seed(seed)
    target = target.cpu()
    order = torch.randperm(len(target), generator=generator)
    order = order[target[order] >= 0]
    if max_clips_per_class is not None:
        order = order[target[order].argsort(stable=True)]
        counts = torch.bincount(target[order])
        starts = (counts.cumsum(0) - counts)[target[order]]
        order = order[torch.arange(len(order)) - starts < max_clips_per_class]
    return order.sort().values


def _split(
    labels: Array, recordings: Array, *, folds: int, seed: int
) -> Iterator[tuple[Array, Array]]:
    """(seen, unseen) positions of each fold, the classes spread evenly."""
    from sklearn.model_selection import StratifiedGroupKFold

    possible = _num_folds(labels, recordings, folds)
    splitter = StratifiedGroupKFold(possible, shuffle=True, random_state=seed)
    yield from splitter.split(np.zeros(len(labels)), labels, recordings)


def _num_folds(labels: Array, recordings: Array, folds: int) -> int:
    num_groups = len(np.unique(recordings))
    most = int(np.bincount(labels).max(initial=0))
    possible = min(folds, num_groups, most)
    if possible < 2:
        raise DataError(
            f"loss.difficulty.source=crossfit: {len(labels)} labelled clips of {num_groups} "
            f"recordings, at most {most} of a class, in {folds} folds; needs 2 recordings, a class "
            "with 2 clips, and 2 folds"
        )
    return possible


def _fit(inputs: Array, labels: Array, unseen: Array) -> tuple[Array, Array]:
    """Classes (C,) among the labels, and log-probabilities (U, C) of other clips."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes = np.unique(labels)
    if len(classes) == 1:
        return classes, np.zeros((len(unseen), 1))
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(inputs, labels)
    return classes, np.asarray(model.predict_log_proba(unseen), dtype=np.float64)
