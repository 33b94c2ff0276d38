"""The pictures of a report. They are data URIs: one file holds the page, and ids cannot meet."""

from __future__ import annotations

import base64
import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cdb_video.counts import FEW_SHOT, MANY_SHOT

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
LARGE_SVG = 150_000
"""Bytes from which on a PNG is tried as well."""

# Of Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#c8c8c8"


def picture_uri(picture: Figure) -> str:
    """A data URI: SVG with real text, or PNG where that is smaller."""
    import matplotlib

    # With the salt and without the date, the same report is the same file.
    style = {"svg.hashsalt": "cdb_video", "svg.fonttype": "none"}
    with warnings.catch_warnings(), matplotlib.rc_context(style):
        # The browser has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        data, kind = _saved(picture, format="svg", metadata={"Date": None}), "svg+xml"
        if len(data) > LARGE_SVG:
            png = _saved(picture, format="png", dpi=150, metadata={"Software": None})
            data, kind = min((data, kind), (png, "png"), key=lambda one: len(one[0]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _saved(picture: Figure, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.savefig(stream, **options)
    return stream.getvalue()


def draw_reliability(bins: Reliability) -> Figure:
    """Accuracy against confidence, above how many clips have that confidence."""
    picture, (upper, lower) = _panels(2, 1, figsize=(4.6, 4.6), height_ratios=[3, 1], sharex=True)
    width = 1 / len(bins.count)
    edges = np.arange(len(bins.count)) * width
    filled = bins.count > 0
    upper.bar(
        edges[filled], bins.accuracy[filled], width, align="edge", color=COLOURS[0], edgecolor="w"
    )
    upper.plot([0, 1], [0, 1], color="#666666", linewidth=1, linestyle="--")
    upper.plot(bins.confidence[filled], bins.accuracy[filled], "o", color=COLOURS[1], markersize=4)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share right")
    lower.bar(edges, bins.count, width, align="edge", color=GREY, edgecolor="w")
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
    picture, (panel,) = _panels(1, 1, figsize=(9, 4.4))
    known = np.flatnonzero(total > 0)
    x, y = train_counts[known], accuracy[known]
    area = 18 + 160 * total[known] / total.max()
    panel.scatter(x, y, s=area, color=COLOURS[0], alpha=0.55, linewidths=0)
    # Linear from 0 to 1, where a logarithm has no place for a class without training clips.
    panel.set_xscale("symlog", linthresh=1)
    panel.set(xlabel="training clips of the class", ylabel="accuracy", ylim=(-0.05, 1.08))
    panel.set_xlim(-0.1 if x.min() == 0 else 0.8 * x.min(), max(1.6 * x.max(), 2))
    for border in (FEW_SHOT, MANY_SHOT):
        panel.axvline(border, color="#999999", linewidth=0.8, linestyle=":")
    log_count = np.log1p(x)
    distance = np.zeros(len(y))
    if len(np.unique(x)) > 1:
        slope, offset = np.polyfit(log_count, y, 1)
        distance = np.abs(y - slope * log_count - offset)
        line = np.array([x.min(), x.max()])
        line = np.geomspace(*np.clip(line, 0.5, None), 50)
        panel.plot(line, slope * np.log1p(line) + offset, color="#666666", linewidth=1)
    _name_dots(panel, [names[i] for i in known], x, y, np.argsort(-distance, kind="stable"))
    return picture


def _name_dots(
    panel: Axes, names: Sequence[str], x: np.ndarray, y: np.ndarray, order: np.ndarray
) -> None:
    """Name the first of an order that do not stand in a named one's way."""
    left, right = panel.get_xlim()
    across = np.array([left, right])
    place = (np.arcsinh(x) - np.arcsinh(across[0])) / np.ptp(np.arcsinh(across))
    named: list[tuple[float, float]] = []
    for i in order:
        crowded = any(abs(place[i] - a) < 0.16 and abs(y[i] - b) < 0.05 for a, b in named)
        if crowded:
            continue
        to_left = place[i] > 0.75
        panel.annotate(
            _short(names[i]),
            (x[i], y[i]),
            xytext=(-7 if to_left else 7, 4),
            textcoords="offset points",
            ha="right" if to_left else "left",
            fontsize=9,
            parse_math=False,
        )
        named.append((float(place[i]), float(y[i])))
        if len(named) == NAMED_OUTLIERS:
            return


def draw_history(names: Sequence[str], history: ClassHistory) -> Figure:
    """Difficulty and weight of every class over the epochs; the hardest now in colour."""
    panels = {"difficulty": history.difficulty, "weight": history.weight}
    picture, axes = _panels(1, 2, figsize=(11.5, 3.8))
    hardest = history.hardest(NAMED_HARDEST)
    for panel, (title, values) in zip(axes, panels.items(), strict=True):
        others = np.delete(values, hardest, axis=1)
        panel.plot(history.epochs, others, color=GREY, linewidth=0.7)
        for colour, i in zip(COLOURS, hardest, strict=False):
            panel.plot(history.epochs, values[:, i], color=colour, linewidth=1.6)
        panel.set(xlabel="epoch", title=title, xlim=(0, max(history.epochs[-1], 1)))
        panel.margins(y=0.04)
        _name_ends(panel, [names[i] for i in hardest], values[-1, hardest])
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
    side = float(np.clip(2.6 + 0.27 * number, 4.2, 11.5))
    picture, (panel,) = _panels(1, 1, figsize=(side, side))
    total = confusion.sum(axis=1, keepdims=True)
    share = np.where(total > 0, confusion / np.maximum(total, 1), np.nan).astype(np.float32)
    panel.set_facecolor("#dddddd")
    # A root, so that a tenth of the clips can be seen.
    panel.imshow(share, cmap="Blues", norm=PowerNorm(0.6, 0, 1), interpolation="nearest")
    panel.set(xlabel="predicted", ylabel="true class")
    panel.spines[["top", "right"]].set_visible(True)
    if number <= NUMBERED_CELLS:
        for (row, column), value in np.ndenumerate(share):
            if value > 0:
                colour = "white" if value > 0.5 else "#222222"
                shown = f"{100 * value:.0f}"
                panel.text(column, row, shown, ha="center", va="center", color=colour, fontsize=9)
    if number <= NAMED_ROWS:
        size = min(9.0, 0.72 * 72 * side / number)
        shown_names = [_short(name) for name in names]
        panel.set_yticks(range(number), shown_names, fontsize=size, parse_math=False)
        panel.set_xticks(range(number), shown_names, fontsize=size, rotation=90, parse_math=False)
        panel.tick_params(length=0)
    return picture


def draw_curves(events: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> Figure:
    """Loss, learning rate, mean class accuracy and speed over the epochs."""
    picture, (loss, rate, accuracy, speed) = _panels(1, 4, figsize=(14, 3.2))
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
    return picture


def _plot(
    panel: Axes,
    events: Sequence[Mapping[str, Any]],
    path: Sequence[str],
    name: str | None,
    colour: str,
    **style: Any,
) -> None:
    """One figure of the events that have it, named at its last point."""
    x, y = [], []
    for event in events:
        value: Any = event
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            x.append(event["epoch"])
            y.append(value)
    if not x:
        return
    panel.plot(x, y, color=colour, linewidth=1.3, **style)
    if name is not None:
        panel.annotate(
            _short(name),
            (x[-1], y[-1]),
            xytext=(3, 3),
            textcoords="offset points",
            color=colour,
            fontsize=9,
            parse_math=False,
        )


def _panels(rows: int, columns: int, *, figsize: tuple[float, float], **options: Any) -> Any:
    """A picture and its flat array of axes; Any, as what subplots gives depends on its arguments."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=figsize, layout="constrained")
    axes = picture.subplots(rows, columns, squeeze=False, **options).ravel()
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=9)
        panel.title.set_fontsize(11)
    return picture, axes


def _short(name: str) -> str:
    return textwrap.shorten(name, 30, placeholder="…") if " " in name else name[:30]
