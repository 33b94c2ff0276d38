"""Which epoch is the best one."""

from __future__ import annotations

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

    Ties: the lower validation loss, then the earlier epoch.
    """
    if report is None:
        return best
    figure = selection_figure(report.counts, select_by=select_by)
    before = (best["mean_class_accuracy"], -best["loss"]) if best else None
    if before is not None and (figure, -report.loss) <= before:
        return best
    return {
        "checkpoint": f"step-{step}",
        "epoch": epoch,
        "mean_class_accuracy": figure,
        "loss": report.loss,
    }
