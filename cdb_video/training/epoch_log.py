"""What is written down and said after an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from cdb_video.counts import ClassCounts
from cdb_video.evaluation.evaluate import EvalReport
from cdb_video.evaluation.metrics import selection_figure
from cdb_video.evaluation.predictions import HeadClasses
from cdb_video.losses import ClassDifficulty, MultiHeadLoss
from cdb_video.training.run_log import RunLog


def log_accuracy(
    log: RunLog,
    train_counts: Mapping[str, ClassCounts],
    report: EvalReport | None,
    *,
    epoch: int,
    step: int,
    select_by: str | None,
) -> dict[str, float]:
    """Write what the epoch gave; its mean class accuracies, `verb` and `verb_train`."""
    accuracy = {f"{head}_train": c.mean_class_accuracy for head, c in train_counts.items()}
    if report is None:
        log.write("epoch", epoch=epoch, step=step, mean_class_accuracy=accuracy)
        return accuracy
    accuracy |= {head: c.mean_class_accuracy for head, c in report.counts.items()}
    log.write(
        "eval",
        epoch=epoch,
        step=step,
        loss=report.loss,
        top1={head: counts.top1 for head, counts in report.counts.items()},
        mean_class_accuracy=accuracy,
        selection=selection_figure(report.counts, select_by=select_by),
    )
    return accuracy


def log_difficulty(
    log: RunLog,
    criterion: MultiHeadLoss,
    classes: Mapping[str, HeadClasses],
    counts: Mapping[str, ClassCounts],
    difficulties: Mapping[str, ClassDifficulty],
    *,
    epoch: int,
) -> None:
    """Write each class's accuracy after the epoch, where it was counted, and its next weight."""
    for head, known in classes.items():
        unknown = torch.full((len(known.names),), math.nan)
        accuracy = counts[head].class_accuracy if counts else unknown
        measured = difficulties.get(head)
        log.write_difficulty(
            epoch,
            head,
            names=known.names,
            train_counts=known.train_counts,
            accuracy=accuracy,
            difficulty=1 - accuracy if measured is None else measured.difficulty,
            weights=criterion.class_weights(head),
        )


def missed_classes(
    measured: Mapping[str, ClassCounts],
    classes: Mapping[str, HeadClasses],
    difficulties: Mapping[str, ClassDifficulty],
) -> dict[str, list[str]]:
    """Head -> the classes that its first measurement missed; only heads with such classes."""
    missed: dict[str, list[str]] = {}
    for head, difficulty in difficulties.items():
        if head in measured and int(difficulty.epochs) == 1:
            unseen = (measured[head].total == 0).nonzero().flatten().tolist()
            if unseen:
                missed[head] = [classes[head].names[index] for index in unseen]
    return missed
