"""The tables of a report page: figures, subsets, agreement of heads, classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from cdb_video.evaluation.predictions import HeadClasses, HeadPredictions
from cdb_video.evaluation.report_data import ClassHistory

SPARK_POINTS = 60
SPARK_SIZE = (90, 20)
"""Width and height in pixels."""

FIGURES = (
    ("top1", "top-1", "share of videos that are right"),
    ("top5", "top-5", "share of videos with their class among the five highest scores"),
    ("mean_class_accuracy", "mean class accuracy", "every class counts the same"),
    (
        "mean_class_accuracy_logit_adjusted",
        "after logit adjustment",
        "the same scores divided by the training frequencies; a control that costs no training",
    ),
    ("many", "many-shot", "mean class accuracy over classes with more than 100 training clips"),
    ("medium", "medium-shot", "20 to 100 training clips"),
    ("few", "few-shot", "fewer than 20"),
    ("majority", "majority", "more than 600 annotated training clips: the CDB paper's groups"),
    ("minority", "minority", "600 or fewer"),
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

BARS = (
    ("top1", "top-1"),
    ("many", "many-shot"),
    ("medium", "medium-shot"),
    ("few", "few-shot"),
    ("worst_fifth", "worst fifth"),
)
"""Key and name of the bars of a head's card."""

OF_A_SUBSET = (
    ("num_videos", "videos"),
    ("top1", "top-1"),
    ("top5", "top-5"),
    ("mean_class_accuracy", "mean class accuracy"),
    ("num_classes_present", "classes"),
    ("worst_fifth", "worst fifth"),
    ("ece", "calibration error"),
)

RULES = (
    ("own_head", "its own head", "the highest score of the action head"),
    ("product", "verb x noun", "the known action with the highest verb score times noun score"),
    ("both", "action x verb x noun", "the highest product of the three"),
)


class Cell(NamedTuple):
    """A figure to show, and its 95 % interval; empty without one."""

    value: str
    interval: str = ""


class FigureRow(NamedTuple):
    """A figure over the heads."""

    name: str
    cells: list[Cell]
    meaning: str


def shown(figure: Any) -> str:
    """A figure of a report in percent: a fraction, an interval, or a group of classes."""
    match figure:
        case None:
            return "-"
        case {"accuracy": accuracy, "num_classes": number}:
            return f"{shown(accuracy)} ({number})"
        case [low, high]:
            return f"{shown(low)} to {shown(high)}"
    return "-" if math.isnan(figure) else f"{100 * figure:.1f}"


def figure_rows(heads: Mapping[str, Mapping[str, Any]]) -> list[FigureRow]:
    """The figures of `report["heads"]`; the paper's groups only where there is a majority class."""
    has_majority = any((f.get("majority") or {}).get("num_classes") for f in heads.values())
    return [
        FigureRow(name, [_cell(figures, key) for figures in heads.values()], meaning)
        for key, name, meaning in FIGURES
        if has_majority or key not in ("majority", "minority")
    ]


def _cell(figures: Mapping[str, Any], key: str) -> Cell:
    interval = (figures.get("intervals") or {}).get(key)
    if interval is None:
        interval = figures.get(f"{key}_interval")
    return Cell(shown(figures.get(key)), shown(interval) if interval else "")


def bars(figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Name and fraction of the bars of a head's card; those that do not exist are left out."""
    for key, name in BARS:
        value = figures.get(key)
        if isinstance(value, Mapping):
            name = f"{name} ({value['num_classes']})"
            value = value["accuracy"]
        if value is not None:
            yield name, value


def subset_tables(report: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Head -> subset -> cells under the names of `OF_A_SUBSET`; the whole split comes first."""
    subsets = report.get("subsets") or {}
    if not subsets:
        return {}
    parts = {"the whole split": report["heads"], **subsets}
    return {
        head: {
            name: [_subset_cell(heads[head], key) for key, _ in OF_A_SUBSET]
            for name, heads in parts.items()
            if head in heads
        }
        for head in report["heads"]
        if any(head in heads for heads in subsets.values())
    }


def _subset_cell(figures: Mapping[str, Any], key: str) -> str:
    value = figures.get(key)
    return str(value) if isinstance(value, int) else shown(value)


def rule_rows(found: Mapping[str, Any]) -> list[tuple[str, list[str], str]]:
    """Rule, its top-1, top-5 and mean class accuracy, explanation; of `report["consistency"]`."""
    return [
        (name, [shown(found[key][f]) for f in ("top1", "top5", "mean_class_accuracy")], meaning)
        for key, name, meaning in RULES
        if found.get(key)
    ]


def class_rows(
    part: HeadPredictions, classes: HeadClasses, history: ClassHistory | None
) -> list[dict[str, Any]]:
    """The most trained class first."""
    counts = part.counts
    rows = [
        {"name": name, "train": train, "videos": videos, "accuracy": accuracy}
        for name, train, videos, accuracy in zip(
            classes.names,
            classes.train_counts.tolist(),
            counts.total.tolist(),
            counts.class_accuracy.tolist(),
            strict=True,
        )
    ]
    if history:
        now = history.difficulty[-1].tolist(), history.weight[-1].tolist()
        lines = sparks(history.difficulty), sparks(history.weight / history.largest_weight)
        keys = "difficulty", "weight", "difficulty_line", "weight_line"
        for row, *values in zip(rows, *now, *lines, strict=True):
            row |= zip(keys, values, strict=True)
    return sorted(rows, key=lambda row: -row["train"])


def sparks(values: np.ndarray) -> list[str]:
    """(E, K) in [0, 1] -> the points of a line a class, "x,y x,y ..."; NaN are left out."""
    width, height = SPARK_SIZE
    chosen = np.unique(np.linspace(0, len(values) - 1, SPARK_POINTS).round().astype(int))
    x = 1 + (width - 2) * chosen / max(len(values) - 1, 1)
    y = 1 + (height - 2) * (1 - values[chosen])
    return [
        " ".join(f"{a:.0f},{b:.1f}" for a, b in zip(x, column, strict=True) if not np.isnan(b))
        for column in y.T
    ]
