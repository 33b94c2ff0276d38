"""The page of a comparison: one HTML file, its pictures inside, nothing fetched."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cdb_video.evaluation import pages
from cdb_video.evaluation.canvas import save_picture
from cdb_video.experiments.cells import CONTRASTED, FIGURES, Comparison, best_arms, shown
from cdb_video.experiments.statistics import MATTERS, Contrast

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of Okabe and Ito's palette, which colour-blind readers can tell apart.
VERDICT_COLOURS = {
    "helps": "#0072b2",
    "no worse": "#009e73",
    "undecided": "#666666",
    "hurts": "#d55e00",
}


def render_page(comparison: Comparison, content: Mapping[str, Any]) -> str:
    """The HTML.

    Args:
        comparison: gives tables, contrasts and pictures.
        content: that of `compare.json`; gives what was compared.

    """
    return pages.render(
        "experiments/comparison.html.j2",
        content=content,
        heads=[_head(comparison, head) for head in comparison.heads],
        figures=FIGURES,
        shown=shown,
        points=100 * MATTERS,
    )


def _head(comparison: Comparison, head: str) -> dict[str, Any]:
    rows = comparison.table(head)
    contrasts = {name: comparison.contrasts(head, figure) for figure, name in CONTRASTED.items()}
    return {
        "name": head,
        "rows": rows,
        "best": {figure: best_arms(rows, figure) for figure in FIGURES},
        "contrasts": contrasts,
        "picture": save_picture(draw(comparison, head)) if any(contrasts.values()) else None,
    }


def draw(comparison: Comparison, head: str) -> Figure:
    """A row of panels a reference, a panel a figure: each seed's difference, mean and interval."""
    from matplotlib.figure import Figure

    panels = {
        (reference, figure): [
            one for one in comparison.contrasts(head, figure) if one.reference == reference
        ]
        for _, reference in comparison.pairs
        for figure in CONTRASTED
    }
    references = list(dict.fromkeys(reference for (reference, _), found in panels.items() if found))
    heights = [
        1.1 + 0.5 * max(len(panels[reference, figure]) for figure in CONTRASTED)
        for reference in references
    ]
    picture = Figure(figsize=(10.5, sum(heights)), layout="constrained")
    grid = picture.subplots(
        len(references), len(CONTRASTED), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for line, reference in zip(grid, references, strict=True):
        for panel, (figure, name) in zip(line, CONTRASTED.items(), strict=True):
            _draw_panel(panel, comparison, panels[reference, figure])
            panel.set_title(name, fontsize=11, loc="left")
            label = f"points above {_wrapped(reference, 44)}"
            panel.set_xlabel(label, fontsize=9, parse_math=False)
        line[-1].set_yticklabels([])
    return picture


def _draw_panel(panel: Axes, comparison: Comparison, contrasts: Sequence[Contrast]) -> None:
    band = 100 * MATTERS
    panel.axvspan(-band, band, color="#eeeeee", linewidth=0)
    panel.axvline(0, color="#999999", linewidth=0.8)
    for place, one in enumerate(contrasts):
        own = comparison.values(one.arm, one.head, one.figure)
        other = comparison.values(one.reference, one.head, one.figure)
        seeds = [100 * (own[seed] - other[seed]) for seed in own.keys() & other.keys()]
        colour = VERDICT_COLOURS[one.verdict]
        panel.plot(
            seeds, [place + 0.24] * len(seeds), "o", color=colour, alpha=0.45, markersize=4, mew=0
        )
        mean = 100 * one.mean_difference
        half = 100 * (one.smallest_detectable or 0)
        panel.errorbar(
            mean, place, xerr=half, fmt="D", color=colour, markersize=5, capsize=3, linewidth=1.6
        )
        panel.text(
            1.02,
            place,
            one.verdict,
            color=colour,
            fontsize=9,
            va="center",
            transform=panel.get_yaxis_transform(),
        )
    panel.set_yticks(
        range(len(contrasts)),
        [_wrapped(one.arm, 26) for one in contrasts],
        fontsize=9,
        parse_math=False,
    )
    panel.set_ylim(len(contrasts) - 0.4, -0.5)
    panel.tick_params(axis="x", labelsize=9)
    panel.spines[["top", "right"]].set_visible(False)


def _wrapped(name: str, width: int) -> str:
    """At most two lines, broken at underscores as well."""
    lines = textwrap.wrap(name.replace("_", "_ "), width, max_lines=2, placeholder=" …")
    return "\n".join(line.replace("_ ", "_") for line in lines)
