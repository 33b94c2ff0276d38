"""The pictures of a training: figures, difficulty and weight over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cdb_video.evaluation.canvas import COLOURS, GREY, as_percent, panels, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cdb_video.evaluation.report_data import ClassHistory

NAMED_HARDEST = 5
SIZE = (5.6, 2.8)
"""Inches: two beside each other fill the page."""
FEW_POINTS = 20
"""Up to so many, each is marked: with one alone there is no line to see."""


def draw_curves(events: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> dict[str, Figure]:
    """Loss, learning rate, mean class accuracy and speed over the epochs; none before a step."""
    train = [event for event in events if event["event"] == "train"]
    if not train:
        return {}
    evals = [event for event in events if event["event"] == "eval"]
    epochs = [event for event in events if "mean_class_accuracy" in event]
    figures: dict[str, Figure] = {}

    loss = _panel(figures, "loss")
    _plot(loss, train, ["loss"], "training", COLOURS[0])
    _plot(loss, evals, ["loss"], "validation", COLOURS[1])
    accuracy = _panel(figures, "mean class accuracy")
    for colour, head in zip(COLOURS * len(heads), heads, strict=False):
        name = "mean_class_accuracy"
        _plot(accuracy, epochs, [name, head], short(head), colour)
        _plot(accuracy, epochs, [name, f"{head}_train"], None, colour, linestyle=":")
    as_percent(accuracy.yaxis)
    _plot(_panel(figures, "learning rate"), train, ["lr"], None, COLOURS[0])
    _plot(_panel(figures, "clips a second"), train, ["clips_per_s"], None, COLOURS[0])
    for title, figure in figures.items():
        [panel] = figure.axes
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=None if title == "loss" else 0)
        if panel.get_legend_handles_labels()[0]:
            for text in panel.legend(frameon=False, fontsize=9).get_texts():
                text.set_parse_math(False)
    return figures


def draw_history(names: Sequence[str], history: ClassHistory) -> dict[str, Figure]:
    """Difficulty and weight of every class over the epochs; the hardest now in colour.

    A picture is left out where nothing is known, or where every weight is 1.
    """
    tables = {"difficulty": history.difficulty, "weight": history.weight}
    hardest = history.hardest(NAMED_HARDEST)
    figures: dict[str, Figure] = {}
    for title, table in tables.items():
        if not np.isfinite(table).any() or (table == 1).all():
            continue
        panel = _panel(figures, title, right=1.75)
        for some in np.array_split(
            np.delete(table, hardest, axis=1), len(names) // 100 + 1, axis=1
        ):
            # With gaps: an object a class is slow to make, and one of all is slow to draw.
            gaps = np.vstack([some, np.full((1, some.shape[1]), np.nan)])
            x = np.tile(np.append(history.epochs, np.nan), some.shape[1])
            panel.plot(x, gaps.T.ravel(), color=GREY, linewidth=0.7)
        for colour, i in zip(COLOURS, hardest, strict=False):
            # A measurement may have come at the last epoch alone.
            panel.plot(
                history.epochs,
                table[:, i],
                color=colour,
                linewidth=1.6,
                marker="." if len(history.epochs) <= FEW_POINTS else None,
            )
        panel.set_xlim(0, max(history.epochs[-1], 1))
        panel.set_ylim(bottom=-0.03 * np.nanmax(table))
        _name_ends(panel, [names[i] for i in hardest], table[-1, hardest])
    return figures


def _panel(figures: dict[str, Figure], title: str, *, right: float = 0.15) -> Axes:
    """The axes of a new figure over epochs."""
    from matplotlib.ticker import MaxNLocator

    figure, [panel] = panels(1, 1, figsize=SIZE, margins=(0.6, 0.5, right, 0.3))
    panel.set_title(title, loc="left", fontsize=11)
    panel.set_xlabel("epoch", fontsize=9)
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panel.grid(axis="y", color=GREY, linewidth=0.5, alpha=0.6)
    figures[title] = figure
    axes: Axes = panel
    return axes


def _plot(
    panel: Axes,
    events: Sequence[Mapping[str, Any]],
    path: Sequence[str],
    name: str | None,
    colour: str,
    linestyle: str = "-",
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
        panel.plot(
            *zip(*points, strict=True),
            color=colour,
            linewidth=1.5,
            linestyle=linestyle,
            marker="." if len(points) <= FEW_POINTS else None,
            label=name,
        )


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
        place = max(min(places[i], free), 0.08 * below)
        free = place - 0.08
        panel.text(
            1.03,
            place,
            short(names[i], 24),
            color=COLOURS[i],
            fontsize=9,
            va="center",
            transform=panel.transAxes,
            parse_math=False,
        )
