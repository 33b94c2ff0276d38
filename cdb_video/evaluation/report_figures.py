"""The pictures of a split: what the predictions look like, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cdb_video.counts import FEW_SHOT, MANY_SHOT
from cdb_video.evaluation.canvas import COLOURS, GREY, as_percent, panels, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cdb_video.evaluation.report_data import Reliability

NAMED_OUTLIERS = 8
NUMBERED_CELLS = 12
"""Confusion matrices of so many classes or fewer have their percentages written in."""
NAMED_ROWS = 130
"""Larger confusion matrices have no class names: no one could read them."""


def draw_reliability(bins: Reliability) -> Figure:
    """Accuracy against confidence, above how many videos have that confidence."""
    picture, (upper, lower) = panels(
        2, 1, figsize=(4.8, 4.4), margins=(0.8, 0.55, 0.2, 0.1), height_ratios=[3, 1], sharex=True
    )
    width = 1 / len(bins.count)
    edges = np.arange(len(bins.count)) * width
    filled = bins.count > 0
    bar = {"width": width, "align": "edge", "edgecolor": "white"}
    upper.bar(edges[filled], bins.accuracy[filled], color=COLOURS[0], **bar)
    upper.plot([0, 1], [0, 1], color="#222222", linewidth=1, linestyle="--")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="right")
    as_percent(upper.yaxis)
    as_percent(lower.xaxis)
    lower.bar(edges, bins.count, color=GREY, **bar)
    lower.set(xlabel="confidence: score of the predicted class", ylabel="videos")
    return picture


def draw_accuracy_by_count(
    names: Sequence[str], train_counts: np.ndarray, accuracy: np.ndarray, total: np.ndarray
) -> Figure:
    """A dot a class that has videos; named are those farthest from the fitted line.

    Args:
        names: K class names.
        train_counts: (K,) training clips.
        accuracy: (K,) NaN where a class has no video.
        total: (K,) videos of the split: the area of a dot.

    """
    picture, (panel,) = panels(1, 1, figsize=(11, 4.4), margins=(0.8, 0.55, 0.15, 0.1))
    known = np.flatnonzero(total > 0)
    x, y = train_counts[known], accuracy[known]
    panel.scatter(
        x, y, s=18 + 160 * total[known] / total.max(), color=COLOURS[0], alpha=0.55, linewidths=0
    )
    # Linear from 0 to 1, where a logarithm has no place for a class without training clips.
    panel.set_xscale("symlog", linthresh=1)
    panel.set_xlim(-0.1 if x.min() == 0 else 0.8 * x.min(), max(1.4 * x.max(), 2))
    ticks = [0, *(step * 10**power for power in range(8) for step in (1, 2, 5))]
    panel.set_xticks([tick for tick in ticks if x.min() <= tick <= x.max()] or [int(x.min())])
    panel.xaxis.set_major_formatter("{x:.0f}")
    panel.set(xlabel="training clips of the class", ylabel="accuracy", ylim=(-0.05, 1.1))
    as_percent(panel.yaxis)
    _name_shots(panel)
    distance = np.zeros(len(y))
    if len(np.unique(x)) > 1:
        slope, offset = np.polyfit(np.log1p(x), y, 1)
        distance = np.abs(y - slope * np.log1p(x) - offset)
        line = np.geomspace(max(x.min(), 0.5), x.max(), 50)
        fitted = np.clip(slope * np.log1p(line) + offset, 0, 1)
        panel.plot(line, fitted, color="#666666", linewidth=1)
    order = np.argsort(-distance, kind="stable")
    _name_dots(panel, [names[i] for i in known[order].tolist()], x[order], y[order])
    return picture


def _name_shots(panel: Axes) -> None:
    """Dotted lines between few, medium and many-shot classes; their names above."""
    low, high = panel.get_xlim()
    borders = (low, FEW_SHOT, MANY_SHOT + 1, high)
    for name, left, right in zip(("few", "medium", "many"), borders, borders[1:], strict=False):
        left, right = max(left, low), min(right, high)
        if left >= right:
            continue
        if left > low:
            panel.axvline(left, color="#999999", linewidth=0.8, linestyle=":")
        ends = panel.transData.transform([(left, 0), (right, 0)])[:, 0]
        if np.ptp(ends) < 0.08 * panel.bbox.width:
            continue  # no room for the name
        panel.annotate(
            name,
            (left, 1.1),
            xytext=(4, -2),
            textcoords="offset points",
            va="top",
            fontsize=9,
            color="#777777",
        )


def _name_dots(panel: Axes, names: Sequence[str], x: np.ndarray, y: np.ndarray) -> None:
    """Name the first dots whose names do not meet."""
    places = (panel.transData + panel.transAxes.inverted()).transform(np.column_stack([x, y]))
    named: list[tuple[float, float, float]] = []
    for name, dot, (across, up) in zip(names, zip(x, y, strict=True), places, strict=True):
        length = 0.0087 * len(short(name))  # of 9 points, on this picture's width
        sign = -1 if across + length > 1 else 1
        left, right = sorted((across, across + sign * length))
        if any(left < b and right > a and abs(up - height) < 0.05 for a, b, height in named):
            continue
        panel.annotate(
            short(name),
            dot,
            xytext=(7 * sign, 4),
            textcoords="offset points",
            ha="right" if sign < 0 else "left",
            fontsize=9,
            parse_math=False,
        )
        named.append((left, right, up))
        if len(named) == NAMED_OUTLIERS:
            return


def draw_confusion(names: Sequence[str], confusion: np.ndarray) -> Figure:
    """A row a true class, each divided by its videos; a class without videos is grey.

    Args:
        names: K class names, the most trained first.
        confusion: (K, K) videos of a row's class that were taken for a column's.

    """
    from matplotlib.colors import PowerNorm

    number = len(names)
    is_named = number <= NAMED_ROWS
    side = max(2.5, min(0.42 * number, 9.5), 0.1 * number * is_named)
    size = min(9.0, 0.8 * 72 * side / number)
    shown_names = [short(name) for name in names] if is_named else []
    room = 0.15 + max((0.6 * size / 72 * len(name) for name in shown_names), default=0)
    picture, (panel,) = panels(
        1,
        1,
        figsize=(room + side + 0.35, room + side + 0.35),
        margins=(room, room, 0.35, 0.35),
    )
    total = confusion.sum(axis=1, keepdims=True)
    share = np.where(total > 0, confusion / np.maximum(total, 1), np.nan).astype(np.float32)
    panel.set_facecolor("#dddddd")
    # A root, so that a tenth of the videos can be seen.
    panel.imshow(share, cmap="Blues", norm=PowerNorm(0.6, 0, 1), interpolation="nearest")
    panel.spines[["top", "right"]].set_visible(True)
    panel.xaxis.set_label_position("top")
    panel.yaxis.set_label_position("right")
    panel.set(xlabel="predicted class", ylabel="true class", xticks=[], yticks=[])
    # Texts, as a tick costs three times as much.
    style = {"fontsize": size, "parse_math": False}
    for i, name in enumerate(shown_names):
        panel.text(-0.7, i, name, ha="right", va="center", **style)
        panel.text(i, number - 0.3, name, ha="center", va="top", rotation=90, **style)
    if number <= NUMBERED_CELLS:
        for (row, column), value in np.ndenumerate(share):
            if value > 0:
                colour = "white" if value > 0.5 else "#222222"
                shown = f"{100 * value:.0f}"
                panel.text(column, row, shown, ha="center", va="center", color=colour, fontsize=8)
    return picture
