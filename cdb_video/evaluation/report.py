"""The report of a split: a JSON file for programs, a table for people."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cdb_video.evaluation.consistency import consistency
from cdb_video.evaluation.metrics import head_figures
from cdb_video.evaluation.predictions import HeadClasses, Predictions
from cdb_video.evaluation.subsets import subset_figures
from cdb_video.files import write_text_atomically
from cdb_video.progress import plain_console


def make_report(
    predictions: Predictions,
    classes: Mapping[str, HeadClasses],
    *,
    run: str,
    split: str,
    annotation_split: str,
    views: str,
    split_fed: Sequence[str] = (),
    subsets: Mapping[str, Collection[str]] | None = None,
    skipped: Sequence[tuple[str, str]] = (),
    logit_adjust: float = 0.0,
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
        subsets: name -> ids of videos to give figures of apart, beside those of the metadata.
        skipped: (id, reason) of the videos that do not decode, which the predictions do not have.
        logit_adjust: the tau that the scores are adjusted by already; 0: they are the model's.

    """
    adjusted = logit_adjust != 0
    return {
        "run": run,
        "split": split,
        "annotation_split": annotation_split,
        "num_videos": len(predictions),
        "views": views,
        "logit_adjust": logit_adjust,
        "split_fed": list(split_fed),
        "skipped": [{"id": name, "reason": reason} for name, reason in skipped],
        "heads": {
            head: head_figures(part, classes[head], adjusted=adjusted)
            for head, part in predictions.heads.items()
        },
        "subsets": subset_figures(predictions, classes, subsets or {}, adjusted=adjusted),
        "consistency": consistency(predictions, classes),
    }


def save_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report as JSON; a file of that name is replaced in one move."""
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text_atomically(path, text)


def print_report(report: Mapping[str, Any], *, console: Console | None = None) -> None:
    """The tables of a report: a column a head, in percent; subsets; verb, noun and action."""
    console = console or plain_console()
    fed = f", which also fed {' and '.join(report['split_fed'])}" if report["split_fed"] else ""
    tau = report["logit_adjust"]
    adjusted = f", logit-adjusted with tau {tau:g}" if tau else ""
    table = Table(
        title=f"{report['run']}, {report['split']} split ({report['annotation_split']}{fed}): "
        f"{report['num_videos']} videos, {report['views']} views{adjusted}",
        caption="percent; mean figures are over the classes that the split has",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    for head in report["heads"]:
        table.add_column(head, justify="right")
    columns = [_column(figures) for figures in report["heads"].values()]
    for name in columns[0]:
        cells = [column[name] for column in columns]
        if any(cells):
            emphasis = "bold" if name == "mean class accuracy" else None
            table.add_row(name, *cells, style=emphasis)
    console.print(table)
    if report["skipped"]:
        names = [one["id"] for one in report["skipped"]]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        console.print(f"left out of every figure, as they do not decode: {len(names)} ({shown})")
    if report["subsets"]:
        console.print(_subsets_table(report["subsets"], list(report["heads"])))
    if report["consistency"]:
        console.print(_consistency_table(report["consistency"]))


def _subsets_table(subsets: Mapping[str, Mapping[str, Any]], heads: Sequence[str]) -> Table:
    table = Table(
        title="subsets: top-1, mean class accuracy, its 95 % interval (videos)",
        title_justify="left",
    )
    table.add_column("")
    for head in heads:
        table.add_column(head, justify="right")
    for name, of_heads in subsets.items():
        table.add_row(name, *(_subset_cell(of_heads.get(head)) for head in heads))
    return table


def _subset_cell(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "-"
    if figures["num_videos"] == 0:
        return "no labels"
    low, high = figures["mean_class_accuracy_interval"]
    accuracy = f"{_percent(figures['top1'])}, {_percent(figures['mean_class_accuracy'])}"
    return f"{accuracy}, {_percent(low)} to {_percent(high)} ({figures['num_videos']})"


def _consistency_table(found: Mapping[str, Any]) -> Table:
    shares = [
        f"{_percent(found['invalid_pairs'])} of verb and noun predictions are no known action"
    ]
    if found["agreement"] is not None:
        shares.append(f"the action head agrees with both on {_percent(found['agreement'])}")
    table = Table(
        title="action, by its own head and by verb and noun",
        caption=f"percent; {'; '.join(shares)}",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("", "top-1", "top-5", "mean class accuracy"):
        table.add_column(name, justify="right" if name else "left")
    rules = {"own_head": "action head", "product": "verb x noun", "both": "all three"}
    for key, name in rules.items():
        if found[key] is not None:
            table.add_row(name, *(_percent(value) for value in found[key].values()))
    return table


def _column(figures: Mapping[str, Any]) -> dict[str, str]:
    def percent(name: str) -> str:
        return _percent(figures[name])

    def group(name: str) -> str:
        found = figures[name]
        return f"{_percent(found['accuracy'])} ({found['num_classes']})"

    def paper(name: str) -> str:
        """Empty unless both groups have a class."""
        apart = figures["majority"]["num_classes"] and figures["minority"]["num_classes"]
        return group(name) if apart else ""

    low, high = figures["mean_class_accuracy_interval"] or (None, None)
    present = f"{figures['num_classes_present']} of {figures['num_classes']}"
    return {
        "classes in the split": present if figures["num_videos"] else "no labels",
        "top-1": percent("top1"),
        "top-5": percent("top5"),
        "mean class accuracy": percent("mean_class_accuracy"),
        "  95 % interval": f"{_percent(low)} to {_percent(high)}",
        "  after logit adjustment": percent("mean_class_accuracy_logit_adjusted"),
        "  many-shot (classes)": group("many"),
        "  medium-shot": group("medium"),
        "  few-shot": group("few"),
        "  majority (CDB paper)": paper("majority"),
        "  minority (CDB paper)": paper("minority"),
        "  worst fifth": percent("worst_fifth"),
        "  harmonic mean": percent("harmonic_mean"),
        "mean class top-5": percent("mean_class_top5"),
        "mean class precision": percent("mean_class_precision"),
        "macro F1": percent("macro_f1"),
        "calibration error": percent("ece"),
    }


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"
