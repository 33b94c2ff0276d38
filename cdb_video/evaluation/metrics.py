"""Every figure of a report, made from class counts and scores. All are fractions in [0, 1]."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdb_video.counts import ClassCounts, own_class_rank, shot_groups
from cdb_video.evaluation.predictions import HeadClasses, HeadPredictions

BOOTSTRAP_DRAWS = 2000
CALIBRATION_BINS = 15
MAJORITY_CLIPS = 600
"""Classes with more training clips are the CDB paper's majority (its released EGTEA test code)."""

SCORED_FIGURES = (
    "top1",
    "top5",
    "mean_class_accuracy",
    "mean_class_accuracy_interval",
    "mean_class_top5",
    "mean_class_accuracy_logit_adjusted",
    "mean_class_precision",
    "macro_f1",
    "harmonic_mean",
    "worst_fifth",
    "ece",
)
"""The figures that need a labelled video; each is None without one."""

CLASS_GROUPS = ("many", "medium", "few", "majority", "minority")
"""The figures that are {"accuracy", "num_classes", ...} of some of the classes."""

INTERVALS = (
    "top1",
    "top5",
    "mean_class_accuracy",
    "mean_class_top5",
    "mean_class_accuracy_logit_adjusted",
    "many",
    "medium",
    "few",
)
"""The figures that have an interval."""


def head_figures(
    part: HeadPredictions,
    classes: HeadClasses,
    *,
    per_class: bool = True,
    adjusted: bool = False,
) -> dict[str, Any]:
    """The figures of one head, by the names of the report file.

    Macro figures are over the classes that the split has (`num_classes_present`). A figure that
    does not exist is None: top5 of five classes or fewer, a shot group without a class, anything
    of a split without a labelled video, that after logit adjustment of scores that are `adjusted`.
    """
    counts = part.counts
    shots = counts.by_shot(classes.train_counts)
    figures: dict[str, Any] = {
        "num_classes": counts.num_classes,
        "num_classes_present": counts.num_classes_present,
        "num_videos": int(counts.total.sum()),
        **dict.fromkeys(SCORED_FIGURES),
        **{name: group._asdict() for name, group in shots.items()},
        **paper_groups(counts, classes),
        "intervals": None,
    }
    if counts.num_classes_present:
        figures |= _scored_figures(part, counts, classes.train_counts)
        if adjusted:
            name = "mean_class_accuracy_logit_adjusted"
            figures[name] = figures["intervals"][name] = None
    if per_class:
        of_class = counts.class_accuracy.tolist()
        figures["class_accuracy"] = {
            name: None if math.isnan(value) else value
            for name, value in zip(classes.names, of_class, strict=True)
        }
        figures["train_count"] = dict(
            zip(classes.names, classes.train_counts.tolist(), strict=True)
        )
        figures["count"] = dict(zip(classes.names, counts.total.tolist(), strict=True))
    return figures


def _scored_figures(
    part: HeadPredictions, counts: ClassCounts, train_counts: Tensor
) -> dict[str, Any]:
    present = counts.total > 0
    accuracy = counts.class_accuracy[present]
    adjusted = ClassCounts(counts.num_classes)
    adjusted.update(logit_adjusted(part.scores, train_counts), part.labels)
    has_top5 = counts.num_classes > 5
    intervals = figure_intervals(counts, adjusted, train_counts)
    return {
        "top1": counts.top1,
        "top5": counts.top5 if has_top5 else None,
        "mean_class_accuracy": counts.mean_class_accuracy,
        "mean_class_accuracy_interval": intervals["mean_class_accuracy"],
        "mean_class_top5": float(counts.class_top5.nanmean()) if has_top5 else None,
        "mean_class_accuracy_logit_adjusted": adjusted.mean_class_accuracy,
        "mean_class_precision": float(class_precision(counts)[present].mean()),
        "macro_f1": float(counts.class_f1.nanmean()),
        "harmonic_mean": harmonic_mean(accuracy),
        "worst_fifth": worst_fifth(accuracy),
        "ece": expected_calibration_error(part.scores, part.labels),
        "intervals": intervals,
    }


def class_precision(counts: ClassCounts) -> Tensor:
    """(K,) float64: right over predicted; 0 for a class that was never predicted."""
    return counts.correct.double() / counts.predicted.clamp(min=1)


def harmonic_mean(accuracy: Tensor) -> float:
    """Of class accuracies (K,); 0 as soon as one class is never right."""
    return float(len(accuracy) / (1 / accuracy).sum())


def worst_fifth(accuracy: Tensor) -> float:
    """Mean over the ceil(K / 5) lowest of class accuracies (K,)."""
    return float(accuracy.sort().values[: math.ceil(len(accuracy) / 5)].mean())


