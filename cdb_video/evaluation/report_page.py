"""The report of a split to look at: one HTML file, its pictures inside, nothing fetched."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdb_video.clips.base import VideoDecoder
from cdb_video.clips.dataset import open_record
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.evaluation import report_figures
from cdb_video.evaluation.canvas import Picture, save_picture
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
    read_class_histories,
    read_events,
    reliability,
    thumbnails,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVERY_S = 60
SPARK_POINTS = 60
SPARK_SIZE = (90, 20)
"""Width and height in pixels."""

FIGURES = (
    ("top1", "top-1", "share of clips that are right"),
    ("top5", "top-5", "share of clips with their class among the five highest scores"),
    ("mean_class_accuracy", "mean class accuracy", "every class counts the same"),
    ("mean_class_accuracy_interval", "95 % interval", "bootstrap over the clips of each class"),
    (
        "mean_class_accuracy_logit_adjusted",
        "after logit adjustment",
        "the same scores divided by the training frequencies; a control that costs no training",
    ),
    ("many", "many-shot", "mean class accuracy over classes with more than 100 training clips"),
    ("medium", "medium-shot", "20 to 100 training clips"),
    ("few", "few-shot", "fewer than 20"),
    ("worst_fifth", "worst fifth", "mean over the fifth of the classes with the lowest accuracy"),
    (
        "harmonic_mean",
        "harmonic mean",
        "of class accuracies; 0 as soon as one class is never right",
    ),
    ("mean_class_top5", "mean class top-5", "top-5 of each class, averaged over classes"),
    ("macro_f1", "macro F1", "mean over classes of F1"),
    ("mean_class_precision", "mean class precision", "right over predicted, averaged over classes"),
    ("ece", "calibration error", "ECE: mean gap between confidence and accuracy, 15 bins"),
)
"""Key in the report, name, explanation."""


def is_due(page: Path) -> bool:
    """Whether to write a page while training goes on: at most one a minute, as it takes seconds."""
    return not page.exists() or time.time() - page.stat().st_mtime >= EVERY_S


def refresh_report_page(folder: Path, split: str) -> None:
    """Write a page again from the run's own files, if training went on since it was written.

    A validation's page is older than the difficulty that the validation gave, and in a run of short
    epochs older than the last validation.
    """
    page, predictions = folder / f"report_{split}.html", folder / f"predictions_{split}.npz"
    metrics = folder / "metrics.jsonl"
    if not (predictions.exists() and metrics.exists()):
        return
    if page.exists() and page.stat().st_mtime >= metrics.stat().st_mtime:
        return
    report = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    write_report_page(folder, report, *load_predictions(predictions))


def write_report_page(
    folder: Path,
    report: Mapping[str, Any],
    predictions: Predictions,
    classes: Mapping[str, HeadClasses],
    *,
    records: Sequence[VideoRecord] = (),
    opener: Callable[[VideoRecord], VideoDecoder] = open_record,
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

    """
    path = folder / f"report_{report['split']}.html"
    histories = read_class_histories(folder / "difficulty.csv", classes)
    heads = [
        _head(head, predictions, classes[head], histories.get(head)) for head in report["heads"]
    ]
    wanted = {clip.id for head in heads for clip in head["hardest"]}
    about = folder / "run.json"
    config = folder / "config.yaml"
    text = _template().render(
        report=report,
        figures=[
            (name, [shown(figures.get(key)) for figures in report["heads"].values()], meaning)
            for key, name, meaning in FIGURES
        ],
        heads=heads,
        thumbnails=thumbnails(records, wanted, opener),
        curves=_curves(read_events(folder / "metrics.jsonl"), list(report["heads"])),
        config=config.read_text(encoding="utf-8") if config.exists() else None,
        about=json.loads(about.read_text(encoding="utf-8")) if about.exists() else {},
    )
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
    return path


