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
from cdb_video.training.state import TrainState


class EpochLog:
    """Writes what an epoch gave: accuracies, and each class's difficulty and weight.

    Args:
        state: of the training, whose position is at the end of an epoch.
        criterion: has the classes' weights.
        classes: head -> names and training counts.
        select_by: head whose mean class accuracy picks the best epoch.
        epochs: in all.
        quiet: print nothing.
        log: where it is written.

    """

    def __init__(
        self,
        state: TrainState,
        criterion: MultiHeadLoss,
        classes: Mapping[str, HeadClasses],
        *,
        select_by: str | None,
        epochs: int,
        quiet: bool,
        log: RunLog,
    ) -> None:
        self.state = state
        self.criterion = criterion
        self.classes = classes
        self.select_by = select_by
        self.epochs = epochs
        self.quiet = quiet
        self.log = log

    @property
    def difficulties(self) -> dict[str, ClassDifficulty]:
        """Head -> the difficulty that its loss, or the sampling of its classes, follows."""
        found = self.criterion.difficulties
        sampling = self.state.sampling
        if sampling is not None and sampling.cdb is not None:
            found[sampling.head] = sampling.cdb.class_difficulty
        return found

    def write_coverage(self, measured: Mapping[str, ClassCounts]) -> None:
        """After the first measurement, name the classes it missed: their weight stays 1."""
        difficulties = self.difficulties
        never = missed_classes(measured, self.classes, difficulties)
        for head in never:
            if not self.quiet:
                print(f"{head}: {difficulties[head].report(self.classes[head].names)}")
        if never:
            position = self.state.position
            self.log.write(
                "coverage", epoch=position.epoch, step=position.step, never_measured=never
            )

    def write_accuracy(self, report: EvalReport | None) -> None:
        """Write mean class accuracies, and say them: of `verb`, and of `verb_train`."""
        counts, position = self.state.train_counts, self.state.position
        accuracy = {f"{head}_train": c.mean_class_accuracy for head, c in counts.items()}
        at = {"epoch": position.epoch, "step": position.step}
        if report is None:
            self.log.write("epoch", **at, mean_class_accuracy=accuracy)
        else:
            accuracy |= {head: c.mean_class_accuracy for head, c in report.counts.items()}
            self.log.write(
                "eval",
                **at,
                loss=report.loss,
                top1={head: c.top1 for head, c in report.counts.items()},
                mean_class_accuracy=accuracy,
                selection=selection_figure(report.counts, select_by=self.select_by),
            )
        if not self.quiet:
            shown = "  ".join(f"{head} {100 * value:.1f}" for head, value in accuracy.items())
            print(f"epoch {position.epoch}/{self.epochs} mean class accuracy: {shown}")

    def write_difficulty(self, counts: Mapping[str, ClassCounts]) -> None:
        """Write each class's accuracy after the epoch, where counted, and its next weight."""
        difficulties = self.difficulties
        for head, known in self.classes.items():
            unknown = torch.full((len(known.names),), math.nan)
            accuracy = counts[head].class_accuracy if counts else unknown
            measured = difficulties.get(head)
            self.log.write_difficulty(
                self.state.position.epoch,
                head,
                names=known.names,
                train_counts=known.train_counts,
                accuracy=accuracy,
                difficulty=1 - accuracy if measured is None else measured.difficulty,
                weights=self.criterion.class_weights(head),
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
