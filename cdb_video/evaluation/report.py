"""The report of a split: a JSON file for programs, a table for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cdb_video.evaluation.metrics import head_figures
from cdb_video.evaluation.predictions import HeadClasses, Predictions


def make_report(
    predictions: Predictions,
    classes: Mapping[str, HeadClasses],
    *,
    run: str,
    split: str,
    annotation_split: str,
    views: str,
    split_fed: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of `report_<split>.json`.

    Args:
        predictions: the scores of the split.
        classes: head -> names and training counts.
        run: the run's name.
        split: its role: train, val or test.
        annotation_split: its name in the annotations.
        views: such as "10x3": clips x crops.
        split_fed: what else the split was used for in the run: "difficulty", "selection".

    """
    return {
        "run": run,
        "split": split,
        "annotation_split": annotation_split,
        "num_videos": len(predictions),
        "views": views,
        "split_fed": list(split_fed),
        "skipped": [],
        "heads": {
            head: head_figures(part, classes[head]) for head, part in predictions.heads.items()
        },
        "subsets": {},
    }


def save_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report as JSON; a file of that name is replaced in one move."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    beside.replace(path)


def print_report(report: Mapping[str, Any], *, console: Console | None = None) -> None:
    """The table of a report, a row a head."""
    console = console or Console()
    fed = f", which fed {' and '.join(report['split_fed'])}" if report["split_fed"] else ""
    table = Table(
        title=f"{report['run']}: {report['split']} split ({report['annotation_split']}{fed}), "
        f"{report['num_videos']} videos, {report['views']} views",
        caption="percent; mean class accuracy is over the classes that the split has; "
        "adjusted: post-hoc logit adjustment",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("head")
    columns = "classes", "top-1", "top-5", "mean class", "95 %", "adjusted"
    for column in (*columns, "many", "medium", "few", "worst fifth", "macro F1", "ECE"):
        table.add_column(column, justify="right")
    for head, figures in report["heads"].items():
        table.add_row(head, *_cells(figures))
    console.print(table)


def _cells(figures: Mapping[str, Any]) -> list[str]:
    classes = f"{figures['num_classes_present']}/{figures['num_classes']}"
    if figures["num_classes_present"] == 0:
        return [classes]
    low, high = figures["mean_class_accuracy_interval"]
    return [
        classes,
        _percent(figures["top1"]),
        _percent(figures["top5"]),
        _percent(figures["mean_class_accuracy"]),
        f"{_percent(low)}-{_percent(high)}",
        _percent(figures["mean_class_accuracy_logit_adjusted"]),
        *(_percent(figures[group]["accuracy"]) for group in ("many", "medium", "few")),
        _percent(figures["worst_fifth"]),
        _percent(figures["macro_f1"]),
        _percent(figures["ece"]),
    ]


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"