def shown(figure: Any) -> str:
    """A figure of a report in percent: a fraction, an interval, or a shot group."""
    match figure:
        case None:
            return "-"
        case {"accuracy": accuracy, "num_classes": number}:
            return f"{shown(accuracy)} ({number})"
        case [low, high]:
            return f"{shown(low)} to {shown(high)}"
    return "-" if math.isnan(figure) else f"{100 * figure:.1f}"


def _template() -> Any:
    """Any: jinja2 is imported only here."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = shown
    source = resources.files("cdb_video.evaluation") / "report.html.j2"
    return environment.from_string(source.read_text(encoding="utf-8"))


def _head(
    head: str, predictions: Predictions, classes: HeadClasses, history: ClassHistory | None
) -> dict[str, Any]:
    part = predictions.heads[head]
    confusion = confusion_matrix(part)
    lines = report_figures.draw_history(classes.names, history) if history else None
    return {
        "name": head,
        "classes": _class_rows(part, classes, history),
        "history": history,
        "pictures": _pictures(part, classes, confusion),
        "history_picture": _saved(lines),
        "confused": most_confused(confusion, classes.names),
        "hardest": hardest_clips(predictions, head, classes.names),
    }


def _pictures(
    part: HeadPredictions, classes: HeadClasses, confusion: np.ndarray
) -> dict[str, Picture | None] | None:
    """None for a head without a labelled clip."""
    counts = part.counts
    if not counts.num_classes_present:
        return None
    train_counts = classes.train_counts.numpy()
    # The most trained first; classes that are neither in the split nor predicted say nothing.
    order = np.argsort(-train_counts, kind="stable")
    order = order[(confusion.sum(0) + confusion.sum(1))[order] > 0]
    return {
        "accuracy": _saved(
            report_figures.draw_accuracy_by_count(
                classes.names, train_counts, counts.class_accuracy.numpy(), counts.total.numpy()
            )
        ),
        "confusion": _saved(
            report_figures.draw_confusion(
                [classes.names[i] for i in order], confusion[np.ix_(order, order)]
            )
        ),
        "reliability": _saved(report_figures.draw_reliability(reliability(part))),
    }


def _curves(events: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> Picture | None:
    if not any(event["event"] == "train" for event in events):
        return None
    return _saved(report_figures.draw_curves(events, heads))


def _saved(figure: Figure | None) -> Picture | None:
    return save_picture(figure) if figure else None


def _class_rows(
    part: HeadPredictions, classes: HeadClasses, history: ClassHistory | None
) -> list[dict[str, Any]]:
    """The most trained class first."""
    counts = part.counts
    rows = [
        {"name": name, "train": train, "clips": clips, "accuracy": accuracy}
        for name, train, clips, accuracy in zip(
            classes.names,
            classes.train_counts.tolist(),
            counts.total.tolist(),
            counts.class_accuracy.tolist(),
            strict=True,
        )
    ]
    if history:
        sparks = _sparks(history.difficulty)
        now = zip(history.difficulty[-1].tolist(), history.weight[-1].tolist(), strict=True)
        for row, (difficulty, weight), spark in zip(rows, now, sparks, strict=True):
            row |= {"difficulty": difficulty, "weight": weight, "spark": spark}
    return sorted(rows, key=lambda row: -row["train"])


def _sparks(values: np.ndarray) -> list[str]:
    """(E, K) in [0, 1] -> the points of a line a class, "x,y x,y ..."; NaN are left out."""
    width, height = SPARK_SIZE
    chosen = np.unique(np.linspace(0, len(values) - 1, SPARK_POINTS).round().astype(int))
    x = 1 + (width - 2) * chosen / max(len(values) - 1, 1)
    y = 1 + (height - 2) * (1 - values[chosen])
    return [
        " ".join(f"{a:.0f},{b:.1f}" for a, b in zip(x, column, strict=True) if not np.isnan(b))
        for column in y.T
    ]
