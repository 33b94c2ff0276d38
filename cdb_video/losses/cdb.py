"""The class-wise difficulty-balanced (CDB) loss.

Sinha, Ohashi, Nakamura, "Class-Wise Difficulty-Balanced Loss for Solving Class-Imbalance",
ACCV 2020, arXiv 2010.01824: a class is weighed by how hard the model finds it on held-out clips,
w_c = (1 - A_c)^tau, and not by how rare it is.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdb_video.counts import ClassCounts
from cdb_video.losses.base import CrossEntropyLoss, Reduction, check_class_counts
from cdb_video.losses.class_weighted import ClassWeightedLoss
from cdb_video.losses.difficulty import ClassDifficulty, check_accuracy, check_size

DynamicTau = Literal["dynamic", "dynamic_release"]
Tau = float | DynamicTau

EPSILON = 0.01
"""Keeps tau's ratio finite; the paper's symbol, the released code's value."""


def cdb_weights(class_accuracy: Tensor, *, tau: Tau = "dynamic") -> Tensor:
    """Class weights (K,) with mean 1, from accuracies (K,) in [0, 1] on held-out clips.

    w_c = (1 - A_c)^tau (equation 2), rescaled to mean 1 over the measured classes, as all released
    code does. A class that was never measured (NaN) has weight 1; when every class is solved, all
    weights are 1. A class that alone is solved has weight 0: that is the paper's rule.

    Args:
        class_accuracy: (K,) recall of each class.
        tau: how strongly difficulty weighs; 0 is plain cross entropy. "dynamic" (equations 3, 4):
            2 sigmoid(max A / (min A + 0.01) - 1), in [0.54, 2). "dynamic_release", the released
            EGTEA and CIFAR code: sigmoid(max A / (min A + 0.01)), in [0.5, 1].

    Raises:
        ValueError: accuracies outside [0, 1], of an integer type or NaN everywhere; a negative or
            unknown tau.

    """
    check_tau(tau)
    check_accuracy("class_accuracy", class_accuracy)
    return weights_from_difficulty(1 - class_accuracy.double(), tau).to(class_accuracy.dtype)


def weights_from_difficulty(difficulty: Tensor, tau: Tau) -> Tensor:
    """`cdb_weights` of accuracies 1 - difficulty; it checks nothing and never waits for the device.

    With no class measured, all weights are 1.
    """
    measured = ~difficulty.isnan()
    power = _tau(1 - difficulty, tau)
    # Relative to the hardest class, so that powers of small difficulties do not all become 0.
    relative = difficulty / torch.where(measured, difficulty, 0.0).amax()
    # 0^0 is 1 in torch, so tau 0 gives plain cross entropy for solved classes too.
    raw = torch.where(measured, relative, 0.0).pow(power) * measured
    total = raw.sum()
    weights = raw * (measured.sum() / total)
    return torch.where(measured & (total > 0), weights, 1.0)


def _tau(accuracy: Tensor, tau: Tau) -> Tensor | float:
    if not isinstance(tau, str):
        return float(tau)
    highest = accuracy.nan_to_num(-torch.inf).amax()
    lowest = accuracy.nan_to_num(torch.inf).amin()
    ratio = highest / (lowest + EPSILON)
    exponent = 2 * torch.sigmoid(ratio - 1) if tau == "dynamic" else torch.sigmoid(ratio)
    return exponent.nan_to_num(1.0)


def check_tau(tau: Tau) -> None:
    """Refuse a tau that is neither a number of at least 0 nor one of the dynamic ones."""
    allowed = get_args(DynamicTau)
    is_number = isinstance(tau, (int, float)) and not isinstance(tau, bool)
    if not (tau in allowed if isinstance(tau, str) else is_number and 0 <= tau < float("inf")):
        raise ValueError(f"tau must be a number >= 0 or one of {', '.join(allowed)}, got {tau!r}")


