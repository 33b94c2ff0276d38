"""The report of a split to look at: one HTML file, its pictures inside, nothing fetched."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdb_video.clips.base import VideoDecoder
from cdb_video.clips.dataset import open_record
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.evaluation import pages, report_curves, report_figures, report_tables
from cdb_video.evaluation.canvas import save_picture
from cdb_video.evaluation.predictions import (
    HeadClasses,
    HeadPredictions,
    Predictions,
    load_predictions,
)
from cdb_video.evaluation.report_data import (
    ClassHistory,
    confusion_matrix,
    hardest_clips,
    most_confused,
    progress,
    read_class_histories,
    read_events,
    reliability,
    thumbnails,
)
from cdb_video.files import write_text_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVERY_S = 60


def is_due(page: Path) -> bool:
    """Whether to write a page while training goes on: at most one a minute, as it takes seconds."""
    return not page.exists() or time.time() - page.stat().st_mtime >= EVERY_S


def finish_report_page(
    folder: Path,
    split: str,
    records: Sequence[VideoRecord] = (),
    *,
    opener: Callable[[VideoRecord], VideoDecoder] = open_record,
) -> None:
    """Write a page again from the run's own files when training is done, now with thumbnails.

    A validation's page is older than the difficulty that the validation gave, in a run of short
    epochs older than the last validation, and still loads itself again.
    """
    page, predictions = folder / f"report_{split}.html", folder / f"predictions_{split}.npz"
    metrics = folder / "metrics.jsonl"
    if not (predictions.exists() and metrics.exists()):
        return
    if page.exists() and page.stat().st_mtime >= metrics.stat().st_mtime and not _is_live(page):
        return
    report = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    write_report_page(
        folder, report, *load_predictions(predictions), records=records, opener=opener
    )


def _is_live(page: Path) -> bool:
    return '<meta http-equiv="refresh"' in page.read_text(encoding="utf-8")


def write_report_page(
    folder: Path,
    report: Mapping[str, Any],
    predictions: Predictions,
    classes: Mapping[str, HeadClasses],
    *,
    records: Sequence[VideoRecord] = (),
    opener: Callable[[VideoRecord], VideoDecoder] = open_record,
    on_figures: Callable[[Mapping[str, Figure]], None] | None = None,
    live: bool = False,
) -> Path:
    """Write `report_<split>.html`; a file of that name is replaced in one move.

    What the run's folder has of metrics.jsonl, difficulty.csv, config.yaml and run.json is shown
    too.

    Args:
        folder: the run's.
        report: the content of `report_<split>.json`.
        predictions: what it was made from.
        classes: head -> names and training counts.
        records: the split's, for a thumbnail of each of the hardest clips; empty: none.
        opener: opens a record's video.
        on_figures: is given the pictures of the heads too, such as "verb/confusion".
        live: training goes on; an open page loads itself again every minute.

    """
    path = folder / f"report_{report['split']}.html"
    histories = read_class_histories(folder / "difficulty.csv", classes)
    events = read_events(folder / "metrics.jsonl")
    heads = [
        _head(head, predictions, classes[head], histories.get(head), on_figures)
        for head in report["heads"]
    ]
    wanted = {clip.id for head in heads for clip in head["hardest"]}
    about = folder / "run.json"
    config = folder / "config.yaml"
    text = pages.render(
        "evaluation/report.html.j2",
        report=report,
        live=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}" if live else None,
        progress=progress(events),
        tables=report_tables,
        percent=report_tables.shown,
        heads=heads,
        thumbnails=thumbnails(records, wanted, opener),
        curves=_saved(report_curves.draw_curves(events, list(report["heads"]))),
        config=config.read_text(encoding="utf-8") if config.exists() else None,
        about=json.loads(about.read_text(encoding="utf-8")) if about.exists() else {},
    )
    write_text_atomically(path, text)
    return path


def _head(
    head: str,
    predictions: Predictions,
    classes: HeadClasses,
    history: ClassHistory | None,
    on_figures: Callable[[Mapping[str, Figure]], None] | None,
) -> dict[str, Any]:
    part = predictions.heads[head]
    confusion = confusion_matrix(part)
    figures = _draw(part, classes, confusion)
    lines = report_curves.draw_history(classes.names, history) if history else {}
    if on_figures:
        on_figures({f"{head}/{name}": drawn for name, drawn in (figures | lines).items()})
    return {
        "name": head,
        "classes": report_tables.class_rows(part, classes, history),
        "history": history,
        "pictures": _saved(figures),
        "history_pictures": _saved(lines),
        "confused": most_confused(confusion, classes.names),
        "hardest": hardest_clips(predictions, head, classes.names),
    }


def _draw(part: HeadPredictions, classes: HeadClasses, confusion: np.ndarray) -> dict[str, Figure]:
    """Empty for a head without a labelled clip."""
    counts = part.counts
    if not counts.num_classes_present:
        return {}
    train_counts = classes.train_counts.numpy()
    # The most trained first; classes that are neither in the split nor predicted say nothing.
    order = np.argsort(-train_counts, kind="stable")
    order = order[(confusion.sum(0) + confusion.sum(1))[order] > 0]
    return {
        "accuracy": report_figures.draw_accuracy_by_count(
            classes.names, train_counts, counts.class_accuracy.numpy(), counts.total.numpy()
        ),
        "confusion": report_figures.draw_confusion(
            [classes.names[i] for i in order], confusion[np.ix_(order, order)]
        ),
        "reliability": report_figures.draw_reliability(reliability(part)),
    }


def _saved(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {name: save_picture(figure) for name, figure in figures.items()}
