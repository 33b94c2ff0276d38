"""Which epoch is the best one where a head, or every head, has nothing to say."""

import math

import pytest
import torch

from cdb_video.evaluation.evaluate import EvalReport
from cdb_video.evaluation.predictions import HeadPredictions, Predictions
from cdb_video.training.selection import better_of


def report(score: float, *, labels: tuple[int, ...] = (0,)) -> EvalReport:
    """One video a label: verbs with this score of class 0; nobody labelled a noun."""
    scores = torch.tensor([[score, 1 - score]] * len(labels))
    heads = {
        "verb": HeadPredictions(scores, scores[:, None].half(), torch.tensor(labels)),
        "noun": HeadPredictions(scores, scores[:, None].half(), torch.full((len(labels),), -1)),
    }
    return EvalReport(Predictions(tuple(map(str, range(len(labels)))), heads), num_views=1)


@pytest.mark.parametrize("select_by", [None, "verb"])
def test_a_head_without_labels_does_not_choose(select_by: str | None) -> None:
    first, worse, sharper = report(0.6), report(0.4), report(0.9)
    assert first.loss == pytest.approx(-math.log(0.6))

    best = better_of(None, first, epoch=1, step=1, select_by=select_by)

    assert best is not None
    assert best["mean_class_accuracy"] == 1
    assert better_of(best, worse, epoch=2, step=2, select_by=select_by) is best
    assert better_of(best, first, epoch=2, step=2, select_by=select_by) is best
    better = better_of(best, sharper, epoch=2, step=2, select_by=select_by)
    assert better is not None
    assert better["epoch"] == 2


def test_a_figure_that_is_no_number_never_replaces_one() -> None:
    nothing, known = report(0.6, labels=(-1,)), report(0.6)
    assert math.isnan(nothing.loss)

    first = better_of(None, nothing, epoch=1, step=1, select_by=None)
    second = better_of(first, known, epoch=2, step=2, select_by=None)

    assert better_of(first, nothing, epoch=2, step=2, select_by=None) is first
    assert second is not None
    assert second["epoch"] == 2
    assert better_of(second, nothing, epoch=3, step=3, select_by=None) is second
