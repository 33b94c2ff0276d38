"""CDB's weights of random confusion tables, whatever classes are absent, solved or hopeless."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from cdb_video.counts import ClassCounts
from cdb_video.losses import CDBLoss, ClassDifficulty
from cdb_video.losses.cdb import Tau, weights_from_difficulty
from tests.reliability.outcome import Outcome, Row

TAUS: tuple[Tau, ...] = (0.0, 0.5, 1.0, 2.0, 10.0, "dynamic", "dynamic_release")
TOGETHER = 500
"""Tables of one number of classes."""
ONE_BY_ONE = 10_000
"""Tables that the loss itself is given; all of them pass through its formula."""


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """Every table by every tau, and each of the first ones as counts given to a loss."""
    generator = torch.Generator().manual_seed(seed)
    failures: list[str] = []
    tried = 0
    unusual = dict.fromkeys(("with_absent", "with_solved", "with_hopeless"), 0)
    while tried < count:
        num_classes = int(torch.randint(1, 61, (), generator=generator))
        tables = confusion_tables(TOGETHER, num_classes, generator)
        accuracy = tables.diagonal(dim1=1, dim2=2).double() / tables.sum(2)
        for tau in TAUS:
            weights = torch.vmap(weights_from_difficulty, in_dims=(0, None))(1 - accuracy, tau)
            failures += [
                f"table {tried + i}, tau {tau}: {line}: accuracies {accuracy[i].tolist()}"
                for i, line in broken(weights, accuracy)
            ]
        for i in range(max(0, min(TOGETHER, ONE_BY_ONE - tried))):
            failures += [f"table {tried + i}, {line}" for line in of_a_loss(tables[i], tried + i)]
        unusual["with_absent"] += int(accuracy.isnan().any(1).sum())
        unusual["with_solved"] += int((accuracy == 1).any(1).sum())
        unusual["with_hopeless"] += int((accuracy == 0).any(1).sum())
        tried += TOGETHER
    return Outcome(tried, tuple(failures), unusual)


def confusion_tables(number: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """(number, K, K) int64 clips by class and prediction, at least one in each table.

    A table has shares of its own of classes without clips, always right and never right.
    """
    rows = number, num_classes
    shares = torch.rand(number, 3, generator=generator) ** 3
    absent, solved, hopeless = (
        torch.rand(rows, generator=generator) < share[:, None] for share in shares.unbind(1)
    )
    most = 10 ** torch.randint(1, 5, (number, 1, 1), generator=generator)
    tables = (torch.rand(*rows, num_classes, generator=generator) * most).long()
    own = torch.eye(num_classes, dtype=torch.bool)
    tables[solved[:, :, None] & ~own] = 0
    tables[(hopeless & ~solved)[:, :, None] & own] = 0
    tables[absent] = 0
    empty = tables.sum((1, 2)) == 0
    tables[empty, 0, 0] = 1
    return tables


def broken(weights: Tensor, accuracy: Tensor) -> Iterator[tuple[int, str]]:
    """(table, what is wrong) with weights (tables, K) of accuracies (tables, K)."""
    measured = ~accuracy.isnan()
    mean = (weights * measured).sum(1) / measured.sum(1)
    # Sorted by accuracy, the unmeasured last with a weight below all others.
    order = accuracy.nan_to_num(2.0).argsort(dim=1)
    by_accuracy = weights.where(measured, -1.0).gather(1, order)
    same = accuracy.nan_to_num(2.0).gather(1, order).diff(dim=1) == 0
    rises = by_accuracy.diff(dim=1) > 1e-12
    checks = {
        "a weight that is not finite": ~weights.isfinite().all(1),
        "a weight below 0": (weights < 0).any(1),
        "the mean of the measured classes is not 1": (mean - 1).abs() > 1e-9,
        "a class that was not measured has a weight other than 1": ((weights != 1) & ~measured).any(
            1
        ),
        "an easier class weighs more": rises.any(1),
        "equal classes weigh differently": (same & (by_accuracy.diff(dim=1).abs() > 1e-12)).any(1),
    }
    for line, tables in checks.items():
        for i in tables.nonzero()[:, 0].tolist():
            yield i, line


def of_a_loss(table: Tensor, number: int) -> Iterator[str]:
    """A line for what is wrong with the weights of a loss that was given the table's counts."""
    tau = TAUS[number % len(TAUS)]
    floor = 0.05 if number % 2 else 0.0
    difficulty = ClassDifficulty(len(table), floor=floor, prior_strength=float(number % 3))
    loss = CDBLoss(len(table), tau=tau, difficulty=difficulty)
    loss.update(counts_of(table))
    weights, measured = loss.class_weights.double(), table.sum(1) > 0
    how = f"a loss with tau {tau}, floor {floor}, prior {number % 3}"
    if not weights.isfinite().all() or (weights < 0).any():
        yield f"{how}: weights {weights.tolist()}"
    if abs(float(weights[measured].mean()) - 1) > 1e-5 or not (weights[~measured] == 1).all():
        yield f"{how}: the mean is {float(weights[measured].mean())}"
    if floor and not (weights > 0).all():
        yield f"{how}: a class is never trained again, in spite of the floor"


def counts_of(table: Tensor) -> ClassCounts:
    """The counts of a confusion table; top-5 and loss are not asked for."""
    right, total = table.diagonal(), table.sum(1)
    zero = torch.zeros_like(total)
    return ClassCounts.from_dict({"table": torch.stack([right, zero, table.sum(0), total, zero])})


ROW = Row(
    "cdb_tables",
    "CDB's weights are finite, of mean 1, and no easier class weighs more, for any confusion.",
    measure,
    quick=10_000,
    full=1_000_000,
)