def logit_adjusted(scores: Tensor, train_counts: Tensor, *, tau: float = 1.0) -> Tensor:
    """log scores - tau log(prior), (M, K): what balanced training data would have predicted.

    Menon et al., "Long-tail learning via logit adjustment", arXiv 2007.07314, equation 9. It needs
    no training, and is the control that any long-tail loss should beat. A class without training
    clips is taken to have one.

    Args:
        scores: (M, K) probabilities.
        train_counts: (K,) training clips.
        tau: strength; 1 is the theory's, 0 changes nothing.

    """
    counts = train_counts.clamp(min=1).to(scores.dtype)
    return scores.clamp(min=1e-30).log() - tau * (counts / counts.sum()).log()


def paper_groups(counts: ClassCounts, classes: HeadClasses) -> dict[str, dict[str, Any]]:
    """Majority and minority classes of the CDB paper: mean class accuracy and precision.

    More than 600 clips of the annotated training split make a majority class. Clips that are held
    out of it to validate count too: EGTEA's verbs then fall into the paper's 5 and 14 classes; by
    what is left to train on, which its released code compares, into 4 and 15.
    """
    known = classes.train_counts if classes.annotated_counts is None else classes.annotated_counts
    majority, present = known > MAJORITY_CLIPS, counts.total > 0
    accuracy, precision = counts.class_accuracy, class_precision(counts)
    return {
        name: {
            "accuracy": float(accuracy[here].mean()) if here.any() else None,
            "precision": float(precision[here].mean()) if here.any() else None,
            "num_classes": int(here.sum()),
        }
        for name, here in {"majority": majority & present, "minority": ~majority & present}.items()
    }


def figure_intervals(
    counts: ClassCounts, adjusted: ClassCounts, train_counts: Tensor, *, seed: int = 0
) -> dict[str, list[float] | None]:
    """95 % intervals [low, high] by 2,000 bootstrap draws over videos, class by class.

    Of the figures that are means of right videos or of class accuracies. Drawing n_c videos of a
    class with replacement, of which k_c are right, gives a binomial (n_c, k_c / n_c) number of
    right ones: so that is drawn directly.

    Args:
        counts: of the predictions.
        adjusted: of the logit-adjusted ones.
        train_counts: (K,) training clips.
        seed: of the draws.

    """
    present = counts.total > 0
    total = counts.total[present].numpy()
    rng = np.random.default_rng(seed)

    def draws(correct: Tensor) -> np.ndarray:
        """(2000, K present): class accuracies, in the order of the classes."""
        right = (correct[present].double() / counts.total[present]).numpy()
        drawn: np.ndarray = rng.binomial(total, right, size=(BOOTSTRAP_DRAWS, len(total))) / total
        return drawn

    accuracy, top5 = draws(counts.correct), draws(counts.top5_correct)
    weights = total / total.sum()
    found = {
        "top1": accuracy @ weights,
        "mean_class_accuracy": accuracy.mean(axis=1),
        "mean_class_accuracy_logit_adjusted": draws(adjusted.correct).mean(axis=1),
    }
    if counts.num_classes > 5:
        found |= {"top5": top5 @ weights, "mean_class_top5": top5.mean(axis=1)}
    for name, members in shot_groups(train_counts).items():
        here = members[present].numpy()
        if here.any():
            found[name] = accuracy[:, here].mean(axis=1)
    return {
        name: np.quantile(found[name], [0.025, 0.975]).tolist() if name in found else None
        for name in INTERVALS
    }


def confidences(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(M,) the highest of scores (M, K), and (M,) whether it is the own class's.

    NaN scores are a confidence of 0, and wrong.
    """
    return scores.amax(1).nan_to_num(nan=0.0), own_class_rank(scores, labels) == 0


def expected_calibration_error(scores: Tensor, labels: Tensor) -> float:
    """Mean gap between confidence and accuracy over 15 equal bins (Guo et al., arXiv 1706.04599).

    Args:
        scores: (M, K) probabilities.
        labels: (M,), negative where unlabelled.

    """
    with warnings.catch_warnings():
        # torchmetrics warns of libraries of its own that it does not find.
        warnings.simplefilter("ignore")
        from torchmetrics.functional.classification import binary_calibration_error
    labelled = labels >= 0
    confidence, right = confidences(scores[labelled], labels[labelled])
    # torchmetrics gives confidence 1, to which fp32 rounds sure scores, a 16th bin of its own.
    confidence = confidence.clamp(max=1 - 2**-24)
    return float(
        binary_calibration_error(confidence, right.long(), n_bins=CALIBRATION_BINS, norm="l1")
    )


def selection_figure(counts: dict[str, ClassCounts], *, select_by: str | None = None) -> float:
    """The figure that picks a run's best epoch.

    The mean class accuracy of head `select_by`; without one, of the action head where there is
    one, else the mean over the heads. NaN where none of them has a label.
    """
    if select_by is None and "action" in counts:
        select_by = "action"
    if select_by is not None:
        return counts[select_by].mean_class_accuracy
    values = torch.tensor([part.mean_class_accuracy for part in counts.values()])
    return float(values.nanmean())
