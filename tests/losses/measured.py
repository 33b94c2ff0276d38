"""What the tests of difficulty share: measurements by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cdb_video.counts import ClassCounts

NAN = math.nan


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12, equal_nan=True)


def counted(correct: list[int], total: list[int]) -> ClassCounts:
    """Counts of these figures; what is not right is predicted as the next class."""
    classes = len(total)
    counts = ClassCounts(classes)
    for c, (right, of) in enumerate(zip(correct, total, strict=True)):
        predicted = torch.tensor(
            [c] * right + [(c + 1) % classes] * (of - right), dtype=torch.int64
        )
        scores = torch.nn.functional.one_hot(predicted, classes)
        counts.update(scores, torch.full((of,), c))
    return counts
