"""The tail as a picture: clips of every class, the largest class first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cdb_video.counts import FEW_SHOT, MANY_SHOT
from cdb_video.datasets.annotations import Split

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED = 60
"""Classes whose names still fit under an axis."""
MARKERS = {"val": ("tab:orange", "^", -0.15), "test": ("tab:green", "s", 0.15)}
"""Role -> colour, marker, and its place beside the bar's middle: equal counts do not hide."""


def plot_counts(path: Path, splits: Mapping[str, Split]) -> None:
    """Save an image of class counts: a part a head, classes by their training clips, log scale.

    Args:
        path: its suffix chooses the format.
        splits: role -> split, among them `train`.

    """
    from matplotlib.figure import Figure

    heads = splits["train"].heads
    figure = Figure(figsize=(10, 3.8 * len(heads)), layout="constrained")
    for axes, head in zip(figure.subplots(len(heads), squeeze=False).flat, heads, strict=True):
        _plot_head(axes, splits, head)
    figure.savefig(path, dpi=150)


def _plot_head(axes: Axes, splits: Mapping[str, Split], head: str) -> None:
    counts = {role: split.class_counts(head) for role, split in splits.items()}
    order = torch.argsort(counts["train"], descending=True, stable=True)
    rank = range(len(order))
    handles: list[Any] = [  # bars and lines have no type in common
        axes.bar(rank, counts["train"][order].tolist(), width=0.9, alpha=0.4, label="train")
    ]
    for role, (color, marker, beside) in MARKERS.items():
        if role in counts:
            places, clips = [place + beside for place in rank], counts[role][order].tolist()
            handles += axes.plot(places, clips, marker, color=color, markersize=3.5, label=role)
    # Linear below 1: a class without clips has a place at the bottom.
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(-0.2, 2 * max(MANY_SHOT, *(int(of_role.max()) for of_role in counts.values())))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylabel("clips")
    _mark_shots(axes)
    axes.set_xlim(-0.7, len(order) - 0.3)
    if len(order) <= MOST_NAMED:
        names = splits["train"].vocabularies[head].names
        axes.set_xticks(rank, [names[i] for i in order.tolist()], rotation=90, fontsize=7)
    else:
        axes.set_xlabel("classes by training clips")
    axes.set_title(f"{head}: {len(order)} classes", loc="left")
    axes.legend(handles=handles, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)


def _mark_shots(axes: Axes) -> None:
    for bound, name in ((FEW_SHOT - 0.5, "↓ few-shot"), (MANY_SHOT + 0.5, "↑ many-shot")):
        axes.axhline(bound, color="grey", linewidth=0.8, linestyle="--")
        axes.annotate(
            name,
            (1, bound),
            xytext=(4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=7,
            color="dimgrey",
            va="center",
        )