class CDBLoss(ClassWeightedLoss):
    """mean_i w_{y_i} base(z_i, y_i): any per-sample loss, weighed by class difficulty.

    The weights are all 1 until the first `update`. The mean is over labelled samples and not, as
    `F.cross_entropy(weight=...)` has it, over their weights: that would cancel the weight of a
    batch of one class. With weights of 1 the loss equals `F.cross_entropy` bit for bit.

        criterion = CDBLoss(num_classes=19)
        for epoch in range(epochs):
            for clips, verb in train_loader:
                criterion(model(clips), verb).backward()
                ...
            criterion.update(class_accuracy_on_held_out_clips)      # (19,), NaN where none

    Args, beside those of `ShelfLoss`:
        tau: see `cdb_weights`.
        base: see `ClassWeightedLoss`; None: cross entropy.
        class_counts: not used.
        label_smoothing: of the cross entropy, weighed by w_y like the rest of a sample's loss.
            Not together with `base`, which owns its own.
        difficulty: how difficulty is measured; None: 1 - recall of the last measurement, as the
            paper.

    """

    smooths_labels = True

    def __init__(
        self,
        num_classes: int,
        *,
        tau: Tau = "dynamic",
        base: nn.Module | None = None,
        class_counts: Tensor | None = None,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        difficulty: ClassDifficulty | None = None,
    ) -> None:
        check_tau(tau)
        if base is not None and label_smoothing:
            raise ValueError(
                f"label_smoothing={label_smoothing} belongs to the base loss: set it there"
            )
        own_base = CrossEntropyLoss(
            num_classes,
            reduction="none",
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
        )
        super().__init__(
            num_classes,
            base=own_base if base is None else base,
            reduction=reduction,
            ignore_index=ignore_index,
        )
        difficulty = difficulty or ClassDifficulty(num_classes)
        check_size("difficulty", difficulty.num_classes, num_classes)
        self.tau = tau
        self.is_cross_entropy = base is None and not label_smoothing
        self.class_difficulty = difficulty

    @property
    def difficulty(self) -> Tensor:
        """(K,) in [0, 1], NaN where never measured."""
        return self.class_difficulty.difficulty

    def update(self, measured: Tensor | ClassCounts) -> None:
        """Weigh by a new measurement from here on: accuracies (K,), or counts.

        Under several ranks the counts must be those of all of them (`ClassCounts.all_reduce`).

        Raises:
            ValueError: see `ClassDifficulty.update`.

        """
        self.class_difficulty.update(measured)
        self._reweigh()

    def observe(self, logits: Tensor, target: Tensor) -> None:
        """Count a training batch towards the next `step`, for difficulty without held-out clips."""
        self.class_difficulty.observe(logits, target.where(target != self.ignore_index, -1))

    def step(self) -> None:
        """Weigh by what all ranks observed since the last step; every rank has to call it."""
        self.class_difficulty.step()
        self._reweigh()

    @torch.no_grad()
    def _reweigh(self) -> None:
        # In place: compiled graphs and checkpoints keep hold of the same buffer.
        self.class_weights.copy_(weights_from_difficulty(self.difficulty, self.tau))

    def _of_batch(self, logits: Tensor, target: Tensor) -> Tensor:
        if not self.is_cross_entropy:
            return super()._of_batch(logits, target)
        # One call: with weights of 1 it is cross entropy to the bit, which a product a sample and
        # their sum are not.
        losses = F.cross_entropy(
            logits,
            target,
            weight=self.class_weights.to(logits.dtype),
            reduction="none" if self.reduction == "none" else "sum",
            # PyTorch refuses a class to be ignored beside probabilities.
            ignore_index=-100 if target.is_floating_point() else self.ignore_index,
        )
        return losses / self._num_labelled(target) if self.reduction == "mean" else losses

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return f"{super().extra_repr()}, tau={self.tau!r}"


class CDBSampling(nn.Module):
    """CDB-S: how often each class is to be drawn, by difficulty^tau; its clips evenly within it.

    The difficulty-based sampling that CDB's authors set beside the loss (Sinha, Ohashi, Nakamura,
    "Class-Difficulty Based Methods for Long-Tailed Visual Recognition", IJCV 2022). Every class is
    drawn equally often until the first `update`.

    Args:
        class_counts: (K,) training clips of each class; a class without any is never drawn.
        tau: see `cdb_weights`.
        difficulty: how difficulty is measured; None: see `CDBLoss`.

    """

    class_counts: Tensor

    def __init__(
        self,
        class_counts: Tensor,
        *,
        tau: Tau = "dynamic",
        difficulty: ClassDifficulty | None = None,
    ) -> None:
        super().__init__()
        check_tau(tau)
        counts = check_class_counts(class_counts)
        difficulty = difficulty or ClassDifficulty(len(counts))
        check_size("difficulty", difficulty.num_classes, len(counts))
        self.tau = tau
        self.class_difficulty = difficulty
        self.register_buffer("class_counts", counts.long())

    def update(self, measured: Tensor | ClassCounts) -> None:
        """Draw by a new measurement from here on; see `CDBLoss.update`."""
        self.class_difficulty.update(measured)

    @property
    def probabilities(self) -> Tensor:
        """(K,) float64, with sum 1: the share of draws of each class."""
        weights = weights_from_difficulty(self.class_difficulty.difficulty, self.tau)
        drawn = weights * (self.class_counts > 0)
        # Every class with a clip is solved and one without is not: draw evenly.
        drawn = torch.where(drawn.sum() > 0, drawn, (self.class_counts > 0).to(drawn))
        return drawn / drawn.sum()
