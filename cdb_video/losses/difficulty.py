"""How hard the model finds each class, as a running measurement in buffers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdb_video.counts import ClassCounts, own_class_rank


class ClassDifficulty(nn.Module):
    """Difficulty d_c = 1 - accuracy of class c, (K,) in [0, 1]; NaN where never measured.

    Two ways to feed it: `update` with the class counts of held-out clips (the paper), or `observe`
    on every training batch and `step` at the end of the epoch. Everything is in buffers, so it
    moves with `.to()`, is saved with the model and resumes.

    Source: Sinha, Ohashi, Nakamura, "Class-Wise Difficulty-Balanced Loss for Solving
    Class-Imbalance", ACCV 2020, equation 1. The options are ours, and off by default.

    Args:
        num_classes: K.
        ema: share of the past in each new measurement, in [0, 1). Bias-corrected: the first
            measurement counts whole. A class that a measurement misses keeps its past.
        prior_strength: clips of prior evidence at the mean class accuracy that are added to every
            class, so that a class of six clips does not jump by sixths.
        floor: least difficulty; above 0 it keeps a solved class in training.

    """

    mean: Tensor
    mass: Tensor
    observed: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        ema: float = 0.0,
        prior_strength: float = 0.0,
        floor: float = 0.0,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if not 0 <= ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {ema}")
        if not 0 <= prior_strength < float("inf"):
            raise ValueError(f"prior_strength must be finite and at least 0, got {prior_strength}")
        if not 0 <= floor < 1:
            raise ValueError(f"floor must be in [0, 1), got {floor}")
        self.num_classes = num_classes
        self.ema = ema
        self.prior_strength = prior_strength
        self.floor = floor
        # Accuracies far below fp32's resolution decide a class's weight near accuracy 1.
        self.register_buffer("mean", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("mass", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("observed", torch.zeros(2, num_classes, dtype=torch.int64))

    @property
    def difficulty(self) -> Tensor:
        """(K,) float64 in [floor, 1], NaN where never measured."""
        return (1 - self.mean / self.mass).clamp(min=self.floor)

    @torch.no_grad()
    def observe(self, logits: Tensor, target: Tensor) -> None:
        """Count a training batch: logits (N, K), target (N,) with negative ones left out.

        An `index_add_` on the device, no wait.
        """
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise ValueError(f"logits must be (N, {self.num_classes}), got {tuple(logits.shape)}")
        if target.shape != logits.shape[:1]:
            raise ValueError(f"target must be ({len(logits)},), got {tuple(target.shape)}")
        labelled = target >= 0
        target = target.clamp(min=0)
        correct = labelled & (own_class_rank(logits, target) == 0)
        self.observed.index_add_(1, target, torch.stack([correct, labelled]).long())

    def step(self) -> None:
        """Take what was observed since the last step as a measurement, and forget it."""
        correct, total = self.observed
        self._measure(correct, total)
        self.observed.zero_()

    def update(self, measured: Tensor | ClassCounts) -> None:
        """Take a measurement: class counts, or accuracies (K,) in [0, 1] with NaN for none.

        Raises:
            ValueError: another number of classes; an accuracy outside [0, 1] or of an integer type;
                no class measured; accuracies without counts while `prior_strength` is on.

        """
        if isinstance(measured, ClassCounts):
            _check_size("measured", measured.num_classes, self.num_classes)
            if measured.num_classes_present == 0:
                raise ValueError("measured has no clip of any class")
            self._measure(measured.correct, measured.total)
            return
        check_accuracy("measured", measured, self.num_classes)
        if self.prior_strength > 0:
            raise ValueError(
                f"prior_strength={self.prior_strength} needs ClassCounts, got accuracies alone"
            )
        self._average(measured.to(self.mean))

    @torch.no_grad()
    def _measure(self, correct: Tensor, total: Tensor) -> None:
        correct, total = correct.to(self.mean), total.to(self.mean)
        accuracy = correct / total
        if self.prior_strength > 0:
            shrunk = correct + self.prior_strength * accuracy.nanmean()
            accuracy = torch.where(total > 0, shrunk / (total + self.prior_strength), accuracy)
        self._average(accuracy)

    @torch.no_grad()
    def _average(self, accuracy: Tensor) -> None:
        keep = torch.where(accuracy.isnan(), 1.0, self.ema)
        self.mean.mul_(keep).add_((1 - keep) * accuracy.nan_to_num())
        self.mass.mul_(keep).add_(1 - keep)

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return (
            f"{self.num_classes}, ema={self.ema}, prior_strength={self.prior_strength}, "
            f"floor={self.floor}"
        )


def check_accuracy(name: str, accuracy: Tensor, num_classes: int | None = None) -> None:
    """Refuse what cannot be class accuracies, by shape, type, range or NaN. Reads the device."""
    if accuracy.ndim != 1:
        raise ValueError(f"{name} must be (K,), got shape {tuple(accuracy.shape)}")
    if num_classes is not None:
        _check_size(name, len(accuracy), num_classes)
    if not accuracy.is_floating_point():
        raise ValueError(f"{name} must be of a floating-point type, got {accuracy.dtype}")
    outside = (accuracy < 0) | (accuracy > 1)
    if outside.any():
        index = int(outside.nonzero()[0])
        raise ValueError(f"{name}[{index}] must be in [0, 1] or NaN, got {float(accuracy[index])}")
    if accuracy.isnan().all():
        raise ValueError(f"{name} is NaN for every one of {len(accuracy)} classes")


def _check_size(name: str, given: int, expected: int) -> None:
    if given != expected:
        raise ValueError(f"{name} has {given} classes, expected {expected}")
