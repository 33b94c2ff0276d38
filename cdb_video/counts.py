"""Class counts: the one source of accuracies, shot groups and CDB's difficulty.

Counts add up: over batches, and over ranks. Accuracies do not, so no average is ever taken of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

MANY_SHOT = 100
"""Classes with more training clips than this are many-shot (thresholds of the ImageNet-LT code)."""
FEW_SHOT = 20
"""Classes with fewer training clips than this are few-shot; the others are medium-shot."""
LOSS_UNIT = 2**-20
"""Nats that negative log-likelihoods are counted in: sums of integers do not depend on order."""
LARGEST_LOSS = 100.0
"""Nats that a clip counts at most, and what a NaN counts."""


class ShotGroup(NamedTuple):
    """Mean class accuracy of the classes of one frequency group."""

    accuracy: float | None
    """None where the split has no class of the group; never 0 in its place."""
    num_classes: int


def shot_groups(train_counts: Tensor) -> dict[str, Tensor]:
    """Group -> (K,) bool: the many-, medium- and few-shot classes by their training clips (K,)."""
    many, few = train_counts > MANY_SHOT, train_counts < FEW_SHOT
    return {"many": many, "medium": ~many & ~few, "few": few}


def own_class_rank(scores: Tensor, target: Tensor) -> Tensor:
    """(N,) how many classes stand before each clip's own: 0 is right, under 5 is top-5 right.

    Ties go to the lowest index, as with argmax. A NaN is behind nothing, so that a model whose
    scores are NaN is never right.

    Args:
        scores: (N, K).
        target: (N,) class indices.

    """
    own = scores.gather(1, target[:, None])
    classes = torch.arange(scores.shape[1], device=scores.device)
    behind = (scores < own) | ((scores == own) & (classes >= target[:, None]))
    return (~behind).sum(1)


def check_labels(target: Tensor, num_classes: int, *, ignore_index: int | None = None) -> None:
    """Refuse class indices (N,) outside [0, K) but `ignore_index`, by default but negative ones.

    On a CPU alone. On a GPU reading them would be a wait; PyTorch's own assertion finds them there.
    """
    if target.device.type != "cpu" or torch.compiler.is_compiling():
        return
    for i, label in enumerate(target.tolist()):
        ignored = label < 0 if ignore_index is None else label == ignore_index
        if not (0 <= label < num_classes or ignored):
            other = "negative" if ignore_index is None else ignore_index
            raise ValueError(f"target[{i}] must be in [0, {num_classes}) or {other}, got {label}")


def all_reduce_counts(counts: Sequence[ClassCounts]) -> None:
    """Sum the counts of several heads over every rank, in place and in one message."""
    if dist.is_available() and dist.is_initialized():
        table = torch.cat([part.to_dict()["table"] for part in counts], dim=1)
        dist.all_reduce(table)
        for part, summed in zip(
            counts, table.split([p.num_classes for p in counts], 1), strict=True
        ):
            part.to_dict()["table"].copy_(summed)


class ClassCounts:
    """How often each of K classes was seen, predicted, and predicted rightly.

    All tensors are (K,) int64 on one device. Updating them never waits for the device.
    """

    correct: Tensor
    top5_correct: Tensor
    """Clips of the class whose own class is among the five highest scores."""
    predicted: Tensor
    total: Tensor
    loss: Tensor
    """Sum of the negative log-likelihood of the class's clips, in `LOSS_UNIT`."""

    def __init__(self, num_classes: int, *, device: torch.device | str | None = None) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self._hold(torch.zeros(5, num_classes, dtype=torch.int64, device=device))

    def _hold(self, table: Tensor) -> None:
        self._table = table
        self.correct, self.top5_correct, self.predicted, self.total, self.loss = table

    @property
    def num_classes(self) -> int:
        """K."""
        return self._table.shape[1]

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            scores: (N, K) logits; log-probabilities are logits, and probabilities will do for all
                but `loss`. The prediction is the argmax, the lowest index on ties; a clip with a
                NaN before its own class is not right.
            target: (N,) int64 class indices; negative ones are unlabelled and not counted.

        Raises:
            ValueError: other shapes; on a CPU, a label that is no class.

        """
        # Not a decorator: torch.compile would break its graph at one.
        with torch.no_grad():
            self._count(scores, target)

    def _count(self, scores: Tensor, target: Tensor) -> None:
        if scores.ndim != 2 or scores.shape[1] != self.num_classes:
            raise ValueError(f"scores must be (N, {self.num_classes}), got {tuple(scores.shape)}")
        if target.shape != scores.shape[:1]:
            raise ValueError(f"target must be ({len(scores)},), got {tuple(target.shape)}")
        check_labels(target, self.num_classes)
        labelled = target >= 0
        target = target.clamp(min=0)
        rank = own_class_rank(scores, target)
        self.correct.index_add_(0, target, (labelled & (rank == 0)).long())
        self.top5_correct.index_add_(0, target, (labelled & (rank < 5)).long())
        self.predicted.index_add_(0, scores.argmax(1), labelled.long())
        self.total.index_add_(0, target, labelled.long())
        scores = scores if scores.dtype == torch.float64 else scores.float()
        loss = F.nll_loss(scores.log_softmax(1), target, reduction="none")
        loss = loss.nan_to_num(LARGEST_LOSS).clamp(max=LARGEST_LOSS) * labelled
        self.loss.index_add_(0, target, (loss / LOSS_UNIT).round().long())

    def all_reduce(self) -> None:
        """Sum the counts over every rank, in place and in one message; nothing in one process."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._table)

    def reset(self) -> None:
        """Start again at zero."""
        self._table.zero_()

    def cpu(self) -> ClassCounts:
        """A copy on the CPU."""
        return self.from_dict({"table": self._table.cpu()})

    def to_dict(self) -> dict[str, Tensor]:
        """What `from_dict` takes: {"table": (5, K)}."""
        return {"table": self._table}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ClassCounts:
        """The counts that `to_dict` gave."""
        table = state["table"]
        counts = cls(table.shape[1], device=table.device)
        counts._table.copy_(table)
        return counts

    @classmethod
    def over(cls, table: Tensor) -> ClassCounts:
        """Counts that live in a table (5, K) int64, such as a module's buffer."""
        counts = cls.__new__(cls)
        counts._hold(table)
        return counts

    @property
    def class_accuracy(self) -> Tensor:
        """(K,) float64 in [0, 1]: right over all, of each class; NaN where it has no clip."""
        return self.correct.double() / self.total

    @property
    def class_top5(self) -> Tensor:
        """(K,) float64: share of each class's clips with their class among the first five."""
        return self.top5_correct.double() / self.total

    @property
    def class_f1(self) -> Tensor:
        """(K,) float64: 2 right / (clips + times predicted); NaN where it has no clip."""
        return (self.correct / self.f1_clips).where(self.total > 0, torch.nan)

    @property
    def f1_clips(self) -> Tensor:
        """(K,) float64: (clips + times predicted) / 2, of which the right ones' share is F1."""
        return (self.total + self.predicted).double() / 2

    @property
    def class_loss(self) -> Tensor:
        """(K,) float64: mean negative log-likelihood of each class's clips, in nats."""
        return self.loss.double() * LOSS_UNIT / self.total

    @property
    def num_classes_present(self) -> int:
        """How many classes have a clip: the classes that macro figures are over."""
        return int((self.total > 0).sum())

    @property
    def top1(self) -> float:
        """Right over all clips; NaN where nothing was counted."""
        return float(self.correct.sum().double() / self.total.sum())

    @property
    def top5(self) -> float:
        """Share of clips whose class is among the five highest scores."""
        return float(self.top5_correct.sum().double() / self.total.sum())

    @property
    def mean_class_accuracy(self) -> float:
        """Mean of class accuracy over the classes that have a clip; NaN where none has."""
        return float(self.class_accuracy.nanmean())

    def by_shot(self, train_counts: Tensor) -> dict[str, ShotGroup]:
        """Mean class accuracy of many-, medium- and few-shot classes.

        Args:
            train_counts: (K,) training clips of every class: more than 100 is many, 20 to 100
                medium, fewer than 20 few.

        """
        if train_counts.shape != self.total.shape:
            raise ValueError(
                f"train_counts must be ({self.num_classes},), got {tuple(train_counts.shape)}"
            )
        accuracy, present = self.class_accuracy.cpu(), (self.total > 0).cpu()
        return {
            name: ShotGroup(
                float(accuracy[here].mean()) if here.any() else None,
                int(here.sum()),
            )
            for name, member in shot_groups(train_counts).items()
            for here in [member.cpu() & present]
        }

    def __repr__(self) -> str:
        seen = int(self.total.sum())
        return f"ClassCounts({self.num_classes} classes, {seen} clips, top-1 {self.top1:.3f})"
