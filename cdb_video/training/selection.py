"""Which epoch is the best one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cdb_video.evaluation.evaluate import EvalReport
from cdb_video.evaluation.metrics import selection_figure


def better_of(
    best: Mapping[str, Any] | None,
    report: EvalReport | None,
    *,
    epoch: int,
    step: int,
    select_by: str | None,
) -> Mapping[str, Any] | None:
    """The best so far, or the epoch of the report; its figure is a mean class accuracy.

    Ties: the lower validation loss, then the earlier epoch. A figure or loss that is no number is
    the worst of all.
    """
    if report is None:
        return best
    figure = selection_figure(report.counts, select_by=select_by)
    if best and _rank(figure, report.loss) <= _rank(best["mean_class_accuracy"], best["loss"]):
        return best
    return {
        "checkpoint": f"step-{step}",
        "epoch": epoch,
        "mean_class_accuracy": figure,
        "loss": report.loss,
    }


def _rank(figure: float, loss: float) -> tuple[float, float]:
    """Higher is better. NaN compares with nothing: every later epoch would be the best one."""
    figure, gain = (value if math.isfinite(value) else -math.inf for value in (figure, -loss))
    return figure, gain
