"""The pictures of a report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cdb_video.counts import FEW_SHOT, MANY_SHOT
from cdb_video.evaluation.canvas import panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cdb_video.evaluation.report_data import ClassHistory, Reliability

NAMED_OUTLIERS = 8
NAMED_HARDEST = 5
NUMBERED_CELLS = 12
"""Confusion matrices of so many classes or fewer have their percentages written in."""
NAMED_ROWS = 130
"""Larger confusion matrices have no class names: no one could read them."""

# Of Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#c8c8c8"


def draw_reliability(bins: Reliability) -> Figure:
    """Accuracy against confidence, above how many clips have that confidence."""
    picture, (upper, lower) = panels(
        2, 1, figsize=(4.6, 4.4), margins=(0.65, 0.55, 0.15, 0.1), height_ratios=[3, 1], sharex=True
    )
    width = 1 / len(bins.count)
    edges = np.arange(len(bins.count)) * width
    filled = bins.count > 0
    bar = {"width": width, "align": "edge", "edgecolor": "white"}
    upper.bar(edges[filled], bins.accuracy[filled], color=COLOURS[0], **bar)
    upper.plot([0, 1], [0, 1], color="#222222", linewidth=1, linestyle="--")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share right")
    lower.bar(edges, bins.count, color=GREY, **bar)
    lower.set(xlabel="confidence: score of the predicted class", ylabel="clips")
    return picture


def draw_accuracy_by_count(
    names: Sequence[str], train_counts: np.ndarray, accuracy: np.ndarray, total: np.ndarray
) -> Figure:
    """A dot a class that has clips; named are those farthest from the fitted line.

    Args:
        names: K class names.
        train_counts: (K,) training clips.
        accuracy: (K,) NaN where a class has no clip.
        total: (K,) clips of the split: the area of a dot.

    """
    picture, (panel,) = panels(1, 1, figsize=(10, 4.2), margins=(0.65, 0.55, 0.15, 0.1))
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
    for border in (FEW_SHOT, MANY_SHOT):
        panel.axvline(border, color="#999999", linewidth=0.8, linestyle=":")
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


def _name_dots(panel: Axes, names: Sequence[str], x: np.ndarray, y: np.ndarray) -> None:
    """Name the first dots whose names do not meet."""
    places = (panel.transData + panel.transAxes.inverted()).transform(np.column_stack([x, y]))
    named: list[tuple[float, float, float]] = []
    for name, dot, (across, up) in zip(names, zip(x, y, strict=True), places, strict=True):
        length = 0.0095 * len(_short(name))  # of 9 points, on this picture's width
        sign = -1 if across + length > 1 else 1
        left, right = sorted((across, across + sign * length))
        if any(left < b and right > a and abs(up - height) < 0.05 for a, b, height in named):
            continue
        panel.annotate(
            _short(name),
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


def draw_history(names: Sequence[str], history: ClassHistory) -> Figure | None:
    """Difficulty and weight of every class over the epochs; the hardest now in colour.

    A panel is left out where nothing is known, or where every weight is 1.
    """
    tables = {"difficulty": history.difficulty, "weight": history.weight}
    told = {
        name: table
        for name, table in tables.items()
        if np.isfinite(table).any() and not (table == 1).all()
    }
    if not told:
        return None
    picture, axes = panels(
        1, len(told), figsize=(6.2 * len(told), 3.6), margins=(0.5, 0.5, 2.0, 0.3), gaps=(2.5, 0)
    )
    hardest = history.hardest(NAMED_HARDEST)
    for panel, (title, table) in zip(axes, told.items(), strict=True):
        for some in np.array_split(
            np.delete(table, hardest, axis=1), len(names) // 100 + 1, axis=1
        ):
            # With gaps: an object a class is slow to make, and one of all is slow to draw.
            gaps = np.vstack([some, np.full((1, some.shape[1]), np.nan)])
            x = np.tile(np.append(history.epochs, np.nan), some.shape[1])
            panel.plot(x, gaps.T.ravel(), color=GREY, linewidth=0.7)
        for colour, i in zip(COLOURS, hardest, strict=False):
            panel.plot(history.epochs, table[:, i], color=colour, linewidth=1.6)
        panel.set(xlabel="epoch", title=title, xlim=(0, max(history.epochs[-1], 1)))
        panel.set_ylim(bottom=-0.03)
        _name_ends(panel, [names[i] for i in hardest], table[-1, hardest])
    return picture


def _name_ends(panel: Axes, names: Sequence[str], ends: np.ndarray) -> None:
    """Names beside the right ends of lines, in their colours, none on another."""
    bottom, top = panel.get_ylim()
    places = (ends - bottom) / (top - bottom)
    free = 1.0
    order = np.argsort(-places, kind="stable")
    below = len(order)
    for i in order:
        if np.isnan(places[i]):
            continue
        below -= 1
        place = max(min(places[i], free), 0.07 * below)
        free = place - 0.07
        panel.text(
            1.015,
            place,
            _short(names[i]),
            color=COLOURS[i],
            fontsize=9,
            va="center",
            transform=panel.transAxes,
            parse_math=False,
        )


def draw_confusion(names: Sequence[str], confusion: np.ndarray) -> Figure:
    """A row a true class, each divided by its clips; a class without clips is grey.

    Args:
        names: K class names, the most trained first.
        confusion: (K, K) clips of a row's class that were taken for a column's.

    """
    from matplotlib.colors import PowerNorm

    number = len(names)
    is_named = number <= NAMED_ROWS
    side = max(2.5, min(0.3 * number, 9.5), 0.1 * number * is_named)
    size = min(9.0, 0.8 * 72 * side / number)
    shown_names = [_short(name) for name in names] if is_named else []
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
    # A root, so that a tenth of the clips can be seen.
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


def draw_curves(events: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> Figure:
    """Loss, learning rate, mean class accuracy and speed over the epochs."""
    picture, (loss, rate, accuracy, speed) = panels(1, 4, figsize=(14, 3.2))
    train = [event for event in events if event["event"] == "train"]
    _plot(loss, train, ["loss"], "training", COLOURS[0])
    evals = [event for event in events if event["event"] == "eval"]
    _plot(loss, evals, ["loss"], "validation", COLOURS[1], marker=".")
    loss.set_title("loss")
    _plot(rate, train, ["lr"], None, COLOURS[0])
    rate.set_title("learning rate")
    epochs = [event for event in events if "mean_class_accuracy" in event]
    for colour, head in zip(COLOURS * len(heads), heads, strict=False):
        name = "mean_class_accuracy"
        _plot(accuracy, epochs, [name, head], head, colour, marker=".")
        _plot(accuracy, epochs, [name, f"{head}_train"], None, colour, linestyle=":")
    accuracy.set_title("mean class accuracy")
    accuracy.set_ylim(bottom=0)
    _plot(speed, train, ["clips_per_s"], None, COLOURS[0])
    speed.set_title("clips a second")
    speed.set_ylim(bottom=0)
    for panel in (loss, rate, accuracy, speed):
        panel.set_xlabel("epoch")
        panel.set_xlim(left=0)
        if panel.get_legend_handles_labels()[0]:
            for text in panel.legend(frameon=False, fontsize=9).get_texts():
                text.set_parse_math(False)
    return picture


def _plot(
    panel: Axes,
    events: Sequence[Mapping[str, Any]],
    path: Sequence[str],
    name: str | None,
    colour: str,
    **style: Any,
) -> None:
    """One figure of the events that have it."""
    points = []
    for event in events:
        value: Any = event
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            points.append((event["epoch"], value))
    if points:
        panel.plot(*zip(*points, strict=True), color=colour, linewidth=1.3, label=name, **style)


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
