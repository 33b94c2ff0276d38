"""How hard the model finds each class, as a running measurement in buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cdb_video.counts import LOSS_UNIT, ClassCounts

Statistic = Literal["recall", "f1", "loss"]


class ClassDifficulty(nn.Module):
    """Difficulty d_c = 1 - accuracy of class c, (K,) in [0, 1]; NaN where never measured.

    Two ways to feed it, once an epoch: `update` with the class counts of held-out clips (the
    paper), or `observe` on every training batch and `step` at the end, on every rank. Everything is
    in buffers, so it moves with `.to()`, is saved with the model and resumes.

    Source: Sinha, Ohashi, Nakamura, "Class-Wise Difficulty-Balanced Loss for Solving
    Class-Imbalance", ACCV 2020, equation 1. The options are ours, and off by default.

    Args:
        num_classes: K.
        statistic: what stands for accuracy: "recall", as the paper; "f1", which also counts clips
            of other classes that were taken for it; "loss": exp(-mean negative log-likelihood),
            which still tells classes apart whose clips are all right.
        ema: share of the past in each new measurement, in [0, 1). Bias-corrected: the first
            measurement counts whole. A class that a measurement misses keeps its past.
        prior_strength: clips of prior evidence at the mean class accuracy that are added to every
            class, so that a class of six clips does not jump by sixths.
        floor: least difficulty; above 0 it keeps a solved class in training.
        warmup_epochs: epochs that end before anything counts: earlier measurements are left out.
        update_every: epochs from one measurement that counts to the next.

    """

    mean: Tensor
    mass: Tensor
    observed: Tensor
    """(5, K), as `ClassCounts` has it."""
    epochs: Tensor
    """() measurements so far."""

    def __init__(
        self,
        num_classes: int,
        *,
        statistic: Statistic = "recall",
        ema: float = 0.0,
        prior_strength: float = 0.0,
        floor: float = 0.0,
        warmup_epochs: int = 0,
        update_every: int = 1,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if statistic not in get_args(Statistic):
            allowed = ", ".join(get_args(Statistic))
            raise ValueError(f"statistic must be one of {allowed}, got {statistic!r}")
        if not 0 <= ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {ema}")
        if not 0 <= prior_strength < float("inf"):
            raise ValueError(f"prior_strength must be finite and at least 0, got {prior_strength}")
        if not 0 <= floor < 1:
            raise ValueError(f"floor must be in [0, 1), got {floor}")
        if warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must be at least 0, got {warmup_epochs}")
        if update_every < 1:
            raise ValueError(f"update_every must be at least 1, got {update_every}")
        self.num_classes = num_classes
        self.statistic: Statistic = statistic
        self.ema = ema
        self.prior_strength = prior_strength
        self.floor = floor
        self.warmup_epochs = warmup_epochs
        self.update_every = update_every
        # Accuracies far below fp32's resolution decide a class's weight near accuracy 1.
        self.register_buffer("mean", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("mass", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("observed", torch.zeros(5, num_classes, dtype=torch.int64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    @property
    def difficulty(self) -> Tensor:
        """(K,) float64 in [floor, 1], NaN where never measured."""
        return (1 - self.mean / self.mass).clamp(min=self.floor)

    @torch.no_grad()
    def observe(self, logits: Tensor, target: Tensor) -> None:
        """Count a training batch: logits (N, K), target (N,) with negative ones left out.

        An `index_add_` on the device, no wait; see `ClassCounts.update`.
        """
        ClassCounts.over(self.observed).update(logits, target)

    def step(self) -> None:
        """Take what all ranks observed since the last step as a measurement, and forget it."""
        counts = ClassCounts.over(self.observed)
        counts.all_reduce()
        self._measure(counts)
        counts.reset()

    def update(self, measured: Tensor | ClassCounts) -> None:
        """Take a measurement: class counts, or accuracies (K,) in [0, 1] with NaN for none.

        Raises:
            ValueError: another number of classes; an accuracy outside [0, 1] or of an integer type;
                no class measured; accuracies without counts while `prior_strength` is on.

        """
        if isinstance(measured, ClassCounts):
            check_size("measured", measured.num_classes, self.num_classes)
            if measured.num_classes_present == 0:
                raise ValueError("measured has no clip of any class")
            self._measure(measured)
            return
        check_accuracy("measured", measured, self.num_classes)
        if self.prior_strength > 0:
            raise ValueError(
                f"prior_strength={self.prior_strength} needs ClassCounts, got accuracies alone"
            )
        self._average(measured.to(self.mean))

    def report(self, class_names: Sequence[str] | None = None) -> str:
        """A line: the classes never measured, the three hardest and the three easiest."""
        names = class_names or [str(index) for index in range(self.num_classes)]
        difficulty = self.difficulty.tolist()
        known = [index for index, value in enumerate(difficulty) if value == value]
        unknown = [name for index, name in enumerate(names) if index not in known]
        known.sort(key=lambda index: -difficulty[index])
        shown = [f"{names[index]} {difficulty[index]:.2f}" for index in known]
        parts = [f"{len(known)} of {self.num_classes} classes measured"]
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            parts.append(f"never: {', '.join(unknown[:5])}{more}")
        if known:
            parts.append(f"hardest: {', '.join(shown[:3])}")
            parts.append(f"easiest: {', '.join(shown[:-4:-1])}")
        return "; ".join(parts)

    @torch.no_grad()
    def _measure(self, counts: ClassCounts) -> None:
        total = counts.total.to(self.mean)
        if self.statistic == "loss":
            loss = self._shrunk(counts.loss.to(self.mean) * LOSS_UNIT, total, total)
            self._average(torch.exp(-loss))
            return
        clips = counts.total if self.statistic == "recall" else counts.f1_clips
        self._average(self._shrunk(counts.correct.to(self.mean), clips.to(self.mean), total))

    def _shrunk(self, amount: Tensor, clips: Tensor, total: Tensor) -> Tensor:
        """(K,) amount a clip, drawn towards its mean over classes; NaN where there is no clip."""
        ratio = (amount / clips).where(total > 0, torch.nan)
        if self.prior_strength == 0:
            return ratio
        amount = amount + self.prior_strength * ratio.nanmean()
        return (amount / (clips + self.prior_strength)).where(total > 0, torch.nan)

    @torch.no_grad()
    def _average(self, accuracy: Tensor) -> None:
        self.epochs += 1
        since = self.epochs - max(self.warmup_epochs, 1)
        counts = (since >= 0) & (since % self.update_every == 0)
        keep = torch.where(accuracy.isnan() | ~counts, 1.0, self.ema)
        self.mean.mul_(keep).add_((1 - keep) * accuracy.nan_to_num())
        self.mass.mul_(keep).add_(1 - keep)

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return (
            f"{self.num_classes}, statistic={self.statistic!r}, ema={self.ema}, "
            f"prior_strength={self.prior_strength}, floor={self.floor}, "
            f"warmup_epochs={self.warmup_epochs}, update_every={self.update_every}"
        )


def check_accuracy(name: str, accuracy: Tensor, num_classes: int | None = None) -> None:
    """Refuse what cannot be class accuracies, by shape, type, range or NaN. Reads the device."""
    if accuracy.ndim != 1:
        raise ValueError(f"{name} must be (K,), got shape {tuple(accuracy.shape)}")
    if num_classes is not None:
        check_size(name, len(accuracy), num_classes)
    if not accuracy.is_floating_point():
        raise ValueError(f"{name} must be of a floating-point type, got {accuracy.dtype}")
    outside = (accuracy < 0) | (accuracy > 1)
    if outside.any():
        index = int(outside.nonzero()[0])
        raise ValueError(f"{name}[{index}] must be in [0, 1] or NaN, got {float(accuracy[index])}")
    if accuracy.isnan().all():
        raise ValueError(f"{name} is NaN for every one of {len(accuracy)} classes")


def check_size(name: str, given: int, expected: int) -> None:
    """Refuse another number of classes."""
    if given != expected:
        raise ValueError(f"{name} has {given} classes, expected {expected}")
