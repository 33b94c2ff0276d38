"""The report of a split: a JSON file for programs, a table for people."""

from __future__ import annotations

import json
import statistics
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
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def print_report(report: Mapping[str, Any], *, console: Console | None = None) -> None:
    """The table of a report: a column a head, in percent."""
    fed = f", which also fed {' and '.join(report['split_fed'])}" if report["split_fed"] else ""
    table = Table(
        title=f"{report['run']}, {report['split']} split ({report['annotation_split']}{fed}): "
        f"{report['num_videos']} videos, {report['views']} views",
        caption="percent; mean figures are over the classes that the split has",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    for head in report["heads"]:
        table.add_column(head, justify="right")
    columns = [_column(figures) for figures in report["heads"].values()]
    for name in columns[0]:
        emphasis = "bold" if name == "mean class accuracy" else None
        table.add_row(name, *(column[name] for column in columns), style=emphasis)
    (console or Console()).print(table)


def print_mean(reports: Sequence[Mapping[str, Any]], *, console: Console | None = None) -> None:
    """Mean and standard deviation over runs of each head's main figures, in percent."""
    table = Table(
        title=f"mean and standard deviation over {len(reports)} runs, percent",
        title_justify="left",
    )
    table.add_column("")
    heads = [head for head in reports[0]["heads"] if all(head in r["heads"] for r in reports)]
    for head in heads:
        table.add_column(head, justify="right")
    for name in ("top1", "mean_class_accuracy", "worst_fifth", "macro_f1"):
        cells = []
        for head in heads:
            found = [report["heads"][head].get(name) for report in reports]
            values = [100 * value for value in found if value is not None]
            if len(values) < len(reports):
                cells.append("-")
                continue
            cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}")
        table.add_row(name.replace("_", " "), *cells)
    (console or Console()).print(table)


def _column(figures: Mapping[str, Any]) -> dict[str, str]:
    def percent(name: str) -> str:
        return _percent(figures.get(name))

    def shot(name: str) -> str:
        group = figures.get(name) or {"accuracy": None, "num_classes": 0}
        return f"{_percent(group['accuracy'])} ({group['num_classes']})"

    low, high = figures.get("mean_class_accuracy_interval") or (None, None)
    return {
        "classes in the split": f"{figures['num_classes_present']} of {figures['num_classes']}",
        "top-1": percent("top1"),
        "top-5": percent("top5"),
        "mean class accuracy": percent("mean_class_accuracy"),
        "  95 % interval": f"{_percent(low)} to {_percent(high)}",
        "  after logit adjustment": percent("mean_class_accuracy_logit_adjusted"),
        "  many-shot (classes)": shot("many"),
        "  medium-shot": shot("medium"),
        "  few-shot": shot("few"),
        "  worst fifth": percent("worst_fifth"),
        "macro F1": percent("macro_f1"),
        "calibration error": percent("ece"),
    }


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"
